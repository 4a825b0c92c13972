"""A height map and a true orthophoto in map coordinates."""

import logging
import time
from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.fused_mesh import mesh_of
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import geotiff, write_dsm
from cosurfgs_jax.training.run_log import Progress

_log = logging.getLogger(__name__)


def _check(settings: Settings) -> None:
    geotiff.import_rasterio()
    geotiff.check_epsg(settings.geo.epsg)


def _write(trained: Trained, folder: Path) -> None:
    started = time.monotonic()
    settings = trained.settings
    mesh = None
    if settings.geo.heights == "surface":
        mesh = mesh_of(
            trained,
            "heights",
            "; or give --config.geo.heights=surfels, for heights without a mesh",
        )
    with Progress("height map, percent", 100) as progress:
        found = write_dsm(
            folder / "dsm.tif",
            folder / "orthophoto.tif",
            trained.surfels,
            trained.partitioned.frame,
            trained.partitioned.scene,
            settings.geo,
            mesh=mesh,
            memory_mb=settings.surface.memory_mb,
            backend=settings.raster.backend,
            progress=lambda done, total: progress.update(100 * done // total),
        )
    files.write_json(
        folder / "dsm.json",
        found | {"step": trained.step, "seconds": round(time.monotonic() - started, 1)},
    )
    _log.info(
        "height map and orthophoto: %dx%d pixels of %.4g, %.0f %% covered, in %s",
        found["width"],
        found["height"],
        found["pixel_size"],
        100 * found["covered_share"],
        folder,
    )
    agreement = found["agreement"]["visible_points"]
    if agreement:
        _log.info(
            "SfM points: median difference %.3g pixels, signed %+.3g (height map minus point)",
            agreement["median_absolute_pixels"],
            agreement["median_signed_pixels"],
        )


DSM = ExportFormat(
    "dsm",
    "dsm.tif (heights of the mesh, which is fused first where it is missing), "
    "orthophoto.tif, and dsm.json with how well the heights fit the SfM points, "
    "in map coordinates by config.geo.offset and config.geo.epsg",
    _check,
    _write,
    is_in_report=True,
)
