"""What blocks train on: which photographs each one uses at each step, and with which others they
are compared.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import required
from cosurfgs_jax.losses.inputs import SecondView
from cosurfgs_jax.training.device_cache import DeviceCache, pick, shelf_bytes
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, Photographs
from cosurfgs_jax.training.partners import BlockPartners
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.schedule import ViewOrder
from cosurfgs_jax.training.step import Batch
from cosurfgs_jax.types import on_host

_PREFETCH = 4  # photographs of each block decoded ahead, and more where threads would be idle
_STEPS_REMEMBERED = (
    64  # of each block: what it uses is asked for when it is prefetched and when it is sent
)
_MASKS = 6  # which random numbers of a run these are; others have other numbers


def each_view(partitioned: PartitionedScene, layout: Layout, row: int) -> Iterator:
    """All training views of the blocks in a row, in step.

    Yields:
        (Camera [D, ...], bool[D] whether it is one of the block's or stands in for one that it
        lacks, image size).
    """
    blocks = [
        partitioned.blocks[number]
        for device in range(layout.num_devices)
        if (number := layout.block_at(device, row)) is not None
    ]
    for index in range(max(len(block.views) for block in blocks)):

        def make(number: int | None, index=index):
            views = partitioned.blocks[0 if number is None else number].views
            is_active = number is not None and index < len(views)
            return partitioned.views.camera_arrays(int(views[index if is_active else 0])), np.bool_(
                is_active
            )

        camera, is_active = layout.put_row(row, make)
        yield (
            camera,
            is_active,
            partitioned.photo_size or partitioned.views.image_size(int(blocks[0].views[index])),
        )


class PackedBatch(NamedTuple):
    """A Batch as it goes to a device: its numbers in one array, and tables of photographs to pick
    from.
    """

    numbers: Packed  # of a Batch with slots of tables in the place of photographs
    tables: tuple[
        Any, ...
    ]  # u8[R,h,w,c] for the photograph, and one for the second view's, if there is one

    def open(self) -> Batch:
        """The batch. Inside a compiled function."""
        batch = self.numbers.open()
        batch = batch._replace(photo=pick(self.tables[0], batch.photo))
        if batch.second is not None:
            batch = batch._replace(
                second=batch.second._replace(photo=pick(self.tables[1], batch.second.photo))
            )
        # What follows compiles as if the batch had been given as it is: equal to the last bit.
        return jax.lax.optimization_barrier(batch)


class Wanted(NamedTuple):
    """What a step wants of its batch."""

    progress: float  # see `Batch`
    sh_degree: int  # likewise
    with_second: bool = False  # MV-Reg is on, and wants a second view
    dilation: int = 1  # pixels from one that is drawn to the next
    is_masked: bool = False  # masks are learned


class BlockViews:
    """Which photographs each block uses at each step, and the batch of a row's blocks."""

    def __init__(
        self,
        run: Run,
        load: Callable[[int | None, int], Any] | None = None,
        used_views: Callable[[], list[np.ndarray]] | None = None,
    ):
        """
        Args:
            run: of the run.
            load: what goes to the devices of a view, see `DeviceCache`; None = its photograph. No
                method of what holds this object: a cycle would keep the devices' memory beyond the
                    stage.
            used_views: gives for every block which of its views are used; called at the first
                step, by all processes together. None = all.
        """
        self._run = run
        settings = run.settings
        self._used_views = used_views
        self._partners = None
        if settings.loss.has_multi_view:
            self._partners = BlockPartners(run.partitioned, settings.loss)
        self.photographs = Photographs(run.partitioned, run.images)
        self._load = load or self.photographs.load
        self._device_cache: DeviceCache | None = None
        self._remembered: dict[tuple, Any] = {}

    @functools.cached_property
    def _orders(self) -> list[ViewOrder]:
        blocks = self._run.partitioned.blocks
        used = [block.views for block in blocks]
        if self._used_views is not None:
            used = self._used_views()
        return [
            ViewOrder(views, self._run.settings.seed, block.number)
            for block, views in zip(blocks, used, strict=True)
        ]

    @property
    def device_cache(self) -> DeviceCache:
        """The photographs on the devices; made at first use, by all processes together."""
        if self._device_cache is None:
            run = self._run
            num_bytes = shelf_bytes(run.settings.data.device_memory_mb, run.layout)
            self._device_cache = DeviceCache(run.partitioned, run.layout, self._load, num_bytes)
        return self._device_cache

    def _remember(self, name: str, make: Callable[[int, int], Any], block: int, step: int) -> Any:
        """What a function of block and step gives: it is asked for when it is prefetched, and again
        when it is sent.
        """
        key = name, block, step
        if key not in self._remembered:
            self._remembered[key] = make(block, step)
            while len(self._remembered) > _STEPS_REMEMBERED * len(self._run.partitioned.blocks):
                del self._remembered[next(iter(self._remembered))]
        return self._remembered[key]

    def view(self, block: int, step: int) -> int:
        """The view of a block's step."""
        return self._remember("view", self._view, block, step)

    def _view(self, block: int, step: int) -> int:
        return self._orders[block].view(step)

    def second_view(self, block: int, step: int) -> int | None:
        """The neighbour that the view of a block's step is compared with; None where it has none,
        or MV-Reg is off.
        """
        if self._partners is None:
            return None
        return self._remember("chances", self._chances, block, step)[0]

    def lattice_offset(self, block: int, step: int) -> np.ndarray:
        """i32[2], where the lattice of MV-Reg starts in a block's step."""
        return self._remember("chances", self._chances, block, step)[1]

    def _chances(self, block: int, step: int) -> tuple[int | None, np.ndarray]:
        """The random choices of a step with MV-Reg: the second view and the lattice."""
        random = np.random.default_rng([self._run.settings.seed, block, step, 3])
        start = random.bit_generator.state
        partners = required(self._partners, "partners of the views").of(block)
        second = partners[self.view(block, step)].choose(random.random())
        random.bit_generator.state = (
            start  # the lattice does not depend on how many neighbours there are
        )
        random.integers(2)
        return second, random.integers(self._run.settings.loss.patch_stride, size=2).astype(
            np.int32
        )

    def dilation_origin(self, block: int, step: int, dilation: int) -> np.ndarray:
        """i32[2], the first row and column that a dilated step of a block draws."""
        if dilation == 1:
            return np.zeros(2, np.int32)  # without a generator, which takes 40 us to make
        random = np.random.default_rng([self._run.settings.seed, block, step, 4])
        return random.integers(dilation, size=2).astype(np.int32)

    def mask_seed(self, block: int, step: int) -> np.ndarray:
        """i32[], of the masks that a block's step draws."""
        random = np.random.default_rng([self._run.settings.seed, block, step, _MASKS])
        return random.integers(2**31, size=()).astype(np.int32)

    def second_shown(self, block: int, step: int) -> int:
        """The second view, or what stands in for one where there is none: the view itself."""
        second = self.second_view(block, step)
        if second is None:
            return self.view(block, step)
        return second

    def prefetch(self, step: int, with_second: bool = False) -> None:
        """Starts to decode the photographs of the next steps that are not on the devices yet."""
        blocks = self._run.layout.local_blocks
        images = self._run.images
        per_step = max(1, len(blocks) * (1 + with_second))
        asked = []
        for later in range(step, step + max(_PREFETCH, -(-images.num_threads // per_step))):
            asked += [(block, self.view(block, later)) for block in blocks]
            if with_second:
                asked += [
                    (block, view)
                    for block in blocks
                    if (view := self.second_view(block, later)) is not None
                ]
        images.prefetch(
            [view for block, view in asked if not self.device_cache.is_there(block, view)]
        )

    def batch(
        self,
        row: int,
        step: int,
        wanted: Wanted,
    ) -> Batch:
        """What the blocks of a row train on in a step, put on their devices leaf by leaf: what
        `deliver` is verified against.

        Args:
            row: of the layout. step: finished ones. wanted: by the step after them.
        """
        return self._run.layout.put_row(
            row,
            lambda block: self._batch_of(block, step, wanted, self.photographs.load),
        )

    def deliver(
        self,
        row: int,
        step: int,
        wanted: Wanted,
    ) -> PackedBatch:
        """The same with as little to send as there is. What was delivered for the row before is
        used up (`DeviceCache.bring`).
        """
        choices = [functools.partial(self.view, step=step)]
        if wanted.with_second and self._partners is not None:
            choices.append(functools.partial(self.second_shown, step=step))
        tables = self.device_cache.bring(row, *choices)
        return PackedBatch(
            self._run.layout.pack_row(
                row,
                lambda block: self._batch_of(block, step, wanted, self.device_cache.slot),
            ),
            tables,
        )

    def _batch_of(
        self,
        block: int | None,
        step: int,
        wanted: Wanted,
        photo_of: Callable,
    ) -> Batch:
        """One block's, as NumPy arrays; `photo_of(block, view)` gives the photograph, or what
        stands for it.
        """
        partitioned = self._run.partitioned
        own = block or 0
        view = self.view(own, step)
        second = None
        mask_seed = None
        if wanted.is_masked:
            mask_seed = on_host(self.mask_seed(own, step))
        index = np.int32(np.searchsorted(partitioned.blocks[own].views, view))
        if wanted.with_second and self._partners is not None:
            second = self.second(block, step, photo_of)
        return Batch(
            camera=partitioned.views.camera_arrays(view),
            photo=photo_of(block, view),
            exposure_index=on_host(index),
            progress=on_host(np.float32(wanted.progress)),
            sh_degree=on_host(np.int32(wanted.sh_degree)),
            second=second,
            origin=on_host(self.dilation_origin(own, step, wanted.dilation)),
            mask_seed=mask_seed,
        )

    def second(self, block: int | None, step: int, photo_of: Callable) -> SecondView:
        """The second view of a block's step; a stand-in where there is none.

        Args:
            block, step: which.
            photo_of: (block, view) -> the photograph, or what stands for it.
        """
        own = block or 0
        shown = self.view(own, step)
        is_used = False
        if block is not None:
            shown = self.second_shown(block, step)
            is_used = self.second_view(block, step) is not None
        return SecondView(
            camera=self._run.partitioned.views.camera_arrays(shown),
            photo=photo_of(block, shown),
            is_used=on_host(np.bool_(is_used)),
            offset=on_host(self.lattice_offset(own, step)),
            index=on_host(
                np.int32(np.searchsorted(self._run.partitioned.blocks[own].views, shown))
            ),
        )
