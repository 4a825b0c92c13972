"""The first surfels: one on every point of the structure-from-motion cloud."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.geometry.rotations import quat_from_matrix
from cosurfgs_jax.types import Surfels, blank_params

_NUM_SCALE_NEIGHBORS = 3
_NUM_PLANE_NEIGHBORS = 12
# Stray points are far from everything, and points on one corner almost on each other. Both get a
# scale, but not their own.
_SCALE_RANGE = (0.05, 10.0)  # times the median
_LONE_SCALE = 0.01  # world lengths, of a single point
_CHUNK = 200_000  # points whose neighbourhoods are held in memory at once: 60 MB

_log = logging.getLogger(__name__)


def _check(points: np.ndarray, colors: np.ndarray, capacity: int, views: np.ndarray | None) -> None:
    if points.ndim != 2 or points.shape[1:] != (3,) or len(points) == 0:
        raise InputError(
            f"points: expected at least one, as [P,3], got {points.shape}; training starts from "
            "the "
            "points of structure-from-motion, which this dataset must contain"
        )
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise InputError(
            f"point colors: expected uint8 {points.shape}, got {colors.dtype} {colors.shape}"
        )
    if capacity < 1:
        raise InputError(f"surfels.capacity: expected at least 1, got {capacity}")
    for name, values in (("points", points), ("camera centres", views)):
        if values is None:
            continue
        num_bad = int((~np.isfinite(values).all(axis=1)).sum())
        if num_bad:
            raise InputError(
                f"{name}: expected finite coordinates, got {num_bad} of {len(values)} with NaN or "
                "infinity; the model of the cameras is broken, run structure-from-motion again"
            )


def _choose_points(
    points: np.ndarray, colors: np.ndarray, capacity: int, key
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct points, at most `capacity` of them."""
    _, first = np.unique(points, axis=0, return_index=True)
    if len(first) < len(points):
        _log.info(
            "%d of %d points lie exactly on others and are left out",
            len(points) - len(first),
            len(points),
        )
    chosen = np.sort(first)
    if len(chosen) > capacity:
        _log.warning(
            "%d points for a capacity of %d surfels: a random choice of them is used",
            len(chosen),
            capacity,
        )
        order = np.asarray(jax.random.permutation(key, len(chosen)))
        chosen = chosen[np.sort(order[:capacity])]
    return points[chosen], colors[chosen]


def _plane_axes(neighborhoods: Float[np.ndarray, "m k 3"]) -> Float[np.ndarray, "m 3 3"]:
    """Columns: the two directions of greatest spread, then the normal; right-handed."""
    centered = neighborhoods - neighborhoods.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(np.einsum("mki,mkj->mij", centered, centered))  # ascending
    axes = vectors[:, :, ::-1].copy()
    axes[:, :, 2] = np.cross(axes[:, :, 0], axes[:, :, 1])
    return axes


def _face(axes: np.ndarray, points: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The same axes with normals towards the nearest camera: half a turn about the first axis where
    they point away.
    """
    nearest = views[cKDTree(views).query(points)[1]]
    is_away = np.einsum("mi,mi->m", axes[:, :, 2], nearest - points) < 0
    signs = np.where(is_away[:, None, None], np.array([1.0, -1.0, -1.0])[None, None], 1.0)
    return axes * signs


def surfels_from_points(
    points_world: Float[np.ndarray, "p 3"],
    colors: UInt8[np.ndarray, "p 3"],
    capacity: int,
    sh_degree: int,
    init_opacity: float,
    key,
    views: Float[np.ndarray, "v 3"] | None = None,
) -> Surfels:
    """A surfel on every point, as large as the points are apart and lying in their plane.

    Args:
        points_world: f64[P,3], world frame.
        colors: u8[P,3].
        capacity: number of slots N. If there are more points, a random choice of them is used, and
            logged.
        sh_degree: of the spherical harmonics; all but the constant coefficient start at 0.
        init_opacity: in (0, 1).
        key: of `jax.random`, for that choice.
        views: f64[V,3], camera centres in the world frame; normals point to the nearest one. None:
            either way.
    Returns:
        Surfels with N slots, of which the first min(P, N) live, in the order of the points. Points
        that lie exactly on an earlier one are left out.
    Raises:
        InputError: no point, wrong shapes, or NaN.
    Source: 3DGS for the scale (mean distance of the 3 nearest neighbours). Ours: its limits (0.05
        to 10 times the median), and the orientation, from the plane through the 12 nearest points.
    """
    points = np.asarray(points_world, np.float64)
    colors = np.asarray(colors)
    views = None if views is None else np.asarray(views, np.float64).reshape(-1, 3)
    _check(points, colors, capacity, views)
    points, colors = _choose_points(points, colors, capacity, key)
    num_points = len(points)

    scales = np.full(num_points, _LONE_SCALE)
    rotations = np.tile(np.eye(3), (num_points, 1, 1))
    if num_points > 1:
        tree = cKDTree(points)
        num_neighbors = min(_NUM_PLANE_NEIGHBORS, num_points - 1)
        for start in range(0, num_points, _CHUNK):
            rows = slice(start, start + _CHUNK)
            # The point itself comes first.
            distances, neighbors = tree.query(points[rows], k=num_neighbors + 1, workers=-1)
            scales[rows] = distances[:, 1 : _NUM_SCALE_NEIGHBORS + 1].mean(axis=1)
            rotations[rows] = _plane_axes(points[neighbors])
        median = np.median(scales)
        scales = np.clip(scales, _SCALE_RANGE[0] * median, _SCALE_RANGE[1] * median)
    if views is not None and len(views):
        rotations = _face(rotations, points, views)

    params = blank_params(capacity, spherical_harmonics.num_coefficients(sh_degree)).by_name()
    params["means"][:num_points] = points
    params["quats"][:num_points] = quat_from_matrix(rotations)
    params["log_scales"][:num_points] = np.log(scales)[:, None]
    params["logit_opacities"][:num_points] = np.log(init_opacity / (1 - init_opacity))
    params["sh"][:num_points, 0] = (colors / 255 - 0.5) / spherical_harmonics.C0
    fields = {name: jnp.asarray(values) for name, values in params.items()}
    return Surfels(**fields, alive=jnp.arange(capacity) < num_points)
