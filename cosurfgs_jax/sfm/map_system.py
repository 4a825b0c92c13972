"""Projected coordinate systems: the UTM zone of a place, degrees to metres on the map."""

from typing import Any

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError

_WGS84 = 4326
_ZONE_DEG = 6
MAX_STRETCH = 0.01  # of lengths, in a system that a dataset may be in
_UTM_NORTH = 32600
_UTM_SOUTH = 32700


def import_pyproj() -> Any:
    """The pyproj module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyproj
    except ImportError as error:
        raise InputError(
            "pyproj is needed for map coordinates, got none; "
            'pip install "cosurfgs_jax[sfm]" (or give --gps=ignore)'
        ) from error
    return pyproj


def utm_epsg(latitude: float, longitude: float) -> int:
    """The EPSG number of the UTM zone (WGS84) of a place; the wider zones of Norway and Svalbard
    are not looked at.
    """
    return utm_number(int((longitude + 180) // _ZONE_DEG) % 60 + 1, latitude >= 0)


def utm_number(zone: int, is_north: bool) -> int:
    """The EPSG number of a UTM zone (WGS84)."""
    return (_UTM_NORTH if is_north else _UTM_SOUTH) + zone


def name_of(epsg: int) -> str:
    """The name of a coordinate system."""
    return import_pyproj().CRS.from_epsg(epsg).name


def check_system(epsg: int, latitude: float, longitude: float) -> None:
    """Refuses a system that photographs cannot be placed in.

    Args:
        epsg: of the system.
        latitude, longitude: of the place, degrees.
    Raises:
        InputError: unknown, in degrees or in feet, or made for another part of the earth.
    """
    pyproj = import_pyproj()
    remedy = "give --epsg=0 for the UTM zone of the photographs"
    try:
        system = pyproj.CRS.from_epsg(epsg)
    except pyproj.exceptions.CRSError as error:
        raise InputError(
            f"--epsg: expected the number of a projected system, got {epsg}, which is unknown; "
            f"{remedy}"
        ) from error
    factors = [axis.unit_conversion_factor for axis in system.axis_info[:2]]
    if not system.is_projected or factors != [1.0, 1.0]:
        raise InputError(
            f"--epsg: expected a projected system in metres, got {epsg} ({system.name}); {remedy}"
        )
    stretch = stretch_of(system, latitude, longitude)
    if stretch > MAX_STRETCH:
        raise InputError(
            f"--epsg: expected a system that keeps lengths, got {epsg} ({system.name}), which "
            f"stretches them by {100 * stretch:.0f} % here; {remedy}, QGIS shows it in any other"
        )
    if not is_in_area(system, latitude, longitude):
        raise InputError(
            f"--epsg: expected a system for latitude {latitude:.4f}, longitude {longitude:.4f}, "
            f"got {epsg} ({system.name}), which is for {system.area_of_use.name}; {remedy}"
        )


def stretch_of(system: Any, latitude: float, longitude: float) -> float:
    """By which fraction a projected system stretches or shrinks lengths at a place."""
    factors = import_pyproj().Proj(system).get_factors(longitude, latitude)
    return max(abs(factors.meridional_scale - 1), abs(factors.parallel_scale - 1))


def is_in_area(system: Any, latitude: float, longitude: float) -> bool:
    """Whether a place is in the area that a system is made for, or within a degree of it; yes where
    no area is known.
    """
    area = system.area_of_use
    if area is None:
        return True
    is_inside = area.south - 1 <= latitude <= area.north + 1
    # An area that crosses the 180th meridian ends to the west of where it begins.
    width = (area.east - area.west) % 360 or 360
    return is_inside and (longitude - area.west + 1) % 360 <= width + 2


def to_map(
    epsg: int, latitudes: Float[np.ndarray, " n"], longitudes: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Map coordinates, east and north in metres, of places in degrees of WGS84."""
    pyproj = import_pyproj()
    transformer = pyproj.Transformer.from_crs(_WGS84, epsg, always_xy=True)
    return np.stack(transformer.transform(longitudes, latitudes), axis=1)


def to_degrees(system: Any, ground: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Latitudes and longitudes (WGS84) of places, east and north or longitude and latitude, of a
    pyproj.CRS; infinite outside of it.
    """
    pyproj = import_pyproj()
    transformer = pyproj.Transformer.from_crs(system, _WGS84, always_xy=True)
    longitudes, latitudes = transformer.transform(ground[:, 0], ground[:, 1])
    return np.stack([latitudes, longitudes], axis=1)


def between(
    system: Any, epsg: int, ground: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 2"], float]:
    """Places of a pyproj.CRS in a map system, east and north in metres, and how well the step from
    one to the other is known, in metres (-1: it is not said).
    """
    transformer = import_pyproj().Transformer.from_crs(system, epsg, always_xy=True)
    places = np.stack(transformer.transform(ground[:, 0], ground[:, 1]), axis=1)
    accuracy = transformer.accuracy
    if accuracy < 0:  # there are several ways, and one was chosen
        accuracy = transformer.get_last_used_operation().accuracy
    return places, accuracy


def number_of(system: Any) -> int:
    """The EPSG number of a pyproj.CRS, of its horizontal part where it has two; 0: it is no
    projected system, or has no number.
    """
    horizontal = system.sub_crs_list[0] if system.is_compound else system
    return (horizontal.is_projected and horizontal.to_epsg()) or 0
