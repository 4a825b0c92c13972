"""Triangle meshes: cleaning and files."""

import abc
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import (
    columns,
    names_of,
    read_ply,
    table_of,
    triangles_of,
    write_ply_parts,
)
from cosurfgs_jax.formats.points import CONFIDENCE
from cosurfgs_jax.geometry.z_order import z_order
from cosurfgs_jax.metrics import area_normals


class VertexPart(NamedTuple):
    """Vertices of a mesh; the fields are those of `Mesh`."""

    vertices: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray | None = None


class MeshParts(abc.ABC):
    """A mesh that can be read part by part: `Mesh` is one part, `JoinedMesh` and `SmoothedMesh`
    are many."""

    @property
    @abc.abstractmethod
    def num_vertices(self) -> int:
        """Of all parts."""

    @property
    @abc.abstractmethod
    def num_triangles(self) -> int:
        """Of all parts."""

    @property
    @abc.abstractmethod
    def largest_coordinate(self) -> float:
        """The largest absolute value of any coordinate."""

    @property
    @abc.abstractmethod
    def typical_edge(self) -> float:
        """The median length of an edge."""

    @abc.abstractmethod
    def vertex_parts(self) -> Iterator[VertexPart]:
        """The vertices, part by part; all parts have a confidence, or none has."""

    @abc.abstractmethod
    def triangle_parts(self) -> Iterator[np.ndarray]:
        """Vertex numbers i32[f,3], part by part."""

    def to_mesh(self) -> "Mesh":
        """All of it in memory."""
        vertices, normals, colors, confidence = zip(*self.vertex_parts(), strict=True)
        triangles = np.concatenate([np.zeros((0, 3), np.int32), *self.triangle_parts()])
        return Mesh(
            np.concatenate(vertices),
            triangles,
            np.concatenate(colors),
            np.concatenate(normals),
            vertex_confidence=None if confidence[0] is None else np.concatenate(confidence),
        )


@dataclasses.dataclass(frozen=True)
class Mesh(MeshParts):
    """A coloured triangle mesh; triangles turn anticlockwise seen from outside.

    | field               | shape    | unit, frame                                                 |
    |---------------------|----------|-------------------------------------------------------------|
    | `vertices`          | f64[M,3] | the frame it was fused in (dataset), float64 for large      |
    |                     |          | coordinates                                                 |
    | `triangles`         | i32[F,3] | vertex numbers                                              |
    | `vertex_colors`     | u8[M,3]  | RGB                                                         |
    | `vertex_normals`    | f32[M,3] | unit length, outwards                                       |
    | `vertex_confidence` | f32[M]   | photographs that it is fused from (`confidence`); None =    |
    |                     |          | not known                                                   |
    """

    vertices: np.ndarray
    triangles: np.ndarray
    vertex_colors: np.ndarray
    vertex_normals: np.ndarray
    vertex_confidence: np.ndarray | None = None

    @property
    def num_vertices(self) -> int:
        """How many vertices."""
        return len(self.vertices)

    @property
    def num_triangles(self) -> int:
        """How many triangles."""
        return len(self.triangles)

    @property
    def largest_coordinate(self) -> float:
        """The largest absolute value of any coordinate."""
        return float(np.abs(self.vertices).max(initial=0))

    @property
    def middle(self) -> np.ndarray:
        """Middle f64[3] of the box of all vertices: around it they are exact enough in float32."""
        return (self.vertices.min(axis=0) + self.vertices.max(axis=0)) / 2

    @property
    def typical_edge(self) -> float:
        """The median length of an edge of 10,000 triangles."""
        some = self.vertices[self.triangles[:: max(1, self.num_triangles // 10_000), :2]]
        return (
            float(np.median(np.linalg.norm(some[:, 0] - some[:, 1], axis=1))) if len(some) else 0.0
        )

    def vertex_parts(self) -> Iterator[VertexPart]:
        """See `MeshParts`."""
        yield VertexPart(
            self.vertices, self.vertex_normals, self.vertex_colors, self.vertex_confidence
        )

    def with_vertices(self, chosen: np.ndarray, triangles: np.ndarray) -> "Mesh":
        """The mesh of some of its vertices, bool[M] or their numbers, and other triangles, which
        count these.
        """
        confidence = self.vertex_confidence
        return Mesh(
            self.vertices[chosen],
            triangles,
            self.vertex_colors[chosen],
            self.vertex_normals[chosen],
            vertex_confidence=None if confidence is None else confidence[chosen],
        )

    def triangle_parts(self) -> Iterator[np.ndarray]:
        """See `MeshParts`."""
        yield self.triangles


def vertex_normal_sums(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Sum f64[M,3] over the triangles of each vertex of their normals, as long as twice
    their area.
    """
    cross = area_normals(vertices, triangles)
    return np.stack(
        [
            np.bincount(
                triangles.ravel(), weights=np.repeat(cross[:, axis], 3), minlength=len(vertices)
            )
            for axis in range(3)
        ],
        axis=1,
    )


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals f32[M,3]: the mean over the triangles of a vertex, weighted by area."""
    return unit_normals(vertex_normal_sums(vertices, triangles))


def unit_normals(sums: np.ndarray) -> np.ndarray:
    """f32[M,3] of sums of normals [M,3]; 0 where they cancel."""
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(length > 0, length, 1)).astype(np.float32)


def keep_vertices(mesh: Mesh, is_kept_triangle: np.ndarray) -> Mesh:
    """The mesh with only some triangles bool[F], and only the vertices that they use, in the same
    order.
    """
    triangles = mesh.triangles[is_kept_triangle]
    is_used = np.zeros(len(mesh.vertices), bool)
    is_used[triangles.ravel()] = True
    numbers = np.cumsum(is_used, dtype=np.int64) - 1
    return mesh.with_vertices(is_used, numbers[triangles].astype(np.int32))


def in_order(mesh: Mesh) -> Mesh:
    """The same mesh in an order that its content alone decides: vertices along a Z-order curve,
    triangles by their vertices. Open3D's threads give another order in every run; this one gives
    the same bits. What is near in space stays near in the file, on which the samples of
    `metrics.sample_mesh` rely: they are spread evenly along the triangles.
    """
    if not len(mesh.vertices):
        return mesh
    codes = z_order(mesh.vertices)
    keys = [*mesh.vertex_colors.T, *mesh.vertices.T, codes]
    if mesh.vertex_confidence is not None:
        keys.insert(0, mesh.vertex_confidence)
    order = np.lexsort(keys)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    triangles = numbers[mesh.triangles]
    # From the smallest number on: a triangle turns, and does not flip.
    start = triangles.argmin(axis=1)[:, None]
    triangles = np.take_along_axis(triangles, (start + np.arange(3)) % 3, axis=1)
    return mesh.with_vertices(order, triangles[np.lexsort(triangles.T[::-1])])


def triangle_components(triangles: np.ndarray, num_vertices: int) -> tuple[np.ndarray, int]:
    """The connected piece i32[M] of each vertex, and how many pieces there are (a vertex without
    triangles is one).
    """
    edges = triangles[:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = scipy.sparse.coo_matrix(
        (np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(num_vertices,) * 2
    )
    num, labels = csgraph.connected_components(graph, directed=False)
    return labels, num


def drop_small_clusters(mesh: Mesh, min_fraction: float) -> Mesh:
    """Drops connected pieces with fewer triangles than a fraction of the largest piece.

    Args:
        mesh: any mesh.
        min_fraction: 0 keeps all, 1 keeps the largest (and its equals).
    Returns:
        A mesh with the same or fewer triangles.
    """
    if not len(mesh.triangles):
        return mesh
    cluster = triangle_components(mesh.triangles, len(mesh.vertices))[0][mesh.triangles[:, 0]]
    sizes = np.bincount(cluster)
    return keep_vertices(mesh, sizes[cluster] >= min_fraction * sizes.max())


def write_mesh_ply(path: str | os.PathLike, mesh: MeshParts) -> None:
    """Writes a binary PLY with normals, colours and, where it is known, the confidence, atomically.

    Coordinates are float, or double where float would be too coarse (large map coordinates).

    Args:
        path: the file.
        mesh: a `Mesh`, or one on disk (`tile_store.JoinedMesh`), of which one part is in memory at
            a time.
    Raises:
        InputError: the mesh is empty, or the disk is full.
    """
    if not mesh.num_triangles:
        raise InputError(f"{path}: the mesh has no triangle; nothing was written")
    # Double where float32 would move vertices by more than a thousandth of a typical edge.
    kind = "f8" if mesh.largest_coordinate * 2.0**-24 > 1e-3 * mesh.typical_edge else "f4"
    write_ply_parts(
        path,
        mesh.num_vertices,
        (_vertex_table(part, kind) for part in mesh.vertex_parts()),
        mesh.num_triangles,
        mesh.triangle_parts(),
        comments=("cosurfgs_jax mesh",),
    )


def _vertex_table(part: VertexPart, kind: str) -> np.ndarray:
    """Vertices as a PLY file has them, with coordinates of a kind, "f4" or "f8"."""
    columns_of = [
        ("x y z", kind, part.vertices),
        ("nx ny nz", "f4", part.normals),
        ("red green blue", "u1", part.colors),
    ]
    if part.confidence is not None:  # MeshLab takes it for its quality
        columns_of.append((CONFIDENCE, "f4", part.confidence[:, None]))
    return table_of(*columns_of)


def read_mesh_ply(path: str | os.PathLike) -> Mesh:
    """Reads a triangle mesh; missing colours are grey, missing normals are computed, a missing
    confidence is None.

    Raises:
        InputError: unreadable, or without triangles.
    """
    tables, _ = read_ply(path)
    triangles = triangles_of(tables, path)
    table = tables["vertex"]
    vertices = columns(table, ("x", "y", "z"), path)
    present = names_of(table.dtype)
    colors = (
        columns(table, ("red", "green", "blue"), path, np.uint8)
        if "red" in present
        else np.full((len(vertices), 3), 160, np.uint8)
    )
    normals = (
        columns(table, ("nx", "ny", "nz"), path, np.float32)
        if "nx" in present
        else vertex_normals(vertices, triangles)
    )
    confidence = None
    if CONFIDENCE in present:
        confidence = columns(table, (CONFIDENCE,), path, np.float32)[:, 0]
    return Mesh(vertices, triangles, colors, normals, vertex_confidence=confidence)
