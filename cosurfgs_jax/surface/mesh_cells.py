"""A mesh file cut into regular cells of the ground, of which one is in memory at a time. The border
between two cells runs along edges of triangles, and both have its vertices.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from cosurfgs_jax.formats.ply import columns
from cosurfgs_jax.formats.ply_parts import mapped_mesh
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.mesh_files import upright

_ROWS = 1_000_000  # triangles or vertices that are read at a time, 100 bytes each
_BINS = 256  # along the longer side, for the ground that the mesh covers


def ground_axes(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "2 3"]:
    """East and north where `up` is the vertical, dataset axes: x and y where it is z."""
    turn = upright(up)
    return np.stack([turn[0], -turn[2]])


class Cells(NamedTuple):
    """Squares of the ground, counted row by row.

    | field     | content                                                         |
    |-----------|-----------------------------------------------------------------|
    | `axes`    | f64[2,3] of the columns and of the rows, dataset axes           |
    | `low`     | f64[2] where the first square begins, along the axes            |
    | `side`    | of a square, dataset                                            |
    | `columns` | how many there are in a row                                     |
    | `rows`    | how many rows there are                                         |
    """

    axes: np.ndarray
    low: np.ndarray
    side: float
    columns: int
    rows: int

    def position(self, places: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Column and row of places, with their fractions."""
        return (places @ self.axes.T - self.low) / self.side

    def is_within(self, cell: int, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether a cell reaches into a rectangle, given by two positions."""
        row, column = divmod(cell, self.columns)
        return bool(((low <= [column + 1, row + 1]) & (high >= [column, row])).all())

    def of(self, places: Float[np.ndarray, "n 3"]) -> Integer[np.ndarray, " n"]:
        """The cell of each place; of those outside the nearest."""
        steps = np.floor(self.position(places)).astype(np.int64)
        column, row = np.clip(steps, 0, [self.columns - 1, self.rows - 1]).T
        return row * self.columns + column

    def name(self, cell: int) -> str:
        """Column and row, for names of files."""
        row, column = divmod(cell, self.columns)
        return f"{column}_{row}"

    def around(self, cell: int) -> set[int]:
        """The up to eight cells that a cell touches."""
        row, column = divmod(cell, self.columns)
        return {
            other_row * self.columns + other
            for other_row in range(max(row - 1, 0), min(row + 2, self.rows))
            for other in range(max(column - 1, 0), min(column + 2, self.columns))
        } - {cell}


class Survey(NamedTuple):
    """What has to be known of a mesh before it is cut.

    | field           | content                                                          |
    |-----------------|------------------------------------------------------------------|
    | `axes`          | f64[2,3], see `Cells`                                            |
    | `low`, `high`   | f64[2] of all vertices, along the axes                           |
    | `middle`        | f64[3] of the box of all vertices, dataset                       |
    | `area`          | of all triangles, square of the dataset's unit                   |
    | `ground`        | of the ground below them, roughly                                |
    | `num_triangles` |                                                                  |
    | `is_double`     | whether its coordinates are too large for float32                |
    """

    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray
    area: float
    ground: float
    num_triangles: int
    is_double: bool

    @property
    def extent(self) -> np.ndarray:
        """Lengths f64[2] of the mesh along the axes."""
        return self.high - self.low

    def cut(self, side: float) -> Cells:
        """Cells of about this side: a whole number of them along the longer side of the mesh."""
        longest = float(self.extent.max())
        number = max(1, round(longest / side))
        side = longest / number * (1 + 1e-9)
        counts = np.maximum(np.ceil(self.extent / side), 1).astype(int)
        return Cells(self.axes, self.low, side, columns=int(counts[0]), rows=int(counts[1]))


def _places(vertices: np.ndarray, path) -> np.ndarray:
    return columns(vertices, ("x", "y", "z"), path)


def _triangle_parts(path: str | os.PathLike) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vertex numbers i32[f,3] and corners f64[f,3,3], part by part."""
    num_triangles = len(mapped_mesh(path)[1])
    for start in range(0, num_triangles, _ROWS):
        vertices, triangles = mapped_mesh(path)  # anew, as what was touched stays in memory
        part = np.array(triangles[start : start + _ROWS])
        numbers, local = np.unique(part, return_inverse=True)
        yield part, _places(vertices[numbers], path)[local.reshape(-1, 3)]


def survey(path: str | os.PathLike, up: Float[np.ndarray, "3"]) -> Survey:
    """Reads a mesh file twice, part by part.

    Args:
        path: a file of `write_mesh_ply`.
        up: the vertical, dataset axes.
    Raises:
        InputError: another file.
    """
    axes = ground_axes(up)
    boxes = [np.full((2, size), np.inf) for size in (3, 2)]  # lowest, and highest negated
    area = 0.0
    num_triangles = 0
    for triangles, corners in _triangle_parts(path):
        places = corners.reshape(-1, 3)
        for box, values in zip(boxes, (places, places @ axes.T), strict=True):
            np.minimum(box, [values.min(axis=0), -values.max(axis=0)], out=box)
        area += area_of(corners)
        num_triangles += len(triangles)
    low, high = boxes[1] * [[1], [-1]]
    side = float((high - low).max()) / _BINS * (1 + 1e-9)
    side = max(side, 3 * float(np.sqrt(area / num_triangles)))  # finer, some would be left out
    bins = Cells(axes, low, side, columns=_BINS, rows=_BINS)
    is_covered = np.zeros(_BINS**2, bool)
    for _, corners in _triangle_parts(path):
        is_covered[bins.of(corners[:, 0])] = True
    return Survey(
        axes=axes,
        low=low,
        high=high,
        middle=(boxes[0][0] - boxes[0][1]) / 2,
        area=area,
        ground=float(is_covered.sum()) * side**2,
        num_triangles=num_triangles,
        is_double=mapped_mesh(path)[0].dtype["x"] == np.dtype("<f8"),
    )


def area_of(corners: Float[np.ndarray, "f 3 3"]) -> float:
    """Area of all triangles together."""
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(across, axis=1).sum() / 2)


def split(path: str | os.PathLike, cells: Cells, folder: Path) -> dict[int, int]:
    """Sorts the triangles of a mesh file into files of cells: each is in the cell of its first
    corner; cells of the others note it.

    Args:
        path: a file of `write_mesh_ply`.
        cells: of its ground.
        folder: an empty one.
    Returns:
        Cell -> how many triangles it has, without those that have none, in order.
    """
    counts = np.zeros(cells.columns * cells.rows, np.int64)
    for triangles, corners in _triangle_parts(path):
        cell = cells.of(corners.reshape(-1, 3)).reshape(-1, 3)
        counts += np.bincount(cell[:, 0], minlength=len(counts))
        _append(folder, cells, cell[:, 0], triangles, kind="own")
        for corner in (1, 2):
            is_other = cell[:, corner] != cell[:, 0]
            _append(folder, cells, cell[is_other, corner], triangles[is_other], kind="other")
    return {int(cell): int(counts[cell]) for cell in np.flatnonzero(counts)}


def _append(
    folder: Path, cells: Cells, cell: np.ndarray, triangles: np.ndarray, *, kind: str
) -> None:
    if not len(cell):
        return
    order = np.argsort(cell, kind="stable")
    found, starts = np.unique(cell[order], return_index=True)
    for number, part in zip(found, np.split(triangles[order], starts[1:]), strict=True):
        with open(folder / f"{cells.name(int(number))}.{kind}", "ab") as file:
            file.write(part.astype("<i4").tobytes())


def _numbers(path: Path) -> np.ndarray:
    return np.fromfile(path, "<i4").reshape(-1, 3)


def read_cell(
    path: str | os.PathLike, cells: Cells, cell: int, folder: Path
) -> tuple[Mesh, np.ndarray]:
    """The triangles of a cell, and bool[M] of its vertices that triangles of another cell may have,
    too.

    Args:
        path, cells, folder: of `split`.
        cell: number of one that has triangles.
    """
    name = cells.name(cell)
    own = _numbers(folder / f"{name}.own")
    others = np.zeros((0, 3), np.int32)
    if (folder / f"{name}.other").exists():
        others = _numbers(folder / f"{name}.other")
    numbers, local = np.unique(own, return_inverse=True)
    table = np.array(mapped_mesh(path)[0][numbers])
    mesh = Mesh(
        _places(table, path),
        local.reshape(-1, 3).astype(np.int32),
        columns(table, ("red", "green", "blue"), path, np.uint8),
        columns(table, ("nx", "ny", "nz"), path, np.float32),
    )
    return mesh, (cells.of(mesh.vertices) != cell) | np.isin(numbers, others)
