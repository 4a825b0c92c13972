"""A mesh without the noise of its voxels: Taubin's filter (1995), which does not shrink.

A voxel's distance is a mean over few views, so neighbouring vertices are off by a fraction of a
voxel in turn; that is far below the tolerances of places and turns normals by many degrees. One
pass of the filter moves each vertex to the mean of its neighbours by half of the way, and back by a
little more, so that long waves keep their size. Edges of roofs stay where they are: a smoothed
*field* rounds them off (walls and roofs lost 0.05 of F1 at a tenth of a percent of the width).

Vertices, and what is needed of their neighbours, wait on disk part by part, as the tiles do. Places
are whole numbers of a small length: sums of them are exact, so that tiles do not change the result.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from cosurfgs_jax.surface.mesh import MeshParts, VertexPart, unit_normals, vertex_normal_sums
from cosurfgs_jax.surface.tile_store import writing_scratch

INWARDS = 0.5  # of the way to the mean of the neighbours
BACK = -0.53  # pass band 1 / 0.5 - 1 / 0.53 = 0.11, as Taubin's 0.1
_STEPS = 4096  # of a place, in a voxel: 0.01 degrees of a normal
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, about 2^64 / golden ratio
_ROWS = 1_000_000  # vertices that are moved at a time


class Voxels(NamedTuple):
    """What a mesh was extracted from."""

    origin: np.ndarray  # f64[3], of a voxel, frame of the mesh
    size: float  # length of a side


class _Part(NamedTuple):
    """The neighbours within one part of the triangles, mapped from its files.

    | field     | shape    | what                                                             |
    |-----------|----------|------------------------------------------------------------------|
    | `numbers` | i32[m]   | vertices of the part, ascending                                  |
    | `starts`  | i32[m+1] | rows of a sparse matrix [m, m]: in how many triangles two are    |
    | `columns` | i32[n]   | neighbours                                                       |
    | `counts`  | u8[n]    |                                                                  |
    """

    numbers: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    def sums(self, places: np.ndarray) -> np.ndarray:
        """Of the places i64[m,3] of each vertex's neighbours, i64[m,3]."""
        shape = (len(self.numbers),) * 2
        matrix = scipy.sparse.csr_matrix((self.counts, self.columns, self.starts), shape)
        return matrix @ places


def _neighbors(numbers: np.ndarray, local: np.ndarray) -> _Part:
    """Of triangles i64[F,3] that count the vertices `numbers`."""
    rows = np.repeat(local.ravel(), 2)
    columns = local[:, [1, 2, 0, 2, 0, 1]].ravel()
    matrix = scipy.sparse.coo_matrix(
        (np.ones(len(rows), np.uint8), (rows, columns)), shape=(len(numbers),) * 2
    ).tocsr()
    return _Part(numbers, matrix.indptr, matrix.indices, matrix.data)


def _keys(places: np.ndarray) -> np.ndarray:
    """u64[m], of places i64[m,3]: numbers without a pattern, the same in every order of vertices.
    Plain numbers cancel where two borders meet in a vertex.
    """
    mixed = np.zeros(len(places), np.uint64)
    for axis in range(3):
        mixed = (mixed ^ places[:, axis].astype(np.uint64)) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed * _MULTIPLIER


class SmoothedMesh(MeshParts):
    """A mesh with Taubin's filter applied; as long as the mesh and the folder are there. Vertices
    at open borders stay.
    """

    def __init__(
        self,
        mesh: MeshParts,
        num_passes: int,
        voxels: Voxels,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
    ):
        """
        Args:
            mesh: the mesh as it is.
            num_passes: each is a step to the mean and one back.
            voxels: that it was extracted from.
            folder: for scratch files, 110 bytes a vertex and 12 a triangle; the caller removes it.
            progress: called with (passes done, passes in all).
        Raises:
            InputError: the disk is full.
        """
        self._mesh = mesh
        self._folder = folder
        self._origin = voxels.origin
        self._step = voxels.size / _STEPS
        num = mesh.num_vertices
        with writing_scratch(folder):
            self._places = self._array("places", np.int64, (num, 3))
            self._sums = self._array("sums", np.int64, (num, 3))
            self._normals = self._array("normals", np.float32, (num, 3))
            self._copy_places()
            degree, is_open = self._find_neighbors()
        for done in range(num_passes):
            for part in (INWARDS, BACK):
                self._move(part, degree, is_open)
            if progress:
                progress(done + 1, num_passes)
        self._find_normals()

    def _array(self, name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        """An array of zeros in a file, whose room on the disk is taken at once: a full disk would
        else end the process at some later write.
        """
        path = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", kind, shape)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
        return array

    def _copy_places(self) -> None:
        start = 0
        for part in self._mesh.vertex_parts():
            rows = slice(start, start + len(part.vertices))
            self._places[rows] = np.rint((part.vertices - self._origin) / self._step)
            start += len(part.vertices)

    def _find_neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """Writes the parts; how often each vertex is a neighbour i32[N], and whether its triangles
        leave a gap, bool[N].
        """
        degree = self._array("degree", np.int32, (len(self._places),))
        # Around a vertex without a gap each neighbour is the next of one triangle and the last of
        # another: the sum of the differences of their keys is 0.
        gap = self._array("gap", np.uint64, (len(self._places),))
        self._num_parts = 0
        for triangles in self._mesh.triangle_parts():
            numbers, local = np.unique(triangles, return_inverse=True)
            local = local.reshape(-1, 3)
            part = _neighbors(numbers, local)
            for name, values in part._asdict().items():
                np.save(self._folder / f"{name}{self._num_parts}.npy", values)
            np.save(self._folder / f"local{self._num_parts}.npy", local.astype(np.int32))
            degree[numbers] += part.sums(np.ones(len(numbers), np.int64)).astype(np.int32)
            keys = _keys(self._places[numbers])[local]
            for corner in range(3):
                difference = keys[:, (corner + 1) % 3] - keys[:, (corner + 2) % 3]
                np.add.at(gap, triangles[:, corner], difference)
            self._num_parts += 1
        return degree, np.asarray(gap) != 0

    def _parts(self) -> Iterator[tuple[_Part, np.ndarray]]:
        """The parts, and their triangles i32[F,3]."""

        def load(name: str, number: int) -> np.ndarray:
            return np.load(self._folder / f"{name}{number}.npy", mmap_mode="r")

        for number in range(self._num_parts):
            part = _Part(*(load(name, number) for name in _Part._fields))
            yield part, load("local", number)

    def _move(self, fraction: float, degree: np.ndarray, is_open: np.ndarray) -> None:
        """Moves all vertices by a fraction of the way to the mean of their neighbours."""
        self._sums[:] = 0
        for part, _ in self._parts():
            self._sums[part.numbers] += part.sums(self._places[part.numbers])
        for start in range(0, len(self._places), _ROWS):
            rows = slice(start, start + _ROWS)
            is_moved = (degree[rows] > 0) & ~is_open[rows]
            mean = self._sums[rows] / np.maximum(degree[rows], 1)[:, None]
            way = np.where(is_moved[:, None], mean - self._places[rows], 0)
            self._places[rows] += np.rint(fraction * way).astype(np.int64)

    def _find_normals(self) -> None:
        self._normals[:] = 0
        for part, local in self._parts():
            places = self._places[part.numbers] * self._step
            self._normals[part.numbers] += vertex_normal_sums(places, np.asarray(local))

    @property
    def num_vertices(self) -> int:
        """See `MeshParts`."""
        return self._mesh.num_vertices

    @property
    def num_triangles(self) -> int:
        """See `MeshParts`."""
        return self._mesh.num_triangles

    @property
    def largest_coordinate(self) -> float:
        """See `MeshParts`."""
        return self._mesh.largest_coordinate

    @property
    def typical_edge(self) -> float:
        """See `MeshParts`."""
        return self._mesh.typical_edge

    def vertex_parts(self) -> Iterator[VertexPart]:
        """See `MeshParts`."""
        start = 0
        for part in self._mesh.vertex_parts():
            rows = slice(start, start + len(part.vertices))
            start += len(part.vertices)
            yield part._replace(
                vertices=self._places[rows] * self._step + self._origin,
                normals=unit_normals(self._normals[rows]),
            )

    def triangle_parts(self) -> Iterator[np.ndarray]:
        """See `MeshParts`."""
        yield from self._mesh.triangle_parts()


def smoothed(mesh: MeshParts, num_passes: int, voxels: Voxels, **choices) -> MeshParts:
    """A mesh after so many passes; 0 = the mesh itself.

    Args:
        mesh, num_passes, voxels: see `SmoothedMesh`.
        **choices: the others of `SmoothedMesh`.
    Raises:
        InputError: see `SmoothedMesh`.
    """
    if not num_passes:
        return mesh
    return SmoothedMesh(mesh, num_passes, voxels, **choices)
