"""The partition of a place into blocks: the cells of a kd-tree on the ground plane, grouped into
edges. NumPy, float64.

All in the *world* of training, where +z is up and the ground plane is xy. The cells fill the plane,
so every point lies in just one; a point on a wall belongs to the greater side. A kd-tree is used as
its cells can be ordered front to back from anywhere."""

import dataclasses
import hashlib
import itertools
import json
import logging
import types

import numpy as np
from jaxtyping import Bool, Float, Int

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.cameras import camera_center, project
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.settings import PartitionSettings

FORMAT = 1
_CONTENT = (1, 99)  # percentiles: stray points must not stretch the outer cells
_HEIGHTS = (
    2,
    99,
)  # likewise: from the ground to the highest roof, not from a point below it to a bird
# world lengths: the least that an outer cell keeps where its wall lies at the rim of the content
_MIN_SIDE = 1e-3
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Blocks of a place, their photographs and points. Blocks of one subtree, and so of one edge,
    have following numbers.

    | field                       | shape       | unit, frame                                      |
    |-----------------------------|-------------|--------------------------------------------------|
    | `nodes`                     |             | (axis, wall, left, right), nested; a leaf is a   |
    |                             |             | block; left is where x < wall                    |
    | `expansion`                 |             | of the inner side: what a block trains on beyond |
    |                             |             | its cell, on each side                           |
    | `lows`, `highs`             | f64[B,2]    | cells, world xy; outer sides are infinite        |
    | `inner_lows`, `inner_highs` | f64[B,2]    | the same clipped to the bounds of the content;   |
    |                             |             | sides are positive                               |
    | `low_z`, `high_z`           | f64[B]      | from the ground to the highest point of the      |
    |                             |             | inner cell, world                                |
    | `edge_of_block`             | i64[B]      | 0 to num_edges-1, ascending                      |
    | `views`                     | B of i64[n] | training views of each block, ascending; a view  |
    |                             |             | may be one of several                            |
    | `home`                      | i64[V]      | the block in whose cell a view's camera stands,  |
    |                             |             | test views too                                   |
    | `points`                    | B of i64[n] | SfM points of each block, ascending; a point may |
    |                             |             | be one of several                                |
    | `lengths`                   | f64[B]      | extent of a block as `SceneFrame` would measure  |
    |                             |             | it, world; 1 if B = 1                            |
    | `coverage`                  | f64[V,B]    | share of an image's area that the airspace of a  |
    |                             |             | block's inner cell covers                        |
    """

    nodes: tuple | int
    expansion: float
    lows: np.ndarray
    highs: np.ndarray
    inner_lows: np.ndarray
    inner_highs: np.ndarray
    low_z: np.ndarray
    high_z: np.ndarray
    edge_of_block: np.ndarray
    views: list[np.ndarray]
    home: np.ndarray
    points: list[np.ndarray]
    lengths: np.ndarray
    coverage: np.ndarray

    @property
    def num_blocks(self) -> int:
        """After merging: it may be less than was asked for."""
        return len(self.edge_of_block)

    @property
    def num_edges(self) -> int:
        """After merging: it may be less than was asked for."""
        return int(self.edge_of_block[-1]) + 1

    def blocks_of_edge(self, edge: int | np.integer) -> Int[np.ndarray, " k"]:
        """The blocks of an edge, which have following numbers."""
        return np.flatnonzero(self.edge_of_block == edge)

    def cell_of(self, points_world: Float[np.ndarray, "*batch d"]) -> Int[np.ndarray, "*batch"]:
        """The block in whose cell each point lies: f64[...,3 or 2] -> i64[...]. Heights do not
        matter.
        """
        # In float64 also for float32 points: a wall that is rounded would disagree with `lows` and
        # `highs`.
        ground = np.asarray(points_world, np.float64)[..., :2]
        return _locate(self.nodes, ground.reshape(-1, 2)).reshape(ground.shape[:-1])

    def is_in_expanded(
        self,
        blocks: int | np.integer | list[int] | Int[np.ndarray, " k"],
        points_world: Float[np.ndarray, "*batch d"],
    ) -> Bool[np.ndarray, "*batch"]:
        """Whether points f64[...,3 or 2] lie in the expanded cell of any of the blocks: bool[...].

        A cell is expanded by `expansion` times its inner side on every side; infinite sides stay
        infinite."""
        ground = np.asarray(points_world, np.float64)[..., :2]
        is_inside = np.zeros(ground.shape[:-1], bool)
        margins = self.expansion * (self.inner_highs - self.inner_lows)
        for block in np.atleast_1d(blocks):
            low = self.lows[block] - margins[block]
            high = self.highs[block] + margins[block]
            is_inside |= ((ground >= low) & (ground < high)).all(axis=-1)
        return is_inside

    def wall_distance(
        self, points_world: Float[np.ndarray, "*batch d"]
    ) -> Float[np.ndarray, "*batch"]:
        """How far points f64[...,3 or 2] are from the nearest wall of their cell, as a share of the
        cell's side: f64[...].

        The least of the horizontal distances to the cell's finite faces, each divided by the inner
        side across the face; infinite where there is one block only.
        """
        ground = np.asarray(points_world, np.float64)[..., :2]
        cells = self.cell_of(ground)
        to_face = np.minimum(ground - self.lows[cells], self.highs[cells] - ground)
        return (to_face / (self.inner_highs - self.inner_lows)[cells]).min(axis=-1)

    def front_to_back(
        self, center_world: Float[np.ndarray, "*batch d"]
    ) -> Int[np.ndarray, "*batch b"]:
        """The blocks in the order in which every ray from a viewpoint meets their cells: f64[...,3]
        -> i64[...,B].

        Source: the order of a binary space partition (Fuchs, Kedem and Naylor 1980): the near side
            of each wall first.
        """
        ground = np.asarray(center_world, np.float64)[..., :2]
        return _near_first(self.nodes, ground.reshape(-1, 2)).reshape(
            *ground.shape[:-1], self.num_blocks
        )

    def to_dict(self) -> dict:
        """For a JSON file; Python writes and reads float64 exactly. The infinite sides of the cells
        are left out.
        """
        table = {name: value for name, value in vars(self).items() if name not in ("lows", "highs")}
        lists = {
            name: [numbers.tolist() for numbers in table.pop(name)] for name in ("views", "points")
        }
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in table.items()
        }
        return {"format": FORMAT, **plain, **lists}

    @classmethod
    def from_dict(cls, table: dict) -> "Partition":
        """The partition that `to_dict` gave.

        Raises:
            InputError: not such a table, or of another format number.
        """
        if table.get("format") != FORMAT:
            raise InputError(
                f"partition: expected format {FORMAT}, got {table.get('format')}; train again"
            )
        try:
            nodes = _numbered(table["nodes"], itertools.count())
            lows, highs = _leaves(nodes)[1:]
            shapes = {
                "inner_lows": lows.shape,
                "inner_highs": lows.shape,
                "coverage": (-1, len(lows)),
                **dict.fromkeys(("low_z", "high_z", "lengths"), len(lows)),
            }
            floats = {
                name: np.array(table[name], np.float64).reshape(shape)
                for name, shape in shapes.items()
            }
            views, points = (
                [np.array(numbers, np.int64) for numbers in table[name]]
                for name in ("views", "points")
            )
            edge_of_block, home = (
                np.array(table[name], np.int64) for name in ("edge_of_block", "home")
            )
            if not len(views) == len(points) == len(edge_of_block) == len(lows):
                raise ValueError(
                    f"{len(lows)} cells, {len(views)} lists of views and {len(points)} of points"
                )
            return cls(
                nodes=nodes,
                expansion=float(table["expansion"]),
                lows=lows,
                highs=highs,
                edge_of_block=edge_of_block,
                views=views,
                home=home,
                points=points,
                **floats,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"partition: expected the fields of a Partition, got {error!r}; train again"
            ) from None

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the tree, the edges, and the views and points of
        the blocks.
        """
        digest = hashlib.sha256(json.dumps([self.nodes, self.edge_of_block.tolist()]).encode())
        for numbers in [*self.views, *self.points]:
            digest.update(np.insert(numbers, 0, len(numbers)).astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def _numbered(node, numbers):
    """A tree, also as lists, as tuples with following numbers at its leaves."""
    if not isinstance(node, list | tuple):
        return next(numbers)
    axis, wall, left, right = node
    return int(axis), float(wall), _numbered(left, numbers), _numbered(right, numbers)


def _leaves(nodes) -> tuple[list[int], np.ndarray, np.ndarray]:
    """What is at the leaves, from left to right, and the cells' corners f64[B,2]."""
    found = []

    def walk(node, low, high):
        if not isinstance(node, tuple):
            found.append((node, low, high))
            return
        axis, wall, left, right = node
        walk(left, low, np.where(np.arange(2) == axis, wall, high))
        walk(right, np.where(np.arange(2) == axis, wall, low), high)

    walk(nodes, np.full(2, -np.inf), np.full(2, np.inf))
    names, lows, highs = zip(*found, strict=True)
    return list(names), np.array(lows), np.array(highs)


def _locate(node, ground):
    if not isinstance(node, tuple):
        return np.full(len(ground), node, np.int64)
    axis, wall, left, right = node
    is_left = ground[:, axis] < wall
    found = np.empty(len(ground), np.int64)
    found[is_left] = _locate(left, ground[is_left])
    found[~is_left] = _locate(right, ground[~is_left])
    return found


def _near_first(node, ground):
    if not isinstance(node, tuple):
        return np.full((len(ground), 1), node, np.int64)
    axis, wall, left, right = node
    left = _near_first(left, ground)
    right = _near_first(right, ground)
    is_left = ground[:, axis, None] < wall
    return np.where(
        is_left, np.concatenate([left, right], axis=1), np.concatenate([right, left], axis=1)
    )


def _wall(positions, weights, share) -> float | None:
    """Midway between the neighbouring positions that divide the weight best; None if all positions
    are the same.
    """
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    below = np.cumsum(weights[order])
    gaps = np.flatnonzero(np.diff(positions) > 0)
    if not gaps.size:
        return None
    gap = gaps[np.argmin(np.abs(below[gaps] - share * below[-1]))]
    return float(0.5 * (positions[gap] + positions[gap + 1]))


def _cut(ground, weights, low, high, groups):
    """The tree of a cell: `groups` are (edge, number of its blocks here), `weights` work at
    `ground`; its leaves are edges.
    """
    total = sum(count for _, count in groups)
    if total == 1:
        return groups[0][0]
    if len(groups) > 1:
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    else:
        ((edge, count),) = groups
        halves = [(edge, count // 2)], [(edge, count - count // 2)]
    share = sum(count for _, count in halves[0]) / total
    for axis in np.argsort(low - high, kind="stable").tolist():
        wall = _wall(ground[:, axis], weights, share)
        if wall is not None:
            break
    else:
        _log.warning(
            "%d blocks were asked for where all points and cameras stand at one place; made one of "
            "them",
            total,
        )
        return groups[0][0]
    is_left = ground[:, axis] < wall
    is_axis = np.arange(2) == axis
    left = _cut(ground[is_left], weights[is_left], low, np.where(is_axis, wall, high), halves[0])
    right = _cut(ground[~is_left], weights[~is_left], np.where(is_axis, wall, low), high, halves[1])
    return axis, wall, left, right


def _cells(tree, edges, bounds, points_world, expansion) -> Partition:
    """The partition of a tree with anything at its leaves, numbered anew; views, points and what
    follows from them are empty.
    """
    nodes = _numbered(tree, itertools.count())
    lows, highs = _leaves(nodes)[1:]
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
        heights[block] = np.percentile((inside if len(inside) else points_world)[:, 2], _HEIGHTS)
    edge_of_block = np.unique(edges, return_inverse=True)[1]
    nothing = np.zeros(0)
    return Partition(
        nodes,
        expansion,
        lows,
        highs,
        inner_lows,
        inner_highs,
        *heights.T,
        edge_of_block,
        [],
        nothing,
        [],
        nothing,
        nothing,
    )


def _clip(polygons, plane):
    """Convex polygons f64[n,m,3] cut by a half space f64[3] through the origin: f64[n,m+1,3], the
    last corner repeated.
    """
    num_corners = polygons.shape[1]
    distances = polygons @ plane
    following = np.roll(polygons, -1, axis=1)
    ahead = np.roll(distances, -1, axis=1)
    is_in = distances >= 0
    crosses = (distances >= 0) != (ahead >= 0)
    share = distances / np.where(crosses, distances - ahead, 1)
    corners = np.stack(
        [polygons, polygons + share[..., None] * (following - polygons)], axis=2
    ).reshape(-1, 2 * num_corners, 3)
    is_kept = np.stack([is_in, crosses], axis=2).reshape(-1, 2 * num_corners)
    order = np.argsort(~is_kept, axis=1, kind="stable")
    num_kept = is_kept.sum(axis=1)
    slots = np.minimum(np.arange(num_corners + 1), np.maximum(num_kept, 1)[:, None] - 1)
    clipped = np.take_along_axis(
        corners, np.take_along_axis(order, slots, axis=1)[..., None], axis=1
    )
    # All corners in one point: an empty polygon that can be divided by its depth.
    clipped[num_kept == 0] = [0, 0, 1]
    return clipped


def _box_coverage(low, high, camera_from_world, intrinsics, image_sizes) -> np.ndarray:
    """The share f64[V] of each image's area that a world box [low, high] covers, whatever stands
    before it.

    The faces of a box that a camera sees from outside tile its outline. Each is clipped (Sutherland
    and Hodgman 1974) to the pyramid of the image's edges, and so to what is in front of the camera.
    A camera inside the box sees nothing else."""
    centers_world = camera_center(camera_from_world)
    # Images are 1 wide and 1 high here, whatever their size.
    images_from_world = (
        intrinsics
        / np.insert(image_sizes[:, ::-1], 2, 1, axis=1)[..., None]
        @ camera_from_world[:, :3]
    )
    shares = np.zeros(len(centers_world))
    is_inside = np.ones(len(centers_world), bool)
    for axis in range(3):
        is_below = centers_world[:, axis] < low[axis]
        views = np.flatnonzero(is_below | (centers_world[:, axis] > high[axis]))
        is_inside[views] = False
        corners = np.empty((len(views), 4, 3))
        corners[..., axis] = np.where(is_below[views], low[axis], high[axis])[:, None]
        for other, picks in (((axis + 1) % 3, [0, 1, 1, 0]), ((axis + 2) % 3, [0, 0, 1, 1])):
            corners[..., other] = np.array([low[other], high[other]])[picks]
        polygons = (
            corners @ images_from_world[views, :, :3].swapaxes(1, 2)
            + images_from_world[views, None, :, 3]
        )
        for plane in ([1, 0, 0], [-1, 0, 1], [0, 1, 0], [0, -1, 1]):
            polygons = _clip(polygons, np.array(plane, np.float64))
        # The depth is 0 only for a camera on the face itself, to rounding.
        places = polygons[..., :2] / np.maximum(polygons[..., 2:], np.finfo(np.float64).tiny)
        x, y = np.clip(places, 0, 1).transpose(2, 0, 1)
        shares[views] += 0.5 * np.abs(
            (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)
        )
    return np.where(is_inside, 1.0, np.minimum(shares, 1.0))


def _with_views(
    cells, camera_from_world, intrinsics, image_sizes, train_views, min_coverage, known
) -> Partition:
    """Adds home, coverage and views. `known` keeps the coverage of airspaces from one round of
    merging to the next.
    """
    centers_world = camera_center(camera_from_world)
    coverage = np.ones((len(centers_world), cells.num_blocks))
    boxes = np.column_stack([cells.inner_lows, cells.low_z, cells.inner_highs, cells.high_z])
    views = []
    for block, box in enumerate(boxes if cells.num_blocks > 1 else []):
        if box.tobytes() not in known:
            known[box.tobytes()] = _box_coverage(
                box[:3], box[3:], camera_from_world, intrinsics, image_sizes
            )
        coverage[:, block] = known[box.tobytes()]
    for block in range(cells.num_blocks):
        is_one = cells.is_in_expanded(block, centers_world) | (coverage[:, block] >= min_coverage)
        views.append(train_views[is_one[train_views]])
    return dataclasses.replace(
        cells, home=cells.cell_of(centers_world), coverage=coverage, views=views
    )


def _merged(cells: Partition, block: int, num_points: int) -> tuple[tuple | int, np.ndarray]:
    """The tree and the edges of its leaves without one block, whose place falls to the other side
    of its innermost wall.
    """

    def without(node):
        if not isinstance(node, tuple):
            return node
        axis, wall, left, right = node
        return (
            right
            if left == block
            else left
            if right == block
            else (axis, wall, without(left), without(right))
        )

    edge = int(cells.edge_of_block[block])
    rest = np.delete(cells.edge_of_block, block)
    lost = "" if edge in rest else f"; edge {edge} has no other block and is gone, too"
    _log.warning(
        "block %d of %d has %d training photographs and %d points in its cell; merged with its "
        "neighbour%s; the rest is "
        "numbered anew",
        block,
        cells.num_blocks,
        len(cells.views[block]),
        num_points,
        lost,
    )
    return without(cells.nodes), rest


def _points_of_blocks(
    cells, points_world, track_offsets, track_views, camera_from_world, intrinsics, image_sizes
):
    is_one = np.stack(
        [cells.is_in_expanded(block, points_world) for block in range(cells.num_blocks)]
    )
    is_view = np.stack([np.isin(np.arange(len(camera_from_world)), views) for views in cells.views])
    if len(track_views):
        point_of_track = np.repeat(np.arange(len(points_world)), np.diff(track_offsets))
        for block in range(cells.num_blocks):
            is_one[block, point_of_track[is_view[block, track_views]]] = True
    else:
        for view in np.flatnonzero(is_view.any(axis=0)):
            pixels, depth = project(points_world, camera_from_world[view], intrinsics[view])
            is_seen = (depth > 0) & ((pixels >= 0) & (pixels < image_sizes[view, ::-1])).all(
                axis=-1
            )
            is_one[np.ix_(is_view[:, view], is_seen)] = True
    return [np.flatnonzero(mask) for mask in is_one]


def _length(points_world, camera_from_world) -> float:
    part = types.SimpleNamespace(
        points=points_world, camera_from_dataset=camera_from_world, up=np.array([0.0, 0.0, 1.0])
    )
    return 1 / SceneFrame.from_scene(part).scale


def build_partition(
    points_world: Float[np.ndarray, "p 3"],
    track_offsets: Int[np.ndarray, " offsets"],
    track_views: Int[np.ndarray, " t"],
    camera_from_world: Float[np.ndarray, "v 4 4"],
    intrinsics: Float[np.ndarray, "v 3 3"],
    image_sizes: Int[np.ndarray, "v 2"],
    train_views: Int[np.ndarray, " n"],
    settings: PartitionSettings,
) -> Partition:
    """Cuts a place into blocks of equal work, and says which photographs and points each block
    trains on.

    Work is half the share of the points and half the share of the training cameras, at their
    positions on the ground. The plane is cut into edges, then each edge into its blocks, across the
    longer side, so that the work on both sides is as the numbers of blocks. A block's views are the
    training photographs taken from its expanded cell, and those whose area the airspace of its
    inner cell covers by `min_coverage`; its points are those in the expanded cell and those that
    its views see. A block with too few views, or points in its cell, is merged with the other side
    of its innermost wall, which is within its edge unless the edge has no other block. One block
    has everything.

    Args:
        points_world: f64[P,3], world.
        track_offsets, track_views: i64[P+1], i32[T], see `data.scene.Scene`; with T = 0 a view sees
            what projects into it.
        camera_from_world, intrinsics, image_sizes: f64[V,4,4] rigid, f64[V,3,3] pixels, i64[V,2]
        (H, W); test views too.
        train_views, settings: i64[n]; how many blocks and edges, and the limits.
    Returns:
        The partition, without chance.
    Raises:
        InputError: more blocks than training photographs.
    Source: coverage of the airspace after VastGaussian (Lin et al. 2024); the kd-tree is **ours**.
    """
    if settings.num_blocks > len(train_views):
        raise InputError(
            f"config.partition.num_blocks: expected at most the {len(train_views)} training "
            "photographs, got "
            f"{settings.num_blocks}; ask for fewer blocks"
        )
    train_views = np.sort(train_views)
    places = camera_center(camera_from_world)[:, :2]
    ground = np.concatenate([points_world[:, :2], places[train_views]])
    weights = np.repeat(
        [0.5 / len(points_world), 0.5 / len(train_views)], [len(points_world), len(train_views)]
    )
    bulk = [
        np.percentile(part, _CONTENT, axis=0) for part in (points_world[:, :2], places[train_views])
    ]
    bounds = np.min(bulk, axis=0)[0], np.max(bulk, axis=0)[1]
    each, more = divmod(settings.num_blocks, settings.num_edges)
    tree = _cut(
        ground,
        weights,
        *bounds,
        [(edge, each + (edge < more)) for edge in range(settings.num_edges)],
    )
    edges = np.array(_leaves(tree)[0])
    known = {}
    cameras = (camera_from_world, intrinsics, image_sizes)
    while True:
        cells = _cells(tree, edges, bounds, points_world, settings.expansion)
        cells = _with_views(cells, *cameras, train_views, settings.min_coverage, known)
        num_points = np.bincount(cells.cell_of(points_world), minlength=cells.num_blocks)
        num_views = np.array([len(views) for views in cells.views])
        starved = np.flatnonzero(
            (num_views < settings.min_views) | (num_points < settings.min_points)
        )
        if cells.num_blocks == 1 or not starved.size:
            break
        tree, edges = _merged(cells, int(starved[0]), int(num_points[starved[0]]))
    points = _points_of_blocks(cells, points_world, track_offsets, track_views, *cameras)
    lengths = (
        [1.0]
        if cells.num_blocks == 1
        else [
            _length(points_world[seen], camera_from_world[views])
            for seen, views in zip(points, cells.views, strict=True)
        ]
    )
    work = cells.num_blocks * np.bincount(
        cells.cell_of(ground), weights, minlength=cells.num_blocks
    )
    sizes = [len(numbers) for numbers in points]
    _log.info(
        "blocks: %d, edges: %d; %d..%d photographs and %d..%d points a block, %.2f..%.2f of an "
        "equal share of the work",
        cells.num_blocks,
        cells.num_edges,
        num_views.min(),
        num_views.max(),
        min(sizes),
        max(sizes),
        work.min(),
        work.max(),
    )
    return dataclasses.replace(cells, points=points, lengths=np.array(lengths))
