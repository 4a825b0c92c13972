"""The state of a block before its first step."""

import jax
import numpy as np

from cosurfgs_jax.geometry.gap_points import gap_points
from cosurfgs_jax.model import initialize
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.state import TrainState, init_state
from cosurfgs_jax.types import Surfels

# Points in the gaps of the SfM points, as a fraction of these.
_MAX_GAP_FRACTION = 0.25


def first_state(
    partitioned: PartitionedScene, block: Block, settings: Settings, num_slots: int
) -> TrainState:
    """The state of a block before its first step: a surfel on every SfM point that it starts from
    and on points that fill their gaps, and free slots.
    """
    cloud = partitioned.scene.cloud
    points, colors = cloud.points[block.points], cloud.colors[block.points]
    # What is masked has no points either, and is no gap.
    if settings.surfels.fill_gaps and not partitioned.scene.has_masks:
        fraction = min(_MAX_GAP_FRACTION, settings.density.growth_factor - 1)  # what slots hold
        room = max(block.capacity - len(points), 0)
        more, their_colors = gap_points(
            cloud,
            block.points,
            partitioned.scene.views,
            used=block.views,
            most=min(int(fraction * len(points)), room),
        )
        points = np.concatenate([points, more])
        colors = np.concatenate([colors, their_colors])
    return init_state(
        _surfels_on(partitioned, block, points, colors, settings=settings, num_slots=num_slots),
        num_views=len(block.views),
        settings=settings,
        max_views=partitioned.max_views,
        length=block.length,
        kept=partitioned.kept(settings),
    )


def surfels_on_points(
    partitioned: PartitionedScene,
    block: Block,
    points: np.ndarray,
    *,
    settings: Settings,
    num_slots: int,
) -> Surfels:
    """A surfel on every one of these SfM points, which face the block's views, and free slots."""
    cloud = partitioned.scene.cloud
    return _surfels_on(
        partitioned,
        block,
        cloud.points[points],
        cloud.colors[points],
        settings=settings,
        num_slots=num_slots,
    )


def _surfels_on(
    partitioned: PartitionedScene,
    block: Block,
    points: np.ndarray,
    colors: np.ndarray,
    *,
    settings: Settings,
    num_slots: int,
) -> Surfels:
    """A surfel on every one of these points of the dataset's frame."""
    return initialize.surfels_from_points(
        partitioned.frame.to_world(points),
        colors,
        num_slots,
        settings.surfels.sh_degree,
        settings.surfels.init_opacity,
        jax.random.fold_in(jax.random.key(settings.seed), block.number),
        partitioned.views.centers()[block.views],
    )
