"""The partition of a place into blocks: the cells of a kd-tree on the ground plane, grouped into
edges. NumPy, float64.

All in the *world* of training, where +z is up and the ground plane is xy. The cells fill the plane,
so every point lies in just one; a point on a wall belongs to the greater side. A kd-tree is used as
its cells can be ordered front to back from anywhere.
"""

import dataclasses
import hashlib
import itertools
import json
import logging

import numpy as np
from jaxtyping import Bool, Float, Int

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree
from cosurfgs_jax.geometry.airspace import Cameras, box_coverage, cameras_in_world
from cosurfgs_jax.geometry.cameras import camera_center, project
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.settings import PartitionSettings

FORMAT = 1
_CONTENT = (1, 99)  # percentiles: stray points must not stretch the outer cells
# Likewise: from the ground to the highest roof, not from a point below it to a bird.
_HEIGHTS = (2, 99)
# World lengths: what an outer cell keeps at least where its wall lies at the rim of the content.
_MIN_SIDE = 1e-3
_UP = np.array([0.0, 0.0, 1.0])  # world
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
        return ground_tree.locate(self.nodes, ground.reshape(-1, 2)).reshape(ground.shape[:-1])

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
        return ground_tree.near_first(self.nodes, ground.reshape(-1, 2)).reshape(
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
            nodes = ground_tree.numbered(table["nodes"], itertools.count())
            lows, highs = ground_tree.leaves(nodes)[1:]
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
    for block, box in enumerate(boxes if cells.num_blocks > 1 else []):
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
        "equal share of the work",
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
    weights = np.repeat([0.5 / count for count in counts], counts)
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
