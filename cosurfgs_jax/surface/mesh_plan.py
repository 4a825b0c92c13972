"""What a mesh is made of: decided from poses and SfM points, before anything is drawn, so that
processes which make parts of it agree without a word.
"""

import itertools
import logging
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import Onlookers
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.part import Part
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface import depth_filter
from cosurfgs_jax.surface.areas import Area, index_of, plan_areas
from cosurfgs_jax.surface.integration import FieldGrid
from cosurfgs_jax.surface.voxel_size import check_voxel_size, choose_voxel_size

_LOG = logging.getLogger(__name__)
# Neighbours that are asked about a pixel, of those whose pictures show its place, nearest first.
# (With exact depth of the generated town the 8 nearest of all confirm 91.7 % of the pixels twice,
# the 16 nearest 97.5 %, 30 98.3 %.)
MAX_ASKED = 16
MESH_ARRAYS = ("limits", "origin", "voxel_size", "indices", "starts", "members")
_LARGEST_DEPTH = 2.0  # of the diagonal of all points and cameras


class MeshPlan(NamedTuple):
    """What a mesh is made of, whoever makes how much of it.

    | field       | content                                                                        |
    |-------------|--------------------------------------------------------------------------------|
    | `numbers`   | i64[V], the views that are fused, as the scene numbers them                    |
    | `views`     | the same with their poses                                                      |
    | `onlookers` | which of the V may confirm the depth of each                                   |
    | `limits`    | f64[V,2], nearest and farthest depth                                           |
    | `grid`      | of the field                                                                   |
    | `areas`     | all that a view may touch, in order                                            |
    | `settings`  | of the mesh                                                                    |
    """

    numbers: np.ndarray
    views: Views
    onlookers: Onlookers
    limits: np.ndarray
    grid: FieldGrid
    areas: list[Area]
    settings: SurfaceSettings

    def areas_of(self, part: Part) -> list[Area]:
        """The areas of a part: a run of them, for which about as many views are fused as for the
        other parts.
        """
        return self.areas[part.share_of([len(area.views) for area in self.areas])]

    def fused_by(self, part: Part) -> np.ndarray:
        """Which i64[n] of the V may touch the areas of a part."""
        members = [area.views for area in self.areas_of(part)]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *members]))

    def drawn_by(self, part: Part) -> np.ndarray:
        """The same, and those that may be asked to confirm their depth."""
        own = self.fused_by(part)
        others = [self.onlookers.of(view) for view in own.tolist()]
        return np.unique(np.concatenate([own, *others])).astype(np.int64)

    def counted_by(self, part: Part) -> set[int]:
        """The views that no part before this one fuses: each is counted once."""
        first: dict[int, Area] = {}
        for area in self.areas:
            for view in area.views:
                first.setdefault(int(view), area)
        own = {area.index for area in self.areas_of(part)}
        return {view for view, area in first.items() if area.index in own}


def plan_mesh(scene: Scene, views: np.ndarray, settings: SurfaceSettings) -> MeshPlan:
    """Decides what a mesh is made of, from poses and SfM points.

    Args:
        scene: its views and points are used.
        views: i64[n], which to fuse, usually the training views.
        settings: lengths of 0 are derived from the SfM points.
    Raises:
        InputError: there is no view, none has neighbours, or the voxels would be too small.
    """
    if not len(views):
        raise InputError(
            "mesh: expected at least one view to render, got none; check config.data.split"
        )
    chosen = scene.views.pick(views)
    all_seen = depth_filter.seen_depths(scene.cloud, scene.views)
    seen = [all_seen[view] for view in views]
    voxel_size = settings.voxel_size or choose_voxel_size(seen, chosen.intrinsics)
    check_voxel_size(voxel_size, seen, chosen.intrinsics)
    places = np.concatenate([scene.cloud.points, chosen.centers])
    # A depth beyond is none: without enough points there is no limit from them.
    farthest = _LARGEST_DEPTH * np.linalg.norm(np.ptp(places, axis=0))
    limits = np.minimum(depth_filter.depth_limits(seen), farthest)
    onlookers = Onlookers(chosen, limits[:, 1])
    _check_neighbors(onlookers, settings.min_neighbor_views)
    middle = scene.cloud.points if len(scene.cloud) else chosen.centers
    grid = FieldGrid(np.median(middle, axis=0), voxel_size, settings.truncation_voxels)
    areas = plan_areas(chosen, limits, grid)
    return MeshPlan(
        numbers=views,
        views=chosen,
        onlookers=onlookers,
        limits=limits,
        grid=grid,
        areas=areas,
        settings=settings,
    )


def arrays_of(plan: MeshPlan) -> dict[str, np.ndarray]:
    """What of a plan is found from all points and views, for a file."""
    starts = np.cumsum([0, *(len(area.views) for area in plan.areas)])
    return {
        "limits": plan.limits,
        "origin": plan.grid.origin,
        "voxel_size": np.array(plan.grid.voxel_size),
        "indices": np.array([area.index for area in plan.areas], np.int64).reshape(-1, 3),
        "starts": starts,
        "members": np.concatenate([np.zeros(0, np.int64), *(area.views for area in plan.areas)]),
    }


def plan_from(
    arrays: dict[str, np.ndarray], scene: Scene, views: np.ndarray, settings: SurfaceSettings
) -> MeshPlan:
    """The plan of which these are the `arrays_of`.

    Args:
        arrays: of a plan with the same scene, views and lengths.
        scene, views, settings: see `plan_mesh`.
    """
    chosen = scene.views.pick(views)
    limits = arrays["limits"]
    starts = arrays["starts"].tolist()
    voxel_size = float(arrays["voxel_size"])
    return MeshPlan(
        numbers=views,
        views=chosen,
        onlookers=Onlookers(chosen, limits[:, 1]),
        limits=limits,
        grid=FieldGrid(arrays["origin"], voxel_size, settings.truncation_voxels),
        areas=[
            Area(index_of(row), arrays["members"][start:end])
            for row, (start, end) in zip(arrays["indices"], itertools.pairwise(starts), strict=True)
        ],
        settings=settings,
    )


def _check_neighbors(onlookers: Onlookers, min_neighbor_views: int) -> None:
    """Says before the long work that depth cannot be confirmed."""
    if min_neighbor_views <= 0:
        return
    num_views = len(onlookers.views)
    num_alone = sum(not len(onlookers.of(view)) for view in range(num_views))
    if not num_alone:
        return
    if num_alone == num_views:
        raise InputError(
            f"mesh: none of the {num_alone} views has a neighbour that looks the same way from "
            "another place, so "
            "no depth could be confirmed; use photographs that overlap, or set "
            "config.surface.min_neighbor_views=0 to fuse depth that nothing confirms"
        )
    _LOG.warning(
        "mesh: %d of %d views have no neighbour that could confirm their depth, and are left out; "
        "config.surface.min_neighbor_views=0 takes them",
        num_alone,
        num_views,
    )
