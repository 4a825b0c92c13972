"""How far a render is from its photograph: absolute difference, structural similarity, and light
that passes through.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from cosurfgs_jax import metrics, photograph
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.inputs import LossView
from cosurfgs_jax.losses.term import LossTerm, TermValue
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import Settings

_F32 = np.dtype(np.float32)
_TARGET = "cosurfgs_photometric_losses"


class PhotometricWeights(NamedTuple):
    """Static numbers, 0 or more."""

    ssim: float  # at most 1, see `photometric_loss`
    transparency: float = 0.0  # of `transparency_loss`
    photometric: float = 1.0  # of `photometric_loss`


class PhotometricLosses(NamedTuple):
    """Scalars; only `total` takes gradient."""

    total: Float[Array, ""]  # weighted sum
    psnr: Float[Array, ""]  # of the exposed render, clipped to [0, 1]; NaN where no pixel counts


@jax.custom_vjp
def apply_exposure(
    render: Float[Array, "h w 3"], transform: Float[Array, "3 4"]
) -> Float[Array, "h w 3"]:
    """A render as the photograph would show it: matrix @ colour + offset, for every pixel; not
    clipped.

    Args:
        render: [H,W,3], canonical colours. Takes gradient.
        transform: [3,4], matrix and offset (see `exposure_model`). Takes gradient.
    """
    return (
        render[..., 0:1] * transform[None, None, :, 0]
        + render[..., 1:2] * transform[None, None, :, 1]
        + render[..., 2:3] * transform[None, None, :, 2]
        + transform[None, None, :, 3]
    )


def _apply_exposure_backward(residuals, cotangent):
    # JAX's own derivative of the lines above turns slices into padded sums, which takes five times
    # as long.
    render, transform = residuals
    grad_render = apply_exposure(
        cotangent, jnp.zeros((3, 4), transform.dtype).at[:, :3].set(transform[:, :3].T)
    )
    inputs = jnp.moveaxis(render, -1, 0)
    channels = jnp.moveaxis(cotangent, -1, 0)
    grad_transform = [
        [(channel * value).sum() for value in inputs] + [channel.sum()] for channel in channels
    ]
    return grad_render, jnp.stack([jnp.stack(row) for row in grad_transform])


apply_exposure.defvjp(
    lambda render, transform: (apply_exposure(render, transform), (render, transform)),
    _apply_exposure_backward,
)


def photometric_loss(
    render: Float[Array, "h w 3"],
    exposed_render: Float[Array, "h w 3"],
    target: Float[Array, "h w 3"],
    mask: Float[Array, "h w"] | None,
    ssim_weight: float,
) -> Float[Array, ""]:
    """(1 - w) L1(exposed render, photograph) + w (1 - SSIM(render, photograph)).

    Args:
        render: [H,W,3], canonical colours. Takes gradient.
        exposed_render: [H,W,3], the render with the photograph's exposure applied. Takes gradient.
        target: [H,W,3] in [0, 1], the photograph. Takes no gradient.
        mask: [H,W] weights in [0, 1], 0 = ignore the pixel; None = all count.
        ssim_weight: w.
    Returns:
        The loss, a mean over the pixels that count (0 if none does). Ignored pixels of the render
        are replaced by the photograph before SSIM, so that neither they nor the windows that reach
        them are judged; what is left of 1 - SSIM is divided by the fraction of pixels that count.
    Source: 3DGS (L1 and SSIM, w = 0.2) with the exposure of VastGaussian, which judges structure on
        the raw render:
    the colour transform must not be able to buy structure.
    """
    target = jax.lax.stop_gradient(target)
    difference = jnp.abs(exposed_render - target)
    if mask is None:
        return (1 - ssim_weight) * difference.mean() + ssim_weight * (
            1 - metrics.ssim(render, target)
        )
    weights = mask[..., None]
    fraction = jnp.maximum(mask.mean(), 1 / mask.size)
    dissimilarity = 1 - metrics.ssim(weights * render + (1 - weights) * target, target)
    # Where no pixel counts, the rounding of SSIM must not be all that is left.
    dissimilarity = jnp.where(mask.any(), dissimilarity, 0.0)
    return (
        (1 - ssim_weight) * (weights * difference).mean() + ssim_weight * dissimilarity
    ) / fraction


def transparency_loss(
    alpha: Float[Array, "h w"], mask: Float[Array, "h w"] | None
) -> Float[Array, ""]:
    """Mean square of the fraction of light that passes through the model, over the pixels that
    count (0 if none does).

    Before a black background a shadow may stay half transparent at no photometric cost, and becomes
    a hole of the mesh; every pixel of a photograph shows some surface. The square leaves the last
    per cent nearly free, which costs less of the sharpness than the plain fraction.

    Args:
        alpha: [H,W]. Takes gradient.
        mask: [H,W] weights in [0, 1], 0 = ignore the pixel; None = all count.
    """
    squared = jnp.square(1 - alpha)
    if mask is None:
        return squared.mean()
    return (mask * squared).mean() / jnp.maximum(mask.mean(), 1 / mask.size)


def _reference(
    render, alpha, transform, photo, mask, weights: PhotometricWeights
) -> PhotometricLosses:
    target = photograph.colors_of(photo, render.dtype)
    pixel_weights = photograph.weights_of(photo, render.dtype)
    is_counted = None
    if mask is not None:
        if pixel_weights is None:
            pixel_weights = jnp.ones(mask.shape, render.dtype)
        pixel_weights = jnp.where(mask, pixel_weights, 0.0)
    if pixel_weights is not None:
        is_counted = pixel_weights > 0.5
    exposed = render
    if transform is not None:
        exposed = apply_exposure(*ffi.match_varying(render, transform))
    total = weights.photometric * photometric_loss(
        render, exposed, target, pixel_weights, weights.ssim
    )
    if weights.transparency > 0:
        total += weights.transparency * transparency_loss(alpha, pixel_weights)
    psnr = metrics.psnr(jnp.clip(exposed, 0, 1), target, is_counted)
    return PhotometricLosses(total, jax.lax.stop_gradient(psnr))


def _call(weights: PhotometricWeights, render, alpha, transform, photo, mask):
    results = [((2,), _F32), (render.shape, _F32), (alpha.shape, _F32), (transform.shape, _F32)]
    return ffi.call(
        _TARGET,
        results,
        render,
        alpha,
        transform,
        photo,
        mask,
        color_weight=float(weights.photometric * (1 - weights.ssim)),
        ssim_weight=float(weights.photometric * weights.ssim),
        light_weight=float(weights.transparency),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native(weights: PhotometricWeights, render, alpha, transform, photo, mask):
    return _call(weights, render, alpha, transform, photo, mask)[0]


def _native_forward(weights, *operands):
    # One call gives the losses and their derivatives: the filtered images of SSIM are at hand,
    # which a backward pass of its own would have to keep or filter again.
    losses, *gradients = _call(weights, *operands)
    return losses, gradients


def _native_backward(weights, gradients, cotangent):
    del weights
    return *(cotangent[0] * gradient for gradient in gradients), None, None


_native.defvjp(_native_forward, _native_backward)


def photometric_losses(
    render: Float[Array, "h w 3"],
    alpha: Float[Array, "h w"],
    photo: UInt8[Array, "h w c"],
    mask: Bool[Array, "h w"] | None,
    transform: Float[Array, "3 4"] | None,
    weights: PhotometricWeights,
    backend: str | None = None,
) -> PhotometricLosses:
    """All that compares a render with its photograph: `photometric_loss`, `transparency_loss`, and
    the PSNR to show.

    Args:
        render: [H,W,3], canonical colours. Takes gradient.
        alpha: [H,W]. Takes gradient.
        photo: u8[H,W,3], or with 255 in a fourth channel where the pixel counts (between 0 and 255:
            its weight).
        mask: [H,W], False = ignore the pixel, too; None = the photograph decides alone.
        transform: [3,4], from canonical colours to the photograph's (see `apply_exposure`). Takes
            gradient. None = none.
        weights: static.
        backend: "cpu" or "cuda" (native kernels, float32), "reference" (plain JAX), or None: native
            where it can run.
    Raises:
        InputError: operands that do not fit, an unknown backend, or one that is not there.
    """
    shape = render.shape[:2]
    if (
        photo.ndim != 3
        or photo.shape[:2] != shape
        or photo.shape[2] not in (3, 4)
        or alpha.shape != shape
    ):
        raise InputError(
            f"photo, alpha: expected [H,W,3 or 4] and [H,W] of a render {render.shape}, got "
            f"{photo.shape} and "
            f"{alpha.shape}"
        )
    if not ffi.choose_native("photometric losses", _TARGET, backend, render, alpha):
        return _reference(render, alpha, transform, photo, mask, weights)
    if transform is None:
        transform = jnp.eye(3, 4)
    if mask is None:
        mask = jnp.zeros((0, 0), bool)
    losses = _native(weights, *ffi.match_varying(render, alpha, transform, photo, mask))
    return PhotometricLosses(losses[0], jax.lax.stop_gradient(losses[1]))


def _evaluate(view: LossView, settings: Settings) -> TermValue:
    is_alone = view.teacher is None
    weights = PhotometricWeights(
        settings.loss.ssim_weight,
        settings.loss.transparency_weight,
        photometric=1.0 if is_alone else 1 - settings.mas.teacher_weight,
    )
    total, psnr = photometric_losses(
        view.out.color, view.out.alpha, view.photo, view.is_photo_valid, view.transform, weights
    )
    return TermValue(total, {"psnr/train": psnr})


TERM = LossTerm("photometric", lambda settings, phase: True, _evaluate)
