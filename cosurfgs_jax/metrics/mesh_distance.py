"""Points spread over a mesh, and distances of points to its triangles."""

from collections.abc import Sequence

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.open3d_library import import_open3d


def area_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Normals f64[F,3] of triangles, as long as twice their areas.

    Args:
        vertices: [N,3]. triangles: [F,3], counter-clockwise from outside.
    """
    corners = np.asarray(vertices, np.float64)[triangles]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def triangle_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Areas f64[F] of triangles; arguments as of `area_normals`."""
    return np.linalg.norm(area_normals(vertices, triangles), axis=1) / 2


def sample_mesh(
    vertices: np.ndarray,
    triangles: np.ndarray,
    num_samples: int,
    seed: int | Sequence[int] = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points spread evenly over the area of a mesh.

    Args:
        vertices: f64[N,3]. triangles: i64[F,3].
        num_samples: how many.
        seed: of the random numbers, a number or several; the same seed gives the same points.
    Returns:
        points f64[S,3], the triangle of each i64[S], and its barycentric coordinates f64[S,3].
    Raises:
        InputError: the mesh has no area.
    """
    vertices = np.asarray(vertices, np.float64)
    corners = vertices[np.asarray(triangles)]
    areas = triangle_areas(vertices, triangles)
    total = areas.sum()
    if not (np.isfinite(total) and total > 0):
        raise InputError(
            f"mesh: expected triangles with an area, got {len(areas)} triangles with total area "
            f"{total}"
        )
    generator = np.random.default_rng(seed)
    # Stratified along the summed area: every triangle gets its part to within one sample.
    positions = (np.arange(num_samples) + generator.random(num_samples)) * (total / num_samples)
    chosen = np.minimum(np.searchsorted(np.cumsum(areas), positions, side="right"), len(areas) - 1)
    root = np.sqrt(generator.random(num_samples))
    other = generator.random(num_samples)
    weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)
    return np.einsum("sk,skc->sc", weights, corners[chosen]), chosen, weights


def _distance_to_triangles(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance f64[n] of each point f64[n,3] to its own triangle f64[n,3,3]."""
    edges = np.roll(corners, -1, axis=1) - corners
    offsets = points[:, None] - corners
    along = np.einsum("nec,nec->ne", offsets, edges) / np.maximum(
        np.einsum("nec,nec->ne", edges, edges), 1e-300
    )
    to_edges = np.linalg.norm(offsets - np.clip(along, 0, 1)[..., None] * edges, axis=-1).min(
        axis=1
    )
    normal = np.cross(edges[:, 0], edges[:, 1])
    is_above = (np.einsum("nec,nc->ne", np.cross(edges, offsets), normal) >= 0).all(axis=1)
    length = np.linalg.norm(normal, axis=1)
    to_plane = np.abs(np.einsum("nc,nc->n", offsets[:, 0], normal)) / np.maximum(length, 1e-300)
    return np.where(is_above & (length > 0), to_plane, to_edges)


def nearest_on_mesh(
    points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of points to a mesh, and the triangle there.

    Args:
        points: f64[M,3]. vertices: f64[N,3]. triangles: i64[F,3].
    Returns:
        f64[M]: distance to the nearest triangle. Distances to the points of a scan are too long by
        about half their spacing: 0.33 m for a small town with 80,000 points, where this says 0.01
        m. And i64[M]: which triangle; among those as near as a ten-millionth of the mesh's size,
        any.
    Raises:
        InputError: no triangles, coordinates that are not finite, or open3d is missing.
    """
    if not len(triangles):
        raise InputError("mesh: expected triangles, got none")
    open3d = import_open3d()
    corners = np.asarray(vertices, np.float64)[np.asarray(triangles)]
    for what, values in (("mesh", corners), ("points", points)):
        if not np.isfinite(values).all():
            raise InputError(f"{what}: expected finite coordinates, got NaN or infinity")
    # Open3D searches in float32: map coordinates of 1e6 would leave it no digits, nor would a
    # vertex far away that no triangle has.
    center = (corners.min(axis=(0, 1)) + corners.max(axis=(0, 1))) / 2
    search = open3d.t.geometry.RaycastingScene()
    tensor = open3d.core.Tensor
    used, numbers = np.unique(triangles, return_inverse=True)
    search.add_triangles(
        tensor(np.ascontiguousarray(np.asarray(vertices)[used] - center, np.float32)),
        tensor(np.ascontiguousarray(numbers.reshape(-1, 3), np.uint32)),
    )
    distance = np.empty(len(points))
    triangle = np.empty(len(points), np.int64)
    for start in range(0, len(points), 100_000):  # bounds the memory of the intermediate arrays
        part = slice(start, start + 100_000)
        own = np.asarray(points[part], np.float64)
        found = search.compute_closest_points(
            tensor(np.ascontiguousarray(own - center, np.float32))
        )
        triangle[part] = found["primitive_ids"].numpy()
        distance[part] = _distance_to_triangles(own, corners[triangle[part]])
    return distance, triangle


def distance_to_mesh(points: np.ndarray, *mesh) -> np.ndarray:
    """The distances f64[M] of `nearest_on_mesh`, which has the same arguments."""
    return nearest_on_mesh(points, *mesh)[0]
