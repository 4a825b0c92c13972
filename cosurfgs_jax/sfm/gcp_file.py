"""Files of ground control points in the text format of OpenDroneMap: a coordinate system, then on
each line a mark of a point in a photograph.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.sfm.survey_files import read_survey

_LINE = "geo_x geo_y geo_z im_x im_y image_name [gcp_name]"
_NUM_WORDS = 6
WHAT = "ground control points"
# The centre of the first pixel is at 0, 0 in these files (OpenSfM's geometry), here at 0.5, 0.5.
_PIXEL_CENTRE = 0.5


class Mark(NamedTuple):
    """Where a photograph shows a point."""

    photo: str  # as the file has it
    pixel: tuple[float, float]  # (x, y), x+0.5 is the centre of pixel x


@dataclasses.dataclass(frozen=True)
class MarkedPoint:
    """A ground control point.

    | field      | content                                                                     |
    |------------|-----------------------------------------------------------------------------|
    | `name`     | of the file, or its number there                                            |
    | `position` | f64[3]: east (or longitude), north (or latitude), height in metres or NaN   |
    | `marks`    | in photographs                                                              |
    """

    name: str
    position: np.ndarray
    marks: list[Mark]


class ControlFile(NamedTuple):
    """A file of ground control points."""

    path: Path
    system: Any  # pyproj.CRS of the positions
    points: list[MarkedPoint]


def read_control_file(path: Path) -> ControlFile:
    """Reads a file of ground control points.

    Words are separated by spaces or tabs, names with spaces by tabs. Lines of one name, or without
    names of one position, are marks of one point.

    Raises:
        InputError: missing, damaged, without a coordinate system in metres or degrees, a line of
            another form, or one name with two positions.
    Source: the format description of OpenDroneMap.
    """
    if not path.is_file():
        what = "which is a folder" if path.exists() else "which is not there"
        raise InputError(f"--gcp: expected a file of {WHAT}, got {path}, {what}")
    system, lines = read_survey(path, WHAT)
    found: dict[str, MarkedPoint] = {}
    seen: set[tuple[str, str]] = set()
    for where, line in lines:
        position, mark, name = _mark(line, where)
        name = name or _number_of(found, position)
        point = found.setdefault(name, MarkedPoint(name, position, []))
        if not np.array_equal(point.position, position, equal_nan=True):
            raise InputError(
                f"{where}: expected the position of {name} as before, {_words(point.position)}, "
                f"got {_words(position)}; give each point a name of its own"
            )
        if (name, mark.photo) in seen:
            raise InputError(
                f"{where}: expected {name} once in each photograph, got a second mark in "
                f"{mark.photo}; remove one"
            )
        seen.add((name, mark.photo))
        point.marks.append(mark)
    if not found:
        raise InputError(f"{path}: expected lines of {_LINE}, got none behind the first")
    return ControlFile(path, system, list(found.values()))


def _words(position: np.ndarray) -> str:
    return " ".join(f"{value:.10g}" for value in position)


def _number_of(found: dict[str, MarkedPoint], position: np.ndarray) -> str:
    """The name of a point without one: its number in the file."""
    for name, point in found.items():
        if np.array_equal(point.position, position, equal_nan=True):
            return name
    return f"point {len(found) + 1}"


def _mark(line: str, where: str) -> tuple[np.ndarray, Mark, str]:
    """Position, mark and name ("" = none) of a line."""
    words = line.split(maxsplit=_NUM_WORDS - 1)
    rest = words[-1]  # names, which may have spaces where tabs are between them
    names = [name.strip() for name in rest.split("\t" if "\t" in rest else None)]
    if len(words) < _NUM_WORDS:
        raise InputError(
            f"{where}: expected {_LINE}, separated by spaces or tabs, got {line[:80]!r}"
        )
    try:
        x, y, z, column, row = (files.number(word) for word in words[:5])
    except ValueError as error:
        raise InputError(
            f"{where}: expected five numbers at the beginning ({_LINE}), with points as decimal "
            f"marks, got {line[:80]!r} ({error})"
        ) from None
    if not np.isfinite([x, y, column, row]).all() or np.isinf(z):
        raise InputError(f"{where}: expected finite numbers (geo_z may be NaN), got {line[:80]!r}")
    photo, name = [*names, ""][:2]
    pixel = (column + _PIXEL_CENTRE, row + _PIXEL_CENTRE)
    return np.array([x, y, z]), Mark(photo, pixel), name
