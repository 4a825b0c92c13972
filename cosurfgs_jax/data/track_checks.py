"""Whether poses, cameras and points fit the tracks: a point lies in the pictures that see it. Of
points without tracks, whether any picture shows them.
"""

import logging

import numpy as np

from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.geometry.distortion import Lens, pixels_from_normalised
from cosurfgs_jax.geometry.lens_models import MODELS

# Of the longer side, beyond the border. Features lie in the picture, and models keep points that
# are off by a few pixels.
_MARGIN = 0.05
_MIN_COUNT = 3  # points of a view, or views of a point, that tell something
_NUM_TRIED = 2048  # of points without tracks: enough for their fraction to a hundredth
# Of points among which those near to some cameras are looked for.
_NUM_SEARCHED = 2**17
_NUM_CAMERAS = 16
_log = logging.getLogger(__name__)


def _is_outside(lens: Lens, points_camera: np.ndarray) -> np.ndarray:
    """Whether points are behind a camera, or well outside of its picture.

    Args:
        lens: of the photograph.
        points_camera: f64[P,3].
    """
    depth = points_camera[:, 2]
    with np.errstate(all="ignore"):
        pixels = pixels_from_normalised(lens, points_camera[:, :2] / depth[:, None])
    size = np.array([lens.width, lens.height])
    margin = _MARGIN * size.max()
    is_outside = ((pixels < -margin) | (pixels > size + margin)).any(axis=1)
    if MODELS[lens.model].is_fisheye:  # some see behind themselves, where this has no numbers
        return is_outside & (depth > 0)
    return is_outside | (depth <= 0)


def misses(capture: Capture) -> np.ndarray:
    """Which of the `sightings` are of a point that the view cannot see, bool[T]."""
    cloud = capture.cloud
    found = []
    for view, lens in enumerate(capture.lenses):
        pose = capture.camera_from_dataset[view]
        points_camera = cloud.points[cloud.sightings.of(view)] @ pose[:3, :3].T + pose[:3, 3]
        found.append(_is_outside(lens, points_camera))
    return np.concatenate([np.zeros(0, bool), *found])


def _in_no_photograph(capture: Capture, points: np.ndarray) -> np.ndarray:
    """Those that no picture shows, f64[L,3]."""
    for lens, pose in zip(capture.lenses, capture.camera_from_dataset, strict=True):
        points = points[_is_outside(lens, points @ pose[:3, :3].T + pose[:3, 3])]
    return points


def _nearest(capture: Capture, rng: np.random.Generator) -> np.ndarray:
    """Points that are the nearest ones to some of the cameras, f64[N,3]."""
    points = capture.cloud.points
    if len(points) > _NUM_SEARCHED:
        points = points[rng.choice(len(points), _NUM_SEARCHED, replace=False)]
    views = np.unique(np.linspace(0, capture.num_views - 1, _NUM_CAMERAS).astype(np.int64))
    poses = capture.camera_from_dataset[views]
    count = min(len(points), _NUM_TRIED // len(views))
    found = []
    for pose in poses:
        squared = np.square(points + pose[:3, :3].T @ pose[:3, 3]).sum(axis=1)
        found.append(points[np.argpartition(squared, count - 1)[:count]])
    return np.concatenate(found)


def _check_untracked(capture: Capture) -> None:
    """Says how many points no picture shows; of many points, of some. Points of a laser or of a map
    may go far beyond the flight: something is wrong where those next to the cameras are not seen.
    """
    rng = np.random.default_rng(0)
    tried = capture.cloud.points
    if len(tried) > _NUM_TRIED:
        tried = tried[rng.choice(len(tried), _NUM_TRIED, replace=False)]
    left = _in_no_photograph(capture, tried)
    if not len(left):
        return
    text = "%s: %d of %d points that were tried are in no photograph, the first at %s"
    values = (capture.source, len(left), len(tried), np.array2string(left[0], precision=6))
    level = logging.INFO
    if 2 * len(left) > len(tried):
        near = _nearest(capture, rng)
        if 2 * len(_in_no_photograph(capture, near)) > len(near):
            text += ": poses and points are of two frames, or the axes of the cameras are others"
            level = logging.WARNING
    _log.log(level, text, *values)


def check(capture: Capture) -> None:
    """Says which views do not see most of their points, and which points most of their views do not
    see: a pose, a camera or a point is wrong then, in a way that no format notices. Of points
    without tracks it says how many no view sees.
    """
    cloud = capture.cloud
    if not cloud.has_tracks:
        _check_untracked(capture)
        return
    is_missed = misses(capture)
    views = cloud.sightings.views
    num_points = np.bincount(views, minlength=capture.num_views)
    num_missed = np.bincount(views, is_missed, minlength=capture.num_views)
    is_odd = (num_points >= _MIN_COUNT) & (2 * num_missed > num_points)
    if is_odd.any():
        first = int(is_odd.argmax())
        _log.warning(
            "%s: %d of %d photographs do not look at most of the points that they are said to "
            "see, the first is %s (%d of %d points are behind it or outside of its picture): poses "
            "or cameras are wrong, or the points are of another model",
            capture.source,
            is_odd.sum(),
            capture.num_views,
            capture.image_names[first],
            num_missed[first],
            num_points[first],
        )
    # What a wrong view says of a point does not count.
    counts = ~is_odd[views]
    owners = cloud.sightings.points[counts]
    num_views = np.bincount(owners, minlength=len(cloud))
    num_missing = np.bincount(owners, is_missed[counts], minlength=len(cloud))
    is_lost = (num_views > 0) & (2 * num_missing > num_views)
    if is_lost.any():
        _log.warning(
            "%s: %d of %d points are outside of most photographs that are said to see them, the "
            "first at %s: the file is damaged, or they are of another model",
            capture.source,
            is_lost.sum(),
            len(cloud),
            np.array2string(cloud.points[is_lost.argmax()], precision=6),
        )
