"""How alike two pictures are: PSNR, SSIM, and the colour fit that takes exposure out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = np.ndarray | jax.Array
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def psnr(
    image: Float[AnyArray, "h w c"],
    truth: Float[AnyArray, "h w c"],
    mask: Bool[AnyArray, "h w"] | None = None,
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio for a peak of 1.

    Args:
        image: [H,W,C] in [0, 1]. Takes gradient.
        truth: [H,W,C] in [0, 1].
        mask: [H,W], True = counts; None = every pixel counts.
    Returns:
        Decibel; infinite for equal images, NaN if no pixel counts.
    """
    squared = jnp.square(jnp.asarray(image) - truth)
    if mask is None:
        return -10 * jnp.log10(squared.mean())
    weights = mask[..., None].astype(squared.dtype)
    return -10 * jnp.log10((squared * weights).sum() / (weights.sum() * squared.shape[-1]))


def _blur(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """The Gaussian window of SSIM with zeros beyond the border, as two passes of shifted sums."""
    radius = SSIM_WINDOW // 2
    window = np.exp(-np.square(np.arange(SSIM_WINDOW) - radius) / (2 * SSIM_SIGMA**2))
    window = [float(weight) for weight in window / window.sum()]
    blurred = image
    zero: Any = 0
    for axis in (0, 1):
        size = blurred.shape[axis]
        padded = jnp.pad(blurred, [(radius, radius) if a == axis else (0, 0) for a in range(3)])
        shifted = (
            weight * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
            for k, weight in enumerate(window)
        )
        blurred = sum(shifted, zero)
    return blurred


def ssim_map(
    image: Float[AnyArray, "h w c"], truth: Float[AnyArray, "h w c"]
) -> Float[Array, "h w c"]:
    """Structural similarity of every pixel and channel; see `ssim`."""
    channels = image.shape[-1]
    stacked = jnp.concatenate([image, truth, image * image, truth * truth, image * truth], axis=-1)
    mean_a, mean_b, square_a, square_b, product = (
        part for part in jnp.split(_blur(stacked), [channels * i for i in range(1, 5)], axis=-1)
    )
    variance_a = square_a - mean_a * mean_a
    variance_b = square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    return (
        (2 * mean_a * mean_b + SSIM_C1)
        * (2 * covariance + SSIM_C2)
        / (
            (mean_a * mean_a + mean_b * mean_b + SSIM_C1)
            * (jnp.maximum(variance_a + variance_b, 0) + SSIM_C2)
        )
    )


def ssim(
    image: Float[AnyArray, "h w c"],
    truth: Float[AnyArray, "h w c"],
    mask: Bool[AnyArray, "h w"] | None = None,
) -> Float[Array, ""]:
    """Structural similarity for a peak of 1, mean over pixels and channels.

    Args:
        image: [H,W,C] in [0, 1]. Takes gradient.
        truth: [H,W,C] in [0, 1]. Takes gradient.
        mask: [H,W], True = counts. Other pixels are black in both images, as if they lay beyond the
            border.
    Returns:
        At most 1.
    Source: Wang et al. 2004, Gaussian window 11x11 of sigma 1.5, C1 = 0.01^2, C2 = 0.03^2,
        variances by weights (not n-1). Zeros beyond the border, so that the map has the size of the
        image: what the papers of this field report."""
    if mask is None:
        return ssim_map(image, truth).mean()
    weights = mask[..., None].astype(image.dtype)
    values = ssim_map(image * weights, truth * weights)
    return (values * weights).sum() / (weights.sum() * values.shape[-1])


def color_correct(
    render: np.ndarray, photo: np.ndarray, mask: np.ndarray | None = None, iterations: int = 5
) -> np.ndarray:
    """Fits the colours of a render to a photograph by a quadratic map per channel and applies it.

    Args:
        render: f32[H,W,3] in [0, 1].
        photo: f32[H,W,3] in [0, 1].
        mask: bool[H,W], True = used for the fit; None = all.
        iterations: times that fit and clipping are repeated on the result.
    Returns:
        f32[H,W,3] in [0, 1].
    Source: the evaluation of RawNeRF and mip-NeRF 360 (Mildenhall et al. 2022, Barron et al. 2022):
        features are 1, the three colours, their squares and cross terms; pixels within half a grey
        level of black or white, in the render as it came, in its present state or in the
        photograph, are left out of that channel's fit. Least squares by normal equations in
        float64. Fewer than 100 usable pixels leave a channel as it is."""
    lowest = 0.5 / 255
    highest = 1 - 0.5 / 255
    # Channels in front: rows of pixels are read and written in one go.
    current = np.ascontiguousarray(render.reshape(-1, 3).T, np.float64)
    target = np.ascontiguousarray(photo.reshape(-1, 3).T, np.float64)

    def is_unclipped(values: np.ndarray) -> np.ndarray:
        return (values >= lowest) & (values <= highest)

    usable = is_unclipped(current) & is_unclipped(target)
    if mask is not None:
        usable &= mask.reshape(1, -1)
    for _ in range(iterations):
        red, green, blue = current
        features = np.stack(
            [
                np.ones_like(red),
                red,
                green,
                blue,
                red * red,
                green * green,
                blue * blue,
                red * green,
                green * blue,
                blue * red,
            ]
        )
        result = current.copy()
        for channel in range(3):
            is_used = usable[channel] & is_unclipped(current[channel])
            if is_used.sum() < 100:
                continue
            used = np.where(is_used, features, 0)
            # lstsq on the 10x10 system: a rank-deficient fit (a grey image) takes the smallest
            # solution.
            weights = np.linalg.lstsq(used @ features.T, used @ target[channel], rcond=1e-12)[0]
            result[channel] = weights @ features
        current = np.clip(result, 0, 1)
    return current.T.reshape(render.shape).astype(np.float32, order="C")
