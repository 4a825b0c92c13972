"""From the sums along each ray, which every backend makes, to the maps that users see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cosurfgs_jax.geometry.cameras import pixel_rays
from cosurfgs_jax.types import Camera, RenderOutput

MIN_PLANE_ALPHA = 0.5  # thinner hits have no trustworthy plane
MIN_PLANE_COSINE = 0.05  # |normal . ray| below which the plane is seen edge-on


class RawMaps(NamedTuple):
    """Sums over the hits of a ray with weights w = alpha T; None where not asked for. V views in front, or none."""

    color: Float[Array, "*views h w 3"]  # with background
    transmittance: Float[Array, "*views h w"]
    depth_sum: Float[Array, "*views h w"] | None
    median_depth: Float[Array, "*views h w"] | None
    normal_sum: Float[Array, "*views h w 3"] | None
    plane_sum: Float[Array, "*views h w"] | None
    distortion: Float[Array, "*views h w"] | None
    contributions: Float[Array, "*views n 4"] | None
    num_invalid: Int[Array, "*views"]


def _finish_view(raw: RawMaps, camera: Camera, projection: str) -> RenderOutput:
    alpha = 1.0 - raw.transmittance
    depth = plane_depth = is_valid = None
    if raw.depth_sum is not None:
        is_hit = raw.transmittance < 1.0
        depth = jnp.where(is_hit, raw.depth_sum / jnp.where(is_hit, alpha, 1.0), 0.0)
        rays = pixel_rays(camera.intrinsics, alpha.shape)
        rotation = camera.camera_from_world[:3, :3]
        # GPUs would multiply with 10-bit mantissas (TF32) by default.
        normal_camera = jnp.matmul(raw.normal_sum, rotation.T, precision="highest")
        if projection == "orthographic":  # pixel_rays holds where the ray starts in x and y; it goes along z
            facing = cosine = -normal_camera[..., 2]
            distance = raw.plane_sum + (normal_camera * rays)[..., :2].sum(axis=-1)
        else:
            facing, distance = -(normal_camera * rays).sum(axis=-1), raw.plane_sum
            cosine = facing / jnp.linalg.norm(rays, axis=-1)
        is_valid = (alpha >= MIN_PLANE_ALPHA) & (cosine >= MIN_PLANE_COSINE * alpha)
        plane_depth = jnp.where(is_valid, distance / jnp.where(is_valid, facing, 1.0), 0.0)
    return RenderOutput(color=raw.color, alpha=alpha, depth=depth, median_depth=raw.median_depth,
                        plane_depth=plane_depth, is_plane_depth_valid=is_valid, normal=raw.normal_sum,
                        distortion=raw.distortion, contributions=raw.contributions, num_invalid=raw.num_invalid)


def finish(raw: RawMaps, camera: Camera, projection: str = "perspective") -> RenderOutput:
    """The maps of `RenderOutput` from the raw sums.

    Plane depth is the blended plane distance over the cosine between blended normal and ray: both sums carry the same
    weights, so for a plane it is exact whatever the opacity (PGSR, "unbiased depth"). With D = sum w d, where d = -n.p of a
    point p on the surfel's plane, and N = sum w n, the blended plane is N.x + D = 0 in the camera frame. It meets x = z ray at
    z = D / -N.ray, and the parallel ray x = (X, Y, z) of an orthographic pixel at z = (D + N.x X + N.y Y) / -N.z.

    Args:
        raw: sums of one view or of V.
        camera: the same views; its rotation takes normals to the camera frame (with gradient).
        projection: that of the sums.
    Returns:
        RenderOutput with the leading axes of `raw`.
    """
    if camera.camera_from_world.ndim == 2:
        return _finish_view(raw, camera, projection)
    return jax.vmap(lambda raw, camera: _finish_view(raw, camera, projection))(raw, camera)
