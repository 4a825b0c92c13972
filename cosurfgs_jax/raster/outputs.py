"""From the sums along each ray, which every backend makes, to the maps that users see."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosurfgs_jax.geometry.cameras import pixel_rays, turn
from cosurfgs_jax.native import ffi
from cosurfgs_jax.types import Camera, RenderOutput

MIN_PLANE_ALPHA = 0.5  # thinner hits have no trustworthy plane
MIN_PLANE_COSINE = 0.05  # |normal . ray| below which the plane is seen edge-on


class Drawn(NamedTuple):
    """What a draw function makes of V views; None, or an array of no element, where it was not
    asked for. Sums are over the hits of a ray with weights w = alpha T.
    """

    color: Float[Array, "v h w 3"]  # with background
    transmittance: Float[Array, "v h w"]
    depth_sum: Array | None
    median_depth: Array | None
    normal_sum: Array | None
    plane_sum: Array | None
    distortion: Array | None
    last_rank: Int[Array, "v h w"]  # of the last blended surfel, for the backward pass
    median_rank: Array | None  # likewise, of the surfel that median_depth is of
    contributions: Array | None  # f32[V,N,4]
    status: Int[Array, "v 2"]  # surfels that were skipped, pairs of surfel and tile


NUM_FLOAT_MAPS = 7  # of `Drawn`, from the front: those that take cotangents


class RawMaps(NamedTuple):
    """Sums over the hits of a ray with weights w = alpha T; None where not asked for. V views in
    front, or none.
    """

    color: Float[Array, "*views h w 3"]  # with background
    transmittance: Float[Array, "*views h w"]
    depth_sum: Float[Array, "*views h w"] | None
    median_depth: Float[Array, "*views h w"] | None
    normal_sum: Float[Array, "*views h w 3"] | None
    plane_sum: Float[Array, "*views h w"] | None
    distortion: Float[Array, "*views h w"] | None
    contributions: Float[Array, "*views n 4"] | None
    num_invalid: Int[Array, "*views"]


def _plane_depth(normal_sum, plane_sum, transmittance, pose, intrinsics, projection: str):
    """The definition: plane depth [H,W], 0 where invalid, and bool[H,W] whether it is valid."""
    alpha = 1.0 - transmittance
    rays = pixel_rays(intrinsics, transmittance.shape)
    normal_camera = turn(normal_sum, pose[:3, :3])
    if projection == "orthographic":
        # pixel_rays holds where the ray starts in x and y; it goes along z.
        facing = -normal_camera[..., 2]
        cosine = facing
        distance = plane_sum + (normal_camera * rays)[..., :2].sum(axis=-1)
    else:
        facing = -(normal_camera * rays).sum(axis=-1)
        distance = plane_sum
        cosine = facing / jnp.linalg.norm(rays, axis=-1)
    is_valid = (alpha >= MIN_PLANE_ALPHA) & (cosine >= MIN_PLANE_COSINE * alpha)
    return jnp.where(is_valid, distance / jnp.where(is_valid, facing, 1.0), 0.0), is_valid


@jax.custom_vjp
def _native_plane_depth(*operands):
    shape = operands[1].shape
    return ffi.call(
        "cosurfgs_plane_depth",
        [(shape, np.float32), (shape, np.bool_)],
        *operands,
        min_alpha=MIN_PLANE_ALPHA,
        min_cosine=MIN_PLANE_COSINE,
    )


def _native_plane_depth_backward(operands, cotangents):
    results: list[ffi.Result] = [
        (x.shape, np.float32) for x in (operands[0], operands[1], operands[3])
    ]
    grad_normal, grad_plane, grad_pose = ffi.call(
        "cosurfgs_plane_depth_backward",
        results,
        *operands,
        cotangents[0],
        min_alpha=MIN_PLANE_ALPHA,
        min_cosine=MIN_PLANE_COSINE,
    )
    return grad_normal, grad_plane, None, grad_pose, None


_native_plane_depth.defvjp(
    lambda *operands: (_native_plane_depth(*operands), operands), _native_plane_depth_backward
)


def _finish_view(raw: RawMaps, camera: Camera, projection: str, is_native: bool) -> RenderOutput:
    alpha = 1.0 - raw.transmittance
    depth = plane_depth = is_valid = None
    if raw.depth_sum is not None:
        is_hit = raw.transmittance < 1.0
        depth = jnp.where(is_hit, raw.depth_sum / jnp.where(is_hit, alpha, 1.0), 0.0)
        sums = (
            raw.normal_sum,
            raw.plane_sum,
            raw.transmittance,
            camera.camera_from_world,
            camera.intrinsics,
        )
        if is_native:
            plane_depth, is_valid = _native_plane_depth(*ffi.match_varying(*sums))
        else:
            plane_depth, is_valid = _plane_depth(*sums, projection)
    return RenderOutput(
        color=raw.color,
        alpha=alpha,
        depth=depth,
        median_depth=raw.median_depth,
        plane_depth=plane_depth,
        is_plane_depth_valid=is_valid,
        normal=raw.normal_sum,
        distortion=raw.distortion,
        contributions=raw.contributions,
        num_invalid=raw.num_invalid,
    )


def finish(
    raw: RawMaps, camera: Camera, projection: str = "perspective", is_native: bool | None = None
) -> RenderOutput:
    """The maps of `RenderOutput` from the raw sums.

    Plane depth is the blended plane distance over the cosine between blended normal and ray: both
    sums carry the same weights, so for a plane it is exact whatever the opacity (PGSR, "unbiased
    depth"). With D = sum w d, where d = -n.p of a point p on the surfel's plane, and N = sum w n,
    the blended plane is N.x + D = 0 in the camera frame. It meets x = z ray at z = D / -N.ray, and
    the parallel ray x = (X, Y, z) of an orthographic pixel at z = (D + N.x X + N.y Y) / -N.z.

    Args:
        raw: sums of one view or of V.
        camera: the same views; its rotation takes normals to the camera frame (with gradient).
        projection: that of the sums.
        is_native: whether plane depth is made by the native kernel (perspective, float32) or by its
            definition; None = by the kernel where it can run.
    Returns:
        RenderOutput with the leading axes of `raw`.
    """
    if is_native is None:
        is_native = ffi.has_native("cosurfgs_plane_depth", raw.transmittance)
    finish_view = functools.partial(
        _finish_view, projection=projection, is_native=is_native and projection == "perspective"
    )
    if camera.camera_from_world.ndim == 2:
        return finish_view(raw, camera)
    return jax.vmap(finish_view)(raw, camera)
