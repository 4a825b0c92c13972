"""The errors that a user can mend."""


class InputError(ValueError):
    """A wrong input, setting or file that the user can mend.

    The message is one sentence (or two): name, expected, got, and what to do. Programs print it
    without a traceback and exit with code 2.
    """
