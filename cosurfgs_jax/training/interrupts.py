"""Ctrl-C and SIGTERM as a request that a loop sees between two steps, so that it can save first."""

import signal
import threading


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM only sets `signal_number`; a second one
    interrupts at once.
    """

    def __init__(self):
        self.signal_number = 0
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

    def _on_signal(self, number: int, frame) -> None:
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = number

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def exit(self) -> None:
        """Ends the program with the exit code of the signal: 130 for Ctrl-C, 143 for SIGTERM. Save
        before.
        """
        raise SystemExit(128 + self.signal_number)
