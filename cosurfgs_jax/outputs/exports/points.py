"""Points on the surface: spread over the fused mesh, or the centres of the surfels."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.place_json import placing
from cosurfgs_jax.outputs.exports.export_format import ByParts, ExportFormat, needs_nothing
from cosurfgs_jax.outputs.exports.saved_tables import save_tables, saved_tables
from cosurfgs_jax.outputs.fused_mesh import find_mesh
from cosurfgs_jax.outputs.map_frame import place_of
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface.mesh_points import plan_points, spread_points
from cosurfgs_jax.training.run_log import Progress

_OTHERWISE = "; or give --config.points.source=surfels, for the centres of the surfels"
_log = logging.getLogger(__name__)

# Writes tables of points, some at a time, of this extent into a folder.
FileWriter = Callable[[Trained, Iterable[np.ndarray], Extent, Path], None]


def _centers(trained: Trained, part: Part = WHOLE) -> Iterator[point_files.Points]:
    """Centres of surfels with colours and normals, dataset frame, few at a time."""
    cameras = trained.partitioned.scene.views.centers
    for surfels in trained.parts(part):
        yield point_files.points_of(surfels, cameras)


def write(write_file: FileWriter, trained: Trained, folder: Path) -> None:
    """Writes the points that `points.source` wants.

    Raises:
        InputError: the mesh is missing and cannot be fused, there are no points or too many, or
            what `write_file` raises.
    """
    if trained.settings.points.source == "surface":
        _write_spread(write_file, trained, folder)
        return
    extent = point_files.extent_of(_centers(trained))
    write_file(trained, map(point_files.point_table, _centers(trained)), extent, folder)


def _write_spread(write_file: FileWriter, trained: Trained, folder: Path) -> None:
    """Writes points that are spread over the mesh, which is fused first where it is missing."""
    voxel_size = find_mesh(trained, "points", _OTHERWISE)["voxel_size"]
    spacing = trained.settings.points.spacing or voxel_size
    spread = plan_points(trained.workdir.mesh, spacing)
    _log.info(
        "points: one on each square of %.4g of the mesh, %.4g for each square unit of it",
        spacing,
        1 / spacing**2,
    )
    with Progress("points, percent", 100) as progress:
        tables = spread_points(spread, lambda done, total: progress.update(100 * done // total))
        write_file(trained, tables, spread.extent, folder)


def _make(trained: Trained, part: Part, folder: Path) -> dict[str, Any]:
    """The centres of a part of the model in the folder of a shard."""
    save_tables(map(point_files.point_table, _centers(trained, part)), folder)
    return {"extent": point_files.extent_of(_centers(trained)).to_dict()}


def _merge(
    write_file: FileWriter,
    trained: Trained,
    shards: list[tuple[Path, dict[str, Any]]],
    folder: Path,
) -> None:
    tables = saved_tables([place for place, _ in shards])
    write_file(trained, tables, Extent.from_dict(shards[0][1]["extent"]), folder)


def _check_shards(settings: Settings) -> None:
    if settings.points.source == "surface":
        raise InputError(
            "--shard: expected config.points.source=surfels, whose points shards can make, got "
            "surface, whose points one process makes; leave --shard out"
        )


def by_parts(write_file: FileWriter) -> ByParts:
    """How shards make the centres of the surfels."""
    return ByParts(_make, functools.partial(_merge, write_file), ("points",), _check_shards)


def _write_ply(
    trained: Trained, tables: Iterable[np.ndarray], extent: Extent, folder: Path
) -> None:
    path = folder / "points.ply"
    with placing(folder, {path.name: place_of(trained.settings.geo)}):
        point_files.write_points_ply(path, tables, extent)
    _log.info("%d points in %s", extent.count, path)


POINTS = ExportFormat(
    "points",
    "points.ply, points of the mesh, which is fused first where it is missing, with colours, "
    "normals and confidence, or the centres of the surfels (config.points.source), in the "
    "dataset's frame",
    needs_nothing,
    functools.partial(write, _write_ply),
    by_parts=by_parts(_write_ply),
)
