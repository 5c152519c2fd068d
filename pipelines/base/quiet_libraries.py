"""On the command line, warnings of libraries are not for the user; what smalti itself has to say is one line."""

import logging
import os
import sys
import warnings
from typing import Any

from pipelines.base.errors import DataWarning

ENVIRONMENT = {
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


def silence_libraries() -> None:
    """For the whole process. `python -W …` and variables that the user has set stay in force."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if logging.lastResort is not None:  # what libraries log where nobody has asked for it
        logging.lastResort.setLevel(logging.ERROR)
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DataWarning)
    warnings.showwarning = _show


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"smalti: {message}", file=sys.stderr)
