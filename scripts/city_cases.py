"""The places of scripts/simulate_city.py, and places of equal blocks that stand for them."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.world_cameras import WorldViews

_TEST_EVERY = 8
_POINTS = 100  # of a block that say which fraction is in its cell


class Case(NamedTuple):
    """A place and the machines for it."""

    name: str
    num_photos: int
    num_surfels: int  # of the merged model
    num_points: int
    num_blocks: int
    blocks_per_host: int
    photo_size: tuple[int, int] = (864, 1152)  # (H, W)
    views_per_block: int = 0  # 0: twice an equal share
    capacity: int = 0  # surfels of a block before compression; 0: so many that the rest is left
    num_initial: int = 0  # surfels that a block begins with; 0: points of its expanded cell
    fraction: float = 0.5  # of a block's surfels that is in its own cell

    def with_defaults(self, settings: Settings) -> "Case":
        """The same with nothing left open."""
        kept = self.fraction * (1 - settings.lmc.prune_ratio * settings.lmc.enabled)
        capacity = self.capacity or round(self.num_surfels / self.num_blocks / kept)
        around = (1 + 2 * settings.partition.expansion) ** 2
        initial = round(around * self.num_points / self.num_blocks)
        return self._replace(
            views_per_block=self.views_per_block or 2 * self.num_photos // self.num_blocks,
            capacity=capacity,
            num_initial=min(self.num_initial or initial, capacity),
        )


CASES = (
    Case("Rubble", 1_657, 12_000_000, 1_700_000, num_blocks=8, blocks_per_host=8),
    Case("Matrix", 6_362, 40_000_000, 6_400_000, num_blocks=32, blocks_per_host=8),
    Case("City", 40_000, 200_000_000, 40_000_000, num_blocks=64, blocks_per_host=8),
    Case("1000", 600_000, 3_000_000_000, 600_000_000, num_blocks=1000, blocks_per_host=8),
)


def place_of(case: Case, num_blocks: int) -> PartitionedScene:
    """A place of equal blocks in a row, or some of it; it has no photographs and no poses.

    Args:
        case: with nothing left open.
        num_blocks: that are there, with their share of the photographs.
    """
    num_views = max(1, case.num_photos * num_blocks // case.num_blocks)
    num_own = min(case.views_per_block, num_views)
    inside = round(case.fraction * _POINTS)
    blocks = []
    for number in range(num_blocks):
        start = number * num_views // num_blocks
        own = (start + np.arange(num_own)) % num_views
        points = number * _POINTS + np.arange(_POINTS)
        blocks.append(Block(number, own, case.capacity, points, case.num_initial, 1.0))
    x = np.repeat(np.arange(num_blocks), _POINTS) + 0.5
    x[np.arange(len(x)) % _POINTS >= inside] += 1  # the next cell's; the last one's in the first
    x[x > case.num_blocks] = 0.5
    points = np.column_stack([x, np.zeros((len(x), 2))])
    frame = SceneFrame(1.0, np.eye(3), np.zeros(3))
    scene = _scene_of(case, num_views, points)
    home = np.arange(num_views) * num_blocks // num_views
    partition = _partition_of(case.num_blocks, home)
    return PartitionedScene(scene, frame, WorldViews(scene.views, frame), partition, blocks)


def _scene_of(case: Case, num_views: int, points: np.ndarray) -> Scene:
    sizes = np.broadcast_to(np.array(case.photo_size), (num_views, 2))
    views = Views(
        np.broadcast_to(np.eye(4), (num_views, 4, 4)),
        np.broadcast_to(np.eye(3), (num_views, 3, 3)),
        sizes,
    )
    return Scene(
        name=case.name,
        path=case.name,
        image_names=[str(number) for number in range(num_views)],
        image_paths=[],
        views=views,
        distortion=[],
        photo_sizes=sizes,
        shrink_factors=np.ones(num_views, np.int64),
        mask_paths=[],
        has_masks=False,
        cloud=PointCloud.without_tracks(points),
        is_test=np.arange(num_views) % _TEST_EVERY == 0,
        up=np.array([0.0, 0.0, 1.0]),
    )


def _partition_of(num_blocks: int, home: np.ndarray) -> Partition:
    def tree(first: int, after: int) -> tuple | int:
        if after - first == 1:
            return first
        wall = (first + after) // 2
        return 0, float(wall), tree(first, wall), tree(wall, after)

    corners = np.zeros((num_blocks, 2))
    return Partition(
        nodes=tree(0, num_blocks),
        expansion=0.0,
        lows=corners,
        highs=corners,
        inner_lows=corners,
        inner_highs=corners,
        low_z=corners[:, 0],
        high_z=corners[:, 0],
        edge_of_block=np.zeros(num_blocks, np.int64),
        views=[],
        home=home,
        points=[],
        lengths=np.ones(num_blocks),
        coverage=csr_array((0, num_blocks)),
    )
