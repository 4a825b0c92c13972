"""Which other views of its block MV-Reg compares a view with, and how often each."""

from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import (
    Onlookers,
    choice_probabilities,
    choose_neighbors,
    cover_pictures,
    iter_neighbors,
    thinned,
)
from cosurfgs_jax.settings import LossSettings
from cosurfgs_jax.surface.depth_filter import camera_depths, depth_limits, seen_points
from cosurfgs_jax.training.partitioned_scene import PartitionedScene

_MAX_POINTS = 200_000  # of a scene without tracks, to tell what its views show
_WIDER = 2  # times the largest angle: where no nearer view shows a place


def _seen_points(scene: Scene, numbers: np.ndarray) -> list[np.ndarray]:
    """Some of the SfM points f64[n,3] that each of the views i64[m] sees, dataset."""
    cloud = scene.cloud
    if not cloud.has_tracks:
        every = max(1, len(cloud) // _MAX_POINTS)
        cloud = cloud.of_points(np.arange(len(cloud)) % every == 0)
    return [thinned(points) for points in seen_points(cloud, scene.views, numbers)]


class Partners(NamedTuple):
    """What MV-Reg compares a view with."""

    views: np.ndarray  # i64[n]
    cumulative: np.ndarray  # f64[n], of how often each is chosen, ascending to 1

    def choose(self, random: float) -> int | None:
        """One of them, by a number in [0, 1); None where there is none."""
        if not len(self.views):
            return None
        found = int(np.searchsorted(self.cumulative, random, side="right"))
        return int(self.views[min(found, len(self.views) - 1)])


class BlockPartners:
    """The partners of the views of each block, found when they are asked for."""

    def __init__(self, partitioned: PartitionedScene, settings: LossSettings):
        """
        Args:
            partitioned: of the run.
            settings: how many, and how far they may be turned away.
        """
        self._partitioned = partitioned
        self._settings = settings
        self._of_block: dict[int, dict[int, Partners]] = {}

    def of(self, number: int) -> dict[int, Partners]:
        """For each view of a block the views of the block that MV-Reg compares it with: the
        nearest, and some that show what those do not.
        """
        if number not in self._of_block:
            self._of_block[number] = self._find(self._partitioned.blocks[number].views)
        return self._of_block[number]

    def _find(self, numbers: np.ndarray) -> dict[int, Partners]:
        views = self._partitioned.scene.views.pick(numbers)
        points = _seen_points(self._partitioned.scene, numbers)
        depths = [camera_depths(seen, views, view) for view, seen in enumerate(points)]
        typical = np.array([np.median(z) if len(z) else np.nan for z in depths])
        chosen = choose_neighbors(
            views,
            self._settings.num_neighbors,
            self._settings.max_neighbor_angle_deg,
            depths=typical,
        )
        onlookers = Onlookers(
            views,
            depth_limits(depths)[:, 1],
            min(_WIDER * self._settings.max_neighbor_angle_deg, 90.0),
            depths=typical,
        )
        chosen = cover_pictures(chosen, points, onlookers)
        return {
            int(number): Partners(
                numbers[others], choice_probabilities(others, views, seen).cumsum()
            )
            for number, others, seen in zip(numbers, chosen, points, strict=True)
        }


def check_neighbors(partitioned: PartitionedScene, settings: LossSettings) -> None:
    """Raises InputError if MV-Reg is on and no view of some block has a neighbour to be compared
    with.
    """
    if not settings.has_multi_view:
        return
    for block in partitioned.blocks:
        nearest = iter_neighbors(  # nearly always the first view has one
            partitioned.scene.views.pick(block.views), 1, settings.max_neighbor_angle_deg
        )
        if not any(len(others) for others in nearest):
            raise InputError(
                f"config.loss.multi_view_*: expected photographs of block {block.number} that look "
                "at the same place from "
                f"different places, got none: its {len(block.views)} photographs stand at one "
                "spot, or their axes differ by more "
                f"than config.loss.max_neighbor_angle_deg={settings.max_neighbor_angle_deg:g} "
                "degrees; allow more, use fewer "
                "blocks (config.partition.num_blocks), or train without these terms: "
                "--config.loss.multi_view_geometric_weight=0 "
                "--config.loss.multi_view_photometric_weight=0"
            )
