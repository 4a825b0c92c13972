"""Walls, roofs and ground of an exact surface, and the scores of another surface on each."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from cosurfgs_jax.metrics.depth import normal_angles
from cosurfgs_jax.metrics.mesh_distance import area_normals
from cosurfgs_jax.metrics.threshold_rows import threshold_rows

# In the order of their numbers.
CLASSES = ("walls", "roofs", "ground", "steep")
CLASS_CHOICES = (
    "by the exact surface: walls within 10 degrees of the vertical; roofs (tops of cars and trees "
    "too) and ground at most 60 degrees steep, ground being their largest connected piece; steep "
    "what is left. Angles between the triangles' normals and the exact ones, of samples nearer to "
    "the truth than the largest threshold; slope errors are positive where the surface is steeper, "
    "and cannot be negative where the truth is level"
)
_WALL_SINE = np.sin(np.radians(10.0))  # of the angle of a wall's normal with the horizontal
_UP_COSINE = 0.5  # roofs and ground are within 60 degrees of up
_SAME = 1e-5  # of the width: corners nearer than that are one


class Judged(NamedTuple):
    """Points of one of two surfaces that are compared."""

    classes: np.ndarray  # i8[M], numbers in CLASSES of the exact surface there
    distances: np.ndarray  # f64[M], to the other surface


def unit_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """f64[F,3], unit normals of triangles; 0 of those without area."""
    normals = area_normals(vertices, triangles)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def _largest_piece(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """bool[F], the triangles of the largest area that hang together by corners."""
    width = np.ptp(vertices, axis=0).max()
    keys = np.round((vertices - vertices.min(axis=0)) / (_SAME * width)).astype(np.int64)
    _, number = np.unique(keys, axis=0, return_inverse=True)
    joined = number.reshape(-1)[triangles]
    links = sparse.coo_array(
        (
            np.ones(2 * len(joined), np.int8),
            (np.concatenate([joined[:, 0], joined[:, 0]]), joined[:, 1:].T.reshape(-1)),
        ),
        shape=(number.max() + 1, number.max() + 1),
    )
    _, pieces = csgraph.connected_components(links, directed=False)
    piece = pieces[joined[:, 0]]
    areas = np.bincount(piece, weights=np.linalg.norm(area_normals(vertices, triangles), axis=1))
    return piece == np.argmax(areas)


def classes_of_triangles(vertices: np.ndarray, triangles: np.ndarray, up: np.ndarray) -> np.ndarray:
    """What each triangle of an exact surface is a part of.

    Args:
        vertices: f64[N,3]. triangles: i64[F,3], counter-clockwise from outside.
        up: f64[3], unit length, same frame.
    Returns:
        i8[F], numbers in CLASSES.
    """
    height = unit_normals(vertices, triangles) @ np.asarray(up, np.float64)
    classes = np.full(len(triangles), CLASSES.index("steep"), np.int8)
    classes[np.abs(height) <= _WALL_SINE] = CLASSES.index("walls")
    is_flat = height >= _UP_COSINE
    if is_flat.any():
        is_ground = _largest_piece(np.asarray(vertices, np.float64), triangles[is_flat])
        classes[is_flat] = np.where(is_ground, CLASSES.index("ground"), CLASSES.index("roofs"))
    return classes


def _slopes_deg(normals: np.ndarray, up: np.ndarray) -> np.ndarray:
    """f64[M], degrees between unit normals f64[M,3] and up f64[3]."""
    return np.degrees(np.arccos(np.clip(normals @ np.asarray(up, np.float64), -1, 1)))


def class_scores(
    samples: Judged,
    normals: tuple[np.ndarray, np.ndarray],
    truth: Judged,
    taus: list[tuple[float, str]],
    *,
    up: np.ndarray,
) -> dict:
    """The scores of a surface on each class of the exact one.

    Args:
        samples: of the surface, with the class of the nearest exact triangle.
        normals: f64[M,3] of the surface and of that triangle, unit length.
        truth: points of the exact surface.
        taus: thresholds, each with what it is.
        up: f64[3], unit length, same frame.
    Returns:
        For each class that both sides have: "normal_deg" over the samples nearer than the largest
        tau (None without one), {"median", "p90"} of the angles between the normals and
        "median_slope_error", of the surface's slope less the exact one (0 level, 90 upright, above
        that overhanging); "thresholds" as `surface_scores` has them, and "share_of_truth".
    """
    angles = normal_angles(*normals)
    slope_errors = _slopes_deg(normals[0], up) - _slopes_deg(normals[1], up)
    is_near = samples.distances < max(tau for tau, _ in taus)
    found = {}
    for number, name in enumerate(CLASSES):
        of_class = samples.classes == number
        of_truth = truth.classes == number
        if not of_class.any() or not of_truth.any():
            continue
        normal = None
        if (of_class & is_near).any():
            median, high = np.percentile(angles[of_class & is_near], [50, 90])
            normal = {
                "median": float(median),
                "p90": float(high),
                "median_slope_error": float(np.median(slope_errors[of_class & is_near])),
            }
        found[name] = {
            "normal_deg": normal,
            "thresholds": threshold_rows(
                taus, samples.distances[of_class], truth.distances[of_truth]
            ),
            "share_of_truth": float(of_truth.mean()),
        }
    return found


def class_line(name: str, scores: dict) -> str:
    """One line on one class of `class_scores`."""
    normal = scores["normal_deg"]
    angles = "unknown"
    if normal is not None:
        angles = (
            f"{normal['median']:.1f} deg (90 %: {normal['p90']:.1f}; slope error "
            f"{normal['median_slope_error']:+.1f})"
        )
    rows = scores["thresholds"]
    values = (", ".join(f"{row[key]:.3f}" for row in rows) for key in ("precision", "recall", "f1"))
    at = ", ".join(f"{row['tau']:.3g}" for row in rows)
    return (
        f"{name} ({scores['share_of_truth']:.0%} of the truth): normals off by {angles}; at {at}: "
        "precision {}, recall {}, F1 {}".format(*values)
    )
