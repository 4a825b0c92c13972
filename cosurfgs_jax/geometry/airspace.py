"""Which fraction of a photograph a box in the world covers."""

import itertools
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import Views

_ROUNDING = 1e-9  # of lengths: far above that of float64


class Cameras(NamedTuple):
    """Views moved to the world, f64."""

    camera_from_world: np.ndarray  # [V,4,4], rigid
    intrinsics: np.ndarray  # [V,3,3], pixels
    image_sizes: np.ndarray  # i64[V,2] (H, W)
    centers_world: np.ndarray  # [V,3]

    def pick(self, numbers: np.ndarray) -> "Cameras":
        """Some of them, i64[n], in this order."""
        return Cameras(*(field[numbers] for field in self))


def cameras_in_world(views: Views, frame: SceneFrame) -> Cameras:
    """The cameras of views, moved by the similarity of a scene."""
    poses = frame.camera_to_world_frame(views.camera_from_dataset)
    return Cameras(poses, views.intrinsics, views.image_sizes, camera_center(poses))


def _clip(polygons, plane):
    """Convex polygons f64[n,m,3] cut by a half space f64[3] through the origin: f64[n,m+1,3], the
    last corner repeated.
    """
    num_corners = polygons.shape[1]
    distances = polygons @ plane
    following = np.roll(polygons, -1, axis=1)
    ahead = np.roll(distances, -1, axis=1)
    is_in = distances >= 0
    crosses = (distances >= 0) != (ahead >= 0)
    fraction = distances / np.where(crosses, distances - ahead, 1)
    corners = np.stack(
        [polygons, polygons + fraction[..., None] * (following - polygons)], axis=2
    ).reshape(-1, 2 * num_corners, 3)
    is_kept = np.stack([is_in, crosses], axis=2).reshape(-1, 2 * num_corners)
    order = np.argsort(~is_kept, axis=1, kind="stable")
    num_kept = is_kept.sum(axis=1)
    slots = np.minimum(np.arange(num_corners + 1), np.maximum(num_kept, 1)[:, None] - 1)
    clipped = np.take_along_axis(
        corners, np.take_along_axis(order, slots, axis=1)[..., None], axis=1
    )
    # All corners in one point: an empty polygon that can be divided by its depth.
    clipped[num_kept == 0] = [0, 0, 1]
    return clipped


def _images_from_world(cameras: Cameras) -> np.ndarray:
    """f64[V,3,4], to images that are 1 wide and 1 high, whatever their size."""
    sizes = np.insert(cameras.image_sizes[:, ::-1], 2, 1, axis=1)[..., None]
    return cameras.intrinsics / sizes @ cameras.camera_from_world[:, :3]


def may_show(low: np.ndarray, high: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Whether views may show something of a world box [low, high], bool[V]. Where it is False, all
    of the box lies on the outer side of one border of the image, or behind the camera.
    """
    corners = np.array(list(itertools.product(*zip(low, high, strict=True), (1.0,))))
    x, y, z = (_images_from_world(cameras) @ corners.T).transpose(1, 0, 2)
    inside = np.stack([x, z - x, y, z - y, z])
    # What is left out must be far enough from the border for all roundings of who looks closer.
    scale = _ROUNDING * np.abs([x, y, z]).max(axis=(0, 2))
    is_outside = np.all(inside < -scale[:, None], axis=2)
    return np.logical_not(np.any(is_outside, axis=0))


def box_coverage(low: np.ndarray, high: np.ndarray, cameras: Cameras) -> np.ndarray:
    """The fraction f64[V] of each image's area that a world box [low, high] covers, whatever stands
    before it.

    The faces of a box that a camera sees from outside tile its outline. Each is clipped (Sutherland
    and Hodgman 1974) to the pyramid of the image's edges, and so to what is in front of the camera.
    A camera inside the box sees nothing else."""
    centers_world = cameras.centers_world
    images_from_world = _images_from_world(cameras)
    fractions = np.zeros(len(centers_world))
    is_inside = np.ones(len(centers_world), bool)
    for axis in range(3):
        is_below = centers_world[:, axis] < low[axis]
        views = np.flatnonzero(is_below | (centers_world[:, axis] > high[axis]))
        is_inside[views] = False
        corners = np.empty((len(views), 4, 3))
        corners[..., axis] = np.where(is_below[views], low[axis], high[axis])[:, None]
        for other, picks in (((axis + 1) % 3, [0, 1, 1, 0]), ((axis + 2) % 3, [0, 0, 1, 1])):
            corners[..., other] = np.array([low[other], high[other]])[picks]
        polygons = (
            corners @ images_from_world[views, :, :3].swapaxes(1, 2)
            + images_from_world[views, None, :, 3]
        )
        for plane in ([1, 0, 0], [-1, 0, 1], [0, 1, 0], [0, -1, 1]):
            polygons = _clip(polygons, np.array(plane, np.float64))
        # The depth is 0 only for a camera on the face itself, to rounding.
        places = polygons[..., :2] / np.maximum(polygons[..., 2:], np.finfo(np.float64).tiny)
        x, y = np.clip(places, 0, 1).transpose(2, 0, 1)
        fractions[views] += 0.5 * np.abs(
            (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)
        )
    return np.where(is_inside, 1.0, np.minimum(fractions, 1.0))
