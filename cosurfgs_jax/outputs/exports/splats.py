"""Surfels for viewers of splats."""

import logging
from pathlib import Path

from cosurfgs_jax.formats.splat_ply import write_surfels_ply
from cosurfgs_jax.outputs.exports.export_format import ExportFormat, needs_nothing
from cosurfgs_jax.outputs.trained import Trained

_log = logging.getLogger(__name__)


def _write(trained: Trained, folder: Path) -> None:
    surfels = trained.partitioned.frame.surfels_to_dataset(trained.surfels)
    for kind in ("2d", "3dgs"):
        path = folder / f"point_cloud_{kind}.ply"
        count = write_surfels_ply(path, surfels, kind)
        _log.info("%d surfels in %s", count, path)


SPLATS = ExportFormat(
    "ply",
    "point_cloud_2d.ply with two scales, and point_cloud_3dgs.ply with three for viewers of 3DGS",
    needs_nothing,
    _write,
)
