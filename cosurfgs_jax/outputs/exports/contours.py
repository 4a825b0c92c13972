"""Contour lines of the terrain model, or of the height map."""

import logging
from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.formats import line_layer
from cosurfgs_jax.outputs.exports import dsm
from cosurfgs_jax.outputs.exports.dtm import dtm_of
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface.contours import write_contours

_HEIGHTS = {"dtm": dtm_of, "dsm": dsm.dsm_of}
_log = logging.getLogger(__name__)


def _check(settings: Settings) -> None:
    dsm.check(settings)
    line_layer.import_packages()


def _write(trained: Trained, folder: Path) -> None:
    settings = trained.settings.terrain
    heights = _HEIGHTS[settings.contours_of](trained, folder, "contour lines")
    path = folder / "contours.gpkg"
    (folder / "contours.json").unlink(missing_ok=True)  # it is of the file before
    found = write_contours(heights, path, settings.interval)
    about = {"contours_of": settings.contours_of, "step": trained.step}
    files.write_json(folder / "contours.json", found | about)
    _log.info(
        "contour lines: %d at %d heights from %.6g to %.6g, every %.4g, in %s",
        found["num_lines"],
        found["num_heights"],
        found["lowest"],
        found["highest"],
        found["interval"],
        path,
    )


CONTOURS = ExportFormat(
    "contours",
    "contours.gpkg (GeoPackage), lines of one height of dtm.tif, which is made first where it is "
    "missing, or of dsm.tif (config.terrain.contours_of, config.terrain.interval)",
    _check,
    _write,
    is_in_report=True,  # the height map is
)
