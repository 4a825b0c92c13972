"""Which other views of its block MV-Reg compares a view with, and how often each."""

from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import Onlookers, choose_neighbors, cover_pictures, shares
from cosurfgs_jax.settings import LossSettings
from cosurfgs_jax.surface.depth_filter import camera_depths, depth_limits, seen_points
from cosurfgs_jax.training.partitioned_scene import PartitionedScene

_MAX_POINTS = 20_000  # of a scene without tracks, to tell how far its views look
_WIDER = 2  # times the largest angle: where no nearer view shows a place


def _seen_points(scene: Scene) -> list[np.ndarray]:
    """The SfM points f64[n,3] that each view sees, dataset."""
    cloud = scene.cloud
    if not cloud.has_tracks:
        every = max(1, len(cloud) // _MAX_POINTS)
        cloud = cloud.of_points(np.arange(len(cloud)) % every == 0)
    return seen_points(cloud, scene.views)


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


def partners_of_blocks(
    partitioned: PartitionedScene, settings: LossSettings
) -> list[dict[int, Partners]]:
    """For each block and each of its views the views of the block that MV-Reg compares it with:
    the nearest, and some that show what those do not.

    Args:
        partitioned: of the run.
        settings: how many, and how far they may be turned away.
    """
    scene = partitioned.scene
    points = _seen_points(scene)
    depths = [camera_depths(seen, scene.views, view) for view, seen in enumerate(points)]
    typical = np.array([np.median(z) if len(z) else np.nan for z in depths])
    farthest = depth_limits(depths)[:, 1]
    result = []
    for block in partitioned.blocks:
        views = scene.views.pick(block.views)
        chosen = choose_neighbors(
            views,
            settings.num_neighbors,
            settings.max_neighbor_angle_deg,
            depths=typical[block.views],
        )
        onlookers = Onlookers(
            views,
            farthest[block.views],
            min(_WIDER * settings.max_neighbor_angle_deg, 90.0),
            depths=typical[block.views],
        )
        chosen = cover_pictures(chosen, [points[view] for view in block.views], onlookers)
        result.append(
            {
                int(view): Partners(
                    block.views[others], shares(others, views, points[view]).cumsum()
                )
                for view, others in zip(block.views, chosen, strict=True)
            }
        )
    return result


def check_neighbors(partitioned: PartitionedScene, settings: LossSettings) -> None:
    """Raises InputError if MV-Reg is on and no view of some block has a neighbour to be compared
    with.
    """
    if not settings.has_multi_view:
        return
    for block, partners in zip(
        partitioned.blocks, partners_of_blocks(partitioned, settings), strict=True
    ):
        if not any(len(of_view.views) for of_view in partners.values()):
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
