"""How near a surface is to ground truth: distances to meshes and points, precision, recall, and
what the cameras saw.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.metrics.frames import check_same_frame


def sample_mesh(
    vertices: np.ndarray, triangles: np.ndarray, num_samples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points spread evenly over the area of a mesh.

    Args:
        vertices: f64[N,3]. triangles: i64[F,3].
        num_samples: how many.
        seed: of the random numbers; the same seed gives the same points.
    Returns:
        points f64[S,3], the triangle of each i64[S], and its barycentric coordinates f64[S,3].
    Raises:
        InputError: the mesh has no area.
    """
    vertices = np.asarray(vertices, np.float64)
    corners = vertices[np.asarray(triangles)]
    areas = (
        np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        / 2
    )
    total = areas.sum() if len(areas) else 0.0
    if not (np.isfinite(total) and total > 0):
        raise InputError(
            f"mesh: expected triangles with an area, got {len(areas)} triangles with total area "
            f"{total}"
        )
    generator = np.random.default_rng(seed)
    # Stratified along the summed area: every triangle gets its share to within one sample.
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


def distance_to_mesh(
    points: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    num_samples: int = 1_000_000,
    seed: int = 0,
) -> np.ndarray:
    """Distance of points to a mesh, without the bias of sampling it.

    Args:
        points: f64[M,3]. vertices: f64[N,3]. triangles: i64[F,3].
        num_samples: points spread over the mesh to find candidates.
        seed: of those points.
    Returns:
        f64[M]: distance to the nearest of the triangles that hold the 4 nearest samples, so never
        too short. Distances to the points of a scan are too long by about half their spacing: 0.33
        m for a small town with 80,000 points, where this says 0.01 m.
    """
    samples, owner, _ = sample_mesh(vertices, triangles, num_samples, seed)
    count = min(4, num_samples)
    nearest = cKDTree(samples).query(points, k=count, workers=-1)[1].reshape(len(points), count)
    corners = np.asarray(vertices, np.float64)[np.asarray(triangles)]
    result = np.empty(len(points))
    for start in range(0, len(points), 100_000):  # bounds the memory of the intermediate arrays
        part = slice(start, start + 100_000)
        own = points[part]
        distances = [
            _distance_to_triangles(own, corners[owner[nearest[part, i]]]) for i in range(count)
        ]
        result[part] = np.min(distances, axis=0)
    return result


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


_MOST_HIDING = 300_000  # points that hide others: each camera looks at all of them
_MOST_VERTICES = 300_000  # of a mesh that are measured for pictures: a million takes 5 s


@dataclasses.dataclass(frozen=True)
class SeenRegion:
    """Which points some cameras could see: in enough images, in front, and (if depth maps are
    given) not hidden.

    Attributes:
        views: V.
        min_views: how many cameras must see a point.
        depth_of: function from view number to f32[H,W] (0 = nothing there), or None for no test of
            hiding.
        depth_tolerance: a point farther than the depth map by more than this share of the depth is
            hidden.
        hiding: what hides, in words, or why nothing is tested; for the reader of scores.
    """

    views: Views
    min_views: int = 2
    depth_of: Callable[[int], np.ndarray] | None = None
    depth_tolerance: float = 0.01
    hiding: str = "none is left out as hidden"

    def hidden_by(self, points: np.ndarray, spacing: float) -> "SeenRegion":
        """The same region with points that hide each other.

        Each camera gets the nearest points of a coarse image, whose pixels are two spacings wide,
        so that points of a surface in front leave no gap for those behind; what lies behind them by
        more than four such pixels (a surface seen at 76 degrees from its normal) and
        `depth_tolerance` is hidden. The rule looks at ground truth only: with the depth of the
        model that is judged, a sheet in front of the truth would hide what it fails to show, and
        score better for it.

        Args:
            points: f64[G,3]; some of them are used if there are very many.
            spacing: between neighbours.
        """
        every = -(-len(points) // _MOST_HIDING)
        chosen = points[::every]
        reach = 2 * spacing * np.sqrt(every)

        def depth_of(view: int) -> np.ndarray:
            x, y, z, inside = self._project(view, chosen)
            height, width = (int(size) for size in self.views.image_sizes[view])
            if not len(inside):
                return np.zeros((height, width), np.float32)
            focal = self.views.intrinsics[view, 0, 0]
            cell = max(1, int(np.ceil(reach * focal / np.median(z[inside]))))
            nearest = np.full((-(-height // cell), -(-width // cell)), np.inf)
            np.minimum.at(
                nearest,
                (y[inside].astype(np.int64) // cell, x[inside].astype(np.int64) // cell),
                z[inside],
            )
            farthest = np.where(np.isfinite(nearest), nearest * (1 + 4 * cell / focal), 0).astype(
                np.float32
            )
            return np.repeat(np.repeat(farthest, cell, axis=0), cell, axis=1)[:height, :width]

        return dataclasses.replace(
            self, depth_of=depth_of, hiding="what other ground truth hides is left out"
        )

    def _project(
        self, view: int, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pixels x and y, camera z (NaN behind the camera), and the numbers of the points inside
        the image.
        """
        pose = self.views.camera_from_dataset[view]
        (height, width) = self.views.image_sizes[view]
        camera = points @ pose[:3, :3].T + pose[:3, 3]
        z = np.where(camera[:, 2] > 0, camera[:, 2], np.nan)
        x = self.views.intrinsics[view, 0, 0] * camera[:, 0] / z + self.views.intrinsics[view, 0, 2]
        y = self.views.intrinsics[view, 1, 1] * camera[:, 1] / z + self.views.intrinsics[view, 1, 2]
        return x, y, z, np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))

    def contains(self, points: np.ndarray, is_hiding_tested: bool = True) -> np.ndarray:
        """Which of the points are seen.

        Args:
            points: f64[M,3], frame of the cameras.
            is_hiding_tested: False looks at the borders of the images only.
        Returns:
            bool[M].
        """
        num_views_of = np.zeros(len(points), np.int32)
        waiting = np.arange(len(points))
        for view in range(len(self.views)):
            if not len(waiting):
                break
            x, y, z, inside = self._project(view, points[waiting])
            if is_hiding_tested and self.depth_of is not None and len(inside):
                depth = self.depth_of(view)[y[inside].astype(np.int64), x[inside].astype(np.int64)]
                inside = inside[(depth > 0) & (z[inside] <= depth * (1 + self.depth_tolerance))]
            num_views_of[waiting[inside]] += 1
            waiting = waiting[num_views_of[waiting] < self.min_views]
        return num_views_of >= self.min_views


def _thresholds(
    given: tuple[float, ...] | None, spacing: float, width: float, is_mesh: bool
) -> list[tuple[float, str]]:
    """Each tau with what it is."""
    if given:
        taus = [(float(tau), "given") for tau in given]
    else:
        taus = [
            (1.5 * spacing, "1.5 x mean nearest-neighbour distance of the ground truth"),
            *((share * width, f"{share:.2%} of the width") for share in (0.001, 0.0025, 0.005)),
        ]
    # Even a perfect surface lies between the points of a scan.
    return [
        (tau, kind + ("" if is_mesh or tau >= spacing else ", finer than the ground truth"))
        for tau, kind in taus
    ]


def _rows(
    taus: list[tuple[float, str]], to_truth: np.ndarray, to_surface: np.ndarray
) -> list[dict]:
    rows = []
    for tau, kind in taus:
        precision = float((to_truth < tau).mean())
        recall = float((to_surface < tau).mean())
        f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        rows.append({"tau": tau, "kind": kind, "precision": precision, "recall": recall, "f1": f1})
    return rows


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
            "the "
            f"surface and {int(is_seen.sum())} of ground truth; is it in the frame of the cameras?"
        )
    return inside, is_seen, words


class Comparison(NamedTuple):
    """A surface against ground truth."""

    scores: dict  # of `surface_scores`
    truth: np.ndarray  # f64[G,3], the thinned ground truth that counts
    to_surface: np.ndarray  # f64[G], its distances to the surface, not clipped
    vertex_to_truth: (
        np.ndarray | None
    )  # f64[N], distances of a mesh's vertices, NaN where they do not count


def _distances(points: np.ndarray, surface, num_samples: int, seed: int) -> np.ndarray:
    """f64[M] to (vertices, triangles) or to points."""
    if isinstance(surface, tuple):
        return distance_to_mesh(points, *surface, num_samples, seed)
    return cKDTree(surface).query(points, workers=-1)[0]


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
    Returns:
        The scores (see `surface_scores`) and the distances.
    Raises:
        InputError: nothing to compare, or frames or units differ.
    Source: the protocol of Knapitsch et al. 2017 (Tanks and Temples) without its alignment; thinned
        to means of cubes,
    and distances are to triangles where there are any.
    """
    is_mesh = isinstance(surface, tuple)
    points = (
        sample_mesh(*surface, num_samples, seed)[0] if is_mesh else np.asarray(surface, np.float64)
    )
    num_scored = len(points)
    truth_all = np.asarray(truth_points, np.float64)
    truth_all = truth_all[np.isfinite(truth_all).all(axis=1)]
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
    spacing = (
        float(cKDTree(truth).query(truth, k=2, workers=-1)[0][:, 1].mean())
        if len(truth) > 1
        else 0.0
    )
    taus = _thresholds(thresholds, spacing, width, truth_mesh is not None)
    max_distance = max(0.01 * width, 3 * max(tau for tau, _ in taus))

    box = truth_all.min(axis=0) - max_distance, truth_all.max(axis=0) + max_distance
    if (
        has_vertex_distances and is_mesh
    ):  # measured together with the samples: one search tree for both
        every = -(-len(surface[0]) // _MOST_VERTICES)
        points = np.concatenate([points, surface[0][::every]])
    if region is not None and is_hidden_by_truth:
        region = region.hidden_by(truth, spacing)
    inside, is_seen, crop = _crop(points, truth, box, region)
    truth = truth[is_seen]
    # Without a mesh, against all points of the ground truth: thinning must not push the surface
    # away from it.
    distances = np.full(len(points), np.nan)
    distances[inside] = _distances(
        points[inside], truth_all if truth_mesh is None else truth_mesh, num_samples, seed
    )
    to_truth = distances[:num_scored]
    is_scored = inside[:num_scored]
    to_truth = to_truth[is_scored]
    to_surface = _distances(truth, surface if is_mesh else points[inside], num_samples, seed)
    if not len(to_truth):
        raise InputError(
            f"surface scores: expected samples of the surface after the crop ({crop}), got none"
        )
    scores = _summary(
        np.minimum(to_truth, max_distance), np.minimum(to_surface, max_distance), taus
    ) | {
        "unit": unit,
        "max_distance": max_distance,
        "scene_width": width,
        "crop": crop,
        "sampling": f"{num_samples} points by area, seed {seed}"
        if is_mesh
        else f"{num_scored} points as given",
        "distances": f"to {'points' if truth_mesh is None else 'triangles'} of the ground truth, "
        f"to {'triangles' if is_mesh else 'points'} of the surface",
        "alignment": "none",
        "truth_grid": cell,
        "truth_spacing": spacing,
        "num_surface_points": len(to_truth),
        "num_truth_points": len(truth),
        "share_of_surface_cropped": float(1 - is_scored.mean()),
        "share_of_truth_cropped": float(1 - is_seen.mean()),
    }
    at_vertices = (
        _to_all(distances[num_scored:], surface[0], every)
        if has_vertex_distances and is_mesh
        else None
    )
    return Comparison(scores, truth, to_surface, at_vertices)


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
        "thresholds": _rows(taus, to_truth, to_surface),
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
        and the choices made.
    Raises:
        InputError: nothing to compare, or frames or units differ.
    """
    return compare_surfaces(surface, truth_points, **choices).scores
