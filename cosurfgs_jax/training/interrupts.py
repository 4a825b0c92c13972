"""Ctrl-C and SIGTERM as a request that a loop sees between two steps, so that it can save first."""

import os
import signal
import sys
import threading

_PATIENCE_S = 15
_STEPS_OF_PATIENCE = 3  # as long as that many steps took, where they are slow


def leave_at_once(number: int) -> None:
    """Ends the process with a signal's exit code, whatever its main thread does."""
    print(
        "\nstopped before a step was finished; the same command goes on from what is saved",
        file=sys.stderr,
        flush=True,
    )
    os._exit(128 + number)


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM only sets `signal_number`; a second one
    interrupts at once.

    Who sends SIGTERM does not wait for ever: where nobody has heard it after some seconds, or the
    time of some steps where they are slow (a program is being compiled, all photographs are drawn
    for a score), the process ends without saving. What is saved goes on. At Ctrl-C somebody is
    there who decides: a line says that a second one ends it at once.
    """

    def __init__(self, patience_s: float = _PATIENCE_S):
        """
        Args:
            patience_s: seconds from SIGTERM until the process ends if nobody calls `heard`; more
                where steps take long.
        """
        self.signal_number = 0
        self._patience_s = patience_s
        self._slow_s = 0.0
        self._timer: threading.Timer | None = None
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python delivers signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.heard()

    def heard(self) -> None:
        """The state is being saved, which may take its time."""
        if self._timer is not None:
            self._timer.cancel()

    def step_took(self, seconds: float) -> None:
        """How long the last step took: who asks waits for the end of the next one, however slow."""
        self._slow_s = _STEPS_OF_PATIENCE * seconds

    def _on_signal(self, number: int, frame) -> None:
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = number
        if number == signal.SIGINT:
            # Not by sys.stderr, which may be in the middle of a write.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")
            return
        patience_s = max(self._patience_s, self._slow_s)
        self._timer = threading.Timer(patience_s, leave_at_once, [number])
        self._timer.daemon = True
        self._timer.start()

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def exit(self) -> None:
        """Ends the program with the exit code of the signal: 130 for Ctrl-C, 143 for SIGTERM. Save
        before.
        """
        raise SystemExit(128 + self.signal_number)
