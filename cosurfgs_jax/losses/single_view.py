"""SV-Reg: within one view, the rendered normals are those of the rendered depth."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.types import Camera, RenderOutput, drawn


def edge_weights(gray: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """(1 - g)^2 with g the length of the image's gradient over its maximum: little weight where
    depth may jump.

    Args:
        gray: [H,W].
    Returns:
        [H,W] in [0, 1]; 0 on the one-pixel border.
    Source: PGSR (Chen et al. 2024), edge-aware single-view loss.
    """
    across = gray[1:-1, 2:] - gray[1:-1, :-2]
    down = gray[2:, 1:-1] - gray[:-2, 1:-1]
    length = jnp.sqrt(across * across + down * down)
    relative = length / jnp.maximum(length.max(), 1e-6)
    return jnp.pad((1 - relative) ** 2, 1)


def single_view_loss(
    out: RenderOutput,
    camera: Camera,
    gray: Float[Array, "h w"],
    mask: Float[Array, "h w"] | None = None,
) -> Float[Array, ""]:
    """Mean over all pixels of w |A N_depth - N_render|, the absolute values summed over the three
    components.

    Args:
        out: maps of one view with plane depth, its validity, normals and alpha. Depth and normals
            take gradient, alpha none.
        camera: of the view. Takes no gradient.
        gray: [H,W], the photograph, for `edge_weights`.
        mask: [H,W], 0 = ignore the pixel; None = all count.
    Returns:
        The loss. Pixels without a valid plane depth at themselves and their four neighbours do not
        count.
    Source: PGSR (Chen et al. 2024). N_depth are the normals of the plane depth by central
        differences, times the alpha that the blended normals carry.
    """
    pose = jax.lax.stop_gradient(camera.camera_from_world)
    from_depth = cameras.normals_from_depth(drawn(out.plane_depth), camera.intrinsics, pose)
    is_valid = (from_depth != 0).any(axis=-1) & drawn(out.is_plane_depth_valid)
    weight = jnp.where(is_valid, edge_weights(gray), 0.0)
    if mask is not None:
        weight = weight * mask
    alpha = jax.lax.stop_gradient(out.alpha)
    normal = drawn(out.normal)
    return (weight * jnp.abs(alpha[..., None] * from_depth - normal).sum(axis=-1)).mean()
