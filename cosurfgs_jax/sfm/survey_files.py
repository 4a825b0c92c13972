"""What files of surveyed places have in common, those of ground control points and those of the
positions of photographs: a coordinate system in the first line, and a place on the map that has to
be that of the photographs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.sfm import map_system
from cosurfgs_jax.sfm.exif import ELLIPSOID, PhotoTags

_SYSTEMS = "EPSG:32610, WGS84 UTM 10N, or a string of PROJ"
_UTM = re.compile(r"wgs[\s_]*84[\s/]*utm\s*(?:zone)?\s*(\d{1,2})\s*([ns])", re.IGNORECASE)
_EXCHANGED = "with x and y exchanged they are there: east (longitude) comes first"
_MAX_AWAY_M = 20_000.0  # from the middle of the places to the nearest photograph's GPS


class Survey(NamedTuple):
    """Surveyed places of a file.

    | field    | content                                                                        |
    |----------|--------------------------------------------------------------------------------|
    | `path`   | of the file                                                                    |
    | `what`   | what they are, for messages                                                    |
    | `system` | pyproj.CRS                                                                     |
    | `ground` | f64[n,2], east and north or longitude and latitude, of the system              |
    """

    path: Path
    what: str
    system: Any
    ground: np.ndarray

    def degrees(
        self, system: Any = None, order: tuple[int, int] = (0, 1)
    ) -> Float[np.ndarray, "n 2"]:
        """Latitudes and longitudes, as if the places were of a system and their columns in some
        order; infinite where they are outside of it.
        """
        degrees = map_system.to_degrees(system or self.system, self.ground[:, list(order)])
        degrees[np.abs(degrees[:, 0]) > 90] = np.inf
        return degrees

    @property
    def middle(self) -> tuple[float, float]:
        """Latitude and longitude."""
        return _middle(self.degrees())


def read_survey(path: Path, what: str) -> tuple[Any, Iterator[tuple[str, str]]]:
    """The coordinate system (pyproj.CRS) of a file's first line, and where each further line is,
    for messages, with its text; empty lines and comments are left out.

    Args:
        path: of the file, which is there.
        what: its lines say, for messages.
    Raises:
        InputError: it is no text, is empty, or has no coordinate system in metres or degrees.
    """
    with files.reading(path, f"a text file of {what}", "write it again"):
        lines = list(files.iter_lines(path))
    numbered = [
        (number, line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise InputError(f"{path}: expected a coordinate system and {what}, got an empty file")
    system = _system(numbered[0][1], path)
    return system, ((f"{path}: line {number}", line) for number, line in numbered[1:])


def _system(line: str, path: Path) -> Any:
    pyproj = map_system.import_pyproj()
    text = line
    utm = _UTM.fullmatch(line)
    if utm:
        zone = int(utm[1])
        text = f"EPSG:{map_system.utm_number(zone, utm[2].upper() == 'N')}"
    try:
        system = pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError:
        raise InputError(
            f"{path}: expected a coordinate system in the first line, such as {_SYSTEMS}, got "
            f"{line[:80]!r}"
        ) from None
    units = [axis.unit_conversion_factor for axis in system.axis_info]
    is_map = system.is_projected and units[:2] == [1.0, 1.0]
    if not (is_map or system.is_geographic) or units[2:] not in ([], [1.0]):
        raise InputError(
            f"{path}: expected a coordinate system in metres or in degrees, with heights in "
            f"metres, got {line[:80]!r} ({system.name}); convert the points, in QGIS for example"
        )
    return system


def check_place(survey: Survey, tags: dict[str, PhotoTags], remedy: str) -> None:
    """Checks that places are near the photographs, or, without GPS, where their system is used.

    Args:
        survey: the places.
        tags: of photographs, by name.
        remedy: what to do where nothing is known to help.
    Raises:
        InputError: they are not; with x and y exchanged, or in another zone, they may be.
    """
    known = _known_degrees(tags)
    if len(known):
        distance = _away(survey.degrees(), known)
        if distance <= _MAX_AWAY_M:
            return
        raise InputError(
            f"{survey.path}: expected {survey.what} near the photographs, got "
            f"{_distance_words(distance)} by the GPS of the photographs and the system of the "
            f"first line, {survey.system.name}; {_mistake(survey, known) or remedy}"
        )
    if _is_in_use(survey.system, survey.degrees()):
        return
    if _is_in_use(survey.system, survey.degrees(order=(1, 0))):
        remedy = _EXCHANGED
    raise InputError(
        f"{survey.path}: expected positions where the system of the first line, "
        f"{survey.system.name}, is used, got {survey.ground[0].tolist()} for the first; {remedy}"
    )


def check_place_instead(survey: Survey, tags: dict[str, PhotoTags], remedy: str) -> list[str]:
    """`check_place` of places that stand instead of the GPS of photographs, which may be wrong:
    a sentence where they are far from it, unless a mistake in the file is the reason.

    Args:
        survey, tags, remedy: see `check_place`.
    Raises:
        InputError: x and y are exchanged, the zone is another one, or they are not where their
            system is used.
    """
    known = _known_degrees(tags)
    distance = _away(survey.degrees(), known) if len(known) else 0.0
    if distance <= _MAX_AWAY_M or _mistake(survey, known):
        check_place(survey, tags, remedy)
        return []
    check_place(survey, {}, remedy)
    return [
        f"by the GPS in their EXIF data the photographs are {distance / 1000:,.0f} km from the "
        f"{survey.what} in {survey.path.name}, which are used instead"
    ]


def _known_degrees(tags: dict[str, PhotoTags]) -> Float[np.ndarray, "n 2"]:
    """Latitudes and longitudes of the photographs that have GPS."""
    known = [(tag.latitude, tag.longitude) for tag in tags.values() if tag.has_position]
    return np.array(known, np.float64).reshape(-1, 2)


def _mistake(survey: Survey, known: Float[np.ndarray, "n 2"]) -> str:
    """Which mistake in a file keeps its places, which are far from the photographs, from being near
    them; "" = none that is known.
    """
    utm = map_system.utm_epsg(*_middle(known))
    in_zone = survey.degrees(map_system.import_pyproj().CRS.from_epsg(utm))
    if _away(survey.degrees(order=(1, 0)), known) <= _MAX_AWAY_M:
        return _EXCHANGED
    if _away(in_zone, known) <= _MAX_AWAY_M:
        return f"as EPSG:{utm} they are there: mend its first line"
    return ""


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


def map_epsg(survey: Survey, wanted: int) -> int:
    """The map system: the one that is given, else that of the file, else, where that is in degrees
    or stretches lengths, the UTM zone.

    Args:
        survey: the places.
        wanted: the setting `epsg`.
    Raises:
        InputError: the one that is given does not fit.
    """
    if wanted:
        map_system.check_system(wanted, *survey.middle)
        return wanted
    epsg = map_system.number_of(survey.system)
    if epsg and map_system.stretch_of(survey.system, *survey.middle) <= map_system.MAX_STRETCH:
        return epsg
    return map_system.utm_epsg(*survey.middle)


def vertical_of(survey: Survey) -> str:
    """What heights are above, in words."""
    system = survey.system
    if system.is_compound:
        return system.sub_crs_list[-1].name
    if len(system.axis_info) == 3:
        return ELLIPSOID
    return f"the zero of the {survey.what}"
