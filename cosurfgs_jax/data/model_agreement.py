"""Whether the files of a COLMAP model agree with each other: features and points name each other,
and the errors that points have noted are those of their features.

COLMAP notes the errors after its last adjustment: where nothing was changed since, the mean of the
distances to a point's features is what it has noted, to the last digits, so that what does not fit
is seen without limits that depend on how sharp photographs are.
"""

import logging
from typing import NamedTuple

import numpy as np

_MIN_COUNT = 10  # points all of whose features are compared, that tell something
_TOLERANCE = 0.01  # of an error: then it is that of the features
_MIN_PX = 0.01  # less is rounding
# This part of the points has the errors of its features where nothing was changed: 97 to 100 % in
# seven models.
_MIN_AGREEING = 0.9
_SHOWN = 0.05  # of an error: that is said where many points are further from it
# Times the noted error. Where half of its photographs were taken out of the model, the others may
# be at twice the mean. A right point of caliterra is at 1.3, one of brighton at 1.2.
_MAX_TIMES = 2.0
_MIN_SHIFT_PX = 0.1  # no calibration is better
_log = logging.getLogger(__name__)


class Noted(NamedTuple):
    """N points, and the T of their features that are compared.

    | field     | shape    | unit, frame                                        |
    |-----------|----------|----------------------------------------------------|
    | `source`  |          | the model, for messages                            |
    | `points`  | f64[N,3] | dataset                                            |
    | `errors`  | f64[N]   | pixels, noted; NaN or 0: nothing is                |
    | `lengths` | i64[N]   | photographs that see it, also those not compared   |
    | `owners`  | i64[T]   | rows of the points                                 |
    | `pixels`  | f64[T]   | distance from the feature to where it projects     |
    """

    source: str
    points: np.ndarray
    errors: np.ndarray
    lengths: np.ndarray
    owners: np.ndarray
    pixels: np.ndarray


def check_names(
    source: str, named: np.ndarray, has_track: np.ndarray, num_tracked: int, is_whole: bool
) -> None:
    """Says how many of the points that features name are not there, or are seen by no photograph.

    Args:
        source: the model, for messages.
        named: i64[N], numbers of points that features name, without repetition.
        has_track: bool[N], whether there is such a point, and it has a track.
        num_tracked: how many points of the model have a track.
        is_whole: whether these are the names of all features.
    """
    unknown = named[~has_track]
    # Points of another program have numbers of their own.
    if not len(unknown) or 2 * len(unknown) > len(named):
        return
    num_unnamed = num_tracked - int(has_track.sum()) if is_whole else 0
    text = (
        "%s: %d of %d points that features name are not there, or have no track, the first is "
        "number %d"
    )
    if num_unnamed:
        _log.warning(
            text + ", and %d points with a track are named by no feature: the file is damaged, or "
            "images and points are of two models: export the model again",
            source,
            len(unknown),
            len(named),
            unknown[0],
            num_unnamed,
        )
        return
    _log.info(
        text + ": right where points were left out of the model",
        source,
        len(unknown),
        len(named),
        unknown[0],
    )


def check_errors(noted: Noted) -> None:
    """Says which points are further from their features than they have noted; where few have the
    errors of their features, that alone.
    """
    counts = np.bincount(noted.owners, minlength=len(noted.points))
    sums = np.bincount(noted.owners, noted.pixels, minlength=len(noted.points))
    is_told = (noted.errors > 0) & (counts > 0)
    is_full = is_told & (counts == noted.lengths)
    if is_full.sum() < _MIN_COUNT or np.ptp(noted.errors[is_told]) == 0:
        return
    errors = noted.errors[is_full]
    means = sums[is_full] / counts[is_full]
    away = np.abs(means - errors) / np.maximum(errors, _MIN_PX)
    if np.mean(away <= _TOLERANCE) < _MIN_AGREEING:
        is_shown = away > _SHOWN
        if is_shown.mean() > 1 - _MIN_AGREEING:
            _log.info(
                "%s: the errors that %d of %d points have noted are not those of their features "
                "(median %.3g pixels, noted %.3g): cameras, poses or features were rounded or "
                "changed since",
                noted.source,
                is_shown.sum(),
                len(away),
                np.median(means),
                np.median(errors),
            )
        return
    # Of features that are not compared nothing is known but that they are not nearer than 0.
    least = sums / np.maximum(counts, noted.lengths)
    is_moved = is_told & (least > np.maximum(_MAX_TIMES * noted.errors, _MIN_SHIFT_PX))
    if is_moved.any():
        first = int(is_moved.argmax())
        _log.warning(
            "%s: %d of %d points are %g times as far from their features as they have noted, or "
            "more, the first at %s (%.3g pixels, noted %.3g), though most are just so far away: "
            "the file is damaged, or they were moved: export the model again",
            noted.source,
            is_moved.sum(),
            is_told.sum(),
            _MAX_TIMES,
            np.array2string(noted.points[first], precision=6),
            least[first],
            noted.errors[first],
        )
