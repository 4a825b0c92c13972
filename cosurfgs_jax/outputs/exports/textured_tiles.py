"""The textured mesh of a large place: tiles, and an index of them."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import Place, placing
from cosurfgs_jax.outputs.map_frame import place_of
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.surface import simplify, texture, tileset
from cosurfgs_jax.surface.cell_store import CellStore, Steps, steps_of
from cosurfgs_jax.surface.mesh_cells import Cells, Survey
from cosurfgs_jax.surface.mesh_files import upright
from cosurfgs_jax.surface.texture_scores import mean_scores, score_view
from cosurfgs_jax.surface.texture_tiles import (
    COVERED,
    TEXEL,
    KeptViews,
    MadeTile,
    Sizes,
    kept_parts,
    looking_at,
    make_tile,
)
from cosurfgs_jax.surface.textured_files import write_textured_glb, write_textured_obj
from cosurfgs_jax.training.run_log import Progress

INDEX = "tileset.json"
_UNFINISHED = "unfinished"  # folder in that of the tiles, while they are made
_TEXELS = 1600  # along the side of a picture, where the data say how large tiles are: the mean
_UNEVEN = 2  # times the mean that the triangles of a tile may be, within `surface.memory_mb`
_MAX_CELLS = 1000  # along a side
_MAX_TEST_VIEWS = 32  # test views, 7 bytes a pixel wait on disk
_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """What is to be made.

    | field      | content                                                           |
    |------------|-------------------------------------------------------------------|
    | `mesh`     | file of the whole mesh                                            |
    | `survey`   | of it                                                             |
    | `shown`    | the model with the photographs of the texture                     |
    | `gains`    | of the photographs, f64[V,3]                                      |
    | `fraction` | of the triangles, that is kept                                    |
    | `sizes`    | of the pictures                                                   |
    """

    mesh: Path
    survey: Survey
    shown: Trained
    gains: np.ndarray
    fraction: float
    sizes: Sizes

    @property
    def cells(self) -> Cells:
        """The tiles' squares of ground."""
        settings = self.shown.settings
        if settings.texture.tile_size:
            shortest = float(self.survey.extent.max()) / _MAX_CELLS
            if settings.texture.tile_size < shortest:
                raise InputError(
                    f"config.texture.tile_size: expected at least {shortest:.2g} on a mesh that is "
                    f"{shortest * _MAX_CELLS:.4g} wide, got {settings.texture.tile_size:g}"
                )
            return self.survey.cut(settings.texture.tile_size)
        texels = self.survey.area / COVERED / (TEXEL * self.sizes.pixel) ** 2
        num_bytes = _UNEVEN * self.survey.num_triangles * simplify.BYTES_PER_TRIANGLE
        number = max(texels / _TEXELS**2, num_bytes / (settings.surface.memory_mb * 2**20), 1)
        return self.survey.cut(float(np.sqrt(self.survey.ground / number)))

    @property
    def tests(self) -> np.ndarray:
        """The views that the result is compared with."""
        views = self.shown.partitioned.scene.test_views
        if len(views) <= _MAX_TEST_VIEWS:
            return views
        return views[np.linspace(0, len(views) - 1, _MAX_TEST_VIEWS).round().astype(int)]

    def made_with(self) -> dict[str, Any]:
        """All that tiles depend on: those of others are not gone on with."""
        made = self.shown.made_with("texture", "data")
        for name in ("host_memory_mb", "device_memory_mb"):  # without effect
            del made[f"config.data.{name}"]
        return made | {
            "mesh": files.state_of(self.mesh),
            "gains": float(self.gains.sum()),
            "cells": [self.cells.side, self.cells.columns, self.cells.rows],
        }


def write_tiles(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Makes the tiles that are missing, and then the index.

    Args:
        wanted: what is to be made.
        folder: of the tiles and the index. Tiles of an earlier process that was interrupted stay,
            if it had the same plan; all else in it is deleted.
    Returns:
        JSON data for the note of the export.
    Raises:
        InputError: see `make_tile`, `texture.tile_size` is too small, the mesh was replaced
            meanwhile, or the disk is full.
    """
    work = folder / _UNFINISHED
    made_with = wanted.made_with()
    _begin(folder, made_with)
    steps = steps_of(wanted.survey)
    store = CellStore(wanted.mesh, wanted.cells, steps, work)
    with Progress("fewer triangles, tiles", len(store.counts)) as progress:
        for done, cell in enumerate(store.counts, start=1):
            store.reduce(cell, wanted.fraction)
            progress.update(done)
    if files.state_of(wanted.mesh) != made_with["mesh"]:
        raise InputError(
            f"{wanted.mesh}: expected the mesh that tiles were begun with, got another, which was "
            "written meanwhile; run the same command again"
        )
    scene = wanted.shown.partitioned.scene
    with (
        ImageStore(scene, wanted.shown.settings.data.host_memory_mb) as images,
        Progress("texture, tiles", len(store.counts)) as progress,
    ):
        sources = texture.Sources(scene.views, scene.train_views, images.load, wanted.gains)
        for done, cell in enumerate(_back_and_forth(store), start=1):
            note = work / f"{store.cells.name(cell)}.json"
            if not note.exists():
                images.prefetch(looking_at(store.mesh(cell), sources))
                kept = KeptViews(wanted.tests, work)
                made = make_tile(store, cell, sources, sizes=wanted.sizes, kept=kept)
                files.write_json(note, _write(wanted, store, cell, made, folder=folder))
            progress.update(done)
        tests = wanted.tests.tolist()
        rows = [score_view(kept_parts(view, work), images.load(view)) for view in tests]
    notes = [
        files.read_json_object(work / f"{store.cells.name(cell)}.json") for cell in store.counts
    ]
    with placing(folder, _places_of(wanted, notes, steps)):
        _write_index(folder / INDEX, notes, scene.up, steps)
    shutil.rmtree(work, ignore_errors=True)
    return _summary(wanted, notes, steps) | {"test_views": mean_scores(rows)}


def _begin(folder: Path, made_with: dict[str, Any]) -> None:
    """Leaves the tiles that have the same plan."""
    plan = folder / _UNFINISHED / "plan.json"
    if plan.exists() and files.read_json_object(plan) == made_with:
        _log.info("%s: going on with the tiles that an interrupted export has left", folder)
        return
    (folder / INDEX).unlink(missing_ok=True)  # first: it names files that go now
    shutil.rmtree(folder, ignore_errors=True)
    files.write_json(plan, made_with)


def _back_and_forth(store: CellStore) -> Iterator[int]:
    """The cells row by row, every other row backwards: what follows shares photographs."""
    columns = store.cells.columns
    for row in range(store.cells.rows):
        cells = [row * columns + column for column in range(columns)]
        if row % 2:
            cells.reverse()
        yield from (cell for cell in cells if cell in store.counts)


def _write(
    wanted: Wanted, store: CellStore, cell: int, made: MadeTile, folder: Path
) -> dict[str, Any]:
    """Writes the files of a tile; its note."""
    mesh = made.textured.mesh
    up = wanted.shown.partitioned.scene.up
    name = store.cells.name(cell)
    write_textured_glb(folder / f"{name}.glb", made.textured, up, store.steps.around(mesh))
    if wanted.shown.settings.texture.tile_obj:
        write_textured_obj(folder / f"{name}.obj", made.textured)
    places = (mesh.vertices - store.steps.origin) @ tileset.tileset_axes(up).T
    return {
        "uri": f"{name}.glb",
        "num_triangles": mesh.num_triangles,
        "size": len(made.textured.picture),
        "texel": made.texel,
        "photographed_share": made.seen,
        "num_photographs": made.num_used,
        "low": places.min(axis=0).tolist(),
        "high": places.max(axis=0).tolist(),
    }


def _write_index(path: Path, notes: list[dict], up: np.ndarray, steps: Steps) -> None:
    tiles = [
        tileset.Tile(note["uri"], np.array(note["low"]), np.array(note["high"])) for note in notes
    ]
    tileset.write_tileset(path, tiles, up, steps.origin)


def _places_of(wanted: Wanted, notes: list[dict], steps: Steps) -> dict[str, Place]:
    """The places on the map of the index and of the files of all tiles, by their names."""
    geo = wanted.shown.settings.geo
    up = wanted.shown.partitioned.scene.up
    places = {INDEX: place_of(geo, tileset.tileset_axes(up).T)}
    for note in notes:
        places[note["uri"]] = place_of(geo, upright(up).T, steps.origin)
        if wanted.shown.settings.texture.tile_obj:
            places[f"{Path(note['uri']).stem}.obj"] = place_of(geo)
    return places


def _summary(wanted: Wanted, notes: list[dict], steps: Steps) -> dict[str, Any]:
    def of_all(name: str) -> np.ndarray:
        return np.array([note[name] for note in notes])

    coarse = int((of_all("texel") > wanted.sizes.pixel).sum())
    if coarse:
        _log.warning(
            "texture: %d of %d tiles are coarser than the photographs: %d texels a side are too "
            "few for them; give a smaller --config.texture.tile_size",
            coarse,
            len(notes),
            wanted.sizes.largest,
        )
    weights = of_all("size").astype(float) ** 2
    return {
        "num_triangles": int(of_all("num_triangles").sum()),
        "size": int(of_all("size").max()),
        "texel": float(of_all("texel").max()),
        "photographed_share": float(np.average(of_all("photographed_share"), weights=weights)),
        "tiles": {
            "number": len(notes),
            "side": wanted.cells.side,
            "coarser_than_photographs": coarse,
            "num_photographs": of_all("num_photographs").tolist(),
            # What coordinates of the GLB files count from, dataset frame.
            "origin": steps.origin,
        },
    }
