"""Which features of a COLMAP model are compared with the points that they name: as many as take no
time and no memory.
"""

from typing import NamedTuple

import numpy as np

# Of images.bin; the number of a point is -1 where a feature is of none.
FEATURE = np.dtype([("pixel", "<f8", (2,)), ("point", "<i8")])
# Of all photographs, and bounds of one: 1,000 photographs have ten million, and these take 0.2 s.
_MAX_FEATURES = 200_000
_MAX_OF_VIEW = 1024
_RUN = 64  # of features that follow each other: they lie in one page of the file, or two
_MIN_OF_VIEW = _RUN  # even where these are more than `_MAX_FEATURES`
_CHUNK = 2**16  # points whose numbers are looked up at once


class Image(NamedTuple):
    """An image of a COLMAP model."""

    image_id: int
    pose: list[float]  # quaternion wxyz and shift
    camera_id: int
    name: str
    features: np.ndarray  # FEATURE[F], those that are `chosen`


def max_features_of_view(num_views: int) -> int:
    """How many features of each of so many photographs are compared."""
    return int(np.clip(_MAX_FEATURES // max(1, num_views), _MIN_OF_VIEW, _MAX_OF_VIEW))


def chosen(count: int, most: int = _MAX_OF_VIEW) -> np.ndarray:
    """Which of a photograph's features are compared, i64: all, or runs spread over them."""
    if count <= most:
        return np.arange(count)
    starts = np.linspace(0, count - _RUN, most // _RUN).astype(np.int64)
    return (starts[:, None] + np.arange(_RUN)).reshape(-1)


def rows_of(wanted: np.ndarray, point_ids: np.ndarray) -> np.ndarray:
    """Where numbers are among those of the points, i64[len(wanted)]; -1: nowhere. Of all points
    few are held at a time.
    """
    asked, which = np.unique(wanted, return_inverse=True)
    rows = np.full(len(asked), -1)
    if not len(asked):
        return rows
    for first in range(0, len(point_ids), _CHUNK):
        ids = point_ids[first : first + _CHUNK]
        place = np.searchsorted(asked, ids).clip(max=len(asked) - 1)
        is_asked = asked[place] == ids
        rows[place[is_asked]] = first + np.flatnonzero(is_asked)
    return rows[which]


def compared(features: list[np.ndarray]) -> list[np.ndarray]:
    """Those of each photograph that are of a point and are compared."""
    most = max_features_of_view(len(features))
    parts = [part[chosen(len(part), most)] for part in features]
    return [part[part["point"] >= 0] for part in parts]


def named(features: list[np.ndarray], point_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points that are compared: numbers i64[N] and rows i64[N], -1 where there is no such point.
    The others need not be kept.

    Args:
        features: of each photograph, FEATURE[F].
        point_ids: i64[P], of all points.
    """
    numbers = [part["point"] for part in compared(features)]
    names = np.unique(np.concatenate([np.empty(0, np.int64), *numbers]))
    return names, rows_of(names, point_ids)


def are_all_compared(features: list[np.ndarray]) -> bool:
    """Whether no photograph has more features than are compared."""
    most = max_features_of_view(len(features))
    return all(len(part) < most for part in features)
