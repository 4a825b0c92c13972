"""Binary PLY files of this program, read part by part."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cosurfgs_jax.files import reading
from cosurfgs_jax.formats.ply import TRIANGLE, element_dtype, parse_header

# Vertices that are read at once, and those among them that nobody asked for.
_LARGEST_RUN = 2**18
_LARGEST_GAP = 256


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    # Not mapped: what was touched of a mapped file counts as memory of the process.
    with reading(path, "a PLY file of this program", "write it again"), open(path, "rb") as file:
        yield file


def vertex_parts(path: str | os.PathLike, rows: int) -> Iterator[np.ndarray]:
    """The vertices of a binary file of `write_ply_parts`, `rows` at a time.

    Raises:
        InputError: another file.
    """
    with _reading(Path(path)) as file:
        form, elements, _ = parse_header(file, path)
        name, count, properties = elements[0]
        if form != "binary_little_endian" or name != "vertex":
            raise ValueError(f"{form}, {name} first")
        dtype = element_dtype(properties, "<")
        for start in range(0, count, rows):
            yield np.frombuffer(file.read(min(rows, count - start) * dtype.itemsize), dtype)


def mapped_mesh(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """The vertices, a structured array, and the triangles i32[F,3] of a binary file of
    `write_ply_parts`, mapped: what is touched of them counts as memory of the process, until both
    are let go.

    Raises:
        InputError: another file.
    """
    with reading(path, "a mesh of this program", "write it again"), open(path, "rb") as file:
        form, elements, _ = parse_header(file, path)
        names = [name for name, *_ in elements]
        if form != "binary_little_endian" or names != ["vertex", "face"]:
            raise ValueError(f"{form}, {' '.join(names)}")
        kinds = [element_dtype(properties, "<") for *_, properties in elements]
        counts = [count for _, count, _ in elements]
        if kinds[1].itemsize != TRIANGLE.itemsize:
            raise ValueError("faces are not triangles")
        start = file.tell()
        vertices = np.memmap(path, kinds[0], "r", offset=start, shape=(counts[0],))
        start += counts[0] * kinds[0].itemsize
        faces = np.memmap(path, TRIANGLE, "r", offset=start, shape=(counts[1],))
        return vertices, faces["v"]


class MeshFile:
    """A mesh in a binary file of `write_ply_parts`, of which a part is in memory at a time.

    | field           | content                                    |
    |-----------------|--------------------------------------------|
    | `num_vertices`  |                                            |
    | `num_triangles` | 0 in a file without faces                  |
    """

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            InputError: another file.
        """
        self._path = Path(path)
        self.num_vertices = 0
        self.num_triangles = 0
        with _reading(self._path) as file:
            form, elements, _ = parse_header(file, path)
            names = [name for name, *_ in elements]
            if form != "binary_little_endian" or names != ["vertex", "face"]:
                raise ValueError(f"{form}, {' '.join(names)}")
            (_, self.num_vertices, properties), (_, self.num_triangles, _) = elements
            self._dtype = element_dtype(properties, "<")
            self._begin = file.tell()

    def vertices(self, numbers: np.ndarray) -> np.ndarray:
        """Vertices by their numbers i64[n], which rise: a structured array. Those that lie near
        together in the file are read together.
        """
        ends = (np.diff(numbers) > _LARGEST_GAP) | (np.diff(numbers // _LARGEST_RUN) > 0)
        rows = np.empty(len(numbers), self._dtype)
        with _reading(self._path) as file:
            for run in np.split(np.arange(len(numbers)), np.flatnonzero(ends) + 1):
                asked = numbers[run]
                file.seek(self._begin + int(asked[0]) * self._dtype.itemsize)
                size = (int(asked[-1] - asked[0]) + 1) * self._dtype.itemsize
                rows[run] = np.frombuffer(file.read(size), self._dtype)[asked - asked[0]]
        return rows

    def triangle_parts(self, rows: int) -> Iterator[np.ndarray]:
        """Vertex numbers i32[f,3], at most `rows` triangles at a time."""
        begin = self._begin + self.num_vertices * self._dtype.itemsize
        for start in range(0, self.num_triangles, rows):
            count = min(rows, self.num_triangles - start)
            with _reading(self._path) as file:
                file.seek(begin + start * TRIANGLE.itemsize)
                part = np.frombuffer(file.read(count * TRIANGLE.itemsize), TRIANGLE)
                if len(part) < count or (part["n"] != 3).any():
                    raise ValueError("cut off, or faces that are no triangles")
            yield part["v"]
