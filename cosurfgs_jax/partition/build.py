"""Cuts a place into a partition: cells of equal work, and the photographs and points of each."""

import dataclasses
import itertools
import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree
from cosurfgs_jax.geometry.airspace import Cameras, box_coverage, cameras_in_world, may_show
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
    in_cells = ground_tree.grouped(ground_tree.locate(nodes, points_world[:, :2]), len(edges))
    for block, (low, high) in enumerate(zip(inner_lows, inner_highs, strict=True)):
        inside = points_world[in_cells[block]]
        inside = inside[((inside[:, :2] >= low) & (inside[:, :2] < high)).all(axis=1)]
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


class _Covered(NamedTuple):
    """What the views show of the airspace of a cell."""

    views: Int[np.ndarray, " n"]  # that show anything of it, ascending
    fractions: Float[np.ndarray, " n"]  # of their pictures


def _spread_ground(
    cells: Partition, ground: Float[np.ndarray, "n 2"], members: Int[np.ndarray, " k"]
) -> list[Int[np.ndarray, " _"]]:
    """Those of the members, rows of `ground`, that lie in the expanded cell of each block."""
    corners = [cells.expanded(block) for block in range(cells.num_blocks)]
    lows, highs = np.array(corners).transpose(1, 0, 2)

    def is_near(low, high, members):
        places = ground[members]
        return ((places >= low) & (places < high)).all(axis=1)

    return ground_tree.spread(cells.nodes, lows, highs, members=members, is_near=is_near)


def _coverage(cells: Partition, cameras: Cameras, known: dict[bytes, _Covered]) -> list[_Covered]:
    """Of each block. `known` keeps that of airspaces from one round of merging to the next."""
    all_views = np.arange(len(cameras.centers_world))
    if cells.num_blocks == 1:
        return [_Covered(all_views, np.ones(len(all_views)))]
    lows = np.column_stack([cells.inner_lows, cells.low_z])
    highs = np.column_stack([cells.inner_highs, cells.high_z])

    def is_near(low, high, members):
        return may_show(low, high, cameras.pick(members))

    near = ground_tree.spread(cells.nodes, lows, highs, members=all_views, is_near=is_near)
    found = []
    for low, high, views in zip(lows, highs, near, strict=True):
        key = low.tobytes() + high.tobytes()
        if key not in known:
            fractions = box_coverage(low, high, cameras.pick(views))
            known[key] = _Covered(views[fractions > 0], fractions[fractions > 0])
        found.append(known[key])
    return found


def _with_views(
    cells: Partition,
    cameras: Cameras,
    train_views: Int[np.ndarray, " n"],
    min_coverage: float,
    known: dict[bytes, _Covered],
) -> Partition:
    """Adds home, coverage and views. `known`: see `_coverage`."""
    num_views = len(cameras.centers_world)
    covered = _coverage(cells, cameras, known)
    inside = _spread_ground(cells, cameras.centers_world[:, :2], train_views)
    is_train = np.zeros(num_views, bool)
    is_train[train_views] = True
    views = []
    for own, (numbers, fractions) in zip(inside, covered, strict=True):
        views.append(np.union1d(own, numbers[(fractions >= min_coverage) & is_train[numbers]]))
    starts = np.cumsum([0, *(len(numbers) for numbers, _ in covered)])
    numbers = np.concatenate([numbers for numbers, _ in covered])
    fractions = np.concatenate([fractions for _, fractions in covered])
    by_block = csc_array((fractions, numbers, starts), (num_views, cells.num_blocks))
    return dataclasses.replace(
        cells,
        home=cells.cell_of(cameras.centers_world),
        coverage=by_block.tocsr(),
        views=views,
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
    inside = _spread_ground(cells, points_world[:, :2], np.arange(len(points_world)))
    if cloud.has_tracks:
        seen = [cloud.sightings.of_all(views) for views in cells.views]
    else:
        seen = _projected_points(cells, points_world, cameras)
    return [
        own if len(own) == len(points_world) else np.unique(np.concatenate([own, others]))
        for own, others in zip(inside, seen, strict=True)
    ]


def _projected_points(
    cells: Partition, points_world: Float[np.ndarray, "p 3"], cameras: Cameras
) -> list[Int[np.ndarray, " _"]]:
    """The points that fall into the views of each block, some of them several times; only cells
    that a view may show are projected into it.
    """
    in_cells = ground_tree.grouped(cells.cell_of(points_world), cells.num_blocks)
    boxes = [points_world[numbers] if len(numbers) else points_world[:1] for numbers in in_cells]
    lows = np.array([box.min(axis=0) for box in boxes])
    highs = np.array([box.max(axis=0) for box in boxes])
    blocks_of_view: dict[int, list[int]] = {}
    for block, views in enumerate(cells.views):
        for view in views.tolist():
            blocks_of_view.setdefault(view, []).append(block)

    def is_near(low, high, members):
        return may_show(low, high, cameras.pick(members))

    members = np.array(sorted(blocks_of_view))
    near = ground_tree.spread(cells.nodes, lows, highs, members=members, is_near=is_near)
    seen: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in cells.views]
    for numbers, views in zip(in_cells, near, strict=True):
        for view in views.tolist():
            shown = numbers[_sees(cameras, view, points_world[numbers])]
            for block in blocks_of_view[view]:
                seen[block].append(shown)
    return [np.concatenate(parts) for parts in seen]


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
    known: dict[bytes, _Covered] = {}
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
    if cells.num_blocks > 1:
        _log_blocks(cells, cells.num_blocks * work / work.sum())
    return cells
