"""Pinhole projection, rays, unprojection and normals of depth maps, for NumPy and JAX arrays alike.

Pixel x covers [x, x+1) and its centre is x+0.5, here as everywhere. No field of view: only
intrinsics and rays.

`camera_from_world` and "world" stand here for any one frame that poses and points share: the world
of training, or the dataset's frame.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from cosurfgs_jax.types import AnyArray, image_size_of


def _product(vectors, matrix):
    return jax.numpy.matmul(vectors, matrix.T, precision="highest")


def _sums(vectors, matrix):
    x, y, z = (vectors[..., i] for i in range(3))
    return jax.numpy.stack([x * row[0] + y * row[1] + z * row[2] for row in matrix], axis=-1)


def turn(
    vectors: Float[AnyArray, "*batch 3"], matrix: Float[AnyArray, "3 3"]
) -> Float[AnyArray, "*batch 3"]:
    """A matrix times each vector, vectors @ matrix.T, never with shortened mantissas.

    On CPUs a product of matrices. For other devices it is written as the sums it is, which their
    compilers compute together with what comes before and after: a product would be a call of a
    matrix library, or a kernel of its own, that fills 3 of the 16 columns of a matrix unit and
    sends its result through memory.

    Args:
        vectors: [...,3]. Take gradient.
        matrix: [3,3]. Takes gradient.
    """
    if isinstance(vectors, np.ndarray) and isinstance(matrix, np.ndarray):
        return vectors @ matrix.T
    return jax.lax.platform_dependent(vectors, matrix, cpu=_product, default=_sums)


def camera_center(camera_from_world: Float[AnyArray, "*views 4 4"]) -> Float[AnyArray, "*views 3"]:
    """Where cameras stand.

    Args:
        camera_from_world: [...,4,4], rigid. Takes gradient.
    Returns:
        [...,3], world.
    """
    rotation: Any = camera_from_world[..., :3, :3]
    translation = camera_from_world[..., :3, 3]
    return -(rotation * translation[..., :, None]).sum(axis=-2)


def invert_rigid(camera_from_world: Float[AnyArray, "*views 4 4"]) -> Float[AnyArray, "*views 4 4"]:
    """world_from_camera of rigid camera_from_world, without a general inverse.

    Args:
        camera_from_world: [...,4,4], rigid. Takes gradient.
    Returns:
        [...,4,4].
    """
    xp = camera_from_world.__array_namespace__()
    rotation = xp.swapaxes(camera_from_world[..., :3, :3], -1, -2)
    top = xp.concatenate([rotation, camera_center(camera_from_world)[..., None]], axis=-1)
    return xp.concatenate([top, camera_from_world[..., 3:, :]], axis=-2)


def pixel_rays(
    intrinsics: Float[AnyArray, "3 3"], image_size: tuple[int, int]
) -> Float[AnyArray, "h w 3"]:
    """Rays through the pixel centres with z = 1.

    Args:
        intrinsics: [3,3], pixels, no skew. Takes gradient.
        image_size: (H, W) in pixels.
    Returns:
        [H,W,3], camera frame.
    """
    xp = intrinsics.__array_namespace__()
    height, width = image_size
    x = (xp.arange(width, dtype=intrinsics.dtype) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (xp.arange(height, dtype=intrinsics.dtype) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    x = xp.broadcast_to(x[None, :], image_size)
    y = xp.broadcast_to(y[:, None], image_size)
    return xp.stack([x, y, xp.ones_like(x)], axis=-1)


def unproject(
    depth: Float[AnyArray, "h w"],
    intrinsics: Float[AnyArray, "3 3"],
    camera_from_world: Float[AnyArray, "4 4"] | None = None,
) -> Float[AnyArray, "h w 3"]:
    """The points that a depth map shows.

    Args:
        depth: [H,W], camera z. Takes gradient.
        intrinsics: [3,3], pixels. Takes gradient.
        camera_from_world: [4,4], rigid, or None for points in the camera frame. Takes gradient.
    Returns:
        [H,W,3], world (or camera) frame, in the unit of the depth.
    """
    points: Any = pixel_rays(intrinsics, image_size_of(depth)) * depth[..., None]
    if camera_from_world is None:
        return points
    rotation: Any = camera_from_world[:3, :3]
    return turn(points - camera_from_world[:3, 3][None, None, :], rotation.T)


def project(
    points_world: Float[AnyArray, "*batch 3"],
    camera_from_world: Float[AnyArray, "4 4"],
    intrinsics: Float[AnyArray, "3 3"],
) -> tuple[Float[AnyArray, "*batch 2"], Float[AnyArray, "*batch"]]:
    """Pixels and camera z of points.

    Args:
        points_world: [...,3]. Takes gradient.
        camera_from_world: [4,4]. Takes gradient.
        intrinsics: [3,3], pixels, no skew. Takes gradient.
    Returns:
        Pixel positions [...,2] as (x, y), and camera z [...]. Positions mean nothing where z <= 0,
        but they and their gradient are finite.
    """
    xp = points_world.__array_namespace__()
    lead = (None,) * (points_world.ndim - 1)
    camera = turn(points_world, camera_from_world[:3, :3]) + camera_from_world[:3, 3][lead]
    z = camera[..., 2]
    safe_z = xp.where(z > 0, z, xp.ones_like(z))
    x = intrinsics[0, 0] * camera[..., 0] / safe_z + intrinsics[0, 2]
    y = intrinsics[1, 1] * camera[..., 1] / safe_z + intrinsics[1, 2]
    return xp.stack([x, y], axis=-1), z


def back_project(
    pixels: Float[AnyArray, "*batch 2"],
    depth: Float[AnyArray, "*batch"],
    intrinsics: Float[AnyArray, "3 3"],
) -> Float[AnyArray, "*batch 3"]:
    """The points that single pixels show.

    Args:
        pixels: [...,2] (x, y). Take gradient.
        depth: [...], camera z. Takes gradient.
        intrinsics: [3,3], pixels, no skew. Takes gradient.
    Returns:
        [...,3], camera frame, in the unit of the depth.
    """
    xp = depth.__array_namespace__()
    x = (pixels[..., 0] - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (pixels[..., 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    return xp.stack([x * depth, y * depth, depth], axis=-1)


def normals_from_depth(
    depth: Float[AnyArray, "h w"],
    intrinsics: Float[AnyArray, "3 3"],
    camera_from_world: Float[AnyArray, "4 4"] | None = None,
) -> Float[AnyArray, "h w 3"]:
    """Unit normals of a depth map by central differences, towards the camera.

    Args:
        depth: [H,W], camera z; values <= 0 mean "nothing here". Takes gradient.
        intrinsics: [3,3], pixels. Takes gradient.
        camera_from_world: [4,4], rigid, or None for normals in the camera frame. Takes gradient.
    Returns:
        [H,W,3]; zero on the one-pixel border and where one of the four neighbours has no depth.
    Source: right minus left and below minus above, in an order whose cross product looks at the
        camera, since y points down and z forward.
    """
    xp = depth.__array_namespace__()
    points = unproject(depth, intrinsics, camera_from_world)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    cross = xp.cross(down, across)
    has_depth = depth > 0
    is_valid = (
        has_depth[1:-1, 2:] & has_depth[1:-1, :-2] & has_depth[2:, 1:-1] & has_depth[:-2, 1:-1]
    )
    squared = (cross * cross).sum(axis=-1, keepdims=True)
    is_valid = is_valid[..., None] & (squared > 0)
    length = xp.sqrt(xp.where(is_valid, squared, xp.ones_like(squared)))
    inner = xp.where(is_valid, cross / length, xp.zeros_like(cross))
    return xp.pad(inner, ((1, 1), (1, 1), (0, 0)))
