"""The ground plane of a dataset: its axes, a raster on it, and which heights are those of a
surface. NumPy, float64.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.scene_frame import SceneFrame

BYTES_PER_PIXEL = 8  # float32 height and four bytes of colour
# Of the range of percentiles, by which it is widened (never beyond the points themselves).
_EXTENT_MARGIN = 0.05
# Of the range of heights: what a surface may rise above the highest points, or lie below the
# lowest.
_HEIGHT_MARGIN = 0.5
# Of the way from the points up to the cameras: up to there is a surface, too, whatever the points
# say. Tree tops that next to no point is on (leaves move) were 13 m up in woods seen from 40 m;
# floaters are mostly in front of the cameras.
_SHARE_OF_FLIGHT = 1 / 3


# Times the median distance of points from the middle of the cameras. Horizon and sky are farther
# away; the ends of a long strip of photographs are not.
_NEAR_POINTS = 30


class GroundFrame(NamedTuple):
    """Axes on the ground: ground = axes @ (dataset - origin), that is east, north, height.

    | field    | shape    | unit, frame                                             |
    |----------|----------|---------------------------------------------------------|
    | `axes`   | f64[3,3] | rows east, north, up: orthonormal, dataset              |
    | `origin` | f64[3]   | dataset                                                 |
    | `is_map` |          | ground coordinates are those of the dataset, unchanged  |
    """

    axes: np.ndarray
    origin: np.ndarray
    is_map: bool

    def from_dataset(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Dataset points [...,3] as east, north, height, f64."""
        return (np.asarray(points, np.float64) - self.origin) @ self.axes.T

    def camera_from_dataset(self, eye: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
        """The pose of a camera at `eye` (ground coordinates) that looks straight down, with north
        at the top of its image.
        """
        pose = np.eye(4)
        pose[:3, :3] = self.axes * np.array([[1.0], [-1.0], [-1.0]])
        pose[:3, 3] = -pose[:3, :3] @ (self.axes.T @ eye + self.origin)
        return pose


class GroundGrid(NamedTuple):
    """A north-up raster: pixel (row, column) covers one pixel size to the east of left + column
    pixel sizes, and to the south of top - row pixel sizes; ground coordinates."""

    left: float
    top: float
    pixel_size: float
    width: int
    height: int

    def pixels_of(
        self, ground: Float[np.ndarray, "n 3"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows i64[n] and columns i64[n] of points, and bool[n] whether they lie in the raster."""
        columns = np.floor((ground[:, 0] - self.left) / self.pixel_size).astype(np.int64)
        rows = np.floor((self.top - ground[:, 1]) / self.pixel_size).astype(np.int64)
        inside = (columns >= 0) & (columns < self.width) & (rows >= 0) & (rows < self.height)
        return rows, columns, inside


def is_map(up: Float[np.ndarray, "3"]) -> bool:
    """Whether a dataset's z axis is its vertical (`scene_frame.estimate_up` gives +z exactly where
    it is about that), so that its coordinates can be those of a map."""
    return bool(up[2] > 1 - 1e-9)


def choose_frame(up: Float[np.ndarray, "3"], frame: SceneFrame) -> GroundFrame:
    """The dataset's own axes where its z is up, so that coordinates stay; else those of the
    training world, around its origin.

    Args:
        up: unit vector, dataset.
        frame: of the scene; its world has +z up and lies around the middle of the ground.
    """
    if is_map(up):
        return GroundFrame(np.eye(3), np.zeros(3), True)
    return GroundFrame(np.array(frame.rotation), frame.to_dataset(np.zeros(3)), False)


def is_near(points: Float[np.ndarray, "n 3"], centers: Float[np.ndarray, "v 3"]) -> np.ndarray:
    """Which points belong to the place and not to its horizon or sky, bool[P]: float32 cannot hold
    both to the centimetre.

    Args:
        points: f64[P,3].
        centers: f64[V,3], where the cameras stand, in the same frame.
    """
    if not len(points):
        return np.zeros(0, bool)
    distances = np.linalg.norm(points - np.median(centers, axis=0), axis=1)
    return distances <= _NEAR_POINTS * np.median(distances)


def choose_grid(ground: Float[np.ndarray, "n 3"], pixel_size: float, memory_mb: int) -> GroundGrid:
    """The raster over what cameras saw: 1st to 99th percentile of the points and a twentieth more,
    but no more than the points.

    Args:
        ground: f64[P,3], points, ground coordinates.
        pixel_size: dataset length.
        memory_mb: the largest raster, uncompressed: a viewer must be able to hold it.
    Returns:
        A grid whose edges are whole multiples of the pixel size.
    Raises:
        InputError: there is no point, or the raster would be larger; the message has a pixel size
            that fits.
    """
    if not len(ground):
        raise InputError(
            "height map: expected SfM points, whose extent it covers, got none; give a dataset "
            "with points"
        )
    low, high = np.percentile(ground[:, :2], [1, 99], axis=0)
    margin = _EXTENT_MARGIN * (high - low)
    low = np.maximum(low - margin, ground[:, :2].min(axis=0))
    high = np.minimum(high + margin, ground[:, :2].max(axis=0))
    first = np.floor(low / pixel_size)
    end = np.ceil(high / pixel_size)
    width, height = np.maximum(end - first, 1)
    need = width * height * BYTES_PER_PIXEL / 2**20
    if need > memory_mb:
        raise InputError(
            f"geo.pixel_size: {pixel_size:.4g} gives a raster of {width:.0f}x{height:.0f} pixels, "
            f"{need:.0f} MB, expected at "
            f"most config.surface.memory_mb = {memory_mb}; set "
            f"config.geo.pixel_size={pixel_size * np.sqrt(need / memory_mb) * 1.02:.3g} or allow "
            "more memory"
        )
    top = (first[1] + height) * pixel_size
    return GroundGrid(
        left=float(first[0] * pixel_size),
        top=float(top),
        pixel_size=float(pixel_size),
        width=int(width),
        height=int(height),
    )


def height_limits(
    heights: Float[np.ndarray, " n"], camera_heights: Float[np.ndarray, " v"]
) -> tuple[float, float]:
    """The lowest and the highest that a surface may be: the 0.1st and 99.9th percentile of the
    points' heights, widened by half their range, and at least a third of the way up to the cameras.
    What is farther above (floaters) or below is no surface.

    Args:
        heights: f64[P], of the SfM points.
        camera_heights: f64[V].
    """
    low, middle, high = np.percentile(heights, [0.1, 50, 99.9])
    margin = _HEIGHT_MARGIN * (high - low)
    up_there = middle + _SHARE_OF_FLIGHT * (np.median(camera_heights) - middle)
    return float(low - margin), float(max(high + margin, up_there))
