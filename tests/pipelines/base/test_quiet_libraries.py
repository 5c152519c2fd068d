"""A library's warning never reaches the user of a command; smalti's own word about the data does, as one line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = """
import logging, sys, warnings
from pipelines import cli
from pipelines.base.errors import DataWarning

def body(**_):
    for category in (UserWarning, FutureWarning, DeprecationWarning, RuntimeWarning, ResourceWarning):
        warnings.warn("of a library", category)
    logging.getLogger("library").warning("of a library")
    warnings.warn("an image is left out", DataWarning)

cli.app = body
cli.main()
"""


def said(*options):
    return subprocess.run([sys.executable, *options, "-c", CODE], cwd=ROOT, capture_output=True, text=True).stderr


def test_only_our_own_word_is_said():
    assert said() == "smalti: an image is left out\n"


def test_whoever_asks_for_warnings_gets_them():
    assert "FutureWarning: of a library" in said("-W", "default")


@pytest.mark.slow
def test_the_imports_of_a_command_say_nothing():
    code = "from pipelines import cli; cli.app = lambda **_: __import__('pipelines.run'); cli.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
