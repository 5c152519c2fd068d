"""The exception for a mistake that the user can correct."""


class UserError(Exception):
    """A user's mistake. The message names the file or key, what was found and what was expected.

    The command line prints it without a traceback and exits with code 2; `--debug` shows the traceback.
    """


class DataWarning(UserWarning):
    """Something in the user's data is left out or replaced. The command line prints it as one line."""
