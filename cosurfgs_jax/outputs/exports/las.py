"""Points on the surface in map coordinates, for programs of laser scans."""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.outputs.exports import points
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import check_geo, geotiff

_log = logging.getLogger(__name__)


def _check(suffix: str, settings: Settings) -> None:
    point_files.import_laspy(suffix)
    geotiff.check_epsg(settings.geo.epsg)


def _write_file(
    suffix: str, trained: Trained, tables: Iterable[np.ndarray], extent: Extent, folder: Path
) -> None:
    geo = trained.settings.geo
    check_geo(trained.partitioned.scene.up, geo)
    path = folder / f"points{suffix}"
    point_files.write_points_las(
        path, tables, extent, offset=geo.offset_xyz(), wkt=geotiff.wkt_of(geo.epsg)
    )
    _log.info("%d points, %.1f MB, in %s", extent.count, path.stat().st_size / 1e6, path)


def _write(write_file: points.FileWriter, trained: Trained, folder: Path) -> None:
    check_geo(trained.partitioned.scene.up, trained.settings.geo)  # before a mesh is fused
    points.write(write_file, trained, folder)


def _format(name: str, words: str) -> ExportFormat:
    write_file = functools.partial(_write_file, f".{name}")
    return ExportFormat(
        name,
        words,
        functools.partial(_check, f".{name}"),
        functools.partial(_write, write_file),
        by_parts=points.by_parts(write_file),
    )


LAS = _format(
    "las",
    "points.las (LAS 1.4), those of points.ply in map coordinates by config.geo.offset and "
    "config.geo.epsg",
)
LAZ = _format("laz", "points.laz, the same compressed")
