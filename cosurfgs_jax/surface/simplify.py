"""Fewer triangles for the same surface."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface.mesh import Mesh, keep_vertices, vertex_normals

# of the mesh that goes in, at the peak, with that mesh; 580 beside it measured on 4 million
# triangles
BYTES_PER_TRIANGLE = 800
# Of the planes that stand on open borders, against those of triangles. The border of a plane with
# noise of 0.1 voxels moved by 0.36 voxels with 1, 0.13 with 3, 0.03 with 10 to 100.
_BORDER_WEIGHT = 10.0
# Area of the triangles that hold a fixed vertex, in triangles of the mesh. With 1000 fixed vertices
# of the quickstart's town came out within 0.002 edges of their place, none merged with another.
_FIN_AREA = 1000.0


def decimate(mesh: Mesh, target_triangles: int, is_fixed: np.ndarray | None = None) -> Mesh:
    """Collapses the edges that change the surface least, by quadric errors, until few enough
    triangles are left.

    Args:
        mesh: any mesh.
        target_triangles: 0 = leave it as it is. It may be missed where nothing can be collapsed.
        is_fixed: bool[M], vertices that stay with all of their bits, so that meshes which share
            them still meet; None = none.
    Returns:
        A mesh whose open borders stay nearly where they were; colours are means of those that were
        merged, and a vertex's confidence is the mean of those that are nearest to it.
    Raises:
        InputError: open3d is missing.
    Source: Garland and Heckbert 1997, by Open3D.
    """
    if not 0 < target_triangles < mesh.num_triangles:
        return mesh
    open3d = import_open3d()
    vector = open3d.utility.Vector3dVector
    center = mesh.vertices.mean(axis=0)
    fixed = np.flatnonzero(np.zeros(0) if is_fixed is None else is_fixed)
    fins = _fins(mesh, fixed)
    whole = open3d.geometry.TriangleMesh(
        vector(np.concatenate([mesh.vertices, fins.tips]) - center),
        open3d.utility.Vector3iVector(np.concatenate([mesh.triangles, fins.triangles])),
    )
    colors = np.concatenate([mesh.vertex_colors, np.zeros(fins.tips.shape, np.uint8)])
    whole.vertex_colors = vector(colors / 255)
    few = whole.simplify_quadric_decimation(
        int(target_triangles) + len(fins.triangles), boundary_weight=_BORDER_WEIGHT
    )
    vertices = np.asarray(few.vertices)
    triangles = np.asarray(few.triangles).astype(np.int32)
    colors = np.round(np.clip(np.asarray(few.vertex_colors), 0, 1) * 255).astype(np.uint8)
    confidence = None
    if mesh.vertex_confidence is not None:
        confidence = _means_around(vertices, mesh.vertices - center, mesh.vertex_confidence)
    made = Mesh(
        vertices + center,
        triangles,
        colors,
        vertex_normals(vertices, triangles),
        vertex_confidence=confidence,
    )
    if not len(fixed):
        return made
    return _put_back(made, mesh, fixed, fins)


class _Fins(NamedTuple):
    """Large triangles at vertices, three each, that stand on each other at right angles: moving the
    vertex costs more than all else, so that it stays.

    | field       | shape     | unit, frame                                                |
    |-------------|-----------|------------------------------------------------------------|
    | `tips`      | f64[3n,3] | of the mesh                                                |
    | `triangles` | i32[3n,3] | vertex numbers; tips count on behind the vertices          |
    """

    tips: np.ndarray
    triangles: np.ndarray


def _fins(mesh: Mesh, fixed: np.ndarray) -> _Fins:
    """Fins at the vertices `fixed` i64[n]."""
    corners = mesh.vertices[mesh.triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    side = np.sqrt(_FIN_AREA * np.median(np.linalg.norm(across, axis=1)))
    tips = (mesh.vertices[fixed][:, None] + side * np.eye(3)).reshape(-1, 3)
    first = mesh.num_vertices + 3 * np.arange(len(fixed))
    corner = np.arange(3)
    triangles = np.stack(
        np.broadcast_arrays(
            fixed[:, None], first[:, None] + corner, first[:, None] + (corner + 1) % 3
        ),
        axis=2,
    )
    return _Fins(tips, triangles.reshape(-1, 3).astype(np.int32))


def _put_back(made: Mesh, mesh: Mesh, fixed: np.ndarray, fins: _Fins) -> Mesh:
    """A decimated mesh without its fins, whose fixed vertices are bit-identical."""
    places = cKDTree(made.vertices)
    at = places.query(mesh.vertices[fixed])[1]
    made.vertices[at] = mesh.vertices[fixed]
    made.vertex_colors[at] = mesh.vertex_colors[fixed]
    made.vertex_normals[at] = mesh.vertex_normals[fixed]
    is_tip = np.zeros(made.num_vertices, bool)
    is_tip[places.query(fins.tips)[1]] = True
    return keep_vertices(made, ~is_tip[made.triangles].any(axis=1))


def _means_around(places: np.ndarray, others: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means f32[n] over those of the `others` [m,3] with `values` [m] to which each of the places
    [n,3] is the nearest; where it is so to none, the value of the nearest other.
    """
    nearest = cKDTree(places).query(others)[1]
    count = np.bincount(nearest, minlength=len(places))
    means = np.bincount(nearest, weights=values, minlength=len(places)) / np.maximum(count, 1)
    alone = np.flatnonzero(count == 0)
    if len(alone):
        means[alone] = values[cKDTree(others).query(places[alone])[1]]
    return means.astype(np.float32)
