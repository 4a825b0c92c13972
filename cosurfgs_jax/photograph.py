"""A photograph as training takes it, u8[H,W,3 or 4]: RGB, and 255 in the fourth channel where the
pixel counts, 0 where it does not. The only place that says what its numbers mean, for NumPy and JAX
arrays alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from cosurfgs_jax.types import AnyArray

COUNTS = 255  # of the mask
LUMA = (0.299, 0.587, 0.114)  # brightness of red, green and blue, ITU-R BT.601
_HALF = 127  # a mask value above counts


def has_mask(photo: UInt8[AnyArray, "h w c"]) -> bool:
    """Whether some pixels may not count."""
    return photo.shape[-1] == 4


def colors_of(photo: UInt8[AnyArray, "h w c"], dtype=np.float32) -> Float[AnyArray, "h w 3"]:
    """Colours [H,W,3] in [0, 1]."""
    colors: Any = photo[..., :3]
    return colors.astype(dtype) / 255


def mask_of(photo: UInt8[AnyArray, "h w c"]) -> Bool[AnyArray, "h w"] | None:
    """Which pixels count, bool[H,W]; None: all."""
    if not has_mask(photo):
        return None
    mask: Any = photo[..., 3]
    return mask > _HALF


def weights_of(photo: UInt8[AnyArray, "h w c"], dtype=np.float32) -> Float[AnyArray, "h w"] | None:
    """The weight of each pixel in losses, [H,W] in [0, 1]; None: all count."""
    if not has_mask(photo):
        return None
    mask: Any = photo[..., 3]
    return mask.astype(dtype) / COUNTS


def gray_of(photo: UInt8[AnyArray, "h w c"]) -> Float[jax.Array, "h w"]:
    """Brightness f32[H,W] in [0, 1]."""
    weights = [weight / 255 for weight in LUMA]
    colors: Any = photo[..., :3]
    return colors.astype(jnp.float32) @ jnp.asarray(weights, jnp.float32)


def alpha_counts(alpha: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Which pixels count by an alpha channel u8[H,W] of a file."""
    return alpha > _HALF


def with_mask(photo: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 4"]:
    """A photograph with a mask, by which all counts where it had none."""
    if has_mask(photo):
        return photo
    return np.concatenate([photo, np.full((*photo.shape[:2], 1), COUNTS, np.uint8)], axis=-1)
