"""Photographs on the devices: kept there where all of them fit, else brought for each step.

One mechanism for both. A step is given a table of photographs and picks from it by number: a table
of all photographs of its block, or of the one that was just brought.
"""

import collections
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import SPEC, Layout, sharded
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene

# of the memory that is free when a stage begins: the model has yet to grow, and drawing needs room
_FREE_FRACTION = 0.25
_log = logging.getLogger(__name__)


def shelf_bytes(device_memory_mb: int, layout: Layout) -> int:
    """The budget for what is kept on each device; every process calls it, and all get the same.

    Args:
        device_memory_mb: `data.device_memory_mb`: MiB, or below 0 for a fraction of what the
            devices say is free. Those that keep no count, as CPUs, whose memory is the host's, get
            nothing.
        layout: of the blocks.
    """
    if device_memory_mb >= 0:
        return device_memory_mb * 2**20
    free = free_bytes(
        [layout.mesh.devices.flat[device].memory_stats() for device in layout.local_devices]
    )
    return int(_FREE_FRACTION * processes.gather(np.array(free)).min())


def free_bytes(stats: Sequence[dict | None]) -> int:
    """What is free on the fullest of some devices, from their `memory_stats`; 0 if one keeps no
    count.
    """
    return max(
        0,
        min(
            (item or {}).get("bytes_limit", 0) - (item or {}).get("bytes_in_use", 0)
            for item in stats
        ),
    )


def pick(table: Any, slot) -> Any:
    """One item of a table [R, ...] a leaf. Inside a compiled function."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, slot, keepdims=False), table
    )


def _store(table: Any, item: Any, slot, is_new) -> Any:
    """The table with an item in a slot; as it was where it is not new."""

    def store(leaf, value):
        value = jnp.where(is_new, value, jax.lax.dynamic_index_in_dim(leaf, slot, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(leaf, value, slot, 0)

    return jax.tree.map(store, table, item)


class DeviceCache:
    """What the steps of blocks need of their views: a pytree of NumPy arrays each, an item.

    The items of one row of the layout and of one image size make a table [D, R, ...] a leaf; R is
    the most of them that a block of the row has.
    """

    def __init__(
        self,
        partitioned: PartitionedScene,
        layout: Layout,
        load: Callable[[int | None, int], Any],
        num_bytes: int,
    ):
        """
        Args:
            place, layout: of the run.
            load: (number of a block, view) -> its item; block None: something of the same shape,
                for a device without a block.
            num_bytes: on each device, for what is kept. Where not all items fit, none is kept.
        """
        self._layout = layout
        self._load = load
        common = partitioned.photo_size
        self._size_of = (lambda view: common) if common else partitioned.views.image_size
        self._slots: dict[int, dict[int, int]] = {}  # of each block: view -> slot
        self._num_slots: dict[tuple[int, tuple[int, int]], int] = {}  # of each row and size: R
        blocks = [partitioned.blocks[number] for number in layout.blocks]
        for block in blocks:
            self._slots[block.number] = self._deal_slots(block)
        self._tables: dict[tuple[int, tuple[int, int]], Any] = {}
        self._there: set[tuple[int, int]] = set()  # (block, view), of all processes
        self._num_to_come = sum(len(block.views) for block in blocks)
        self._store = sharded(_store, layout, donate=(0,))
        self.is_keeping = False
        if num_bytes:
            first = int(blocks[0].views[0])
            item = jax.tree.leaves(load(None if common else blocks[0].number, first))
            per_pixel = sum(leaf.nbytes for leaf in item) / math.prod(self._size_of(first))
            needed = sum(
                count * math.prod(size) * per_pixel for (_, size), count in self._num_slots.items()
            )
            self.is_keeping = needed <= num_bytes
            _log.info(
                "photographs %s: %d MiB a device, %d MiB are given to them "
                "(config.data.device_memory_mb)",
                "stay on the devices" if self.is_keeping else "go to the devices at each step",
                math.ceil(needed / 2**20),
                num_bytes // 2**20,
            )

    def _deal_slots(self, block: Block) -> dict[int, int]:
        """The slots of a block's views, counted for each size by itself."""
        slots: dict[int, int] = {}
        counts: collections.Counter = collections.Counter()
        for view in map(int, block.views):
            key = self._layout.row_of(block.number), self._size_of(view)
            slots[view] = counts[key]
            counts[key] += 1
            self._num_slots[key] = max(self._num_slots.get(key, 0), counts[key])
        return slots

    def slot(self, block: int | None, view: int) -> np.int32:
        """Where a view's item stands in the table that `bring` gives."""
        return np.int32(self._slots[block][view] if self.is_keeping and block is not None else 0)

    def is_there(self, block: int, view: int) -> bool:
        """Whether a view's item is on its device already, and needs no decoding."""
        return (block, view) in self._there

    def bring(self, row: int, *choices: Callable[[int], int]) -> tuple[Any, ...]:
        """Brings the items that a row's blocks use next, where they are not there already.

        What earlier calls gave for the row is used up.

        Args:
            row: of the layout.
            *choices: each (number of a block) -> one of its views.
        Returns:
            For each choice a table.
        """
        if not self.is_keeping:
            return tuple(
                self._layout.put_row(
                    row,
                    lambda number, view_of=view_of: jax.tree.map(
                        lambda leaf: leaf[None], self._load(number, view_of(number or 0))
                    ),
                )
                for view_of in choices
            )
        keys = [self._keep(row, view_of) for view_of in choices]
        return tuple(self._tables[key] for key in keys)

    def _keep(self, row: int, view_of: Callable[[int], int]) -> tuple[int, tuple[int, int]]:
        """The key of the table that has one view of each of a row's blocks; stores those that it
        lacks.
        """
        layout = self._layout
        # The first device has a block in every row.
        key = row, self._size_of(view_of(layout.blocks_of(0)[row]))
        if not self._num_to_come:
            return key
        views = {
            block: view_of(block)
            for device in range(layout.num_devices)
            if (block := layout.block_at(device, row)) is not None
        }
        missing = {block for block, view in views.items() if not self.is_there(block, view)}
        if not missing:
            return key
        # Blocks in lockstep: the devices of the others get something that is not stored.
        items = layout.put_row(
            row,
            lambda block: self._load(*((block, views[block]) if block in missing else (None, 0))),
        )
        if key not in self._tables:
            self._tables[key] = self._empty(items, self._num_slots[key])
        slots = layout.put_row(
            row, lambda block: (self.slot(block, views.get(block, 0)), np.bool_(block in missing))
        )
        self._tables[key] = self._store(self._tables[key], items, *slots)
        self._there |= {(block, views[block]) for block in missing}
        self._num_to_come -= len(missing)
        return key

    def _empty(self, items: Any, num_slots: int) -> Any:
        def make():
            return jax.tree.map(
                lambda leaf: jnp.zeros((leaf.shape[0], num_slots, *leaf.shape[1:]), leaf.dtype),
                items,
            )

        return jax.jit(make, out_shardings=NamedSharding(self._layout.mesh, SPEC))()
