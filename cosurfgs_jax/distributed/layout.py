"""Which device carries which blocks: logical blocks and edges laid over the mesh of devices that
there is.

The blocks stand on the devices in order (of the mesh), `blocks_per_device` rows on each: of a whole
place all blocks, of a job of its own one. Nothing that is computed depends on that: a block's
training is the same program with the same input wherever it runs.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import InputError

AXES = ("edge", "device")
SPEC = PartitionSpec(AXES)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Blocks on devices. D devices in the mesh, at most `blocks_per_device` blocks on each."""

    mesh: Mesh  # axes AXES
    blocks: tuple[int, ...]  # their numbers, ascending
    blocks_per_device: int

    @functools.cached_property
    def num_devices(self) -> int:
        """D."""
        return self.mesh.devices.size

    @functools.cached_property
    def local_devices(self) -> list[int]:
        """Positions in the mesh of this process's devices."""
        me = jax.process_index()
        return [i for i, device in enumerate(self.mesh.devices.flat) if device.process_index == me]

    @functools.cached_property
    def local_blocks(self) -> list[int]:
        """The blocks that this process carries, and whose photographs it reads."""
        return [block for device in self.local_devices for block in self.blocks_of(device)]

    def blocks_of(self, device: int) -> list[int]:
        """The blocks of the device at a position of the mesh."""
        first = device * self.blocks_per_device
        return list(self.blocks[first : first + self.blocks_per_device])

    def block_at(self, device: int, row: int) -> int | None:
        """The block in a row of a device, if there is one."""
        position = device * self.blocks_per_device + row
        return self.blocks[position] if position < len(self.blocks) else None

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {block: position for position, block in enumerate(self.blocks)}

    def device_of(self, block: int) -> int:
        """The position in the mesh of the device that carries a block."""
        return self._positions[block] // self.blocks_per_device

    def row_of(self, block: int) -> int:
        """The row of a block on its device."""
        return self._positions[block] % self.blocks_per_device

    def process_of(self, block: int) -> int:
        """Which process carries a block."""
        return self.mesh.devices.flat[self.device_of(block)].process_index

    def put(self, make: Callable[[int], Any]) -> Any:
        """One array per leaf, with an axis of D devices in front, from what each device shall hold.

        Args:
            make: position of a device in the mesh -> pytree of NumPy arrays; called for this
                process's devices only.
        Returns:
            The pytree of global arrays, leaf [D, ...] sharded by its first axis.
        """
        sharding = NamedSharding(self.mesh, SPEC)
        devices = self.mesh.devices.flat
        parts = [
            jax.tree.map(
                lambda leaf, i=i: jax.device_put(np.asarray(leaf)[None], devices[i]), make(i)
            )
            for i in self.local_devices
        ]

        def join(*shards):
            shape = (self.num_devices, *shards[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

        return jax.tree.map(join, *parts)

    def put_row(self, row: int, make: Callable[[int | None], Any]) -> Any:
        """`put` of the blocks in one row; `make` gets the number of the block, or None where a
        device has none there.
        """
        return self.put(lambda device: make(self.block_at(device, row)))

    def pack(self, make: Callable[[int], Any]) -> Packed:
        """What `put` puts, as one array: for the few numbers that a step needs.

        Args:
            make: position of a device in the mesh -> pytree of numbers (`Packed.pack`).
        Returns:
            Packed of [D, n]. In a single process it is of NumPy, as the call that takes it sends it
            more cheaply than `put`.
        """
        packed = [Packed.pack(make(device)) for device in self.local_devices]
        words = np.stack([one.words for one in packed])
        if jax.process_count() > 1:
            sharding = NamedSharding(self.mesh, SPEC)
            words = jax.make_array_from_process_local_data(
                sharding, words, (self.num_devices, words.shape[1])
            )
        return Packed(words, packed[0].form)

    def pack_row(self, row: int, make: Callable[[int | None], Any]) -> Packed:
        """`pack` of the blocks in one row, as `put_row` is of `put`."""
        return self.pack(lambda device: make(self.block_at(device, row)))

    def get(self, tree: Any, device: int) -> Any:
        """What one of this process's devices holds of global arrays, as NumPy copies without the
        device axis.
        """
        target = self.mesh.devices.flat[device]
        shards = jax.tree.map(
            lambda leaf: next(
                shard.data for shard in leaf.addressable_shards if shard.device == target
            ),
            tree,
        )
        # All are under way before the first is waited for; copies, as the arrays may be donated
        # next.
        return jax.tree.map(lambda value: np.array(value[0]), jax.device_get(shards))

    def get_blocks(self, rows: Sequence[Any]) -> dict[int, Any]:
        """What `get` gives for every block of this process, from one pytree of global arrays per
        row.
        """
        places = [
            (device, row) for device in self.local_devices for row in range(self.blocks_per_device)
        ]
        return {
            block: self.get(rows[row], device)
            for device, row in places
            if (block := self.block_at(device, row)) is not None
        }

    def join_rows(self, rows: Sequence[Any]) -> Any:
        """One pytree with an axis of all blocks in front, [D * blocks_per_device, ...] in the order
        of blocks, for saving.
        """
        if len(rows) == 1:
            return rows[0]
        sharding = NamedSharding(self.mesh, SPEC)

        def join(*leaves):
            shards = []
            for device in self.local_devices:
                stack = np.stack([self.get(leaf, device) for leaf in leaves])
                shards.append(jax.device_put(stack, self.mesh.devices.flat[device]))
            shape = (self.num_devices * len(rows), *leaves[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)

        return jax.tree.map(join, *rows)

    def split_rows(self, joined: Any) -> list[Any]:
        """The rows that `join_rows` joined."""
        if self.blocks_per_device == 1:
            return [joined]
        sharding = NamedSharding(self.mesh, SPEC)

        def split(leaf, row):
            by_device = {shard.device: shard.data for shard in leaf.addressable_shards}
            shards = [
                by_device[self.mesh.devices.flat[device]][row : row + 1]
                for device in self.local_devices
            ]
            return jax.make_array_from_single_device_arrays(
                (self.num_devices, *leaf.shape[1:]), sharding, shards
            )

        return [
            jax.tree.map(lambda leaf, row=row: split(leaf, row), joined)
            for row in range(self.blocks_per_device)
        ]

    def abstract_rows(self, block: Any) -> Any:
        """The shapes and shardings of `join_rows`'s result, from one block's."""
        sharding = NamedSharding(self.mesh, SPEC)
        total = self.num_devices * self.blocks_per_device
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((total, *leaf.shape), leaf.dtype, sharding=sharding),
            block,
        )


def _num_rows(num_devices: int, blocks_per_device: int, edge_of_block: np.ndarray) -> int:
    """Rows of the mesh: as many as possible whose borders are borders of edges, so that an edge
    talks within its row.
    """
    starts = {0, *(np.flatnonzero(np.diff(edge_of_block)) + 1).tolist()}
    num_edges = len(starts)
    for rows in range(min(num_edges, num_devices), 1, -1):
        width = num_devices // rows * blocks_per_device
        borders = [row * width for row in range(rows)]
        if num_devices % rows == 0 and all(border in starts for border in borders):
            return rows
    return 1


def make_layout(edge_of_block: np.ndarray, num_devices: int = 0) -> Layout:
    """Lays blocks over devices, as evenly as possible, with no more devices than there are blocks.

    Args:
        edge_of_block: i64[B], ascending.
        num_devices: of all processes together; 0 = all that JAX sees.
    Raises:
        InputError: more devices than there are, a number that the processes cannot share evenly, or
            more processes than blocks.
    """
    check_num_devices(num_devices)
    devices = jax.devices()
    num_processes = jax.process_count()
    num_blocks = len(edge_of_block)
    wanted = num_devices or len(devices)
    if num_processes > num_blocks:
        raise InputError(
            f"--num_processes: expected at most one process a block, that is {num_blocks}, got "
            f"{num_processes}; "
            "start fewer processes, or set a larger config.partition.num_blocks"
        )
    blocks_per_device = -(-num_blocks // wanted)
    used = -(-num_blocks // blocks_per_device)
    per_process = -(-used // num_processes)
    by_process: dict[int, list] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    chosen = [
        device for process in sorted(by_process) for device in by_process[process][:per_process]
    ]
    rows = _num_rows(len(chosen), blocks_per_device, np.asarray(edge_of_block))
    mesh = jax.make_mesh(
        (rows, len(chosen) // rows), AXES, axis_types=(AxisType.Auto,) * 2, devices=chosen
    )
    if len(chosen) < wanted:
        _log.info("%d of %d devices are used: there are %d blocks", len(chosen), wanted, num_blocks)
    return Layout(mesh, tuple(range(num_blocks)), blocks_per_device)


def layout_of_block(block: int) -> Layout:
    """One block by itself, on the first device of this process."""
    mesh = jax.make_mesh(
        (1, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:1]
    )
    return Layout(mesh, (block,), 1)


def check_num_devices(num_devices: int) -> None:
    """Raises InputError if more devices are asked for than there are, or a number that the
    processes cannot share.
    """
    there = len(jax.devices())
    num_processes = jax.process_count()
    if num_devices > there:
        kind = jax.devices()[0].platform
        hint = (
            "set JAX_NUM_CPU_DEVICES before the start, or ask for fewer"
            if kind == "cpu"
            else "ask for fewer"
        )
        raise InputError(
            f"config.mesh.num_devices: expected at most the {there} {kind} device(s) that JAX "
            "sees, got "
            f"{num_devices}; {hint}"
        )
    if num_devices % num_processes:
        raise InputError(
            f"config.mesh.num_devices: expected a multiple of the {num_processes} processes, got "
            f"{num_devices}; "
            "every process gives the same number of devices"
        )


def sharded(
    function: Callable, layout: Layout, donate: Sequence[int] = (), static: Sequence[str] = ()
) -> Callable:
    """Compiles a function of one device for all devices of the mesh; it may talk over the axes, and
    need not.

    Args:
        function: takes and gives pytrees without the device axis; static arguments by keyword.
        layout: the mesh.
        donate: positions of arguments whose memory is reused.
        static: names of static arguments.
    Returns:
        The jitted function of global arrays [D, ...]. Static arguments by keyword.
    """

    def run(*arguments, **options):
        def on_device(*local):
            result = function(*jax.tree.map(lambda leaf: leaf[0], local), **options)
            return jax.tree.map(lambda leaf: leaf[None], result)

        return jax.shard_map(on_device, mesh=layout.mesh, in_specs=SPEC, out_specs=SPEC)(*arguments)

    run.__name__ = _name_of(function)  # what profiles and logs of compiling say
    return jax.jit(run, donate_argnums=tuple(donate), static_argnames=tuple(static))


def _name_of(function: Callable) -> str:
    """Of the innermost function of a partial one."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", "run")
