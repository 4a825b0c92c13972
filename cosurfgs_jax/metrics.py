"""How good a picture or a surface is: the only copy of every score that the package reports."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError

AnyArray = np.ndarray | jax.Array
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def psnr(image: Float[AnyArray, "h w c"], truth: Float[AnyArray, "h w c"],
         mask: Bool[AnyArray, "h w"] | None = None) -> Float[Array, ""]:
    """Peak signal-to-noise ratio for a peak of 1.

    Args:
        image: [H,W,C] in [0, 1]. Takes gradient.
        truth: [H,W,C] in [0, 1].
        mask: [H,W], True = counts; None = every pixel counts.
    Returns:
        Decibel; infinite for equal images, NaN if no pixel counts.
    """
    squared = jnp.square(jnp.asarray(image) - truth)
    if mask is None:
        return -10 * jnp.log10(squared.mean())
    weights = mask[..., None].astype(squared.dtype)
    return -10 * jnp.log10((squared * weights).sum() / (weights.sum() * squared.shape[-1]))


def _blur(image: Float[AnyArray, "h w c"]) -> Float[Array, "h w c"]:
    """The Gaussian window of SSIM with zeros beyond the border, as two passes of shifted sums."""
    radius = SSIM_WINDOW // 2
    window = np.exp(-np.square(np.arange(SSIM_WINDOW) - radius) / (2 * SSIM_SIGMA**2))
    window = [float(weight) for weight in window / window.sum()]
    for axis in (0, 1):
        size = image.shape[axis]
        padded = jnp.pad(image, [(radius, radius) if a == axis else (0, 0) for a in range(3)])
        image = sum(weight * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k, weight in enumerate(window))
    return image


def ssim_map(image: Float[AnyArray, "h w c"], truth: Float[AnyArray, "h w c"]) -> Float[Array, "h w c"]:
    """Structural similarity of every pixel and channel; see `ssim`."""
    channels = image.shape[-1]
    stacked = jnp.concatenate([image, truth, image * image, truth * truth, image * truth], axis=-1)
    mean_a, mean_b, square_a, square_b, product = (
        part for part in jnp.split(_blur(stacked), [channels * i for i in range(1, 5)], axis=-1))
    variance_a, variance_b = square_a - mean_a * mean_a, square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    return ((2 * mean_a * mean_b + SSIM_C1) * (2 * covariance + SSIM_C2)
            / ((mean_a * mean_a + mean_b * mean_b + SSIM_C1) * (jnp.maximum(variance_a + variance_b, 0) + SSIM_C2)))


def ssim(image: Float[AnyArray, "h w c"], truth: Float[AnyArray, "h w c"],
         mask: Bool[AnyArray, "h w"] | None = None) -> Float[Array, ""]:
    """Structural similarity for a peak of 1, mean over pixels and channels.

    Args:
        image: [H,W,C] in [0, 1]. Takes gradient.
        truth: [H,W,C] in [0, 1]. Takes gradient.
        mask: [H,W], True = counts. Other pixels are black in both images, as if they lay beyond the border.
    Returns:
        At most 1.
    Source: Wang et al. 2004, Gaussian window 11x11 of sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, variances by weights (not
    n-1). Zeros beyond the border, so that the map has the size of the image: what the papers of this field report.
    """
    if mask is None:
        return ssim_map(image, truth).mean()
    weights = mask[..., None].astype(image.dtype)
    values = ssim_map(image * weights, truth * weights)
    return (values * weights).sum() / (weights.sum() * values.shape[-1])


def color_correct(render: np.ndarray, photo: np.ndarray, mask: np.ndarray | None = None,
                  iterations: int = 5) -> np.ndarray:
    """Fits the colours of a render to a photograph by a quadratic map per channel and applies it.

    Args:
        render: f32[H,W,3] in [0, 1].
        photo: f32[H,W,3] in [0, 1].
        mask: bool[H,W], True = used for the fit; None = all.
        iterations: times that fit and clipping are repeated on the result.
    Returns:
        f32[H,W,3] in [0, 1].
    Source: the evaluation of RawNeRF and mip-NeRF 360 (Mildenhall et al. 2022, Barron et al. 2022): features are 1, the
    three colours, their squares and cross terms; pixels within half a grey level of black or white, in the render as
    it came, in its present state or in the photograph, are left out of that channel's fit. Least squares by normal
    equations in float64. Fewer than 100 usable pixels leave a channel as it is.
    """
    lowest, highest = 0.5 / 255, 1 - 0.5 / 255
    current = render.reshape(-1, 3).astype(np.float64)
    target = photo.reshape(-1, 3).astype(np.float64)

    def is_unclipped(values: np.ndarray) -> np.ndarray:
        return (values >= lowest) & (values <= highest)

    usable = is_unclipped(current) & is_unclipped(target)
    if mask is not None:
        usable &= mask.reshape(-1, 1)
    for _ in range(iterations):
        red, green, blue = current.T
        features = np.stack([np.ones_like(red), red, green, blue, red * red, green * green, blue * blue,
                             red * green, green * blue, blue * red], axis=1)
        result = current.copy()
        for channel in range(3):
            rows = usable[:, channel] & is_unclipped(current[:, channel])
            if rows.sum() < 100:
                continue
            used = features[rows]
            # lstsq on the 10x10 system: a rank-deficient fit (a grey image) takes the smallest solution.
            weights = np.linalg.lstsq(used.T @ used, used.T @ target[rows, channel], rcond=1e-12)[0]
            result[:, channel] = features @ weights
        current = np.clip(result, 0, 1)
    return current.reshape(render.shape).astype(np.float32)


def sample_mesh(vertices: np.ndarray, triangles: np.ndarray, num_samples: int,
                seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    total = areas.sum() if len(areas) else 0.0
    if not (np.isfinite(total) and total > 0):
        raise InputError(f"mesh: expected triangles with an area, got {len(areas)} triangles with total area {total}")
    generator = np.random.default_rng(seed)
    # Stratified along the summed area: every triangle gets its share to within one sample.
    positions = (np.arange(num_samples) + generator.random(num_samples)) * (total / num_samples)
    chosen = np.minimum(np.searchsorted(np.cumsum(areas), positions, side="right"), len(areas) - 1)
    root, other = np.sqrt(generator.random(num_samples)), generator.random(num_samples)
    weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)
    return np.einsum("sk,skc->sc", weights, corners[chosen]), chosen, weights


def _distance_to_triangles(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance f64[n] of each point f64[n,3] to its own triangle f64[n,3,3]."""
    edges = np.roll(corners, -1, axis=1) - corners
    offsets = points[:, None] - corners
    along = np.einsum("nec,nec->ne", offsets, edges) / np.maximum(np.einsum("nec,nec->ne", edges, edges), 1e-300)
    to_edges = np.linalg.norm(offsets - np.clip(along, 0, 1)[..., None] * edges, axis=-1).min(axis=1)
    normal = np.cross(edges[:, 0], edges[:, 1])
    is_above = (np.einsum("nec,nc->ne", np.cross(edges, offsets), normal) >= 0).all(axis=1)
    length = np.linalg.norm(normal, axis=1)
    to_plane = np.abs(np.einsum("nc,nc->n", offsets[:, 0], normal)) / np.maximum(length, 1e-300)
    return np.where(is_above & (length > 0), to_plane, to_edges)


def distance_to_mesh(points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray, num_samples: int = 1_000_000,
                     seed: int = 0) -> np.ndarray:
    """Distance of points to a mesh, without the bias of sampling it.

    Args:
        points: f64[M,3]. vertices: f64[N,3]. triangles: i64[F,3].
        num_samples: points spread over the mesh to find candidates.
        seed: of those points.
    Returns:
        f64[M]: distance to the nearest of the triangles that hold the 4 nearest samples, so never too short. Distances
        to the points of a scan are too long by about half their spacing: 0.33 m for a small town with 80,000 points,
        where this says 0.01 m.
    """
    samples, owner, _ = sample_mesh(vertices, triangles, num_samples, seed)
    count = min(4, num_samples)
    nearest = cKDTree(samples).query(points, k=count, workers=-1)[1].reshape(len(points), count)
    corners = np.asarray(vertices, np.float64)[np.asarray(triangles)]
    result = np.empty(len(points))
    for start in range(0, len(points), 100_000):  # bounds the memory of the intermediate arrays
        part = slice(start, start + 100_000)
        own = points[part]
        distances = [_distance_to_triangles(own, corners[owner[nearest[part, i]]]) for i in range(count)]
        result[part] = np.min(distances, axis=0)
    return result


def grid_downsample(points: np.ndarray, cell: float) -> np.ndarray:
    """One point (the mean) for each cube of side `cell` that holds any: f64[m,3], in a fixed order."""
    points = np.asarray(points, np.float64)
    origin = points.min(axis=0)
    numbers = np.floor((points - origin) / cell).astype(np.int64)
    size = numbers.max(axis=0) + 1
    keys = (numbers[:, 0] * size[1] + numbers[:, 1]) * size[2] + numbers[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse, weights=points[:, axis] - origin[axis]) for axis in range(3)], axis=1)
    return sums / counts[:, None] + origin


@dataclasses.dataclass(frozen=True)
class SeenRegion:
    """Which points some cameras could see: in enough images, in front, and (if depth maps are given) not hidden.

    Attributes:
        camera_from_world: f64[V,4,4]. intrinsics: f64[V,3,3], pixels. image_sizes: i64[V,2] (H, W).
        min_views: how many cameras must see a point.
        depth_of: function from view number to f32[H,W] (0 = nothing there), or None for no test of hiding.
        depth_tolerance: a point farther than the depth map by more than this share of the depth is hidden.
    """

    camera_from_world: np.ndarray
    intrinsics: np.ndarray
    image_sizes: np.ndarray
    min_views: int = 2
    depth_of: Callable[[int], np.ndarray] | None = None
    depth_tolerance: float = 0.01

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
        for view in range(len(self.camera_from_world)):
            if not len(waiting):
                break
            pose, (height, width) = self.camera_from_world[view], self.image_sizes[view]
            camera = points[waiting] @ pose[:3, :3].T + pose[:3, 3]
            z = np.where(camera[:, 2] > 0, camera[:, 2], np.nan)
            x = self.intrinsics[view, 0, 0] * camera[:, 0] / z + self.intrinsics[view, 0, 2]
            y = self.intrinsics[view, 1, 1] * camera[:, 1] / z + self.intrinsics[view, 1, 2]
            inside = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
            if is_hiding_tested and self.depth_of is not None and len(inside):
                depth = self.depth_of(view)[y[inside].astype(np.int64), x[inside].astype(np.int64)]
                inside = inside[(depth > 0) & (z[inside] <= depth * (1 + self.depth_tolerance))]
            num_views_of[waiting[inside]] += 1
            waiting = waiting[num_views_of[waiting] < self.min_views]
        return num_views_of >= self.min_views


def _check_same_frame(surface: np.ndarray, truth: np.ndarray) -> None:
    center_a, center_b = np.median(surface, axis=0), np.median(truth, axis=0)
    spread_a = np.median(np.linalg.norm(surface - center_a, axis=1))
    spread_b = np.median(np.linalg.norm(truth - center_b, axis=1))
    shift, ratio = np.linalg.norm(center_a - center_b), spread_a / max(spread_b, 1e-300)
    # Loose: a surface that covers a part of the truth, or much more than it, is not a mistake of frame or unit.
    if not 0.1 <= ratio <= 10 or shift > 4 * max(spread_a, spread_b):
        raise InputError(
            "ground truth: expected the frame and unit of the model, got median "
            f"{np.array2string(center_b, precision=4)} with spread {spread_b:.4g} against the surface's median "
            f"{np.array2string(center_a, precision=4)} with spread {spread_a:.4g} ({ratio:.3g} times as large); "
            "transform or rescale the ground truth first")


def _thresholds(given: tuple[float, ...] | None, spacing: float, width: float,
                is_mesh: bool) -> list[tuple[float, str]]:
    """Each tau with what it is."""
    if given:
        taus = [(float(tau), "given") for tau in given]
    else:
        taus = [(1.5 * spacing, "1.5 x mean nearest-neighbour distance of the ground truth"),
                *((share * width, f"{share:.2%} of the width") for share in (0.001, 0.0025, 0.005))]
    # Even a perfect surface lies between the points of a scan.
    return [(tau, kind + ("" if is_mesh or tau >= spacing else ", finer than the ground truth")) for tau, kind in taus]


def _rows(taus: list[tuple[float, str]], to_truth: np.ndarray, to_surface: np.ndarray) -> list[dict]:
    rows = []
    for tau, kind in taus:
        precision, recall = float((to_truth < tau).mean()), float((to_surface < tau).mean())
        f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        rows.append({"tau": tau, "kind": kind, "precision": precision, "recall": recall, "f1": f1})
    return rows


def _crop(points: np.ndarray, truth: np.ndarray, box: tuple[np.ndarray, np.ndarray],
          region: SeenRegion | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Which surface points and which ground-truth points count, bool[M] and bool[G], and the rule in words."""
    # Where there is no ground truth (beyond its box) a surface is neither right nor wrong.
    inside, is_seen = np.all((points >= box[0]) & (points <= box[1]), axis=1), np.ones(len(truth), bool)
    words = "box of the ground truth"
    if region is not None:
        inside &= region.contains(points, is_hiding_tested=False)
        is_seen = region.contains(truth)
        words += f" and inside at least {region.min_views} images"
        words += "" if region.depth_of is None else "; ground truth hidden in them is left out"
    if not inside.any() or not is_seen.any():
        raise InputError(f"surface scores: expected points after the crop ({words}), got {int(inside.sum())} of the "
                         f"surface and {int(is_seen.sum())} of ground truth; is it in the frame of the cameras?")
    return inside, is_seen, words


def surface_scores(surface, truth_points: np.ndarray, *, truth_mesh: tuple[np.ndarray, np.ndarray] | None = None,
                   thresholds: tuple[float, ...] | None = None, region: SeenRegion | None = None,
                   num_samples: int = 1_000_000, downsample: float | None = None, seed: int = 0,
                   unit: str = "") -> dict:
    """Distances between a surface and ground truth, with every choice that the numbers depend on.

    Args:
        surface: (vertices f64[N,3], triangles i64[F,3]) or points f64[M,3]; the frame and unit of the ground truth.
        truth_points: f64[G,3].
        truth_mesh: (vertices, triangles) of the same ground truth, if it is known exactly; accuracy and precision are
            then against it, and not against points with gaps between them.
        thresholds: taus for precision, recall and F1; None = 1.5 times the mean nearest-neighbour distance of the
            thinned ground truth, then 0.1 %, 0.25 % and 0.5 % of the scene width.
        region: what the cameras saw; both sides are cropped to it. Hidden ground truth (inside of walls) does not
            count; of the surface only what lies outside the images is dropped: a surface at a hidden place is wrong.
        num_samples: points on a mesh.
        downsample: side of the cubes to which the ground truth is thinned; None = 0.1 % of the scene width.
        seed: of the sampling.
        unit: of lengths, for the reader.
    Returns:
        A dict for JSON: accuracy (mean distance surface -> truth) and completeness (truth -> surface), each clipped at
        `max_distance` = 1 % of the scene width (or 3 times the largest tau) so that few stray pieces do not set the
        mean; their medians; thresholds [{tau, kind, precision, recall, f1}]; and the choices made.
    Raises:
        InputError: nothing to compare, or frames or units differ.
    Source: the protocol of Knapitsch et al. 2017 (Tanks and Temples) without its alignment; thinned to means of cubes,
    and distances are to triangles where there are any.
    """
    is_mesh = isinstance(surface, tuple)
    points = sample_mesh(*surface, num_samples, seed)[0] if is_mesh else np.asarray(surface, np.float64)
    truth_all = np.asarray(truth_points, np.float64)
    truth_all = truth_all[np.isfinite(truth_all).all(axis=1)]
    if not len(points) or not len(truth_all):
        raise InputError(f"surface scores: expected points on both sides, got {len(points)} on the surface and "
                         f"{len(truth_all)} of ground truth")
    _check_same_frame(points, truth_all)
    low, high = np.percentile(truth_all, [0.5, 99.5], axis=0)
    width = float(np.max(high - low))
    cell = float(downsample or width / 1000)
    truth = grid_downsample(truth_all, cell)
    spacing = float(cKDTree(truth).query(truth, k=2, workers=-1)[0][:, 1].mean()) if len(truth) > 1 else 0.0
    taus = _thresholds(thresholds, spacing, width, truth_mesh is not None)
    max_distance = max(0.01 * width, 3 * max(tau for tau, _ in taus))

    box = truth_all.min(axis=0) - max_distance, truth_all.max(axis=0) + max_distance
    inside, is_seen, crop = _crop(points, truth, box, region)
    points, truth = points[inside], truth[is_seen]
    # Without a mesh, against all points of the ground truth: thinning must not push the surface away from it.
    to_truth = (distance_to_mesh(points, *truth_mesh, num_samples, seed) if truth_mesh is not None
                else cKDTree(truth_all).query(points, workers=-1)[0])
    to_surface = (distance_to_mesh(truth, *surface, num_samples, seed) if is_mesh
                  else cKDTree(points).query(truth, workers=-1)[0])
    to_truth, to_surface = np.minimum(to_truth, max_distance), np.minimum(to_surface, max_distance)
    return {"accuracy": float(to_truth.mean()), "completeness": float(to_surface.mean()),
            "accuracy_median": float(np.median(to_truth)), "completeness_median": float(np.median(to_surface)),
            "thresholds": _rows(taus, to_truth, to_surface), "unit": unit, "max_distance": max_distance,
            "scene_width": width, "crop": crop,
            "sampling": f"{num_samples} points by area, seed {seed}" if is_mesh else f"{len(inside)} points as given",
            "distances": f"to {'points' if truth_mesh is None else 'triangles'} of the ground truth, "
                         f"to {'triangles' if is_mesh else 'points'} of the surface",
            "alignment": "none", "truth_grid": cell, "truth_spacing": spacing, "num_surface_points": len(points),
            "num_truth_points": len(truth), "share_of_surface_cropped": float(1 - inside.mean())}
