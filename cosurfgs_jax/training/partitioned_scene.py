"""A dataset as training sees it: cut into blocks, in the world frame, its photographs in the sizes
that steps need.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files, photograph
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.partition import Partition, build_partition
from cosurfgs_jax.report.partition_picture import partition_table
from cosurfgs_jax.settings import DensitySettings, Settings
from cosurfgs_jax.training import depth_memory
from cosurfgs_jax.training.state import Kept, is_lazy
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.workdir import Workdir

# of the place's own pixels: a mean surfel of 6 by 6 pixels, fine where detail is, coarse on plain
# ground
_PIXELS_PER_SURFEL = 32
_MIN_CAPACITY = 20_000
_MAX_CAPACITY = 5_000_000
_SLOT_ROUNDING = 1024
_BACKDROP = 5  # which random numbers of a run these are; others are in training/batches.py
# Photographs are drawn at every second pixel where they have so many pixels, and where a run draws
# so many for each surfel nevertheless. 320x240 with 960 a surfel loses 0.6 dB by it, 1000x751 with
# 1,980 loses nothing (docs/performance.md).
_DILATION = 2
_MIN_DILATED_PIXELS = 500_000
_MIN_PIXELS_A_SURFEL = 1500


class Block(NamedTuple):
    """What one block trains on."""

    number: int
    views: np.ndarray  # i64, its training views
    capacity: int  # the most surfels that it may have
    points: np.ndarray  # i64, the SfM points that it starts from
    num_initial: int  # surfels before the first step
    length: float  # its extent in world lengths


class PartitionedScene(NamedTuple):
    """A dataset, its frame, and its blocks."""

    scene: Scene
    frame: SceneFrame
    views: WorldViews
    partition: Partition
    blocks: list[Block]
    known_identity: dict[str, str] | None = None  # None: to be found from all points
    kept_in: Path | None = None  # folder in the workdir; None: it is not kept

    @property
    def max_views(self) -> int:
        """Of one block: the room for exposures that all blocks have."""
        return max(len(block.views) for block in self.blocks)

    @property
    def photo_size(self) -> tuple[int, int] | None:
        """(H, W) that all photographs are padded to: blocks in lockstep need one size. None: each
        has its own.
        """
        sizes = self.scene.views.image_sizes
        if len(self.blocks) == 1 and len(np.unique(sizes, axis=0)) > 1:
            return None
        height, width = sizes.max(axis=0)
        return int(height), int(width)

    @property
    def has_masked_photos(self) -> bool:
        """Whether photographs have a fourth channel in training: masks, or padding."""
        is_padded = (
            len(self.blocks) > 1 and len(np.unique(self.scene.views.image_sizes, axis=0)) > 1
        )
        return self.scene.has_masks or is_padded

    def kept(self, settings: Settings) -> Kept:
        """What the state of a block keeps besides the model."""
        size = None
        if settings.loss.has_multi_view and settings.loss.remember_depth:
            height, width = self.photo_size or self.scene.views.image_sizes.max(axis=0)
            size = depth_memory.memory_size((int(height), int(width)))
        return Kept(size, is_lazy(settings))

    def dilation(self, settings: Settings) -> int:
        """Of dilated steps: pixels from one that is drawn to the next."""
        if settings.train.dilation:
            return settings.train.dilation
        num_pixels = np.median(self.scene.views.image_sizes.prod(axis=1))
        num_surfels = max(block.capacity for block in self.blocks)
        if not settings.surfels.capacity:  # what compression prunes need not be learned as well
            num_surfels /= _room_for_pruning(len(self.blocks), settings)
        drawn = settings.train.steps * num_pixels / _DILATION**2
        is_enough = drawn >= _MIN_PIXELS_A_SURFEL * num_surfels
        return _DILATION if num_pixels >= _MIN_DILATED_PIXELS and is_enough else 1

    def whole_capacity(self) -> int:
        """The largest `surfels.capacity` with which no block may have more surfels than now."""
        whole = _natural_capacity(self.scene, self.scene.train_views)
        found = [
            block.capacity / (_fraction(_natural_capacity(self.scene, block.views), whole) or 1.0)
            for block in self.blocks
        ]
        return max(1, int(min(found)))

    def with_capacity(self, settings: Settings) -> "PartitionedScene":
        """The same place, its blocks with the surfels that another `surfels.capacity` gives them.
        They start from the same points.
        """
        capacities = _capacities(self.scene, self.partition, settings)
        blocks = [
            block._replace(capacity=capacity, num_initial=min(len(block.points), capacity))
            for block, capacity in zip(self.blocks, capacities, strict=True)
        ]
        return self._replace(blocks=blocks)

    def fingerprint(self) -> str:
        """Changes when names, cameras, image sizes or points change."""
        digest = hashlib.sha256("\n".join(self.scene.image_names).encode())
        for array in (
            self.scene.views.camera_from_dataset,
            self.scene.views.intrinsics,
            self.scene.views.image_sizes,
            self.scene.cloud.points_in_order,
            self.scene.is_test,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def identity(self) -> dict:
        """What a checkpoint must agree with."""
        if self.known_identity is not None:
            return self.known_identity
        return {"fingerprint": self.fingerprint(), "partition": self.partition.fingerprint()}


def open_partitioned_scene(
    settings: Settings,
    workdir: Workdir,
    allow_missing: bool = False,
    left_out: Collection[str] | None = None,
    compares_colors: bool = True,
) -> PartitionedScene:
    """Reads the dataset of a run and cuts it into blocks; the generated one lies in the workdir.

    Args:
        settings: `data`, `generated`, `partition` and `surfels` are used.
        workdir: of the run.
        allow_missing: photographs may be missing: other processes have them.
        left_out, compares_colors: as in `load_scene`.
    """
    scene = load_scene(
        settings.data,
        settings.generated,
        workdir.data,
        allow_missing=allow_missing,
        left_out=left_out,
        compares_colors=compares_colors,
    )
    frame = SceneFrame.from_points(scene.cloud.points, scene.views.centers, scene.up)
    views = WorldViews(scene.views, frame)
    partition = build_partition(
        scene.cloud, scene.views, frame, scene.train_views, settings.partition
    )
    return PartitionedScene(
        scene=scene,
        frame=frame,
        views=views,
        partition=partition,
        blocks=_plan_blocks(scene, frame, partition, settings),
    )


def surface_pixels(scene: Scene, views: np.ndarray) -> float:
    """Pixels of what the views show; each spot counts once, not once a photograph."""
    pixels = int(scene.views.image_sizes[views].prod(axis=1).sum())
    # Points that none of these views sees say nothing of how often a spot is photographed.
    counts = np.unique(scene.cloud.sightings.of_all(views), return_counts=True)[1]
    views_per_point = max(2.0, counts.mean() if len(counts) else 4.0)
    return pixels / views_per_point


def _natural_capacity(scene: Scene, views: np.ndarray) -> int:
    """One surfel per 32 pixels of what the views show."""
    return int(surface_pixels(scene, views) / _PIXELS_PER_SURFEL)


def _fraction(natural: int, whole: int) -> float:
    """Of the place, that the photographs of a block show."""
    return min(1.0, natural / max(whole, 1))


def capacity_settings(settings: Settings) -> tuple[bool, float, float]:
    """Settings of compression that the capacities of blocks depend on."""
    return settings.lmc.enabled, settings.lmc.prune_ratio, settings.lmc.importance_share


def _room_for_pruning(num_blocks: int, settings: Settings) -> float:
    """How many surfels a block is trained with for each of those that compression leaves.

    A model that was trained with more and pruned is better than one that was trained with as few
    (docs/results.md).
    """
    is_pruned, ratio, kept_importance = capacity_settings(settings)
    if num_blocks == 1 or not is_pruned or kept_importance > 0:
        return 1.0
    return 1 / (1 - ratio)


def _capacities(scene: Scene, partition: Partition, settings: Settings) -> list[int]:
    """The most surfels of each block."""
    natural = [_natural_capacity(scene, views) for views in partition.views]
    asked = settings.surfels.capacity
    if not asked:
        room = _room_for_pruning(len(natural), settings)
        return [
            min(round(room * max(capacity, _MIN_CAPACITY)), _MAX_CAPACITY) for capacity in natural
        ]
    # Of the whole model: a block gets the fraction that its photographs show of the place.
    whole = _natural_capacity(scene, scene.train_views)
    return [max(1, round(asked * _fraction(capacity, whole))) for capacity in natural]


def _plan_blocks(
    scene: Scene, frame: SceneFrame, partition: Partition, settings: Settings
) -> list[Block]:
    points_world = frame.to_world(scene.cloud.points)
    blocks = []
    for number, capacity in enumerate(_capacities(scene, partition, settings)):
        points = _first_points(partition, points_world, number, settings)
        blocks.append(
            Block(
                number=number,
                views=partition.views[number],
                capacity=capacity,
                points=points,
                num_initial=min(len(points), capacity),
                length=float(partition.lengths[number]),
            )
        )
    return blocks


def _first_points(
    partition: Partition, points_world: np.ndarray, number: int, settings: Settings
) -> np.ndarray:
    """The SfM points that a block starts from: all in its expanded cell, and a random choice of
    those around it, its backdrop.
    """
    points = partition.points[number]
    is_inside = partition.is_in_expanded(number, points_world[points])
    outside = points[~is_inside]
    most = int(settings.partition.backdrop * is_inside.sum())
    if len(outside) <= most:
        return points
    random = np.random.default_rng([settings.seed, number, 0, _BACKDROP])
    return np.sort(np.concatenate([points[is_inside], random.choice(outside, most, replace=False)]))


def slots_for(num_surfels: int, capacity: int, density: DensitySettings) -> int:
    """Slots that leave room for `growth_factor` times as many surfels, and `min_slots` at least
    where any are added, in few distinct sizes: each one compiles the step anew.
    """
    wanted = int(num_surfels * density.growth_factor)
    if density.enabled:
        wanted = max(wanted, density.min_slots)
    return min(round_slots(wanted), capacity)


def round_slots(num_surfels: int) -> int:
    """The smallest number of slots, in few distinct sizes, that holds these surfels."""
    return max(-(-num_surfels // _SLOT_ROUNDING), 1) * _SLOT_ROUNDING


class Photographs:
    """The photographs of a place's blocks as steps take them: all of one form, where the blocks
    need that.
    """

    def __init__(self, partitioned: PartitionedScene, images: ImageStore):
        """
        Args:
            partitioned, images: of the run.
        """
        self._images = images
        self._size = partitioned.photo_size
        self._is_masked = partitioned.has_masked_photos  # computed there from all views
        self._blank = None  # made at first use

    def load(self, block: int | None, view: int) -> np.ndarray:
        """A photograph: u8[H,W,3], or u8[H,W,4] with 255 where the pixel counts; padded to
        `PartitionedScene.photo_size`.

        Args:
            block: None for what stands in for it on a device without a block.
            view: its number.
        """
        if block is None:
            if self._blank is None:
                size = required(self._size, "PartitionedScene.photo_size")
                self._blank = np.zeros((*size, 4 if self._is_masked else 3), np.uint8)
            return self._blank
        photo = self._images.load(view)
        if self._is_masked:
            photo = photograph.with_mask(photo)
        if self._size is None or photo.shape[:2] == self._size:
            return photo
        return np.pad(
            photo,
            ((0, self._size[0] - photo.shape[0]), (0, self._size[1] - photo.shape[1]), (0, 0)),
        )


def bind_partition(
    partitioned: PartitionedScene, workdir: Workdir, is_bound: bool | None = None
) -> None:
    """Writes the partition into the workdir, or checks that the one there is of this partition.

    Args:
        partitioned, workdir: of the run.
        is_bound: whether the one there counts; None: where a step is saved.
    Raises:
        InputError: it is of another one.
    """
    path = workdir.partition
    if is_bound is None:
        is_bound = workdir.has_begun()
    found = {
        "fingerprint": partitioned.identity()["partition"],
        "dataset_fingerprint": partitioned.identity()["fingerprint"],
        "left_out": list(partitioned.scene.left_out),
        "has_masks": partitioned.scene.has_masks,
    }
    if path.exists():
        there = files.read_json_object(path)
        before = there.get("fingerprint")
        if found.items() <= there.items():
            return  # nothing that it says would be another, and to draw it takes all points
        if before != found["fingerprint"] and is_bound:
            raise InputError(
                f"{path}: expected the partition of this run "
                f"({found['fingerprint']}), got partition "
                f"({before}); the dataset or config.partition was changed, or other photographs "
                "are missing: give the old ones, or use another --workdir"
            )
    if processes.is_first():
        table = partition_table(
            partitioned.partition,
            partitioned.frame.to_world(partitioned.scene.cloud.points),
            partitioned.views.centers(),
            partitioned.scene.is_test,
        )
        files.write_json(path, table | found)


class BoundViews(NamedTuple):
    """What the first job of a run has found, and all others take from it."""

    left_out: list[str]  # names of photographs that are no views
    has_masks: bool  # `Scene.has_masks`


def bound_views(workdir: Workdir) -> BoundViews | None:
    """What partition.json says of a run's views; None where it says nothing."""
    if not workdir.partition.exists():
        return None
    table = files.read_json_object(workdir.partition)
    if "left_out" not in table:
        return None
    names = table["left_out"]
    has_masks = table.get("has_masks")
    if not isinstance(names, list) or not isinstance(has_masks, bool):
        raise InputError(
            f"{workdir.partition}: expected a list as left_out and true or false as has_masks, got "
            f"{names!r:.80} and {has_masks!r:.80}; give those that the jobs of the run have had"
        )
    return BoundViews([str(name) for name in names], has_masks)
