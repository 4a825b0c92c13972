"""What steps report: kept on the devices until a line is due, then fetched together."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Array

from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.training.step import StepReport

_MAX_KEPT = 256  # steps, whatever config.train.log_every is


class RecentReports:
    """The reports of the steps since the last line."""

    def __init__(self, layout: Layout):
        """
        Args:
            layout: of the blocks.
        """
        self._layout = layout
        self._on_devices: list[Sequence[Packed]] = []
        self._fetched: list[dict[int, StepReport]] = []

    def add(self, rows: Sequence[Packed]) -> None:
        """Notes one step; waits for nothing, but for once in 256 steps without a line.

        Args:
            rows: of each row of the layout a packed `StepReport`, [D, n].
        """
        self._on_devices.append(rows)
        if len(self._on_devices) >= _MAX_KEPT:
            self._fetch()

    def take(self) -> list[dict[int, StepReport]]:
        """The reports of all steps since the last call, oldest first: {local block: StepReport of
        NumPy}. Waits for them.
        """
        self._fetch()
        result = self._fetched
        self._fetched = []
        return result

    def peek(self) -> list[dict[int, StepReport]]:
        """What `take` would give, which stays."""
        self._fetch()
        return list(self._fetched)

    def _fetch(self) -> None:
        self._fetched += fetch_parcels(self._layout, self._on_devices)
        self._on_devices = []


def fetch_parcels(layout: Layout, steps: Sequence[Sequence[Packed]]) -> list[dict[int, Any]]:
    """Unpacks the reports of several steps with one fetch: all copies are under way before the
    first is waited for.

    Args:
        layout: of the blocks.
        steps: of each step the packed reports [D, n] of each row.
    Returns:
        Of each step {local block: what was packed, of NumPy}.
    """
    positions = {device: number for number, device in enumerate(layout.mesh.devices.flat)}
    shards = [
        [
            {
                positions[shard.device]: shard.data
                for shard in cast(Array, packed.words).addressable_shards
            }
            for packed in rows
        ]
        for rows in steps
    ]
    result = []
    for rows, fetched in zip(steps, jax.device_get(shards), strict=True):
        blocks = {}
        for row, (packed, by_device) in enumerate(zip(rows, fetched, strict=True)):
            for device, words in by_device.items():
                block = layout.block_at(device, row)
                if block is not None:
                    blocks[block] = Packed(words[0], packed.form).open()
        result.append(dict(sorted(blocks.items())))
    return result


def numbers_of(report: StepReport) -> dict[str, float]:
    """What is logged as a mean over steps, under the names of the log.

    A number that is NaN had nothing to measure and is left out: a photograph of which no pixel
    counts has no PSNR (in MAS, one that shows only what others' models draw).
    """
    shown = {name: float(value) for name, value in report.shown.items()}
    numbers = {name: value for name, value in shown.items() if not np.isnan(value)}
    return {"loss": float(report.loss), **numbers}


def mean_numbers(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each name over the rows that have it: the geometric losses may begin between two lines."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
