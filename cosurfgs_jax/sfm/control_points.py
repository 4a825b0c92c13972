"""Ground control points of a file, found among the photographs and on the map, before any long
work: whether the file is of this place and its coordinates are in their order.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import map_system
from cosurfgs_jax.sfm.exif import ELLIPSOID, PhotoTags
from cosurfgs_jax.sfm.gcp_file import ControlFile, Mark, MarkedPoint, read_control_file
from cosurfgs_jax.sfm.photos import PhotoFolder
from cosurfgs_jax.sfm.summary import some_of

MIN_POINTS = 3
_MAX_AWAY_M = 20_000.0  # from the middle of the points to the nearest photograph's GPS
_ROUGH_M = 0.1  # uncertainty of a change of datum from which on it is said
_EVERY = re.compile(r"every([2-9]|[1-9]\d+)")


@dataclasses.dataclass(frozen=True)
class ControlPoint:
    """A point on the map and its marks in photographs that are there.

    | field      | content                                                                     |
    |------------|-----------------------------------------------------------------------------|
    | `name`     | of the file                                                                 |
    | `position` | f64[3]: east, north in the map system, height as in the file; metres        |
    | `marks`    | with names of photographs as the folder has them                            |
    | `is_check` | whether it is compared with, and not used                                   |
    """

    name: str
    position: np.ndarray
    marks: list[Mark]
    is_check: bool


@dataclasses.dataclass(frozen=True)
class ControlPoints:
    """The ground control points of a file.

    | field      | content                                                          |
    |------------|------------------------------------------------------------------|
    | `path`     | of the file                                                      |
    | `epsg`     | of the map system                                                |
    | `vertical` | what heights are above, in words                                 |
    | `points`   | in the order of the file                                         |
    | `warnings` | sentences                                                        |
    """

    path: Path
    epsg: int
    vertical: str
    points: list[ControlPoint]
    warnings: list[str]


def read_control_points(folder: PhotoFolder, settings: PrepareSettings) -> ControlPoints:
    """Reads the file of the settings, and finds its points on the map and its photographs in the
    folder.

    Args:
        folder: the photographs.
        settings: `gcp`, `check_points`, `epsg` and `gps`.
    Raises:
        InputError: a damaged file, one whose photographs are not in the folder, check points that
            it does not have, fewer than `MIN_POINTS` others, points far from the photographs'
            GPS or outside of the area of their system (x and y exchanged, or another system than
            the first line says).
    """
    file = read_control_file(Path(settings.gcp))
    degrees = _degrees(file.system, file)
    _check_place(file, degrees, {} if settings.gps == "ignore" else folder.tags)
    epsg = _epsg(file.system, settings.epsg, *_middle(degrees))
    marks, warnings = _marks_here(file, folder)
    is_check = _check_flags([point.name for point in file.points], settings.check_points)
    if is_check.count(False) < MIN_POINTS:
        raise InputError(
            f"{file.path}: expected at least {MIN_POINTS} ground control points beside the check "
            f"points, got {is_check.count(False)}; measure more, or leave --gcp out"
        )
    ground, accuracy = map_system.between(file.system, epsg, _positions(file.points)[:, :2])
    if accuracy > _ROUGH_M:
        warnings.append(
            f"the step from {file.system.name} to EPSG:{epsg} is only known to {accuracy:.2g} m: "
            "give --epsg=NUMBER of a system of the same datum"
        )
    points = [
        ControlPoint(point.name, np.array([*place, point.position[2]]), found, is_check=check)
        for point, place, found, check in zip(file.points, ground, marks, is_check, strict=True)
    ]
    vertical = _vertical(file.system)
    return ControlPoints(file.path, epsg, vertical, points, warnings=warnings)


def _positions(points: list[MarkedPoint]) -> Float[np.ndarray, "n 3"]:
    return np.array([point.position for point in points])


def _degrees(
    system: Any, file: ControlFile, order: tuple[int, int] = (0, 1)
) -> Float[np.ndarray, "n 2"]:
    """Latitudes and longitudes, as if the positions were of a system and their columns in some
    order; infinite where they are outside of it.
    """
    ground = _positions(file.points)[:, list(order)]
    degrees = map_system.to_degrees(system, ground)
    degrees[np.abs(degrees[:, 0]) > 90] = np.inf
    return degrees


def _check_place(file: ControlFile, degrees: np.ndarray, tags: dict[str, PhotoTags]) -> None:
    """Raises where the points are not near the photographs, or not where their system is used."""
    known = np.array(
        [(tag.latitude, tag.longitude) for tag in tags.values() if tag.has_position], np.float64
    ).reshape(-1, 2)
    exchanged = _degrees(file.system, file, (1, 0))
    if len(known):
        distance = _away(degrees, known)
        if distance <= _MAX_AWAY_M:
            return
        utm = map_system.utm_epsg(*_middle(known))
        in_zone = _degrees(map_system.import_pyproj().CRS.from_epsg(utm), file)
        remedy = "mend its first line or its coordinates, or give --gps=ignore if the GPS is wrong"
        if _away(exchanged, known) <= _MAX_AWAY_M:
            remedy = "with x and y exchanged they are there: east (longitude) comes first"
        elif _away(in_zone, known) <= _MAX_AWAY_M:
            remedy = f"as EPSG:{utm} they are there: mend its first line"
        raise InputError(
            f"{file.path}: expected ground control points near the photographs, got "
            f"{_distance_words(distance)} by the GPS of the photographs and the system of the "
            f"first line, {file.system.name}; {remedy}"
        )
    if _is_in_use(file.system, degrees):
        return
    remedy = "mend its first line or its coordinates"
    if _is_in_use(file.system, exchanged):
        remedy = "with x and y exchanged they are there: east (longitude) comes first"
    raise InputError(
        f"{file.path}: expected positions where the system of the first line, {file.system.name}, "
        f"is used, got {_positions(file.points)[0, :2].tolist()} for the first; {remedy}"
    )


def _is_in_use(system: Any, degrees: np.ndarray) -> bool:
    if not np.isfinite(degrees).all():
        return False
    epsg = map_system.number_of(system)
    if epsg:  # one that is given by its parameters has no area of its own
        system = map_system.import_pyproj().CRS.from_epsg(epsg)
    return map_system.is_in_area(system, *_middle(degrees))


def _middle(degrees: np.ndarray) -> tuple[float, float]:
    """Latitude and longitude of the middle of places."""
    latitude, longitude = np.median(degrees, axis=0)
    return float(latitude), float(longitude)


def _away(degrees: np.ndarray, known: np.ndarray) -> float:
    """Metres from the middle of points to the nearest photograph."""
    middle = _middle(degrees)
    if not np.isfinite(middle).all():
        return np.inf
    earth = map_system.import_pyproj().Geod(ellps="WGS84")
    middles = np.tile(middle, (len(known), 1))
    distances = earth.inv(middles[:, 1], middles[:, 0], known[:, 1], known[:, 0])[2]
    return float(np.min(distances))


def _distance_words(distance: float) -> str:
    if not np.isfinite(distance):
        return "positions that are nowhere on the earth"
    return f"them {distance / 1000:,.0f} km away"


def _epsg(system: Any, wanted: int, latitude: float, longitude: float) -> int:
    """The map system: the one that is given, else that of the file, else, where that is in degrees
    or stretches lengths, the UTM zone.
    """
    if wanted:
        map_system.check_system(wanted, latitude, longitude)
        return wanted
    epsg = map_system.number_of(system)
    if epsg and map_system.stretch_of(system, latitude, longitude) <= map_system.MAX_STRETCH:
        return epsg
    return map_system.utm_epsg(latitude, longitude)


def _vertical(system: Any) -> str:
    if system.is_compound:
        return system.sub_crs_list[-1].name
    if len(system.axis_info) == 3:
        return ELLIPSOID
    return "the zero of the ground control points"


def _marks_here(file: ControlFile, folder: PhotoFolder) -> tuple[list[list[Mark]], list[str]]:
    """The marks of each point in photographs that are here and show the place of the mark, and what
    is wrong with the others.
    """
    wanted = list(dict.fromkeys(mark.photo for point in file.points for mark in point.marks))
    found = dict(zip(wanted, folder.find(wanted, str(file.path)), strict=True))
    missing = [name for name, photo in found.items() if photo is None]
    if len(missing) == len(wanted):
        raise InputError(
            f"{file.path}: expected marks in photographs of {folder.root}, got none of its "
            f"{len(wanted)} names there (the first is {wanted[0]}); mend the names, or --images"
        )
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} photographs of {file.path.name} are not there: {some_of(missing)}"
        )
    sizes = {photo.name: (photo.width, photo.height) for photo in folder.photos}
    outside = []
    marks = []
    for point in file.points:
        here = []
        for mark in point.marks:
            photo = found[mark.photo]
            if photo is None:
                continue
            width, height = sizes[photo]
            if 0 <= mark.pixel[0] <= width and 0 <= mark.pixel[1] <= height:
                here.append(Mark(photo, mark.pixel))
            else:
                outside.append(f"{point.name} in {mark.photo} ({width}x{height})")
        marks.append(here)
    if outside:
        warnings.append(
            f"{len(outside)} marks of ground control points are outside of their photographs and "
            f"are left out: {some_of(outside)}; marks are pixels of the photographs as they are "
            "stored, neither shrunk nor turned"
        )
    return marks, warnings


def _check_flags(names: list[str], wanted: str) -> list[bool]:
    """Which points are check points."""
    every = _EVERY.fullmatch(wanted)
    if every:
        step = int(every[1])
        return [number % step == 0 for number in range(1, len(names) + 1)]
    chosen = {name.strip() for name in wanted.split(",") if name.strip()}
    unknown = sorted(chosen - set(names))
    if unknown:
        raise InputError(
            f"--check_points: expected every4, or names of ground control points "
            f"({some_of(names)}), got {some_of(unknown)}"
        )
    return [name in chosen for name in names]
