"""Whether the features of a COLMAP model lie where its points project: if not, a pose, a camera or
a point is not the one that was found.

Limits come from the model itself: what is far off is so beside its other photographs and points,
or beside the errors that its points have noted.
"""

import logging
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.checks import some_of
from cosurfgs_jax.geometry.distortion import Lens, pixels_from_normalised
from cosurfgs_jax.geometry.lens_models import MODELS

# Of images.bin; the number of a point is -1 where a feature is of none.
FEATURE = np.dtype([("pixel", "<f8", (2,)), ("point", "<i8")])
# Of all photographs, and bounds of one: 1,000 photographs have ten million, and these take 0.2 s.
_MAX_FEATURES = 200_000
_MAX_OF_VIEW = 1024
_MIN_OF_VIEW = 128
_RUN = 64  # of features that follow each other: they lie in one page of the file, or two
_MIN_COUNT = 3  # features of a photograph that tell something of it
_MIN_VIEWS = 2  # that tell something of a point
# Times the median, or spreads (from the first quartile to the median) above it, whichever is more.
# Of errors alike in all directions 25 spreads are 11 standard deviations; those of real models
# have tails: the worst of 2,639 features of brighton as `prepare` makes it is at 22.
_MAX_TIMES = 3.0
_MAX_SPREADS = 25.0
_MIN_SHIFT_PX = 0.1  # no calibration is better
_MAX_SHARE = 0.01  # of the longer side: no reconstruction keeps features that are so far off
_log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image of a COLMAP model."""

    image_id: int
    pose: list[float]  # quaternion wxyz and shift
    camera_id: int
    name: str
    features: np.ndarray  # FEATURE[F]; of a text file those of `chosen`


class SeenPoints(NamedTuple):
    """Points, and the photographs that see them.

    | field                 | shape      | unit, frame                                             |
    |-----------------------|------------|---------------------------------------------------------|
    | `source`              |            | the model, for messages                                 |
    | `names`, `lenses`     | V          |                                                         |
    | `camera_from_dataset` | f64[V,4,4] |                                                         |
    | `features`            | V arrays   | FEATURE[F], pixels                                      |
    | `point_ids`           | i64[P]     | numbers that features name; -1: none does               |
    | `points`              | f64[P,3]   | dataset                                                 |
    | `errors`              | f64[P]     | pixels, that the file says of them; NaN where it does   |
    |                       |            | not                                                     |
    """

    source: str
    names: list[str]
    lenses: list[Lens]
    camera_from_dataset: np.ndarray
    features: list[np.ndarray]
    point_ids: np.ndarray
    points: np.ndarray
    errors: np.ndarray


class _Distances(NamedTuple):
    """From features to where their points project: of each feature that is compared."""

    medians: np.ndarray  # f64[V]; NaN where a view has too few
    views: np.ndarray  # i64[T]
    points: np.ndarray  # i64[T]
    pixels: np.ndarray  # f32[T]; infinite behind a camera


def chosen(count: int, most: int = _MAX_OF_VIEW) -> np.ndarray:
    """Which of a photograph's features are compared, i64: all, or runs spread over them."""
    if count <= most:
        return np.arange(count)
    starts = np.linspace(0, count - _RUN, most // _RUN).astype(np.int64)
    return (starts[:, None] + np.arange(_RUN)).reshape(-1)


def _matches(seen: SeenPoints) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views i64[T] in order, points i64[T] and pixels f64[T,2] of the features of known points."""
    most = int(np.clip(_MAX_FEATURES // len(seen.names), _MIN_OF_VIEW, _MAX_OF_VIEW))
    parts = [features[chosen(len(features), most)] for features in seen.features]
    features = np.concatenate(parts)
    views = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(seen.point_ids)
    ids = seen.point_ids[order]
    # In order, so that each search begins where memory is still at hand.
    asked = np.argsort(features["point"])
    place = np.empty(len(features), np.int64)
    place[asked] = np.searchsorted(ids, features["point"][asked]).clip(max=len(ids) - 1)
    poses = seen.camera_from_dataset.reshape(len(parts), 16)
    with np.errstate(all="ignore"):
        is_finite = np.isfinite(poses.sum(axis=1))
    is_known = np.equal(ids[place], features["point"]) & (features["point"] >= 0)
    is_known &= is_finite[views]
    return views[is_known], order[place[is_known]], features["pixel"][is_known]


def _distances_px(lens: Lens, pose: np.ndarray, points: np.ndarray, pixels: np.ndarray):
    """f64[F]; NaN where the lens has no numbers."""
    points_camera = points @ pose[:3, :3].T + pose[:3, 3]
    depth = points_camera[:, 2]
    found = pixels_from_normalised(lens, points_camera[:, :2] / depth[:, None])
    distances = np.hypot(found[:, 0] - pixels[:, 0], found[:, 1] - pixels[:, 1])
    if MODELS[lens.model].is_fisheye:  # some see behind themselves
        return np.where(depth > 0, distances, np.nan)
    return np.where((depth > 0) & ~np.isnan(distances), distances, np.inf)


def _distances(seen: SeenPoints) -> _Distances:
    views, rows, pixels = _matches(seen)
    points = seen.points[rows]
    distances = np.full(len(views), np.nan, np.float32)
    medians = np.full(len(seen.names), np.nan)
    ends = np.searchsorted(views, np.arange(len(seen.names) + 1))
    with np.errstate(all="ignore"):
        for view in np.flatnonzero(np.diff(ends) >= _MIN_COUNT):
            part = slice(ends[view], ends[view + 1])
            if (pixels[part] == pixels[part][0]).all():
                continue  # stand-ins for what a program did not know
            pose = seen.camera_from_dataset[view]
            of_view = _distances_px(seen.lenses[view], pose, points[part], pixels[part])
            told = of_view[~np.isnan(of_view)]
            if len(told) >= _MIN_COUNT:
                distances[part] = of_view
                medians[view] = np.partition(told, len(told) // 2)[len(told) // 2]
    is_told = ~np.isnan(distances)
    return _Distances(medians, views[is_told], rows[is_told], distances[is_told])


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


def _say_all(seen: SeenPoints, medians: np.ndarray) -> bool:
    """Says where most photographs do not fit the points; whether they do not."""
    typical = np.nanmedian(medians)
    expected = _expected_px(seen)
    limit = _MAX_SHARE * _side(seen)
    what = f"no reconstruction keeps more than {limit:.2g}"
    if typical <= limit and not np.isnan(expected):
        limit = max(_MAX_TIMES * expected, _MIN_SHIFT_PX)
        what = f"the errors of the points say {expected:.2g}"
    if typical <= limit:
        return False
    is_off = medians > limit
    names = [seen.names[view] for view in np.flatnonzero(is_off)]
    _log.warning(
        "%s: in %d of %d photographs features are %.3g pixels (median) away from where their "
        "points project, though %s: %s; cameras or poses are not those that the points were found "
        "with, as with the focal length of photographs of another size, or a lens without its "
        "distortion: export cameras, images and points together again",
        seen.source,
        len(names),
        len(seen.names),
        typical,
        what,
        some_of(names),
    )
    return True


def _say_views(seen: SeenPoints, medians: np.ndarray) -> np.ndarray:
    """Says which photographs do not fit the points, bool[V]."""
    is_known = ~np.isnan(medians)
    sides = np.array([max(lens.width, lens.height) for lens in seen.lenses])
    # Features of larger photographs may be off by more pixels.
    limits = _limit(medians[is_known]) * np.maximum(1, sides / _side(seen))
    is_odd = medians > limits
    if is_odd.any():
        odd = np.flatnonzero(is_odd)
        of_odd = {seen.lenses[view] for view in odd}
        alike = [view for view in np.flatnonzero(is_known) if seen.lenses[view] in of_odd]
        what = "poses or cameras are wrong"
        if len(alike) == len(odd) > len(of_odd):  # all of those that share cameras
            what = "these are all photographs of their cameras, which are wrong"
        _log.warning(
            "%s: in %d of %d photographs features are %.3g pixels or more (median) away from where "
            "their points project (in the others %.2g): %s; %s: export the model again, or remove "
            "these images from it",
            seen.source,
            len(odd),
            len(seen.names),
            medians[is_odd].min(),
            np.median(medians[is_known & ~is_odd]),
            some_of([seen.names[view] for view in odd]),
            what,
        )
    return is_odd


def _say_points(seen: SeenPoints, found: _Distances) -> None:
    """Says which points do not fit most of their photographs: a few never do, and have that noted
    as their error.
    """
    limit = _limit(found.pixels)
    limits = np.fmax(limit, _MAX_TIMES * seen.errors)
    if np.isnan(_expected_px(seen)):
        limit = max(limit, _MAX_SHARE * _side(seen))
        limits = np.full(len(seen.points), limit)
    is_far = found.pixels > limits[found.points]
    num_seen = np.bincount(found.points, minlength=len(seen.points))
    num_far = np.bincount(found.points[is_far], minlength=len(seen.points))
    is_moved = (num_seen >= _MIN_VIEWS) & (2 * num_far > num_seen)
    if is_moved.any():
        _log.warning(
            "%s: %d of %d points are %.3g pixels or more away from their features in most "
            "photographs (most points less than %.2g), the first at %s: the file is damaged, or "
            "they were moved: export the model again",
            seen.source,
            is_moved.sum(),
            len(seen.points),
            limit,
            np.quantile(found.pixels, 0.75),
            np.array2string(seen.points[is_moved.argmax()], precision=6),
        )


def check(seen: SeenPoints) -> None:
    """Says which photographs and points do not fit the features, in one sentence for each."""
    if not len(seen.points):
        return
    found = _distances(seen)
    if not len(found.views) or _say_all(seen, found.medians):
        return
    # What a wrong photograph says of a point does not count.
    counts = ~_say_views(seen, found.medians)[found.views]
    if counts.any():
        right = found._replace(points=found.points[counts], pixels=found.pixels[counts])
        _say_points(seen, right)
