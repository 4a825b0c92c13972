"""How far a render is from its photograph: absolute difference, structural similarity, and light that passes through."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosurfgs_jax import metrics
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import ffi

_F32 = np.dtype(np.float32)


@jax.custom_vjp
def _native_ssim(render, target):
    return ffi.call("cosurfgs_ssim_forward", [((), _F32)], render, target)[0]


def _native_ssim_forward(render, target):
    # One pass over the image gives value and gradient together: the four filtered images stay in the cache, where a
    # backward pass of its own would filter them again. What is kept is as large as the render.
    return ffi.call("cosurfgs_ssim_backward", [((), _F32), (render.shape, _F32)], render, target)


def _native_ssim_backward(gradient, cotangent):
    return cotangent * gradient, jnp.zeros_like(gradient)


_native_ssim.defvjp(_native_ssim_forward, _native_ssim_backward)


def _choose_backend(backend: str | None, *images: Array) -> str:
    if backend not in (None, "cpu", "reference"):
        raise InputError(f'backend: expected None, "cpu" or "reference" for ssim, got {backend!r}')
    if backend == "cpu" and ffi.why_no_cpu_library():
        raise InputError(f'backend: "cpu" was asked for, but {ffi.why_no_cpu_library()}')
    if backend is None:
        return "cpu" if ffi.has_native(*images) else "reference"
    return backend


def ssim(render: Float[Array, "h w c"], target: Float[Array, "h w c"], backend: str | None = None) -> Float[Array, ""]:
    """Structural similarity of a render and a photograph, mean over pixels and channels.

    Args:
        render: [H,W,C]. Takes gradient.
        target: [H,W,C] in [0, 1]. Takes no gradient.
        backend: "cpu" (native kernel, float32), "reference" (`metrics.ssim`), or None: native where it can run.
    Returns:
        At most 1; the definition is that of `metrics.ssim`.
    Raises:
        InputError: the images differ in shape, or the backend is unknown or not there.
    """
    if render.ndim != 3 or render.shape != target.shape:
        raise InputError(f"render, target: expected one shape [H,W,C], got {render.shape} and {target.shape}")
    target = jax.lax.stop_gradient(target)
    if _choose_backend(backend, render, target) == "reference":
        return metrics.ssim(render, target)
    return _native_ssim(*ffi.match_varying(render, target))


def photometric_loss(render: Float[Array, "h w 3"], exposed_render: Float[Array, "h w 3"],
                     target: Float[Array, "h w 3"], mask: Float[Array, "h w"] | None, ssim_weight: float,
                     backend: str | None = None) -> Float[Array, ""]:
    """(1 - w) L1(exposed render, photograph) + w (1 - SSIM(render, photograph)).

    Args:
        render: [H,W,3], canonical colours. Takes gradient.
        exposed_render: [H,W,3], the render with the photograph's exposure applied. Takes gradient.
        target: [H,W,3] in [0, 1], the photograph.
        mask: [H,W] weights in [0, 1], 0 = ignore the pixel; None = all count.
        ssim_weight: w.
        backend: see `ssim`.
    Returns:
        The loss, a mean over the pixels that count (0 if none does). Ignored pixels of the render are replaced by the
        photograph before SSIM, so that neither they nor the windows that reach them are judged; what is left of 1 -
        SSIM is divided by the share of pixels that count.
    Source: 3DGS (L1 and SSIM, w = 0.2) with the exposure of VastGaussian, which judges structure on the raw render:
    the colour transform must not be able to buy structure.
    """
    difference = jnp.abs(exposed_render - target)
    if mask is None:
        return (1 - ssim_weight) * difference.mean() + ssim_weight * (1 - ssim(render, target, backend))
    weights = mask[..., None]
    share = jnp.maximum(mask.mean(), 1 / mask.size)
    dissimilarity = 1 - ssim(weights * render + (1 - weights) * target, target, backend)
    return ((1 - ssim_weight) * (weights * difference).mean() + ssim_weight * dissimilarity) / share


def transparency_loss(alpha: Float[Array, "h w"], mask: Float[Array, "h w"] | None) -> Float[Array, ""]:
    """Mean share of light that passes through the model, over the pixels that count (0 if none does).

    Before a black background a shadow may stay half transparent at no photometric cost, and becomes a hole of the mesh; every
    pixel of a photograph shows some surface.

    Args:
        alpha: [H,W]. Takes gradient.
        mask: [H,W] weights in [0, 1], 0 = ignore the pixel; None = all count.
    """
    if mask is None:
        return 1 - alpha.mean()
    return (mask * (1 - alpha)).mean() / jnp.maximum(mask.mean(), 1 / mask.size)
