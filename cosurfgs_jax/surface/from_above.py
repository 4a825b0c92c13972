"""A mesh drawn from straight above: height, colour and confidence of the highest surface under the
middle of every pixel, with small gaps filled. NumPy.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from scipy import ndimage

from cosurfgs_jax.surface.ground import GroundFrame, GroundGrid
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.pixels_in_triangles import pixels_in_triangles

# What a pixel's height is from.
NOTHING = 0
SURFACE = 1  # the mesh
FILLED = 2  # the mesh around a small gap
# Pixels from its rim to the middle of the widest gap that is filled.
GAP = 3
# Pixels by which known heights around a gap may differ; where they differ more there is an edge,
# and the gap gets the lower side: roofs keep their outline.
_EDGE = 3.0
# Heights are means over this many pixels to each side (a Gaussian of 2), where a pixel and its
# opposite differ from the middle by less than a third of a pixel: planes stay, and so do edges.
_RADIUS = 3
_SIGMA = 2.0
_SAME_SURFACE = 1 / 3
# What closing a gap, widening and smoothing look at beyond a tile.
_MARGIN = 3 * GAP + 3


class SeenFromAbove(NamedTuple):
    """A piece of a raster; values mean nothing where `mark` is NOTHING.

    | field        | shape      | unit, frame                                             |
    |--------------|------------|---------------------------------------------------------|
    | `heights`    | f64[h,w]   | ground coordinates                                      |
    | `colors`     | u8[h,w,3]  | RGB                                                     |
    | `confidence` | f32[h,w]   | photographs, see `Mesh`, NaN where it has none; 0 where |
    |              |            | it is FILLED                                            |
    | `mark`       | u8[h,w]    | NOTHING, SURFACE or FILLED                              |
    """

    heights: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray
    mark: np.ndarray


class MeshFromAbove:
    """A mesh ready to be drawn piece by piece."""

    def __init__(
        self, mesh: Mesh, axes: GroundFrame, grid: GroundGrid, limits: tuple[float, float]
    ):
        """Takes what lies within the limits of height.

        Args:
            mesh: dataset frame.
            axes: of the ground.
            grid: the raster.
            limits: lowest and highest height of a surface.
        """
        ground = axes.from_dataset(mesh.vertices)
        self._grid = grid
        self._lowest = limits[0]
        place = [(ground[:, 0] - grid.left), (grid.top - ground[:, 1])]
        place = np.stack([*place, ground[:, 2] - limits[0]], axis=1)
        self._places = (place / [grid.pixel_size, grid.pixel_size, 1]).astype(np.float32)
        is_used = (ground[:, 2] >= limits[0]) & (ground[:, 2] <= limits[1])
        self._triangles = mesh.triangles[is_used[mesh.triangles].all(axis=1)]
        confidence = mesh.vertex_confidence
        if confidence is None:
            confidence = np.full(mesh.num_vertices, np.nan)
        values = [mesh.vertex_colors, confidence[:, None]]
        self._values = np.concatenate(values, axis=1, dtype=np.float32)
        corners = self._places[self._triangles, :2]
        low = corners.min(axis=1)
        # A piece looks at the triangles of its rows alone: all are sorted by where they begin.
        self._order = np.argsort(low[:, 1], kind="stable")
        self._low = low[self._order]
        self._high = corners.max(axis=1)[self._order]
        self._begins = self._low[:, 1].astype(np.float64)
        self._tallest = (self._high[:, 1] - self._begins).max(initial=0)

    def tile(self, row: int, column: int, size: int) -> SeenFromAbove:
        """Draws `size` x `size` pixels from (row, column) on."""
        first = np.array([column, row]) - _MARGIN
        side = size + 2 * _MARGIN
        triangles = self._triangles[self._near(first, side)]
        values = _draw(
            self._places[triangles] - np.array([*first, 0.0]), self._values[triangles], side
        )
        is_surface = values[..., 0] > -np.inf
        values = _fill(values, is_surface, _EDGE * self._grid.pixel_size)
        values[..., 0] = _smooth(values[..., 0], _SAME_SURFACE * self._grid.pixel_size)
        inner = (slice(_MARGIN, _MARGIN + size),) * 2
        is_known = (values[..., 0] > -np.inf)[inner]
        values = np.where(is_known[..., None], values[inner], 0)
        mark = np.where(is_known, np.where(is_surface[inner], SURFACE, FILLED), NOTHING)
        return SeenFromAbove(
            values[..., 0] + self._lowest,
            np.round(np.clip(values[..., 1:4], 0, 255)).astype(np.uint8),
            np.where(mark == SURFACE, values[..., 4], 0).astype(np.float32),
            mark.astype(np.uint8),
        )

    def _rows(self, first: Integer[np.ndarray, "2"], side: int) -> slice:
        """Of the sorted triangles those that may be in the rows of a square."""
        begin = np.searchsorted(self._begins, first[1] - self._tallest)
        end = np.searchsorted(self._begins, first[1] + side, side="right")
        return slice(int(begin), int(end))

    def _near(self, first: Integer[np.ndarray, "2"], side: int) -> Integer[np.ndarray, " f"]:
        """Numbers of the triangles whose boxes reach into a square of pixels, in their order.

        Args:
            first: column and row of its corner.
        """
        rows = self._rows(first, side)
        is_near = (self._high[rows] >= first).all(axis=1)
        is_near &= (self._low[rows] <= first + side).all(axis=1)
        return np.sort(self._order[rows][is_near])


def _draw(
    corners: Float[np.ndarray, "f 3 3"], values_of: Float[np.ndarray, "f 3 b"], side: int
) -> np.ndarray:
    """Height and b other values f64[side,side,1+b] of the highest of some triangles; height -inf
    where there is none. Corners are column, row and height.
    """
    values = np.full((side * side, 1 + values_of.shape[2]), -np.inf)
    for pixel, number, weights in pixels_in_triangles(corners[..., :2], side):
        weights = np.clip(weights, 0, 1)
        height = np.einsum("pc,pc->p", weights, corners[number, :, 2])
        np.maximum.at(values[:, 0], pixel, height)
        is_top = height == values[pixel, 0]
        values[pixel[is_top], 1:] = np.einsum(
            "pc,pcb->pb", weights[is_top], values_of[number[is_top]]
        )
    return values.reshape(side, side, -1)


def _smooth(heights: np.ndarray, tolerance: float) -> np.ndarray:
    """Means f64[h,w] over what is the same surface; -inf stays."""
    rows, columns = heights.shape
    is_known = heights > -np.inf
    middle = np.where(is_known, heights, 0)
    padded = np.pad(np.where(is_known, heights, np.nan), _RADIUS, constant_values=np.nan)
    total = middle.copy()
    weights = np.ones_like(heights)
    for i in range(_RADIUS + 1):
        for j in range(-_RADIUS, _RADIUS + 1):
            if (i, j) <= (0, 0):  # each pair once
                continue
            one, other = (
                padded[_RADIUS + k * i :, _RADIUS + k * j :][:rows, :columns] - middle
                for k in (1, -1)
            )
            weight = np.exp(-(i * i + j * j) / (2 * _SIGMA**2))
            is_same = (np.abs(one) < tolerance) & (np.abs(other) < tolerance)
            total += np.where(is_same, weight * (one + other + 2 * middle), 0)
            weights += 2 * weight * is_same
    return np.where(is_known, total / weights, -np.inf)


def _fill(values: np.ndarray, is_known: np.ndarray, edge: float) -> np.ndarray:
    """The values with narrow gaps filled from their rims, ring by ring."""
    square = ndimage.generate_binary_structure(2, 2)
    # A gap is narrow where widening the surface closes it: outer rims stay where they are.
    closed = ndimage.binary_closing(is_known, square, iterations=GAP)
    values = values.copy()
    for _ in range(GAP):
        holes = closed & ~(values[..., 0] > -np.inf)
        holes[[0, -1]] = False
        holes[:, [0, -1]] = False
        row, column = np.nonzero(holes)
        if not len(row):
            break
        around = np.stack(
            [values[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=1
        )
        there = around[..., 0] > -np.inf
        low = np.where(there, around[..., 0], np.inf).min(axis=1)
        high = around[..., 0].max(axis=1)
        has_edge = there.any(axis=1) & (high > low + edge)
        top = np.where(has_edge, low + edge / 2, np.inf)
        weight = (there & (around[..., 0] <= top[:, None])).astype(float)
        total = weight.sum(axis=1, keepdims=True)
        mean = np.einsum("nk,nkb->nb", weight, np.where(there[..., None], around, 0))
        is_filled = total[:, 0] > 0
        values[row[is_filled], column[is_filled]] = (mean / np.maximum(total, 1))[is_filled]
    return values
