"""Images of 16 bits a value, as Pillow has them."""

from typing import Any

import numpy as np
from PIL import Image

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether an image that is open, and not decoded yet, has 16 bits a value.

    Of colours Pillow keeps the upper eight; how it is told to decode them names both.
    """
    tiles: Any = getattr(image, "tile", None) or []
    return image.mode in SIXTEEN_BIT_MODES or ";16" in str([tile[3] for tile in tiles[:1]])


def eight_bit(image: Image.Image) -> Image.Image:
    """The image with 16-bit values v as v/257."""
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image
