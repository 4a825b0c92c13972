"""The centres of the surfels in map coordinates, for programs of laser scans."""

import logging
from pathlib import Path

from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.exports.points import points_of
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import check_geo, geotiff

_log = logging.getLogger(__name__)


def _check(settings: Settings) -> None:
    point_files.import_laspy()
    geotiff.check_epsg(settings.geo.epsg)


def _write(trained: Trained, folder: Path) -> None:
    geo = trained.settings.geo
    check_geo(trained.partitioned.scene.up, geo)
    points = points_of(trained)
    path = folder / "points.las"
    point_files.write_points_las(path, points, geo.offset_xyz(), geo.epsg)
    _log.info("%d points in %s", len(points.positions), path)


LAS = ExportFormat(
    "las",
    "points.las, the centres with colours, in map coordinates by config.geo.offset and "
    "config.geo.epsg",
    _check,
    _write,
)
