"""What lies within the pictures of pinhole cameras, as half-spaces."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_SIDES = 5  # of a frustum without an end: its four sides and the plane of the camera


def frustum_planes(
    camera_from_world: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int]
) -> Float[np.ndarray, "5 4"]:
    """The half-spaces in which lies all that a picture shows, and nothing else.

    Args:
        camera_from_world: [4,4], rigid. intrinsics: [3,3], pixels, no skew.
        image_size: (H, W) in pixels.
    Returns:
        f32: a point p, world, is shown where `planes @ [p, 1] >= 0` for all five.
    """
    height, width = image_size
    x, y, z = np.asarray(camera_from_world, np.float64)[:3]
    across = intrinsics[0, 0] * x + intrinsics[0, 2] * z
    down = intrinsics[1, 1] * y + intrinsics[1, 2] * z
    return np.stack([across, width * z - across, down, height * z - down, z]).astype(np.float32)


def blank_planes(num_views: int) -> Float[np.ndarray, "v 5 4"]:
    """Of cameras that show nothing."""
    planes = np.zeros((num_views, NUM_SIDES, 4), np.float32)
    planes[..., 3] = -1
    return planes


def num_showing(
    points: Float[Array, "n 3"], planes: Float[Array, "v 5 4"] | np.ndarray
) -> Int[Array, " n"]:
    """How many of V pictures show each point, hidden or not.

    Args:
        points: world.
        planes: of each camera.
    """
    # One product of matrices a camera, and nothing that could be fused with it: its last bits are
    # the same on any number of devices.
    placed = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1)

    def add(count, sides):
        distances = jnp.matmul(placed, sides.T, precision=jax.lax.Precision.HIGHEST)
        return count + (distances >= 0).all(axis=1).astype(jnp.int32), None

    count, _ = jax.lax.scan(add, points[:, 0].astype(jnp.int32) * 0, jnp.asarray(planes))
    return count
