"""How far the host runs ahead of the devices."""

import collections
from typing import Any

import jax

from cosurfgs_jax.distributed.layout import Layout


def programs_ahead(layout: Layout) -> int:
    """How many launched programs may still be running when the host goes on; decided here for all
    stages.

    One on accelerators: while it runs, the host launches the next, and the device waits for the
    host no longer than the rasterizer takes to read back how many pairs it has. More would only
    hold memory. None on CPUs: there the programs share the cores, so that nothing is gained, and
    several programs with collectives in flight can wait for each other's threads for ever.
    """
    return 0 if layout.mesh.devices.flat[0].platform == "cpu" else 1


class DispatchLimit:
    """Keeps the host no further ahead than it may be."""

    def __init__(self, num_ahead: int):
        """
        Args:
            num_ahead: of launched programs that may still be running (`programs_ahead`).
        """
        self._num_ahead = num_ahead
        self._running: collections.deque[Any] = collections.deque()

    def launched(self, result: Any) -> None:
        """Notes one more launched program, and waits for older ones.

        Args:
            result: something small that it gives and that is never donated, such as its report.
        """
        self._running.append(result)
        while len(self._running) > self._num_ahead:
            jax.block_until_ready(self._running.popleft())
