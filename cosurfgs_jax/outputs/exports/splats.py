"""Surfels for viewers of splats."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.collab.merged_model import CHUNK
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.ply import vertex_parts
from cosurfgs_jax.formats.splat_ply import (
    drawable_of,
    splat_table,
    with_thickness,
    write_splat_tables,
)
from cosurfgs_jax.outputs.exports.export_format import ByParts, ExportFormat, needs_nothing
from cosurfgs_jax.outputs.exports.saved_tables import save_tables, saved_tables
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import WHOLE, Part

_log = logging.getLogger(__name__)


def _extent(trained: Trained) -> Extent:
    """Of the whole model, dataset frame."""
    extent = Extent()
    for chunk in trained.model.chunks():
        extent.add(*trained.partitioned.frame.discs_to_dataset(drawable_of(chunk)))
    return extent


def _tables(trained: Trained, extent: Extent, part: Part) -> Iterator[np.ndarray]:
    for surfels in trained.parts(part):
        yield splat_table(drawable_of(surfels), extent)


def _write_both(tables: Iterable[np.ndarray], extent: Extent, folder: Path) -> None:
    """Writes the rows of the model with two scales, and from that file the one with three."""
    flat = folder / "point_cloud_2d.ply"
    write_splat_tables(flat, tables, extent, "2d")
    solid = folder / "point_cloud_3dgs.ply"
    thick = (with_thickness(table, extent) for table in vertex_parts(flat, CHUNK))
    write_splat_tables(solid, thick, extent, "3dgs")
    for path in (flat, solid):
        _log.info("%d surfels in %s", extent.count, path)


def _write(trained: Trained, folder: Path) -> None:
    extent = _extent(trained)
    _write_both(_tables(trained, extent, WHOLE), extent, folder)


def _make(trained: Trained, part: Part, folder: Path) -> dict[str, Any]:
    extent = _extent(trained)
    save_tables(_tables(trained, extent, part), folder)
    return {"extent": extent.to_dict()}


def _merge(trained: Trained, shards: list[tuple[Path, dict[str, Any]]], folder: Path) -> None:
    extent = Extent.from_dict(shards[0][1]["extent"])
    _write_both(saved_tables([place for place, _ in shards]), extent, folder)


SPLATS = ExportFormat(
    "ply",
    "point_cloud_2d.ply with two scales, and point_cloud_3dgs.ply with three for viewers of 3DGS",
    needs_nothing,
    _write,
    by_parts=ByParts(_make, _merge),
)
