"""The cells of a mesh with few triangles, on disk: what tiles are made of, and what hides them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax import files
from cosurfgs_jax.surface.atlas import without_fans
from cosurfgs_jax.surface.mesh import Mesh, in_order
from cosurfgs_jax.surface.mesh_cells import Cells, Survey, read_cell, split
from cosurfgs_jax.surface.simplify import decimate
from cosurfgs_jax.surface.textured_files import Around

_FAR_REDUCTION = 10  # of a cell's triangles one is kept where the cell only hides others from afar
_STEPS = 4096  # of places, at least, in a typical edge: all of them are exact in float32 in a tile
_FIELDS = ("vertices", "triangles", "vertex_colors", "vertex_normals")


class Steps(NamedTuple):
    """Places that are exact in a GLB file: multiples of a power of two.

    | field    | content                                                         |
    |----------|-----------------------------------------------------------------|
    | `length` | of a step, dataset                                              |
    | `origin` | f64[3] that all files count from, dataset frame                 |
    """

    length: float
    origin: np.ndarray

    def rounded(self, places: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """The nearest of these places."""
        return np.rint(places / self.length) * self.length

    def around(self, mesh: Mesh) -> Around:
        """Where a file of this mesh, of such places, counts from."""
        return Around(self.rounded(mesh.middle), self.origin)


def steps_of(survey: Survey) -> Steps:
    """Steps for a mesh. The origin is that of the dataset, but for meshes whose coordinates float32
    cannot hold: programs that open several files hold them so.
    """
    edge = np.sqrt(survey.area / survey.num_triangles)
    steps = Steps(float(2.0 ** np.floor(np.log2(edge / _STEPS))), np.zeros(3))
    if not survey.is_double:
        return steps
    return steps._replace(origin=steps.rounded(survey.middle))


def _fewer(mesh: Mesh, fraction: float, is_fixed: np.ndarray | None = None) -> Mesh:
    """Decimated, but for a piece so small that nothing would be left."""
    few = decimate(mesh, max(1, int(fraction * mesh.num_triangles)), is_fixed)
    return few if few.num_triangles else mesh


class CellStore:
    """The decimated cells of a mesh file, in a folder that later processes go on with. Cells that
    touch have the same vertices along their border.
    """

    def __init__(self, path: Path, cells: Cells, steps: Steps, folder: Path):
        """
        Args:
            path: the mesh file.
            cells: of its ground.
            steps: that vertices are rounded to.
            folder: an empty one, or of an earlier process with the same path, cells and steps.
        Raises:
            InputError: the disk is full, or the file is another one.
        """
        self.cells = cells
        self._path = path
        self.steps = steps
        self._folder = folder
        note = folder / "cells.json"
        if not note.exists():
            shutil.rmtree(self._split, ignore_errors=True)
            with files.writing(self._split):
                self._split.mkdir(parents=True)
                counts = split(path, cells, self._split)
            files.write_json(note, {str(cell): count for cell, count in counts.items()})
        found = files.read_json_object(note)
        self.counts = {int(cell): int(count) for cell, count in found.items()}

    @property
    def _split(self) -> Path:
        return self._folder / "split"

    def _file(self, cell: int, kind: str) -> Path:
        return self._folder / f"{self.cells.name(cell)}_{kind}.npz"

    def reduce(self, cell: int, fraction: float) -> None:
        """Keeps a fraction of a cell's triangles; nothing where a process has done so before.

        Raises:
            InputError: open3d is missing, or the disk is full.
        """
        if self._file(cell, "far").exists():
            return
        mesh, is_fixed = read_cell(self._path, self.cells, cell, self._split)
        few = _fewer(mesh, fraction, is_fixed)
        few = dataclasses.replace(few, vertices=self.steps.rounded(few.vertices))
        few = without_fans(in_order(few))
        self._save(cell, "near", few)
        self._save(cell, "far", in_order(_fewer(few, 1 / _FAR_REDUCTION)))

    def _save(self, cell: int, kind: str, mesh: Mesh) -> None:
        arrays: dict[str, Any] = {name: getattr(mesh, name) for name in _FIELDS}
        with files.atomic_path(self._file(cell, kind)) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)

    def _load(self, cell: int, kind: str) -> Mesh:
        arrays = files.read_arrays(self._file(cell, kind), _FIELDS)
        return Mesh(*(arrays[name] for name in _FIELDS))

    def mesh(self, cell: int) -> Mesh:
        """A cell after `reduce`, dataset frame."""
        return self._load(cell, "near")

    def hiding(self, cell: int, eyes: Float[np.ndarray, "n 3"]) -> list[Mesh]:
        """What may hide a cell from places `eyes`, dataset frame: the cells that touch it as they
        are, and with fewer triangles those above or below the ways between.
        """
        touching = self.cells.around(cell)
        ends = self.cells.position(np.concatenate([self.mesh(cell).vertices, eyes]))
        found = []
        for other in self.counts:
            if other == cell:
                continue
            if other in touching:
                found.append(self._load(other, "near"))
            elif self.cells.is_within(other, ends.min(axis=0), ends.max(axis=0)):
                found.append(self._load(other, "far"))
        return found
