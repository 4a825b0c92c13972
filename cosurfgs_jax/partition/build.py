"""Cuts a place into a partition: cells of equal work, and the photographs and points of each."""

import dataclasses
import itertools
import logging

import numpy as np
from jaxtyping import Bool, Float, Int

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree
from cosurfgs_jax.geometry.airspace import Cameras, box_coverage, cameras_in_world
from cosurfgs_jax.geometry.cameras import camera_center, project
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.partition.cells import Partition
from cosurfgs_jax.settings import PartitionSettings

_CONTENT = (1, 99)  # percentiles: stray points must not stretch the outer cells
# Likewise: from the ground to the highest roof, not from a point below it to a bird.
_HEIGHTS = (2, 99)
# World lengths: what an outer cell keeps at least where its wall lies at the rim of the content.
_MIN_SIDE = 1e-3
_UP = np.array([0.0, 0.0, 1.0])  # world
_log = logging.getLogger(__name__)


def _make_cells(
    root: tuple | int,
    edges: Int[np.ndarray, " b"],
    bounds: tuple[np.ndarray, np.ndarray],
    points_world: Float[np.ndarray, "p 3"],
    expansion: float,
) -> Partition:
    """The partition of a tree with anything at its leaves, numbered anew; views, points and what
    follows from them are empty.
    """
    nodes = ground_tree.numbered(root, itertools.count())
    lows, highs = ground_tree.leaves(nodes)[1:]
    # Bounds that leave out the rim of the content may leave out a wall too.
    bound_low = np.minimum(bounds[0], highs.min(axis=0) - _MIN_SIDE)
    bound_high = np.maximum(
        np.maximum(bounds[1], lows.max(axis=0) + _MIN_SIDE), bound_low + _MIN_SIDE
    )
    inner_lows = np.maximum(lows, bound_low)
    inner_highs = np.minimum(highs, bound_high)
    heights = np.empty((len(edges), 2))
    for block, (low, high) in enumerate(zip(inner_lows, inner_highs, strict=True)):
        inside = points_world[
            ((points_world[:, :2] >= low) & (points_world[:, :2] < high)).all(axis=1)
        ]
        if not len(inside):
            inside = points_world
        heights[block] = np.percentile(inside[:, 2], _HEIGHTS)
    nothing = np.zeros(0)
    return Partition(
        nodes=nodes,
        expansion=expansion,
        lows=lows,
        highs=highs,
        inner_lows=inner_lows,
        inner_highs=inner_highs,
        low_z=heights[:, 0],
        high_z=heights[:, 1],
        edge_of_block=np.unique(edges, return_inverse=True)[1],
        views=[],
        home=nothing,
        points=[],
        lengths=nothing,
        coverage=nothing,
    )


def _with_views(
    cells: Partition,
    cameras: Cameras,
    train_views: Int[np.ndarray, " n"],
    min_coverage: float,
    known: dict[bytes, Float[np.ndarray, " v"]],
) -> Partition:
    """Adds home, coverage and views. `known` keeps the coverage of airspaces from one round of
    merging to the next.
    """
    centers_world = cameras.centers_world
    coverage = np.ones((len(centers_world), cells.num_blocks))
    boxes = np.column_stack([cells.inner_lows, cells.low_z, cells.inner_highs, cells.high_z])
    views = []
    if cells.num_blocks > 1:
        for block, box in enumerate(boxes):
            if box.tobytes() not in known:
                known[box.tobytes()] = box_coverage(box[:3], box[3:], cameras)
            coverage[:, block] = known[box.tobytes()]
    for block in range(cells.num_blocks):
        is_one = cells.is_in_expanded(block, centers_world) | (coverage[:, block] >= min_coverage)
        views.append(train_views[is_one[train_views]])
    return dataclasses.replace(
        cells, home=cells.cell_of(centers_world), coverage=coverage, views=views
    )


def _merged(
    cells: Partition, block: int, num_points: int
) -> tuple[tuple | int, Int[np.ndarray, " b"]]:
    """The tree and the edges of its leaves without one block, whose place falls to the other side
    of its innermost wall.
    """

    def without(node):
        if not isinstance(node, tuple):
            return node
        axis, wall, left, right = node
        if left == block:
            return right
        if right == block:
            return left
        return axis, wall, without(left), without(right)

    edge = int(cells.edge_of_block[block])
    rest = np.delete(cells.edge_of_block, block)
    lost = ""
    if edge not in rest:
        lost = f"; edge {edge} has no other block and is gone, too"
    _log.warning(
        "block %d of %d has %d training photographs and %d points in its cell; merged with its "
        "neighbour%s; the rest is numbered anew",
        block,
        cells.num_blocks,
        len(cells.views[block]),
        num_points,
        lost,
    )
    return without(cells.nodes), rest


def _sees(
    cameras: Cameras, view: int | np.integer, points_world: Float[np.ndarray, "p 3"]
) -> Bool[np.ndarray, " p"]:
    """Which points fall into a view's image."""
    pixels, depth = project(points_world, cameras.camera_from_world[view], cameras.intrinsics[view])
    is_inside = (pixels >= 0) & (pixels < cameras.image_sizes[view, ::-1])
    return (depth > 0) & is_inside.all(axis=-1)


def _points_of_blocks(
    cells: Partition, cloud: PointCloud, points_world: Float[np.ndarray, "p 3"], cameras: Cameras
) -> list[Int[np.ndarray, " n"]]:
    is_one = np.stack(
        [cells.is_in_expanded(block, points_world) for block in range(cells.num_blocks)]
    )
    all_views = np.arange(len(cameras.centers_world))
    is_view = np.stack([np.isin(all_views, views) for views in cells.views])
    if cloud.has_tracks:
        track_points = cloud.track_points
        for block in range(cells.num_blocks):
            is_one[block, track_points[is_view[block, cloud.track_views]]] = True
    else:
        for view in np.flatnonzero(is_view.any(axis=0)):
            is_one[np.ix_(is_view[:, view], _sees(cameras, view, points_world))] = True
    return [np.flatnonzero(mask) for mask in is_one]


def _length(points_world: Float[np.ndarray, "p 3"], camera_from_world) -> float:
    """The extent of a block, as that of a scene is measured."""
    return 1 / SceneFrame.from_points(points_world, camera_center(camera_from_world), _UP).scale


def _bounds(*parts: Float[np.ndarray, "_ 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Corners f64[2] of the rectangle that holds the bulk of all parts."""
    bulk = [np.percentile(part, _CONTENT, axis=0) for part in parts]
    return np.min(bulk, axis=0)[0], np.max(bulk, axis=0)[1]


def _log_blocks(cells: Partition, work: Float[np.ndarray, " b"]) -> None:
    num_views = [len(views) for views in cells.views]
    num_points = [len(points) for points in cells.points]
    _log.info(
        "blocks: %d, edges: %d; %d..%d photographs and %d..%d points a block, %.2f..%.2f of an "
        "equal part of the work",
        cells.num_blocks,
        cells.num_edges,
        min(num_views),
        max(num_views),
        min(num_points),
        max(num_points),
        work.min(),
        work.max(),
    )


def build_partition(
    cloud: PointCloud,
    views: Views,
    frame: SceneFrame,
    train_views: Int[np.ndarray, " n"],
    settings: PartitionSettings,
) -> Partition:
    """Cuts a place into blocks of equal work, and says which photographs and points each block
    trains on.

    Work is half the fraction of the points and half the fraction of the training cameras, at their
    positions on the ground. The plane is cut into edges, then each edge into its blocks, across the
    longer side, so that the work on both sides is as the numbers of blocks. A block's views are the
    training photographs taken from its expanded cell, and those whose area the airspace of its
    inner cell covers by `min_coverage`; its points are those in the expanded cell and those that
    its views see. A block with too few views, or points in its cell, is merged with the other side
    of its innermost wall, which is within its edge unless the edge has no other block. One block
    has everything.

    Args:
        cloud: P points; without tracks a view sees what projects into it.
        views: V, test views too.
        frame: the similarity from the dataset to the world.
        train_views: i64[n].
        settings: how many blocks and edges, and the limits.
    Returns:
        The partition, in the world; deterministic.
    Raises:
        InputError: more blocks than training photographs.
    Source: coverage of the airspace after VastGaussian (Lin et al. 2024); the kd-tree is **ours**.
    """
    if settings.num_blocks > len(train_views):
        raise InputError(
            f"config.partition.num_blocks: expected at most the {len(train_views)} training "
            f"photographs, got {settings.num_blocks}; ask for fewer blocks"
        )
    train_views = np.sort(train_views)
    points_world = frame.to_world(cloud.points)
    cameras = cameras_in_world(views, frame)
    stands = cameras.centers_world[train_views, :2]
    ground = np.concatenate([points_world[:, :2], stands])
    counts = [len(points_world), len(train_views)]
    weights = np.repeat([1 / count for count in counts], counts)
    bounds = _bounds(points_world[:, :2], stands)
    each, more = divmod(settings.num_blocks, settings.num_edges)
    groups = [(edge, each + (edge < more)) for edge in range(settings.num_edges)]
    root = ground_tree.cut(ground, weights, *bounds, groups)
    edges = np.array(ground_tree.leaves(root)[0])
    known = {}
    while True:
        cells = _make_cells(root, edges, bounds, points_world, settings.expansion)
        cells = _with_views(cells, cameras, train_views, settings.min_coverage, known)
        num_points = np.bincount(cells.cell_of(points_world), minlength=cells.num_blocks)
        num_views = np.array([len(numbers) for numbers in cells.views])
        starved = np.flatnonzero(
            (num_views < settings.min_views) | (num_points < settings.min_points)
        )
        if cells.num_blocks == 1 or not starved.size:
            break
        root, edges = _merged(cells, int(starved[0]), int(num_points[starved[0]]))
    points = _points_of_blocks(cells, cloud, points_world, cameras)
    lengths = [1.0]
    if cells.num_blocks > 1:
        lengths = [
            _length(points_world[seen], cameras.camera_from_world[numbers])
            for seen, numbers in zip(points, cells.views, strict=True)
        ]
    work = np.bincount(cells.cell_of(ground), weights, minlength=cells.num_blocks)
    cells = dataclasses.replace(cells, points=points, lengths=np.array(lengths))
    _log_blocks(cells, cells.num_blocks * work)
    return cells
