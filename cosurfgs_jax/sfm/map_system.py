"""Projected coordinate systems: the UTM zone of a place, degrees to metres on the map."""

from typing import Any

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError

_WGS84 = 4326
_ZONE_DEG = 6
_MAX_STRETCH = 0.01
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
    zone = int((longitude + 180) // _ZONE_DEG) % 60 + 1
    return (_UTM_NORTH if latitude >= 0 else _UTM_SOUTH) + zone


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
    factors = pyproj.Proj(system).get_factors(longitude, latitude)
    stretch = max(abs(factors.meridional_scale - 1), abs(factors.parallel_scale - 1))
    if stretch > _MAX_STRETCH:
        raise InputError(
            f"--epsg: expected a system that keeps lengths, got {epsg} ({system.name}), which "
            f"stretches them by {100 * stretch:.0f} % here; {remedy}, QGIS shows it in any other"
        )
    area = system.area_of_use
    if area is None:
        return
    is_inside = area.south - 1 <= latitude <= area.north + 1
    # An area that crosses the 180th meridian ends to the west of where it begins.
    width = (area.east - area.west) % 360 or 360
    is_inside &= (longitude - area.west + 1) % 360 <= width + 2
    if not is_inside:
        raise InputError(
            f"--epsg: expected a system for latitude {latitude:.4f}, longitude {longitude:.4f}, "
            f"got {epsg} ({system.name}), which is for {area.name}; {remedy}"
        )


def to_map(
    epsg: int, latitudes: Float[np.ndarray, " n"], longitudes: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Map coordinates, east and north in metres, of places in degrees of WGS84."""
    pyproj = import_pyproj()
    transformer = pyproj.Transformer.from_crs(_WGS84, epsg, always_xy=True)
    return np.stack(transformer.transform(longitudes, latitudes), axis=1)
