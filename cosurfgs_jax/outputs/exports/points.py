"""The centres of the surfels as points."""

import logging
from pathlib import Path

from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.outputs.exports.export_format import ExportFormat, needs_nothing
from cosurfgs_jax.outputs.trained import Trained

_log = logging.getLogger(__name__)


def points_of(trained: Trained) -> point_files.Points:
    """Centres with colours and normals, dataset frame."""
    return point_files.points_of(
        trained.partitioned.frame.surfels_to_dataset(trained.surfels),
        trained.partitioned.scene.views.centers,
    )


def _write(trained: Trained, folder: Path) -> None:
    points = points_of(trained)
    path = folder / "points.ply"
    point_files.write_points_ply(path, points)
    _log.info("%d points in %s", len(points.positions), path)


POINTS = ExportFormat(
    "points",
    "points.ply, the centres of the surfels with colours and normals",
    needs_nothing,
    _write,
)
