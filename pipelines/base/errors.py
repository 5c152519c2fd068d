"""The exception for a mistake that the user can correct."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A user's mistake. The message names the file or key, what was found and what was expected.

    The command line prints it without a traceback and exits with code 2; `--debug` shows the traceback.
    """


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put the name of an option, or of the block that holds the key, before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


class DataWarning(UserWarning):
    """Something in the user's data is left out or replaced. The command line prints it as one line."""
