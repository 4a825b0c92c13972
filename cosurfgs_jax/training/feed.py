"""What blocks train on: which photographs each one uses at each step, and which neighbours they are compared with."""

from collections.abc import Iterator

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import choose_neighbors
from cosurfgs_jax.losses.geometric import SecondView
from cosurfgs_jax.settings import LossSettings
from cosurfgs_jax.surface.depth_filter import seen_depths
from cosurfgs_jax.training.context import Context
from cosurfgs_jax.training.layout import Layout
from cosurfgs_jax.training.place import Place, load_photo
from cosurfgs_jax.training.schedule import ViewOrder
from cosurfgs_jax.training.step import Batch

_PREFETCH = 4  # photographs of each block decoded ahead
_MAX_POINTS = 20_000  # of a scene without tracks, to tell how far its views look


def _typical_depths(scene: Scene) -> np.ndarray:
    """f64[V], median camera z of the SfM points that each view sees, dataset unit; NaN where it sees none."""
    points, tracks = scene.points, (scene.track_offsets, scene.track_views)
    if not len(scene.track_views):
        points, tracks = points[:: max(1, len(points) // _MAX_POINTS)], (None, None)
    seen = seen_depths(points, scene.camera_from_world, scene.intrinsics, scene.image_sizes, *tracks)
    return np.array([np.median(depths) if len(depths) else np.nan for depths in seen])


def neighbors_of_blocks(place: Place, settings: LossSettings) -> list[dict[int, np.ndarray]]:
    """For each block and each of its views the views of the block that MV-Reg compares it with, nearest first.

    Args:
        place: of the run.
        settings: how many, and how far they may be turned away.
    """
    depths, result = _typical_depths(place.scene), []
    for block in place.blocks:
        chosen = choose_neighbors(place.scene.camera_from_world[block.views], settings.num_neighbors,
                                  settings.max_neighbor_angle_deg, depths=depths[block.views])
        result.append({int(view): block.views[others] for view, others in zip(block.views, chosen, strict=True)})
    return result


def check_neighbors(place: Place, settings: LossSettings) -> None:
    """Raises InputError if MV-Reg is on and no view of some block has a neighbour to be compared with."""
    if not settings.has_multi_view:
        return
    for block, neighbors in zip(place.blocks, neighbors_of_blocks(place, settings), strict=True):
        if not any(len(others) for others in neighbors.values()):
            raise InputError(
                f"config.loss.multi_view_*: expected photographs of block {block.number} that look at the same place from "
                f"different places, got none: its {len(block.views)} photographs stand at one spot, or their axes differ by more "
                f"than config.loss.max_neighbor_angle_deg={settings.max_neighbor_angle_deg:g} degrees; allow more, use fewer "
                "blocks (config.partition.num_blocks), or train without these terms: "
                "--config.loss.multi_view_geometric_weight=0 --config.loss.multi_view_photometric_weight=0")


def each_view(place: Place, layout: Layout, row: int) -> Iterator:
    """All training views of the blocks in a row, in step.

    Yields:
        (Camera [D, ...], bool[D] whether it is one of the block's or stands in for one that it lacks, image size).
    """
    blocks = [place.blocks[number] for device in range(layout.num_devices)
              if (number := layout.block_at(device, row)) is not None]
    for index in range(max(len(block.views) for block in blocks)):
        def make(number: int | None, index=index):
            views = place.blocks[0 if number is None else number].views
            is_real = number is not None and index < len(views)
            return place.views.camera_arrays(int(views[index if is_real else 0])), np.bool_(is_real)

        camera, is_real = layout.put_row(row, make)
        yield camera, is_real, place.photo_size or place.views.image_size(int(blocks[0].views[index]))


class BlockViews:
    """Which photographs each block uses at each step, and the batch of a row's blocks."""

    def __init__(self, context: Context):
        """
        Args:
            context: of the run.
        """
        self._context = context
        settings = context.settings
        self._orders = [ViewOrder(block.views, settings.seed, block.number) for block in context.place.blocks]
        self._neighbors = neighbors_of_blocks(context.place, settings.loss) if settings.loss.has_multi_view else None
        self._blank = None  # what a device without a block is given, made at first use

    def view(self, block: int, step: int) -> int:
        """The view of a block's step."""
        return self._orders[block].view(step)

    def second_view(self, block: int, step: int) -> int | None:
        """The neighbour that the view of a block's step is compared with; None where it has none, or MV-Reg is off."""
        if self._neighbors is None:
            return None
        others = self._neighbors[block][self.view(block, step)]
        if not len(others):
            return None
        return int(others[self._random(block, step).integers(len(others))])

    def _random(self, block: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self._context.settings.seed, block, step, 3])

    def lattice_offset(self, block: int, step: int) -> np.ndarray:
        """i32[2], where the lattice of MV-Reg starts in a block's step."""
        random = self._random(block, step)
        random.integers(2)  # the first number chooses the neighbour
        return random.integers(self._context.settings.loss.patch_stride, size=2).astype(np.int32)

    def prefetch(self, step: int, count: int = _PREFETCH, with_second: bool = False) -> None:
        """Starts to decode the photographs of the next steps."""
        blocks = self._context.layout.local_blocks
        wanted = []
        for later in range(step, step + count):
            wanted += [self.view(block, later) for block in blocks]
            if with_second:
                wanted += [view for block in blocks if (view := self.second_view(block, later)) is not None]
        self._context.images.prefetch(wanted)

    def batch(self, row: int, step: int, progress: float, sh_degree: int, with_second: bool = False) -> Batch:
        """What the blocks of a row train on in a step.

        Args:
            row: of the layout. step: finished ones. progress, sh_degree: see `Batch`.
            with_second: MV-Reg is on, and wants a second view.
        """
        context = self._context
        place = context.place

        def make(number: int | None) -> Batch:
            block = place.blocks[0 if number is None else number]
            view = self.view(block.number, step)
            photo = self.blank_photo() if number is None else load_photo(place, context.images, view)
            index = np.int32(np.searchsorted(block.views, view))
            second = self.second(number, step) if with_second and self._neighbors is not None else None
            return Batch(place.views.camera_arrays(view), photo, index, np.float32(progress), np.int32(sh_degree), second)

        return context.layout.put_row(row, make)

    def second(self, number: int | None, step: int) -> SecondView:
        """The second view of a block's step; a stand-in where there is none."""
        context, place = self._context, self._context.place
        view = None if number is None else self.second_view(number, step)
        shown = self.view(number or 0, step) if view is None else view
        photo = self.blank_photo() if number is None else load_photo(place, context.images, shown)
        return SecondView(place.views.camera_arrays(shown), photo, np.bool_(view is not None),
                          self.lattice_offset(number or 0, step))

    def blank_photo(self) -> np.ndarray:
        """What stands in for the photograph of a block that a device does not have."""
        place = self._context.place
        if self._blank is None:
            self._blank = np.zeros((*place.photo_size, 4 if place.has_masked_photos else 3), np.uint8)
        return self._blank
