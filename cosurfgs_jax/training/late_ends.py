"""Keeps what happens after a failed restore or save off the terminal.

orbax gives up at the first array that cannot be read or written and closes its event loop. The
other reads and writes end later, in TensorStore's threads or when their coroutines are collected,
and each prints an error. orbax has no call that waits for them, and they may end before the
failure is known. So a filter is put on before, and stays where a restore or save has failed.
"""

import contextlib
import functools
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
        A function to call where all went well: they are reported again, unless an earlier failure
        still has them dropped.
    """
    report = sys.unraisablehook
    if getattr(report, "func", None) is _report_others:  # of an earlier failure
        return nothing
    filtered = functools.partial(_report_others, report)
    sys.unraisablehook = filtered

    def report_again() -> None:
        if sys.unraisablehook is filtered:
            sys.unraisablehook = report

    return report_again


def nothing() -> None:
    """What to call where nothing was dropped."""


def _report_others(report: Callable[[Any], object], unraisable: Any) -> None:
    if not str(unraisable.exc_value).startswith(_MESSAGES):
        report(unraisable)
