"""Robust similarity between two sets of points: positions that GPS gives, and those of cameras."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# Of four points: with two wrong ones in five, one sample in eight is without any.
_NUM_SAMPLES = 100
_SAMPLE = 4
_NUM_ROUNDS = 30  # of reweighting; it has settled after a dozen
_TUKEY = 4.685  # in standard deviations: 95 % efficiency where errors are Gaussian
# Of a distance in three dimensions, the median is that many standard deviations of one axis.
_MEDIAN_DISTANCE = 1.5382


@dataclasses.dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation."""

    scale: float
    rotation: np.ndarray  # f64[3,3]
    translation: np.ndarray  # f64[3]

    def apply(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Points of the source in the target's frame."""
        return self.scale * points @ self.rotation.T + self.translation

    def then(self, other: "Similarity") -> "Similarity":
        """This similarity, and after it another."""
        return Similarity(
            other.scale * self.scale,
            other.rotation @ self.rotation,
            other.scale * other.rotation @ self.translation + other.translation,
        )


def fit_weighted(
    source: Float[np.ndarray, "n 3"],
    target: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"],
    *,
    is_upright: bool = False,
) -> Similarity:
    """The similarity of least squares.

    Args:
        source, target: f64[n,3], pairs of points.
        weights: f64[n], not negative.
        is_upright: the rotation is about z alone.
    Source: Umeyama, "Least-squares estimation of transformation parameters between two point
        patterns", 1991, equations 34 to 43; weights, and the rotation about z, are ours.
    """
    normalized = (weights / weights.sum())[:, None]
    source_middle = (normalized * source).sum(axis=0)
    target_middle = (normalized * target).sum(axis=0)
    source_offsets = source - source_middle
    target_offsets = target - target_middle
    covariance = (normalized * target_offsets).T @ source_offsets
    if is_upright:
        flat = covariance[:2, :2]
        angle = np.arctan2(flat[1, 0] - flat[0, 1], flat[0, 0] + flat[1, 1])
        cosine = np.cos(angle)
        sine = np.sin(angle)
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    else:
        left, _, right = np.linalg.svd(covariance)
        signs = np.ones(3)
        signs[2] = np.sign(np.linalg.det(left @ right))
        rotation = left * signs @ right
    variance = (normalized * source_offsets**2).sum()
    scale = float((rotation * covariance).sum() / variance)
    return Similarity(scale, rotation, target_middle - scale * rotation @ source_middle)


class _Pairs(NamedTuple):
    """Pairs of points, and the standard deviation of each."""

    source: np.ndarray  # f64[n,3]
    target: np.ndarray  # f64[n,3]
    sigmas: np.ndarray  # f64[n]

    def distances(self, fit: Similarity) -> np.ndarray:
        """In standard deviations."""
        return np.linalg.norm(fit.apply(self.source) - self.target, axis=1) / self.sigmas


def _start(pairs: _Pairs, is_upright: bool) -> Similarity:
    """The fit of a random few points that leaves the smallest median distance (least median of
    squares): up to half of the points may be wrong.
    """
    source, target, sigmas = pairs
    weights = sigmas**-2
    size = min(len(source), _SAMPLE)
    random = np.random.default_rng(0)
    best = fit_weighted(source, target, weights, is_upright=is_upright)
    smallest = np.median(pairs.distances(best))
    for _ in range(_NUM_SAMPLES):
        chosen = random.choice(len(source), size, replace=False)
        if np.ptp(source[chosen], axis=0).max() <= 0:
            continue
        fit = fit_weighted(source[chosen], target[chosen], weights[chosen], is_upright=is_upright)
        median = np.median(pairs.distances(fit))
        if fit.scale > 0 and median < smallest:
            best = fit
            smallest = median
    return best


@dataclasses.dataclass(frozen=True)
class RobustFit:
    """A similarity, and how far the points are from it.

    | field         | shape    | unit                                                         |
    |---------------|----------|--------------------------------------------------------------|
    | `similarity`  |          | from source to target                                        |
    | `residuals`   | f64[n,3] | where the similarity puts a point minus its target           |
    | `is_used`     | bool[n]  | points with a weight above 0                                 |
    | `scale_error` |          | standard deviation of the scale as a fraction of it, if the  |
    |               |          | errors of the points are independent                         |
    """

    similarity: Similarity
    residuals: Float[np.ndarray, "n 3"]
    is_used: Bool[np.ndarray, " n"]
    scale_error: float

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of the residuals of used points along each axis, f64[3]."""
        return np.sqrt((self.residuals[self.is_used] ** 2).mean(axis=0))

    @property
    def median(self) -> float:
        """Median length of all residuals."""
        return float(np.median(np.linalg.norm(self.residuals, axis=1)))


def fit_robust(
    source: Float[np.ndarray, "n 3"],
    target: Float[np.ndarray, "n 3"],
    *,
    is_upright: bool = False,
    min_sigma: float = 1e-9,
    sigmas: Float[np.ndarray, " n"] | None = None,
    from_all: bool = False,
) -> RobustFit:
    """The similarity that most points agree on: least median of squares, then least squares
    reweighted by Tukey's biweight.

    Args:
        source, target: f64[n,3], pairs of points; at least 2 where the rotation is about z alone,
            else 3 that are not on a line.
        is_upright: the rotation is about z alone.
        min_sigma: standard deviation that errors have at least, target length, or a multiple of
            `sigmas` where those are given.
        sigmas: f64[n], standard deviations of the points, to a common factor; None: all alike.
        from_all: begin with least squares of all points, in place of the least median of squares,
            which finds some that agree by chance where points are few.
    """
    pairs = _Pairs(source, target, np.ones(len(source)) if sigmas is None else sigmas)
    if from_all:
        fit = fit_weighted(source, target, pairs.sigmas**-2, is_upright=is_upright)
    else:
        fit = _start(pairs, is_upright)
    weights = np.ones(len(source))
    for _ in range(_NUM_ROUNDS):
        distances = pairs.distances(fit)
        sigma = max(float(np.median(distances)) / _MEDIAN_DISTANCE, min_sigma)
        weights = np.clip(1 - (distances / (_TUKEY * 1.5 * sigma)) ** 2, 0, None) ** 2
        fit = fit_weighted(source, target, weights / pairs.sigmas**2, is_upright=is_upright)
    residuals = fit.apply(source) - target
    is_used = weights > 0
    axes = slice(2 if is_upright else 3)  # heights hardly tell the scale where z is given
    explained = fit.scale * source[is_used][:, axes]
    error = _scale_error(explained, residuals[is_used][:, axes])
    return RobustFit(fit, residuals, is_used, error)


def _scale_error(explained: np.ndarray, residuals: np.ndarray) -> float:
    """Of what the fit explains: the spread of the targets themselves has their noise in it."""
    spread = ((explained - explained.mean(axis=0)) ** 2).sum()
    free = max(explained.size - (7 if explained.shape[1] == 3 else 4), 1)
    variance = (residuals**2).sum() / free
    if not spread > 1e-6 * max(variance, 1e-6):
        return float("inf")
    return float(np.sqrt(variance / spread))


def line_fraction(points: Float[np.ndarray, "n 3"]) -> float:
    """How far points are from lying on a line: their second extent as a fraction of the first."""
    offsets = points - np.median(points, axis=0)
    extents = np.linalg.svd(offsets, compute_uv=False)
    return float(extents[1] / max(extents[0], 1e-300))


def tilt_deg(similarity: Similarity) -> float:
    """The angle between +z before and after, degrees."""
    return float(np.rad2deg(np.arccos(np.clip(similarity.rotation[2, 2], -1, 1))))


def tilt_error(fit: RobustFit, source: Float[np.ndarray, "n 3"], min_sigma: float = 0.0) -> float:
    """Standard deviation of the vertical across the narrow extent of points, degrees.

    Args:
        fit: of them.
        source: f64[n,3], all of its points.
        min_sigma: standard deviation that heights have at least, target length.
    """
    used = source[fit.is_used] * fit.similarity.scale
    extents = np.linalg.svd(used - used.mean(axis=0), compute_uv=False)
    sigma = max(float(fit.rms[2]), min_sigma)
    return float(np.rad2deg(np.arctan2(sigma, max(extents[1], 1e-300))))
