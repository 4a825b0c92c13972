"""Ground control points of a file, found among the photographs and on the map, before any long
work: whether the file is of this place and its coordinates are in their order.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import map_system
from cosurfgs_jax.sfm.gcp_file import WHAT, ControlFile, Mark, read_control_file
from cosurfgs_jax.sfm.photos import PhotoFolder
from cosurfgs_jax.sfm.summary import some_of
from cosurfgs_jax.sfm.survey_files import Survey, check_place, map_epsg, vertical_of

MIN_POINTS = 3
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
    positions = np.array([point.position for point in file.points])
    survey = Survey(file.path, WHAT, file.system, positions[:, :2])
    remedy = "mend its first line or its coordinates, or give --gps=ignore if the GPS is wrong"
    check_place(survey, {} if settings.gps == "ignore" else folder.tags, remedy)
    epsg = map_epsg(survey, settings.epsg)
    marks, warnings = _marks_here(file, folder)
    warnings += _twins(file)
    is_check = _check_flags([point.name for point in file.points], settings.check_points)
    if is_check.count(False) < MIN_POINTS:
        raise InputError(
            f"{file.path}: expected at least {MIN_POINTS} ground control points beside the check "
            f"points, got {is_check.count(False)}; measure more, or leave --gcp out"
        )
    ground, accuracy = map_system.between(file.system, epsg, survey.ground)
    if accuracy > _ROUGH_M:
        warnings.append(
            f"the step from {file.system.name} to EPSG:{epsg} is only known to {accuracy:.2g} m: "
            "give --epsg=NUMBER of a system of the same datum"
        )
    points = [
        ControlPoint(point.name, np.array([*place, point.position[2]]), found, is_check=check)
        for point, place, found, check in zip(file.points, ground, marks, is_check, strict=True)
    ]
    return ControlPoints(file.path, epsg, vertical_of(survey), points, warnings=warnings)


def _twins(file: ControlFile) -> list[str]:
    """Sentences on points of several names at one place."""
    names: dict[tuple[float, ...], list[str]] = {}
    for point in file.points:
        place = np.nan_to_num(point.position, nan=np.inf)
        names.setdefault(tuple(place.tolist()), []).append(point.name)
    return [
        f"{some_of(group)} of {file.path.name} are at one place: if they are one point, give all "
        "its marks one name"
        for group in names.values()
        if len(group) > 1
    ]


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
