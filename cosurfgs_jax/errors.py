"""The errors that are a user's to mend."""


class InputError(ValueError):
    """A wrong input, setting or file that the user can mend.

    The message is one sentence (or two): the name of the thing, what was expected, what was got,
    and what to do. Programs print it without a traceback and exit with code 2.
    """
