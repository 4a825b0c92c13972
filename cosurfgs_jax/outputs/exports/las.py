"""The centres of the surfels in map coordinates, for programs of laser scans."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.outputs.exports import points
from cosurfgs_jax.outputs.exports.export_format import ByParts, ExportFormat
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import check_geo, geotiff

_log = logging.getLogger(__name__)


def _check(settings: Settings) -> None:
    point_files.import_laspy()
    geotiff.check_epsg(settings.geo.epsg)


def _write_file(
    trained: Trained, tables: Iterable[np.ndarray], extent: Extent, folder: Path
) -> None:
    geo = trained.settings.geo
    check_geo(trained.partitioned.scene.up, geo)
    path = folder / "points.las"
    point_files.write_points_las(path, tables, extent, offset=geo.offset_xyz(), epsg=geo.epsg)
    _log.info("%d points in %s", extent.count, path)


def _write(trained: Trained, folder: Path) -> None:
    check_geo(trained.partitioned.scene.up, trained.settings.geo)
    _write_file(trained, points.tables_of(trained), points.extent_of(trained), folder)


def _merge(trained: Trained, shards: list[tuple[Path, dict[str, Any]]], folder: Path) -> None:
    _write_file(trained, *points.merged(shards), folder)


LAS = ExportFormat(
    "las",
    "points.las, the centres with colours, in map coordinates by config.geo.offset and "
    "config.geo.epsg",
    _check,
    _write,
    by_parts=ByParts(points.make, _merge),
)
