"""Surfels for viewers of splats."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.collab.merged_model import CHUNK
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.place_json import NAME, placing
from cosurfgs_jax.formats.ply_parts import vertex_parts
from cosurfgs_jax.formats.splat_ply import (
    around,
    drawable_of,
    splat_table,
    with_thickness,
    write_splat_tables,
)
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.outputs.exports.export_format import ByParts, ExportFormat, needs_nothing
from cosurfgs_jax.outputs.exports.saved_tables import save_tables, saved_tables
from cosurfgs_jax.outputs.map_frame import place_of
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


def origin_of(frame: SceneFrame, extent: Extent) -> np.ndarray:
    """What is taken off the coordinates f64[3] of the file with three scales: zeros, but where they
    need double precision, which viewers do not read; then the middle of the ground, in round
    numbers.
    """
    if not extent.needs_double:
        return np.zeros(3)
    step = 10.0 ** np.floor(np.log10(1 / frame.scale))
    return np.round(frame.to_dataset(np.zeros(3)) / step) * step


def _write_both(
    trained: Trained, tables: Iterable[np.ndarray], extent: Extent, folder: Path
) -> None:
    """Writes the rows of the model with two scales, and from that file the one with three."""
    flat = folder / "point_cloud_2d.ply"
    solid = folder / "point_cloud_3dgs.ply"
    origin = origin_of(trained.partitioned.frame, extent)
    geo = trained.settings.geo
    places = {flat.name: place_of(geo), solid.name: place_of(geo, origin=origin)}
    with placing(folder, places):
        write_splat_tables(flat, tables, extent, "2d")
        near = (around(table, origin) for table in vertex_parts(flat, CHUNK))
        thick = (with_thickness(table, extent) for table in near)
        write_splat_tables(solid, thick, extent.around(origin), "3dgs")
    for path in (flat, solid):
        _log.info("%d surfels in %s", extent.count, path)
    if origin.any():
        _log.info(
            "%s: %s was taken off its coordinates, for viewers that read single precision alone; "
            "%s beside it has the place of each file on the map",
            solid,
            ", ".join(f"{value:.12g}" for value in origin),
            NAME,
        )


def _write(trained: Trained, folder: Path) -> None:
    extent = _extent(trained)
    _write_both(trained, _tables(trained, extent, WHOLE), extent, folder)


def _make(trained: Trained, part: Part, folder: Path) -> dict[str, Any]:
    extent = _extent(trained)
    save_tables(_tables(trained, extent, part), folder)
    return {"extent": extent.to_dict()}


def _merge(trained: Trained, shards: list[tuple[Path, dict[str, Any]]], folder: Path) -> None:
    extent = Extent.from_dict(shards[0][1]["extent"])
    _write_both(trained, saved_tables([place for place, _ in shards]), extent, folder)


SPLATS = ExportFormat(
    "ply",
    "point_cloud_2d.ply with two scales, and point_cloud_3dgs.ply with three for viewers of 3DGS, "
    "which is near the origin where coordinates are large",
    needs_nothing,
    _write,
    by_parts=ByParts(_make, _merge),
)
