"""Which surfels a view may show: a test that costs little, before anything of them is computed."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.raster.reference import MIN_ALPHA
from cosurfgs_jax.types import Camera, Surfels

# Standard deviations at which an opaque surfel falls below MIN_ALPHA, with a margin for rounding.
REACH = math.sqrt(2 * math.log(1 / MIN_ALPHA)) * 1.001
_MARGIN_PX = 4.0  # wider than the screen-space filter reaches


class Discs(NamedTuple):
    """What the test reads of N surfels."""

    means: Float[Array, "n 3"]
    log_scales: Float[Array, "n 2"]
    alive: Bool[Array, " n"]


def may_be_seen(
    surfels: Surfels | Discs,
    camera: Camera,
    image_size: tuple[int, int] | Float[Array, "2"],
    near: float,
) -> Bool[Array, " n"]:
    """Whether the sphere around each living surfel meets the view's frustum.

    Never False for a surfel that the rasterizer draws, or skips because a value is not finite.
    Takes no gradient.

    Args:
        surfels: N.
        camera: one, perspective.
        image_size: (H, W) in pixels.
        near: world length; surfels whose centre is nearer are not drawn.
    """
    height, width = image_size
    pose = camera.camera_from_world
    x, y, z = (
        surfels.means[:, 0] * pose[i, 0]
        + surfels.means[:, 1] * pose[i, 1]
        + surfels.means[:, 2] * pose[i, 2]
        + pose[i, 3]
        for i in range(3)
    )
    radius = REACH * jnp.exp(surfels.log_scales.max(axis=1))
    fx = camera.intrinsics[0, 0]
    fy = camera.intrinsics[1, 1]
    cx = camera.intrinsics[0, 2]
    cy = camera.intrinsics[1, 2]
    is_seen = surfels.alive & ~(z <= near)
    # A side of the frustum: the half-space in which focal * across + reach * z > 0.
    for across, focal, reach in (
        (x, fx, cx + _MARGIN_PX),
        (-x, fx, width - cx + _MARGIN_PX),
        (y, fy, cy + _MARGIN_PX),
        (-y, fy, height - cy + _MARGIN_PX),
    ):
        distance = (focal * across + reach * z) / jnp.sqrt(focal * focal + reach * reach)
        is_seen &= ~(distance < -radius)
    return is_seen
