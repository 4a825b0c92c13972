"""Whether the features of a COLMAP model lie where its points project: if not, a pose, a camera or
a point is not the one that was found.

Limits come from the model itself: what is far off is so beside its other photographs and points,
or beside the errors that its points have noted.
"""

import logging
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data import model_agreement
from cosurfgs_jax.data.checks import some_of
from cosurfgs_jax.data.compared_features import compared, rows_of
from cosurfgs_jax.geometry.distortion import Lens, pixels_from_normalised
from cosurfgs_jax.geometry.lens_models import MODELS

_MIN_COUNT = 10  # features of a photograph that tell something of it
_MIN_VIEWS = 2  # that tell something of a point
# Times the median, or spreads (from the first quartile to the median) above it, whichever is more.
# Of errors alike in all directions 25 spreads are 11 standard deviations; those of real models
# have tails: the worst of 2,639 features of brighton as `prepare` makes it is at 22.
_MAX_TIMES = 3.0
_MAX_SPREADS = 25.0
_MIN_SHIFT_PX = 0.1  # no calibration is better
# Pixels, or of the longer side: of features that were rounded to whole pixels, count from the
# middle of the first pixel or were found in smaller pictures, while errors were noted before.
_MIN_ALL_PX = 1.0
_MIN_ALL_FRACTION = 0.0005
_MIN_BEYOND = 0.05  # of features beyond the camera's picture, if it was made smaller
_MAX_FRACTION = 0.01  # of the longer side: no reconstruction keeps features that are so far off
_log = logging.getLogger(__name__)


class SeenPoints(NamedTuple):
    """Points that are `named`, or more of them, and the photographs that see them.

    | field                 | shape      | unit, frame                                             |
    |-----------------------|------------|---------------------------------------------------------|
    | `source`              |            | the model, for messages                                 |
    | `names`, `lenses`     | V          |                                                         |
    | `camera_from_dataset` | f64[V,4,4] |                                                         |
    | `features`            | V arrays   | FEATURE[F], pixels                                      |
    | `point_ids`           | i64[P]     | numbers that features name; -1: none does               |
    | `points`              | f64[P,3]   | dataset                                                 |
    | `errors`              | f32[P]     | pixels, that the file says of them; NaN where it does   |
    |                       |            | not                                                     |
    | `lengths`             | i64[P]     | of their tracks                                         |
    """

    source: str
    names: list[str]
    lenses: list[Lens]
    camera_from_dataset: np.ndarray
    features: list[np.ndarray]
    point_ids: np.ndarray
    points: np.ndarray
    errors: np.ndarray
    lengths: np.ndarray


class _Distances(NamedTuple):
    """From features to where their points project: of each feature that is compared."""

    medians: np.ndarray  # f64[V]; NaN where a view has too few
    views: np.ndarray  # i64[T]
    points: np.ndarray  # i64[T]
    pixels: np.ndarray  # f32[T]; infinite behind a camera


def _matches(seen: SeenPoints) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views i64[T] in order, points i64[T] and pixels f64[T,2] of the features of known points."""
    poses = seen.camera_from_dataset.reshape(len(seen.names), 16)
    with np.errstate(all="ignore"):
        is_finite = np.isfinite(poses.sum(axis=1))
    parts = compared(seen.features)
    views = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    features = np.concatenate(parts)
    rows = rows_of(features["point"], seen.point_ids)
    is_known = (rows >= 0) & is_finite[views]
    return views[is_known], rows[is_known], features["pixel"][is_known]


def _projected(lens: Lens, pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels f64[F,2]; infinite behind the camera, NaN where the lens has no numbers."""
    points_camera = points @ pose[:3, :3].T + pose[:3, 3]
    depth = points_camera[:, 2:]
    found = pixels_from_normalised(lens, points_camera[:, :2] / depth)
    if MODELS[lens.model].is_fisheye:  # some see behind themselves
        return np.where(depth > 0, found, np.nan)
    return np.where((depth > 0) & ~np.isnan(found).any(axis=1, keepdims=True), found, np.inf)


def _distances_px(found: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return np.hypot(found[:, 0] - pixels[:, 0], found[:, 1] - pixels[:, 1])


def _factors(lenses: list[Lens], views: np.ndarray, pixels: np.ndarray, found: np.ndarray):
    """By how much features are in pixels of a larger picture than that of their camera, f64[V];
    else 1.

    Args:
        views, pixels, found: of each feature: its photograph, where it is, and where its point
            projects.
    """
    sizes = np.array([(lens.width, lens.height) for lens in lenses])
    is_beyond = (pixels > sizes[views]).any(axis=1)
    numbers = {lens: number for number, lens in enumerate(dict.fromkeys(lenses))}
    of_view = np.array([numbers[lens] for lens in lenses])
    of_feature = of_view[views]
    num_beyond = np.bincount(of_feature, is_beyond, minlength=len(numbers))
    num = np.bincount(of_feature, minlength=len(numbers))
    order = np.argsort(of_feature, kind="stable")
    ends = np.cumsum(num)
    factors = np.ones(len(numbers))
    for lens, number in numbers.items():
        if num_beyond[number] <= _MIN_BEYOND * num[number]:
            continue
        part = order[ends[number] - num[number] : ends[number]]
        part = part[np.isfinite(found[part]).all(axis=1)]
        if len(part) < _MIN_COUNT:
            continue
        factor = np.median(np.hypot(*pixels[part].T) / np.hypot(*found[part].T))
        left = np.median(_distances_px(factor * found[part], pixels[part]))
        if factor > 1 and left <= _MAX_FRACTION * factor * max(lens.width, lens.height):
            factors[number] = factor
    return factors[of_view]


def _at_size_of_features(seen: SeenPoints, factors: np.ndarray) -> SeenPoints:
    """With the cameras at the size of the pictures that features were found in."""
    views = np.flatnonzero(factors != 1)
    if not len(views):
        return seen
    _log.info(
        "%s: in %d of %d photographs features are in pixels of another size, of %s in those of a "
        "picture %.4g times as large as its camera says: photographs and cameras were made smaller "
        "after the reconstruction, features are compared at their own size",
        seen.source,
        len(views),
        len(seen.names),
        seen.names[views[0]],
        factors[views[0]],
    )
    lenses = [
        lens.resized(round(lens.height * factor), round(lens.width * factor), factor, factor)
        for lens, factor in zip(seen.lenses, factors.tolist(), strict=True)
    ]
    return seen._replace(lenses=lenses)


def _distances(seen: SeenPoints) -> tuple[SeenPoints, _Distances]:
    """The distances, and what they were found with: cameras at the size that features have."""
    views, rows, pixels = _matches(seen)
    found = np.full((len(views), 2), np.nan)
    ends = np.searchsorted(views, np.arange(len(seen.names) + 1))
    with np.errstate(all="ignore"):
        for view in np.flatnonzero(np.diff(ends) >= _MIN_COUNT):
            part = slice(ends[view], ends[view + 1])
            if (pixels[part] == pixels[part][0]).all():
                continue  # stand-ins for what a program did not know
            pose = seen.camera_from_dataset[view]
            found[part] = _projected(seen.lenses[view], pose, seen.points[rows[part]])
        factors = _factors(seen.lenses, views, pixels, found)
        distances = _distances_px(found * factors[views, None], pixels).astype(np.float32)
    medians = np.full(len(seen.names), np.nan)
    for view in np.flatnonzero(np.diff(ends) >= _MIN_COUNT):
        of_view = distances[ends[view] : ends[view + 1]]
        told = of_view[~np.isnan(of_view)]
        if len(told) >= _MIN_COUNT:
            medians[view] = np.partition(told, len(told) // 2)[len(told) // 2]
    is_told = ~np.isnan(distances) & ~np.isnan(medians)[views]
    distances = _Distances(medians, views[is_told], rows[is_told], distances[is_told])
    return _at_size_of_features(seen, factors), distances


def _limit(values: np.ndarray) -> float:
    """What is far off among values, of which almost half may be."""
    first, middle = np.quantile(values, [0.25, 0.5], method="lower")
    if not np.isfinite(middle):
        return np.inf
    return float(max(_MAX_TIMES * middle, middle + _MAX_SPREADS * (middle - first), _MIN_SHIFT_PX))


def _expected_px(seen: SeenPoints) -> float:
    """The median error that the file says of its points; NaN where it says nothing: some programs
    write one number for all.
    """
    errors = seen.errors[(seen.point_ids >= 0) & np.isfinite(seen.errors) & (seen.errors > 0)]
    if not len(errors) or errors.min() == errors.max():
        return np.nan
    return float(np.median(errors))


def _side(seen: SeenPoints) -> float:
    """The longer side of most photographs, pixels."""
    return float(np.median([max(lens.width, lens.height) for lens in seen.lenses]))


def _noted_px(seen: SeenPoints, found: _Distances, views: np.ndarray) -> np.ndarray:
    """What the errors of its points leave to the features of some photographs (median, pixels),
    f64[len(views)]; NaN where nothing is known of them.

    A point's error is the mean of the distances to its features: one photograph that is less sharp
    than the others has more than its part of it. What a pose was moved by since is in none.
    """
    if np.isnan(_expected_px(seen)):
        return np.full(len(views), np.nan)
    rows, which = np.unique(found.points, return_inverse=True)
    errors = np.where(seen.errors[rows] > 0, seen.errors[rows], np.nan).astype(np.float64)[which]
    pixels = np.minimum(found.pixels, 1e6).astype(np.float64)  # some are infinite
    others = np.bincount(which, pixels)[which] - pixels
    noted = np.fmax(errors, errors * np.bincount(which)[which] - others)
    starts = np.searchsorted(found.views, views)
    ends = np.searchsorted(found.views, views, side="right")
    medians = np.full(len(views), np.nan)
    for view, (start, end) in enumerate(zip(starts, ends, strict=True)):
        of_view = noted[start:end]
        of_view = of_view[np.isfinite(of_view)]
        if len(of_view):
            medians[view] = np.median(of_view)
    return medians


def _away(median_px: float, how: str = "") -> str:
    if np.isfinite(median_px):
        away = f"{median_px:.3g} pixels{how} (median) away"
        return f"features are {away} from where their points project"
    return "most features are of points that lie behind the camera"


def _min_px(seen: SeenPoints) -> float:
    """Below this nothing is wrong with cameras or poses of all photographs."""
    return max(_MIN_ALL_PX, _MIN_ALL_FRACTION * _side(seen))


def _say_all(seen: SeenPoints, medians: np.ndarray) -> bool:
    """Says where most photographs do not fit the points; whether they do not."""
    typical = np.nanmedian(medians)
    expected = _expected_px(seen)
    limit = _MAX_FRACTION * _side(seen)
    what = f"no reconstruction keeps more than {limit:.2g}"
    if typical <= limit and not np.isnan(expected):
        limit = max(_MAX_TIMES * expected, _min_px(seen))
        what = f"the errors of the points say {expected:.2g}"
    if typical <= limit:
        return False
    is_off = medians > limit
    names = [seen.names[view] for view in np.flatnonzero(is_off)]
    _log.warning(
        "%s: in %d of %d photographs %s, though %s: %s; cameras or poses are not those that the "
        "points were found with, as with the focal length of photographs of another size, or a "
        "lens without its distortion: export cameras, images and points together again",
        seen.source,
        len(names),
        len(seen.names),
        _away(typical),
        what,
        some_of(names),
    )
    return True


def _say_views(seen: SeenPoints, found: _Distances) -> np.ndarray:
    """Says which photographs do not fit the points, bool[V]."""
    medians = found.medians
    is_known = ~np.isnan(medians)
    sides = np.array([max(lens.width, lens.height) for lens in seen.lenses])
    # Features of larger photographs may be off by more pixels.
    limits = _limit(medians[is_known]) * np.maximum(1, sides / _side(seen))
    if np.isnan(_expected_px(seen)):
        limits = np.maximum(limits, _min_px(seen))
    is_odd = medians > limits
    odd = np.flatnonzero(is_odd)
    # Of photographs that are less sharp, and were always, the points say so.
    is_odd[odd] = ~(medians[odd] <= _MAX_TIMES * _noted_px(seen, found, odd))
    if is_odd.any():
        odd = np.flatnonzero(is_odd)
        of_odd = {seen.lenses[view] for view in odd}
        alike = [view for view in np.flatnonzero(is_known) if seen.lenses[view] in of_odd]
        what = "poses or cameras are wrong"
        if len(alike) == len(odd) > len(of_odd):  # all of those that share cameras
            what = "these are all photographs of their cameras, which are wrong"
        _log.warning(
            "%s: in %d of %d photographs %s (in the others %.2g pixels): %s; %s: export the model "
            "again, or remove these images from it",
            seen.source,
            len(odd),
            len(seen.names),
            _away(medians[is_odd].min(), " or more"),
            np.median(medians[is_known & ~is_odd]),
            some_of([seen.names[view] for view in odd]),
            what,
        )
    return is_odd


def _say_points(seen: SeenPoints, found: _Distances) -> bool:
    """Says which points do not fit most of their photographs, and gives back whether there are any:
    a few never do, and have that noted as their error.
    """
    rows, which = np.unique(found.points, return_inverse=True)  # those that are compared
    limit = _limit(found.pixels)
    limits = np.fmax(limit, _MAX_TIMES * seen.errors[rows])
    if np.isnan(_expected_px(seen)):
        limit = max(limit, _MAX_FRACTION * _side(seen))
        limits = np.full(len(rows), limit)
    num_seen = np.bincount(which)
    num_far = np.bincount(which, found.pixels > limits[which])
    is_moved = (num_seen >= _MIN_VIEWS) & (2 * num_far > num_seen)
    if is_moved.any():
        _log.warning(
            "%s: %d of %d points that were compared are %.3g pixels or more away from their "
            "features in most photographs (most points less than %.2g), the first at %s: the file "
            "is damaged, or they were moved: export the model again",
            seen.source,
            is_moved.sum(),
            len(rows),
            limit,
            np.quantile(found.pixels, 0.75),
            np.array2string(seen.points[rows[is_moved.argmax()]], precision=6),
        )
    return bool(is_moved.any())


def check(seen: SeenPoints) -> None:
    """Says which photographs and points do not fit the features, in one sentence for each."""
    if not len(seen.points) or not seen.names:
        return
    seen, found = _distances(seen)
    if not len(found.views) or _say_all(seen, found.medians):
        return
    # What a wrong photograph says of a point does not count.
    counts = ~_say_views(seen, found)[found.views]
    if counts.any():
        right = found._replace(points=found.points[counts], pixels=found.pixels[counts])
        if not _say_points(seen, right):
            _check_noted(seen, right)


def _check_noted(seen: SeenPoints, found: _Distances) -> None:
    rows, which = np.unique(found.points, return_inverse=True)
    pixels = np.minimum(found.pixels, 1e6).astype(np.float64)  # some are infinite
    model_agreement.check_errors(
        model_agreement.Noted(
            source=seen.source,
            points=seen.points[rows],
            errors=np.nan_to_num(seen.errors[rows].astype(np.float64), posinf=0.0),
            lengths=seen.lengths[rows],
            owners=which,
            pixels=pixels,
        )
    )
