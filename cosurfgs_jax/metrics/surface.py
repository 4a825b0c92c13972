"""How near a surface is to ground truth: distances, precision and recall."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.metrics.confidence_rows import confidence_rows
from cosurfgs_jax.metrics.frames import check_same_frame
from cosurfgs_jax.metrics.mesh_distance import nearest_on_mesh, sample_mesh
from cosurfgs_jax.metrics.seen_region import SeenRegion
from cosurfgs_jax.metrics.surface_classes import (
    CLASS_CHOICES,
    Judged,
    class_scores,
    classes_of_triangles,
    unit_normals,
)
from cosurfgs_jax.metrics.threshold_rows import threshold_rows


def grid_downsample(points: np.ndarray, cell: float) -> np.ndarray:
    """One point (the mean) for each cube of side `cell` that holds any: f64[m,3], in a
    fixed order.
    """
    points = np.asarray(points, np.float64)
    origin = points.min(axis=0)
    numbers = np.floor((points - origin) / cell).astype(np.int64)
    size = numbers.max(axis=0) + 1
    keys = (numbers[:, 0] * size[1] + numbers[:, 1]) * size[2] + numbers[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.stack(
        [np.bincount(inverse, weights=points[:, axis] - origin[axis]) for axis in range(3)], axis=1
    )
    return sums / counts[:, None] + origin


_MAX_VERTICES = 300_000  # of a mesh that are measured for pictures: a million takes 5 s


def _thresholds(
    given: tuple[float, ...] | None, spacing: float, width: float, is_mesh: bool
) -> list[tuple[float, str]]:
    """Each tau with what it is."""
    if given:
        taus = [(float(tau), "given") for tau in given]
    else:
        taus = [
            (1.5 * spacing, "1.5 x mean nearest-neighbour distance of the ground truth"),
            *((part * width, f"{part:.2%} of the width") for part in (0.001, 0.0025, 0.005)),
        ]
    if is_mesh:
        return taus
    # Even a perfect surface lies between the points of a scan.
    too_fine = ", finer than the ground truth"
    return [(tau, kind + too_fine * (tau < spacing)) for tau, kind in taus]


def _crop(
    points: np.ndarray,
    truth: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
    region: SeenRegion | None,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Which surface points and which ground-truth points count, bool[M] and bool[G], and the rule
    in words.
    """
    # Where there is no ground truth (beyond its box) a surface is neither right nor wrong.
    inside = np.all((points >= box[0]) & (points <= box[1]), axis=1)
    is_seen = np.ones(len(truth), bool)
    words = "box of the ground truth"
    if region is not None:
        waiting = np.flatnonzero(inside)
        inside[waiting] = region.contains(points[waiting], is_hiding_tested=False)
        is_seen = region.contains(truth)
        words += f" and inside at least {region.min_views} images; of ground truth {region.hiding}"
    if not inside.any() or not is_seen.any():
        raise InputError(
            f"surface scores: expected points after the crop ({words}), got {int(inside.sum())} of "
            f"the surface and {int(is_seen.sum())} of ground truth; is it in the frame of the "
            "cameras?"
        )
    return inside, is_seen, words


class Comparison(NamedTuple):
    """A surface against ground truth."""

    scores: dict  # of `surface_scores`
    truth: np.ndarray  # f64[G,3], the thinned ground truth that counts
    to_surface: np.ndarray  # f64[G], its distances to the surface, not clipped
    # f64[N], distances of a mesh's vertices, NaN where they do not count
    vertex_to_truth: np.ndarray | None


def _nearest(points: np.ndarray, surface) -> tuple[np.ndarray, np.ndarray]:
    """Distances f64[M] to (vertices, triangles) or to points, and which of them is nearest."""
    if isinstance(surface, tuple):
        return nearest_on_mesh(points, *surface)
    return cKDTree(surface).query(points, workers=-1)


def _points_of(surface, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """f64[M,3]: samples of a mesh, with the triangle of each, or points as they are."""
    if isinstance(surface, tuple):
        return sample_mesh(*surface, num_samples, seed)[:2]
    return np.asarray(surface, np.float64), None


def _finite(points: np.ndarray) -> np.ndarray:
    """f64[m,3]: the points without NaN and infinity."""
    points = np.asarray(points, np.float64)
    return points[np.isfinite(points).all(axis=1)]


def _mean_spacing(points: np.ndarray) -> float:
    """Mean distance to the nearest neighbour; 0 for a single point."""
    if len(points) < 2:
        return 0.0
    return float(cKDTree(points).query(points, k=2, workers=-1)[0][:, 1].mean())


def _elements(is_mesh: bool) -> str:
    """What a surface consists of, in words."""
    return "triangles" if is_mesh else "points"


def _sampling(is_mesh: bool, count: int, seed: int) -> str:
    """Where the points of a surface come from, in words."""
    if is_mesh:
        return f"{count} points by area, seed {seed}"
    return f"{count} points as given"


def compare_surfaces(
    surface,
    truth_points: np.ndarray,
    *,
    truth_mesh: tuple[np.ndarray, np.ndarray] | None = None,
    thresholds: tuple[float, ...] | None = None,
    region: SeenRegion | None = None,
    is_hidden_by_truth: bool = False,
    num_samples: int = 1_000_000,
    downsample: float | None = None,
    seed: int = 0,
    unit: str = "",
    has_vertex_distances: bool = False,
    vertex_confidence: np.ndarray | None = None,
    up: np.ndarray | None = None,
) -> Comparison:
    """Distances between a surface and ground truth, with every choice that the numbers depend on.

    Args:
        surface: (vertices f64[N,3], triangles i64[F,3]) or points f64[M,3]; the frame and unit of
            the ground truth.
        truth_points: f64[G,3].
        truth_mesh: (vertices, triangles) of the same ground truth, if it is known exactly; accuracy
            and precision are then against it, and not against points with gaps between them.
        thresholds: taus for precision, recall and F1; None = 1.5 times the mean nearest-neighbour
            distance of the thinned ground truth, then 0.1 %, 0.25 % and 0.5 % of the scene width.
        region: what the cameras saw; both sides are cropped to it. Hidden ground truth (inside of
            walls) does not count; of the surface only what lies outside the images is dropped: a
            surface at a hidden place is wrong.
        is_hidden_by_truth: ground truth hides ground truth behind it from the cameras of the
            region, see `SeenRegion.hidden_by`; for points without depth maps.
        num_samples: points on a mesh.
        downsample: side of the cubes to which the ground truth is thinned; None = 0.1 % of the
            scene width.
        seed: of the sampling.
        unit: of lengths, for the reader.
        has_vertex_distances: also measure a mesh's vertices, for pictures; of more than 300,000
            only some, whose distances their neighbours take.
        vertex_confidence: f32[N] of a mesh; with the distances of its vertices it is also scored by
            their confidence.
        up: f64[3], unit length; with it a mesh is also scored on walls, roofs and ground of
            `truth_mesh` apart.
    Returns:
        The scores (see `surface_scores`) and the distances.
    Raises:
        InputError: nothing to compare, or frames or units differ.
    Source: the protocol of Knapitsch et al. 2017 (Tanks and Temples) without its alignment; thinned
        to means of cubes, and distances are to triangles where there are any.
    """
    is_mesh = isinstance(surface, tuple)
    points, triangle = _points_of(surface, num_samples, seed)
    num_scored = len(points)
    truth_all = _finite(truth_points)
    if not len(points) or not len(truth_all):
        raise InputError(
            f"surface scores: expected points on both sides, got {len(points)} on the surface and "
            f"{len(truth_all)} of ground truth"
        )
    check_same_frame(points, truth_all)
    low, high = np.percentile(truth_all, [0.5, 99.5], axis=0)
    width = float(np.max(high - low))
    cell = float(downsample or width / 1000)
    truth = grid_downsample(truth_all, cell)
    spacing = _mean_spacing(truth)
    taus = _thresholds(thresholds, spacing, width, truth_mesh is not None)
    max_distance = max(0.01 * width, 3 * max(tau for tau, _ in taus))

    box = truth_all.min(axis=0) - max_distance, truth_all.max(axis=0) + max_distance
    has_vertex_distances = has_vertex_distances and is_mesh
    if has_vertex_distances:  # measured together with the samples: one search for both
        every = -(-len(surface[0]) // _MAX_VERTICES)
        points = np.concatenate([points, surface[0][::every]])
    if region is not None and is_hidden_by_truth:
        region = region.hidden_by(truth, spacing)
    inside, is_seen, crop = _crop(points, truth, box, region)
    truth = truth[is_seen]
    # Without a mesh, against all points of the ground truth: thinning must not push the surface
    # away from it.
    exact = truth_all if truth_mesh is None else truth_mesh
    distances = np.full(len(points), np.nan)
    distances[inside], nearest = _nearest(points[inside], exact)
    is_scored = inside[:num_scored]
    to_truth = distances[:num_scored][is_scored]
    to_surface, _ = _nearest(truth, surface if is_mesh else points[inside])
    if not len(to_truth):
        raise InputError(
            f"surface scores: expected samples of the surface after the crop ({crop}), got none"
        )
    summary = _summary(
        np.minimum(to_truth, max_distance), np.minimum(to_surface, max_distance), taus
    )
    if up is not None and truth_mesh is not None and triangle is not None:
        summary |= _class_scores(
            (surface, triangle[is_scored], to_truth),
            (truth_mesh, nearest[: len(to_truth)], up),
            Judged(_nearest(truth, truth_mesh)[1], to_surface),
            taus,
        )
    scores = summary | {
        "unit": unit,
        "max_distance": max_distance,
        "scene_width": width,
        "crop": crop,
        "sampling": _sampling(is_mesh, len(is_scored), seed),
        "distances": f"to {_elements(truth_mesh is not None)} of the ground truth, "
        f"to {_elements(is_mesh)} of the surface",
        "alignment": "none",
        "truth_grid": cell,
        "truth_spacing": spacing,
        "num_surface_points": len(to_truth),
        "num_truth_points": len(truth),
        "share_of_surface_cropped": float(1 - is_scored.mean()),
        "share_of_truth_cropped": float(1 - is_seen.mean()),
    }
    at_vertices = None
    if has_vertex_distances:
        at_vertices = _to_all(distances[num_scored:], surface[0], every)
        scores["confidence"] = confidence_rows(vertex_confidence, at_vertices, min(taus)[0])
    return Comparison(scores, truth, to_surface, at_vertices)


def _class_scores(judged: tuple, exact: tuple, truth: Judged, taus) -> dict:
    """Scores of a mesh on each class of the exact one.

    Args:
        judged: the mesh, and of its samples the triangle and the distance to the exact one.
        exact: that mesh, which of its triangles is nearest to each sample, and up.
        truth: points of the exact mesh, with the nearest triangle in the place of the class.
        taus: thresholds.
    """
    surface, triangle, distances = judged
    mesh, nearest, up = exact
    classes = classes_of_triangles(*mesh, up)
    normals = unit_normals(*surface)[triangle], unit_normals(*mesh)[nearest]
    truth = truth._replace(classes=classes[truth.classes])
    scores = class_scores(Judged(classes[nearest], distances), normals, truth, taus, up=up)
    return {"classes": scores, "class_choices": CLASS_CHOICES}


def _to_all(values: np.ndarray, vertices: np.ndarray, every: int) -> np.ndarray:
    """Values of every n-th vertex given to all: each takes that of the nearest."""
    if every == 1:
        return values
    return values[cKDTree(vertices[::every]).query(vertices, workers=-1)[1]]


def _summary(to_truth: np.ndarray, to_surface: np.ndarray, taus: list[tuple[float, str]]) -> dict:
    return {
        "accuracy": float(to_truth.mean()),
        "completeness": float(to_surface.mean()),
        "accuracy_median": float(np.median(to_truth)),
        "completeness_median": float(np.median(to_surface)),
        "thresholds": threshold_rows(taus, to_truth, to_surface),
    }


def surface_scores(surface, truth_points: np.ndarray, **choices) -> dict:
    """The scores of a surface.

    Args:
        surface, truth_points, **choices: see `compare_surfaces`.
    Returns:
        A dict for JSON: accuracy (mean distance surface -> truth) and completeness (truth ->
            surface), each clipped at
        `max_distance` = 1 % of the scene width (or 3 times the largest tau) so that few stray
        pieces do not set the mean; their medians; thresholds [{tau, kind, precision, recall, f1}];
        where `up` and an exact mesh are given, "classes" (`surface_classes.class_scores`) and
        "class_choices"; with the distances of vertices, "confidence"
        (`confidence_rows.confidence_rows`); and the choices made.
    Raises:
        InputError: nothing to compare, or frames or units differ.
    """
    return compare_surfaces(surface, truth_points, **choices).scores
