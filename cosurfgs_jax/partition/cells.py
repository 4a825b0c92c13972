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

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree

FORMAT = 1


def _plain(value):
    """The same with lists for arrays."""
    if isinstance(value, csr_array):
        value = value.toarray()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


@dataclasses.dataclass(frozen=True)
class Partition:
    """Blocks of a place, their photographs and points. Blocks of one subtree, and so of one edge,
    have consecutive indices.

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
    | `coverage`                  | sparse      | fraction of an image's area that the airspace of |
    |                             | f64[V,B]    | a block's inner cell covers, where it does       |
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
    coverage: csr_array

    @property
    def num_blocks(self) -> int:
        """After merging: it may be less than was asked for."""
        return len(self.edge_of_block)

    @property
    def num_edges(self) -> int:
        """After merging: it may be less than was asked for."""
        return int(self.edge_of_block[-1]) + 1

    def blocks_of_edge(self, edge: int | np.integer) -> Int[np.ndarray, " k"]:
        """The blocks of an edge, which have consecutive indices."""
        return np.flatnonzero(self.edge_of_block == edge)

    def cell_of(self, points_world: Float[np.ndarray, "*batch d"]) -> Int[np.ndarray, "*batch"]:
        """The block in whose cell each point lies: f64[...,3 or 2] -> i64[...]. Heights do not
        matter.
        """
        # In float64 also for float32 points: a wall that is rounded would disagree with `lows` and
        # `highs`.
        ground = np.asarray(points_world, np.float64)[..., :2]
        return ground_tree.locate(self.nodes, ground.reshape(-1, 2)).reshape(ground.shape[:-1])

    def expanded(
        self, block: int | np.integer
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Corners of a block's expanded cell, world xy: the cell and `expansion` times its inner
        side on every side; infinite sides stay infinite.
        """
        margin = self.expansion * (self.inner_highs[block] - self.inner_lows[block])
        return self.lows[block] - margin, self.highs[block] + margin

    def is_in_expanded(
        self,
        blocks: int | np.integer | list[int] | Int[np.ndarray, " k"],
        points_world: Float[np.ndarray, "*batch d"],
    ) -> Bool[np.ndarray, "*batch"]:
        """Whether points f64[...,3 or 2] lie in the expanded cell of any of the blocks:
        bool[...].
        """
        ground = np.asarray(points_world, np.float64)[..., :2]
        is_inside = np.zeros(ground.shape[:-1], bool)
        for block in np.atleast_1d(blocks):
            low, high = self.expanded(block)
            is_inside |= ((ground >= low) & (ground < high)).all(axis=-1)
        return is_inside

    def wall_distance(
        self, points_world: Float[np.ndarray, "*batch d"]
    ) -> Float[np.ndarray, "*batch"]:
        """How far points f64[...,3 or 2] are from the nearest wall of their cell, as a fraction of
        the cell's side: f64[...].

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

    def without_lists(self) -> "Partition":
        """The cells alone, without which views and points each block has, and what of a view."""
        nothing = [np.zeros(0, np.int64)] * self.num_blocks
        coverage = csr_array((0, self.num_blocks))
        return dataclasses.replace(self, points=nothing, views=nothing, coverage=coverage)

    def to_dict(self) -> dict:
        """For a JSON file; Python writes and reads float64 exactly. The infinite sides of the cells
        are left out.
        """
        table = {name: value for name, value in vars(self).items() if name not in ("lows", "highs")}
        lists = {
            name: [numbers.tolist() for numbers in table.pop(name)] for name in ("views", "points")
        }
        plain = {name: _plain(value) for name, value in table.items()}
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
                **dict.fromkeys(("low_z", "high_z", "lengths"), len(lows)),
            }
            floats = {
                name: np.array(table[name], np.float64).reshape(shape)
                for name, shape in shapes.items()
            }
            coverage = np.array(table["coverage"], np.float64).reshape(-1, len(lows))
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
                coverage=csr_array(coverage),
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
