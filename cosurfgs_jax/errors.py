"""The errors that a user can mend, and the check of values that may be missing."""

from typing import TypeVar

_T = TypeVar("_T")


class InputError(ValueError):
    """A wrong input, setting or file that the user can mend.

    The message is one sentence (or two): name, expected, got, and what to do. Programs print it
    without a traceback and exit with code 2.
    """


class BadLossError(FloatingPointError):
    """A loss became NaN or infinite.

    The message names the step, the photograph and the last good checkpoint. Programs print it
    without a traceback and exit with code 1.
    """


def required(value: _T | None, name: str) -> _T:
    """A value that may be None in general, and is not where this is called.

    Args:
        value: the value.
        name: what it is, for the message.
    Raises:
        ValueError: it is None after all, which is a mistake of the program.
    """
    if value is None:
        raise ValueError(f"{name}: expected a value, got None")
    return value
