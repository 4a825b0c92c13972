"""Triangle meshes: cleaning and files."""

import dataclasses
import os

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.ply_file import columns, read_ply, table_of, triangles_of, write_ply


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A coloured triangle mesh; triangles turn anticlockwise seen from outside.

    | field            | shape    | unit, frame                                              |
    |------------------|----------|----------------------------------------------------------|
    | `vertices`       | f64[M,3] | the frame it was fused in (dataset), float64 for large coordinates |
    | `triangles`      | i32[F,3] | vertex numbers                                           |
    | `vertex_colors`  | u8[M,3]  | RGB                                                      |
    | `vertex_normals` | f32[M,3] | unit length, outwards                                    |
    """

    vertices: np.ndarray
    triangles: np.ndarray
    vertex_colors: np.ndarray
    vertex_normals: np.ndarray


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals f32[M,3]: the mean over the triangles of a vertex, weighted by area."""
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.stack([np.bincount(triangles.ravel(), weights=np.repeat(cross[:, axis], 3), minlength=len(vertices))
                     for axis in range(3)], axis=1)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(length > 0, length, 1)).astype(np.float32)


def keep_vertices(mesh: Mesh, is_kept_triangle: np.ndarray) -> Mesh:
    """The mesh with only some triangles bool[F], and only the vertices that they use, in the same order."""
    triangles = mesh.triangles[is_kept_triangle]
    is_used = np.zeros(len(mesh.vertices), bool)
    is_used[triangles.ravel()] = True
    numbers = np.cumsum(is_used, dtype=np.int64) - 1
    return Mesh(mesh.vertices[is_used], numbers[triangles].astype(np.int32), mesh.vertex_colors[is_used],
                mesh.vertex_normals[is_used])


def drop_small_clusters(mesh: Mesh, min_share: float) -> Mesh:
    """Drops connected pieces with fewer triangles than a share of the largest piece.

    Args:
        mesh: any mesh.
        min_share: 0 keeps all, 1 keeps the largest (and its equals).
    Returns:
        A mesh with the same or fewer triangles.
    """
    if not len(mesh.triangles):
        return mesh
    edges = mesh.triangles[:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = scipy.sparse.coo_matrix((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])),
                                    shape=(len(mesh.vertices),) * 2)
    _, labels = csgraph.connected_components(graph, directed=False)
    cluster = labels[mesh.triangles[:, 0]]
    sizes = np.bincount(cluster)
    return keep_vertices(mesh, sizes[cluster] >= min_share * sizes.max())


def _needs_double(mesh: Mesh) -> bool:
    """Whether float32 coordinates would move vertices by more than a thousandth of a typical edge."""
    some = mesh.triangles[:: max(1, len(mesh.triangles) // 10_000)]
    edges = np.linalg.norm(mesh.vertices[some[:, 0]] - mesh.vertices[some[:, 1]], axis=1)
    rounding = np.abs(mesh.vertices).max() * 2.0**-24
    return bool(rounding > 1e-3 * np.median(edges))


def write_mesh_ply(path: str | os.PathLike, mesh: Mesh) -> None:
    """Writes a binary PLY with normals and colours, atomically.

    Coordinates are float, or double where float would be too coarse (large map coordinates).

    Raises:
        InputError: the mesh is empty, or the disk is full.
    """
    if not len(mesh.triangles):
        raise InputError(f"{path}: the mesh has no triangle; nothing was written")
    kind = "f8" if _needs_double(mesh) else "f4"
    table = table_of(("x y z", kind, mesh.vertices), ("nx ny nz", "f4", mesh.vertex_normals),
                     ("red green blue", "u1", mesh.vertex_colors))
    write_ply(path, table, mesh.triangles, comments=("cosurfgs_jax mesh",))


def read_mesh_ply(path: str | os.PathLike) -> Mesh:
    """Reads a triangle mesh; missing colours are grey, missing normals are computed.

    Raises:
        InputError: unreadable, or without triangles.
    """
    tables, _ = read_ply(path)
    triangles = triangles_of(tables, path)
    table = tables["vertex"]
    vertices = columns(table, ("x", "y", "z"), path)
    present = table.dtype.names
    colors = (columns(table, ("red", "green", "blue"), path, np.uint8) if "red" in present
              else np.full((len(vertices), 3), 160, np.uint8))
    normals = (columns(table, ("nx", "ny", "nz"), path, np.float32) if "nx" in present
               else vertex_normals(vertices, triangles))
    return Mesh(vertices, triangles, colors, normals)
