"""The centres of the surfels as points."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.outputs.exports.export_format import ByParts, ExportFormat, needs_nothing
from cosurfgs_jax.outputs.exports.saved_tables import save_tables, saved_tables
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import WHOLE, Part

_log = logging.getLogger(__name__)


def _points(trained: Trained, part: Part) -> Iterator[point_files.Points]:
    """Centres with colours and normals, dataset frame, few at a time."""
    centers = trained.partitioned.scene.views.centers
    for surfels in trained.parts(part):
        yield point_files.points_of(surfels, centers)


def extent_of(trained: Trained) -> Extent:
    """Of the points of the whole model."""
    return point_files.extent_of(_points(trained, WHOLE))


def tables_of(trained: Trained, part: Part = WHOLE) -> Iterator[np.ndarray]:
    """The points of a part of the model, few at a time."""
    return map(point_files.point_table, _points(trained, part))


def make(trained: Trained, part: Part, folder: Path) -> dict[str, Any]:
    """The points of a part of the model in the folder of a shard."""
    save_tables(tables_of(trained, part), folder)
    return {"extent": extent_of(trained).to_dict()}


def merged(shards: list[tuple[Path, dict[str, Any]]]) -> tuple[Iterator[np.ndarray], Extent]:
    """The points of all shards, few at a time, and their extent."""
    tables = saved_tables([folder for folder, _ in shards])
    return tables, Extent.from_dict(shards[0][1]["extent"])


def _write_file(tables: Iterable[np.ndarray], extent: Extent, folder: Path) -> None:
    path = folder / "points.ply"
    point_files.write_points_ply(path, tables, extent)
    _log.info("%d points in %s", extent.count, path)


def _write(trained: Trained, folder: Path) -> None:
    _write_file(tables_of(trained), extent_of(trained), folder)


def _merge(trained: Trained, shards: list[tuple[Path, dict[str, Any]]], folder: Path) -> None:
    _write_file(*merged(shards), folder)


POINTS = ExportFormat(
    "points",
    "points.ply, the centres of the surfels with colours and normals",
    needs_nothing,
    _write,
    by_parts=ByParts(make, _merge),
)
