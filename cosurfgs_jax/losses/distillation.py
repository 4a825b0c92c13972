"""How far a student's maps are from its teacher's."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.losses.inputs import IS_TEACHER_VALID, LossView
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
from cosurfgs_jax.losses.term import LossTerm, Phase, TermValue, weighted_term
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import drawn

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


def _is_taught(view: LossView) -> Bool[Array, "h w"]:
    return (view.taught.flags & IS_TEACHER_VALID) > 0


def _color_weight(settings: Settings, phase: Phase) -> float:
    return settings.mas.teacher_weight * phase.is_distillation


def _depth_weight(settings: Settings, phase: Phase) -> float:
    return settings.mas.depth_weight * phase.is_distillation


def _normal_weight(settings: Settings, phase: Phase) -> float:
    return settings.mas.normal_weight * phase.is_distillation


def _color(view: LossView, settings: Settings) -> TermValue:
    # The weight goes into the call, as that of the photograph does.
    weights = PhotometricWeights(settings.loss.ssim_weight, photometric=settings.mas.teacher_weight)
    total, psnr = photometric_losses(
        view.out.color, view.out.alpha, view.taught.color, _is_taught(view), None, weights
    )
    return TermValue(total, {"psnr/teacher": psnr})


def _depth(view: LossView, _: Settings) -> Float[Array, ""]:
    mask = _is_taught(view).astype(jnp.float32)
    return depth_loss(drawn(view.out.depth), view.out.alpha, view.taught.depth, mask)


def _normal(view: LossView, _: Settings) -> Float[Array, ""]:
    mask = _is_taught(view).astype(jnp.float32)
    return normal_loss(drawn(view.out.normal), view.taught.normal.astype(jnp.float32) / 127, mask)


COLOR_TERM = LossTerm(
    "teacher_color", lambda settings, phase: _color_weight(settings, phase) > 0, _color
)
DEPTH_TERM = weighted_term("teacher_depth", _depth_weight, _depth, maps=Maps.GEOMETRY)
NORMAL_TERM = weighted_term("teacher_normal", _normal_weight, _normal, maps=Maps.GEOMETRY)
