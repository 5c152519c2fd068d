"""How a program ends: with its result, with one message for the user, or with a traceback where something is wrong."""

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.base.errors import UserError
from pipelines.base.machine_errors import machine_error
from pipelines.base.quiet_libraries import silence_libraries
from pipelines.base.signals import Interrupted, raise_on_signals


def run_program(app: Callable[..., object]) -> None:
    """`smalti …`. A mistake of the user or a failure of the machine is one message and exit code 2, a signal is one
    message and 128 + its number; `--debug` anywhere shows the traceback. Typer ends without a word when the reader of
    a pipe has left (`smalti inspect … | head`).
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    raise_on_signals()
    silence_libraries()
    gc.set_threshold(100_000, 50, 50)  # importing torch makes many objects that stay: looking through them takes 0.2 s
    try:
        app(args=arguments, prog_name="smalti")
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else machine_error(error)
        exit_code, first = _exit_code_of_all(1 if message is None else 2)
        if first and (debug or message is None):
            raise
        _end(exit_code, message if first else None)
    except Interrupted as stop:
        exit_code, first = _exit_code_of_all(stop.exit_code)
        _end(exit_code, str(stop) if first else None)


def _exit_code_of_all(mine: int) -> tuple[int, bool]:
    """The exit code of all processes, and whether this one speaks for them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return mine, True
    from pipelines.base.rank_failures import report_failure  # imports torch

    return report_failure(mine)


def _end(exit_code: int, message: str | None) -> NoReturn:
    if message is not None:
        print(f"smalti: {message}", file=sys.stderr)
    if "triton" not in sys.modules:  # whose bindings would report all that is left as leaked
        gc.freeze()  # at its end the interpreter would look through all of torch's objects once more: 0.3 s
    sys.exit(exit_code)
