"""Points spread evenly over a mesh file, of which a part is in memory at a time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.ply import columns, names_of, table_of
from cosurfgs_jax.formats.ply_parts import MeshFile
from cosurfgs_jax.metrics import area_normals, sample_mesh, triangle_areas
from cosurfgs_jax.surface.mesh import CONFIDENCE, unit_normals

_TRIANGLES = 2**18  # that are in memory at a time
_POINTS = 2**20  # that are drawn at a time
_MAX_POINTS = 2**32 - 1  # programs count them in 32 bits
_MAX_CONFIDENCE = 2**16 - 1  # it is a whole number of 16 bits


class Spread(NamedTuple):
    """How points are spread over a mesh file.

    | field    | content                                                                     |
    |----------|-----------------------------------------------------------------------------|
    | `path`   | of the mesh                                                                 |
    | `counts` | i64[C], points of each `_TRIANGLES` triangles, in the order of the file     |
    | `area`   | of the mesh, in its unit                                                    |
    | `extent` | of all points; its box is that of the mesh, its typical length the spacing  |
    | `state`  | of the file (`files.state_of`): points are spread over this one alone       |
    """

    path: Path
    counts: np.ndarray
    area: float
    extent: Extent
    state: str


class _Part(NamedTuple):
    """Some triangles of a mesh file.

    | field       | shape    | content                                       |
    |-------------|----------|-----------------------------------------------|
    | `triangles` | i64[f,3] | numbers of the rows                           |
    | `rows`      | [m]      | their vertices, as the file has them          |
    | `places`    | f64[m,3] | of these, in the frame of the mesh            |
    """

    triangles: np.ndarray
    rows: np.ndarray
    places: np.ndarray


def _parts(path: Path) -> Iterator[_Part]:
    """The triangles of a mesh file, `_TRIANGLES` at a time."""
    file = MeshFile(path)
    for triangles in file.triangle_parts(_TRIANGLES):
        numbers, local = np.unique(triangles, return_inverse=True)
        rows = file.vertices(numbers)
        yield _Part(local.reshape(-1, 3), rows, columns(rows, ("x", "y", "z"), path))


def plan_points(path: str | os.PathLike, spacing: float) -> Spread:
    """Where the points of a mesh go.

    Args:
        path: of a file of `write_mesh_ply`.
        spacing: side of the square of the surface that has one point, in its unit.
    Raises:
        InputError: the mesh is damaged or has no area, or there would be too many points, or none.
    """
    path = Path(path)
    with files.reading(path, "a mesh", "write it again"):
        state = files.state_of(path)
    areas = []
    low = np.full(3, np.inf)
    high = -low
    for part in _parts(path):
        areas.append(triangle_areas(part.places, part.triangles).sum())
        low = np.minimum(low, part.places.min(axis=0))
        high = np.maximum(high, part.places.max(axis=0))
    upto = np.cumsum([0.0, *areas])
    area = float(upto[-1])
    count = area / spacing**2
    if not 1 <= count <= _MAX_POINTS:
        words = f"at most {np.sqrt(area):.4g}, for one point"
        if count > 1:
            words = f"at least {np.sqrt(area / _MAX_POINTS):.4g}, for {_MAX_POINTS} points"
        raise InputError(
            f"points.spacing: expected {words} on the {area:.4g} square units of {path}, got "
            f"{spacing:.4g}"
        )
    counts = np.diff(np.floor(upto / spacing**2).astype(np.int64))
    extent = Extent.of_points(int(counts.sum()), low, high, spacing)
    return Spread(path, counts, area, extent, state=state)


def spread_points(
    spread: Spread, progress: Callable[[int, int], None] | None = None
) -> Iterator[np.ndarray]:
    """The points of a mesh: the same each time, spread along its triangles by their area.

    Args:
        spread: of `plan_points`.
        progress: is told points that are made, and all.
    Yields:
        Tables with x y z (f64), nx ny nz (f32, of the vertices, unit length), red green blue (u8)
        and, where the mesh has it, confidence (u16, 65535 and more are one), in the frame of the
        mesh; some at a time.
    Raises:
        InputError: the mesh was replaced since, or is damaged.
    """
    done = 0
    parts = enumerate(_parts(spread.path))
    while (numbered := _next_part(spread, parts)) is not None:
        number, part = numbered
        count = int(spread.counts[number])
        for start in range(0, count, _POINTS):
            size = min(_POINTS, count - start)
            yield _some_points(part, size, (number, start))
            done += size
            if progress:
                progress(done, spread.extent.count)


def _next_part(spread: Spread, parts: Iterator[tuple[int, _Part]]) -> tuple[int, _Part] | None:
    """The next of the numbered parts of the mesh that was planned for; None at its end."""
    try:
        return next(parts, None)
    finally:  # what cannot be read may be another mesh, too
        _check_same(spread)


def _check_same(spread: Spread) -> None:
    if files.state_of(spread.path) != spread.state:
        raise InputError(
            f"{spread.path}: expected the mesh of a moment ago, got another, which was written "
            "meanwhile; run the same command again"
        )


def _some_points(part: _Part, count: int, seed: tuple[int, int]) -> np.ndarray:
    """Points of some triangles."""
    points, chosen, weights = sample_mesh(part.places, part.triangles, count, seed)
    corners = part.triangles[chosen]

    def between(names: str) -> np.ndarray:
        values = columns(part.rows, tuple(names.split()), "mesh")
        return np.einsum("sk,skc->sc", weights, values[corners])

    normals = unit_normals(between("nx ny nz"))
    is_missing = ~normals.any(axis=1)
    normals[is_missing] = unit_normals(area_normals(part.places, corners[is_missing]))
    parts = [
        ("x y z", "f8", points),
        ("nx ny nz", "f4", normals),
        ("red green blue", "u1", np.rint(between("red green blue"))),
    ]
    if CONFIDENCE in names_of(part.rows.dtype):
        confidence = np.rint(between(CONFIDENCE)).clip(0, _MAX_CONFIDENCE)
        parts.append((CONFIDENCE, "u2", confidence))
    return table_of(*parts)
