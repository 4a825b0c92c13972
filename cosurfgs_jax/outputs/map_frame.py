"""Map coordinates of what is written: those of the settings, else those of geo.json."""

import dataclasses
import importlib.util
import logging

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.formats.place_json import Place
from cosurfgs_jax.settings import GeoSettings, Settings
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.workdir import Workdir

_log = logging.getLogger(__name__)


def with_map_frame(settings: Settings, workdir: Workdir) -> Settings:
    """The settings with geo.offset and geo.epsg from the workdir's geo.json where they are not
    given; an offset of one's own without epsg is of no known system.

    Raises:
        InputError: geo.json is damaged, the system is given and is none of lengths, or another one
            is given without an offset: that of geo.json is in its own system.
    """
    if importlib.util.find_spec("rasterio") is not None:  # else it is noted as it was given
        geotiff.check_epsg(settings.geo.epsg)
    geo = read_geo(workdir.geo)
    if geo is None or not geo.is_map:
        return settings
    given = settings.geo
    if given.epsg not in (0, geo.epsg) and not given.offset.strip():
        raise InputError(
            f"config.geo.epsg: expected {geo.epsg}, the system of {workdir.geo}, got {given.epsg}; "
            "leave it out, or give config.geo.offset in that system, too"
        )
    if given.offset.strip() and not given.epsg and given.offset_xyz() != geo.offset:
        # Of an offset alone nobody knows the system: zeros would put the map on the equator.
        _log.info("map coordinates: of no known system, as config.geo.offset came without epsg")
        return settings
    chosen = dataclasses.replace(
        given, epsg=given.epsg or geo.epsg, offset=given.offset.strip() or geo.offset_text
    )
    _log.info("map coordinates: EPSG:%d, the dataset's plus %s", chosen.epsg, chosen.offset)
    return dataclasses.replace(settings, geo=chosen)


def place_of(
    geo: GeoSettings, rotation: np.ndarray | None = None, origin: np.ndarray | None = None
) -> Place:
    """The place on the map of a file.

    Args:
        geo: with the offset of the dataset, of `with_map_frame`.
        rotation: f64[3,3], from the axes of the file to those of the dataset; None = they are the
            same.
        origin: f64[3], of the file in the dataset's frame; None = the same.
    """
    if rotation is None:
        rotation = np.eye(3)
    offset = np.array(geo.offset_xyz())
    if origin is not None:
        offset = offset + origin
    return Place(np.asarray(rotation, np.float64), offset, geo.epsg)
