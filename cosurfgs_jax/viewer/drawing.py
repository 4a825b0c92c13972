"""What a camera of the page sees of a model: a picture, and how far each of its pixels is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from cosurfgs_jax import pictures
from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.raster import Maps, RasterOptions
from cosurfgs_jax.training.world_cameras import render_compiled
from cosurfgs_jax.types import Camera, Surfels, on_host

KINDS = ("colour", "depth", "normals", "opacity")
# Sizes are multiples of this: a browser's window changes by single pixels, and each new size is
# compiled.
_STEP = 16
# The page hides what lies behind the picture's depth; this is behind everything.
_FAR = 150.0


class PageCamera(NamedTuple):
    """A camera as viser describes it, in the world of training.

    | field      | shape    | unit                                                       |
    |------------|----------|------------------------------------------------------------|
    | `wxyz`     | f64[4]   | rotation to the world; camera x right, y down, z forward   |
    | `position` | f64[3]   | world                                                      |
    | `fov`      |          | radians, from the lower to the upper side                  |
    | `aspect`   |          | width over height                                          |
    """

    wxyz: np.ndarray
    position: np.ndarray
    fov: float
    aspect: float

    def image_size(self, long_side: int) -> tuple[int, int]:
        """(H, W) of about the camera's aspect, the longer one near `long_side`."""
        longest = max(self.aspect, 1.0)
        sides = (long_side / longest, long_side * self.aspect / longest)
        height, width = (max(_STEP, round(side / _STEP) * _STEP) for side in sides)
        return height, width

    def camera(self, size: tuple[int, int]) -> Camera:
        """The camera of a picture of (H, W), which the page stretches to its aspect."""
        height, width = size
        rotation = matrix_from_quat(np.asarray(self.wxyz, np.float64)).T
        pose = np.eye(4, dtype=np.float64)
        pose[:3, :3] = rotation
        pose[:3, 3] = -rotation @ np.asarray(self.position, np.float64)
        half_height = np.tan(self.fov / 2)
        intrinsics = np.array(
            [
                [width / 2 / (half_height * self.aspect), 0, width / 2],
                [0, height / 2 / half_height, height / 2],
                [0, 0, 1],
            ]
        )
        return Camera(on_host(pose.astype(np.float32)), on_host(intrinsics.astype(np.float32)))


def draw(
    surfels: Surfels,
    camera: Camera,
    size: tuple[int, int],
    kind: str,
    options: RasterOptions,
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Draws a model.

    Args:
        surfels: the model, world frame.
        camera: world frame.
        size: (H, W) of the picture.
        kind: one of `KINDS`.
        options: of the rasterizer.
    Returns:
        The picture, and the depth of its pixels, world; far away where there is nothing.
    """
    out = render_compiled(surfels, camera, image_size=size, options=options, maps=Maps.GEOMETRY)
    depth = np.asarray(out.depth, np.float32)
    shown = {
        "colour": lambda: pictures.to_uint8(np.asarray(out.color)),
        "depth": lambda: pictures.colorize_depth(depth),
        "normals": lambda: pictures.colorize_normals(
            np.asarray(out.normal), np.asarray(camera.camera_from_world)
        ),
        "opacity": lambda: pictures.ramp(np.asarray(out.alpha)),
    }
    return shown[kind](), np.where(depth > 0, depth, np.float32(_FAR))
