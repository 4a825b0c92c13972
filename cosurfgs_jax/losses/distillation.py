"""How far a student's maps are from its teacher's."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_MIN_ALPHA = 1e-3  # of the student; thinner, its depth means nothing


def depth_loss(
    depth: Float[Array, "h w"],
    alpha: Float[Array, "h w"],
    teacher_depth: Float[Array, "h w"],
    mask: Float[Array, "h w"],
) -> Float[Array, ""]:
    """Mean relative difference of depth over all pixels.

    Args:
        depth: [H,W], expected camera z of the student. Takes gradient.
        alpha: [H,W], of the student; where it is almost nothing the pixel does not count.
        teacher_depth: [H,W], same unit.
        mask: [H,W], 1 where the teacher counts.
    """
    weight = jnp.where((alpha > _MIN_ALPHA) & (teacher_depth > 0), mask, 0.0)
    return (
        weight * jnp.abs(depth - teacher_depth) / jnp.where(teacher_depth > 0, teacher_depth, 1.0)
    ).mean()


def normal_loss(
    normal: Float[Array, "h w 3"], teacher_normal: Float[Array, "h w 3"], mask: Float[Array, "h w"]
) -> Float[Array, ""]:
    """Mean absolute difference of blended normals, summed over their components.

    Args:
        normal: [H,W,3], world, of the student. Takes gradient.
        teacher_normal: [H,W,3], world.
        mask: [H,W], 1 where the teacher counts.
    """
    return (mask * jnp.abs(normal - teacher_normal).sum(axis=-1)).mean()
