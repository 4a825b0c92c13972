"""Positions of photographs from somewhere else than their own EXIF data: a file in the text format
of OpenDroneMap (geo.txt), or a folder of other photographs of the same names, such as the
originals of undistorted ones.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import map_system
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.georeference import MIN_POSITIONS
from cosurfgs_jax.sfm.photos import PhotoFolder, read_folder
from cosurfgs_jax.sfm.summary import counted, some_of
from cosurfgs_jax.sfm.survey_files import (
    Survey,
    check_place_instead,
    map_epsg,
    read_survey,
    vertical_of,
)

_WHAT = "positions of photographs"
_LINE = "image_name geo_x geo_y [geo_z]"


class Positions(NamedTuple):
    """Where photographs were taken.

    | field      | content                                                                      |
    |------------|------------------------------------------------------------------------------|
    | `tags`     | of each photograph, by the name that `path` has for it                       |
    | `epsg`     | of the map system of a file; 0: what the settings or the UTM zone say        |
    | `warnings` | sentences                                                                    |
    """

    tags: dict[str, PhotoTags]
    epsg: int
    warnings: list[str]


def with_positions(
    folder: PhotoFolder, out: Path, settings: PrepareSettings
) -> tuple[PhotoFolder, PrepareSettings, list[str]]:
    """A folder of photographs with the positions that the settings name instead of those of their
    EXIF data, if they name any.

    Args:
        folder: the photographs.
        out: the dataset's folder, whose pictures are not meant.
        settings: `gps`, `epsg`.
    Returns:
        The folder; the settings with the map system of the positions; sentences.
    Raises:
        InputError: no such file or folder, a damaged file, one of another zone than the
            photographs or with x and y exchanged, or fewer than `MIN_POSITIONS` positions of
            photographs of the folder.
    """
    if not settings.gps_path:
        return folder, settings, []
    path = Path(settings.gps_path).expanduser()
    if not path.exists():
        raise InputError(
            "--gps: expected auto, ignore, require, a file of positions or a folder of photographs "
            f"with GPS, got {settings.gps}, which is not there"
        )
    if path.is_dir():
        found = Positions(read_folder(path, out, "--gps").tags, 0, [])
    else:
        found = _read(path, folder.tags, settings.epsg)
    names = list(found.tags)
    photo_of = dict(zip(names, folder.find(names, str(path)), strict=True))
    here = {photo: found.tags[name] for name, photo in photo_of.items() if photo is not None}
    away = [name for name, photo in photo_of.items() if photo is None]
    num_known = sum(tags.has_position for tags in here.values())
    if num_known < MIN_POSITIONS:
        raise InputError(
            f"{path}: expected positions of at least {MIN_POSITIONS} of the photographs of "
            f"{folder.root}, got those of {num_known} (its first name is {(names or ['none'])[0]}, "
            f"theirs {folder.photos[0].name}); mend the names, or --images"
        )
    warnings = [*found.warnings]
    if away:
        warnings.append(
            f"{counted(len(away), 'photograph')} of {path.name} are not in {folder.root}: "
            f"{some_of(away)}"
        )
    photos = [
        dataclasses.replace(photo, tags=_placed(photo.tags, here.get(photo.name)))
        for photo in folder.photos
    ]
    epsg = settings.epsg
    if not settings.gcp:  # ground control points have a system of their own
        epsg = epsg or found.epsg
    return (
        dataclasses.replace(folder, photos=photos),
        dataclasses.replace(settings, epsg=epsg),
        warnings,
    )


def _placed(tags: PhotoTags, position: PhotoTags | None) -> PhotoTags:
    """What EXIF data say, with another position, or none."""
    other = position or PhotoTags()
    return dataclasses.replace(
        tags,
        latitude=other.latitude,
        longitude=other.longitude,
        altitude=other.altitude,
        datum=other.datum,
        has_hemispheres=other.has_hemispheres,
    )


def _read(path: Path, exif: dict[str, PhotoTags], wanted: int) -> Positions:
    """Positions of a file.

    Args:
        path: of the file: a coordinate system, then lines of name, east, north and height, or name,
            longitude, latitude and height; what follows (angles, accuracies) is not used.
        exif: of photographs that may have GPS of their own, right or wrong, to compare with.
        wanted: the setting `epsg`.
    Raises:
        InputError: it is damaged, of another zone, or has x and y exchanged.
    Source: the format description of OpenDroneMap.
    """
    system, lines = read_survey(path, _WHAT)
    places: dict[str, np.ndarray] = {}
    for where, line in lines:
        name, place = _position(line, where)
        if name in places:
            raise InputError(f"{where}: expected {name} once, got it twice; remove one")
        places[name] = place
    if not places:
        raise InputError(f"{path}: expected lines of {_LINE}, got none behind the first")
    values = np.array(list(places.values()))
    survey = Survey(path, _WHAT, system, values[:, :2])
    warnings = check_place_instead(survey, exif, "mend its first line or its coordinates")
    vertical = vertical_of(survey)
    tags = {
        name: PhotoTags(
            latitude=float(latitude),
            longitude=float(longitude),
            altitude=float(height) if np.isfinite(height) else None,
            datum=vertical,
        )
        for name, (latitude, longitude), height in zip(
            places, map_system.to_degrees(system, survey.ground), values[:, 2], strict=True
        )
    }
    return Positions(tags, map_epsg(survey, wanted), warnings)


def _position(line: str, where: str) -> tuple[str, np.ndarray]:
    """The name of a photograph, which may have spaces where tabs are between words, and east, north
    and height; NaN where there is none.
    """
    name, *words = [word.strip() for word in line.split("\t" if "\t" in line else None)]
    try:
        x, y, *height = (files.number(word) for word in words[:3])
    except ValueError as error:
        raise InputError(
            f"{where}: expected {_LINE}, separated by spaces or tabs, got {line[:80]!r} ({error})"
        ) from None
    z = (height or [np.nan])[0]
    if not np.isfinite([x, y]).all() or np.isinf(z):
        raise InputError(f"{where}: expected finite numbers (geo_z may be NaN), got {line[:80]!r}")
    return name, np.array([x, y, z])
