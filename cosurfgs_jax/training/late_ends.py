"""Keeps what happens after a failed restore or save off the terminal.

orbax gives up at the first array that cannot be read or written and closes its event loop. The
other reads and writes end later, in TensorStore's threads or when their coroutines are collected,
and each prints an error. orbax has no call that waits for them, and they may end before the
failure is known. So a filter is put on before, and stays where a restore or save has failed.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

_MESSAGES = ("Event loop is closed", "Encountered error while reading array index")


@contextlib.contextmanager
def dropped() -> Iterator[None]:
    """Drops them during a restore, and after it where it has failed."""
    report_again = drop()
    yield
    report_again()


def drop() -> Callable[[], None]:
    """Drops them from now on.

    Returns:
        A function to call once, where all went well: they are reported again, unless another
        restore or save is under way or has failed.
    """
    hook = sys.unraisablehook
    if not isinstance(hook, _Filter):
        hook = _Filter(hook)
        sys.unraisablehook = hook
    hook.num_reasons += 1
    return hook.release


def nothing() -> None:
    """What to call where nothing was dropped."""


class _Filter:
    """A hook that drops them and passes on all others."""

    def __init__(self, report: Callable[[Any], object]):
        self._report = report
        self.num_reasons = 0  # restores and saves that are under way or have failed

    def __call__(self, unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(_MESSAGES):
            self._report(unraisable)

    def release(self) -> None:
        self.num_reasons -= 1
        if self.num_reasons == 0 and sys.unraisablehook is self:
            sys.unraisablehook = self._report
