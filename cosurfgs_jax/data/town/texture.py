"""Painter's tools for the generated town: noise, soft masks, light, and textures that can be
sampled at several sizes.

Colours are display values (as stored in a photograph) in [0, 1]. Patterns are left out where a
texel is too coarse for them, so that no photograph shows moire.
"""

import dataclasses
from typing import Any

import numpy as np

from cosurfgs_jax.data.town.layout import SUN

# Wavelengths of the noise in metres: every surface has detail at all of them, from hedges to
# gravel.
WAVELENGTHS_M = (41.0, 19.0, 8.7, 4.1, 1.9, 0.93, 0.47, 0.26)


class Noise:
    """Smooth random fields over a rectangle, one per wavelength, evaluated in blocks of rows.

    Args:
        num_rows, num_columns: texels.
        texel: size of a texel, m.
        seed: sequence of integers.
    """

    def __init__(self, num_rows: int, num_columns: int, texel: float, seed):
        self._texel = texel
        self._num_columns = num_columns
        self._lattices = []
        for number, wavelength in enumerate(WAVELENGTHS_M):
            if texel > wavelength / 2.2:  # too fine for the texels
                self._lattices.append(None)
                continue
            rng = np.random.default_rng([*seed, number])
            cell = wavelength / 2
            shape = (int(num_rows * texel / cell) + 3, int(num_columns * texel / cell) + 3)
            lattice = rng.uniform(-1, 1, shape).astype(np.float32)
            self._lattices.append((cell, _blend_rows(lattice.T, num_columns, 0, texel / cell).T))

    def block(self, number: int, start: int, stop: int) -> np.ndarray:
        """Field of WAVELENGTHS_M[number] for rows start:stop: f32[rows, columns] in [-1, 1],
        deviation about 0.4.
        """
        found = self._lattices[number]
        if found is None:
            return np.zeros((1, 1), np.float32)
        cell, lattice = found
        return _blend_rows(lattice, stop - start, start, self._texel / cell)


def _blend_rows(lattice, count: int, start: int, step: float):
    at = (np.arange(start, start + count) + 0.5) * step
    index = at.astype(np.int64)
    weight = (at - index).astype(np.float32)
    weight = (weight * weight * (3 - 2 * weight))[:, None]
    low = lattice[index]
    return low + (lattice[index + 1] - low) * weight


def keep(period: float, texel: float) -> float:
    """How much of a pattern with this period (m) may be painted on texels of this size (m): 0 too
    fine .. 1.
    """
    return float(np.clip((period / texel - 2.0) / 1.5, 0.0, 1.0))


def cover(distance, texel: float):
    """Share of a texel that is inside, from the signed distance to the border (m,
    negative inside).
    """
    return np.clip(0.5 - distance / texel, 0.0, 1.0)


def lines(coordinate, period: float, width: float, texel: float):
    """Share of a texel covered by lines of a width (m) at multiples of a period (m), faded where
    they are too close.
    """
    offset = np.abs(coordinate - period * np.round(coordinate / period))
    covered = np.clip((width / 2 + texel / 2 - offset) / texel, 0.0, min(1.0, width / texel))
    return covered * keep(period, texel)


def per_tile(column, row, style: int):
    """A random number in [-1, 1] for every integer tile (arrays that broadcast), f32."""
    key = column.astype(np.uint32) * np.uint32(0x9E3779B1) ^ row.astype(np.uint32) * np.uint32(
        0x85EBCA77
    )
    key = key ^ np.uint32((style * 0xC2B2AE3D) & 0xFFFFFFFF)
    key = (key ^ key >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    key = (key ^ key >> np.uint32(12)) * np.uint32(0x297A2D39)
    key = key ^ key >> np.uint32(15)
    return (key >> np.uint32(8)).astype(np.float32) * np.float32(2.0 / (1 << 24)) - np.float32(1.0)


def blend(color, other, weight):
    """Paint `other` over `color` (lists of three channels, numbers or arrays) with a weight in [0,
    1].
    """
    return [below + (above - below) * weight for below, above in zip(color, other, strict=True)]


def scale(color, factor):
    """A colour (list of three channels) times a factor."""
    return [channel * factor for channel in color]


def light(normal_z, towards_sun, shadow):
    """Brightness of a matt surface: 1.1 on level ground in the sun, 0.47 in the shadow.

    Args:
        normal_z: upward part of the unit normal: how much of the sky lights the surface.
        towards_sun: cosine between normal and sun.
        shadow: fraction of the sun that is blocked.
    """
    sky = 0.35 + 0.12 * normal_z
    return sky + 0.63 / float(SUN[2]) * np.maximum(towards_sun, 0.0) * (1 - shadow)


def pack(color) -> np.ndarray:
    """Three channels in [0, 1] (arrays of one shape) as 8-bit numbers in one u32: red lowest."""
    packed: Any = 0
    for number, channel in enumerate(color):
        level = np.clip(channel * 255 + 0.5, 0, 255).astype(np.uint32)
        packed = packed | level << np.uint32(8 * number)
    return packed


@dataclasses.dataclass(frozen=True)
class Texture:
    """A picture at full size and at halved sizes.

    | field    | shape          | meaning                                               |
    |----------|----------------|-------------------------------------------------------|
    | `levels` | tuple u32[h,w] | packed colours; each level has half the previous size |
    | `texel`  | float          | size of a texel of the first level, m                 |
    """

    levels: tuple[np.ndarray, ...]
    texel: float

    def sample(self, u, v, pixel) -> list[np.ndarray]:
        """Colours at texel coordinates of the first level (x+0.5 is the centre of texel x).

        Args:
            u, v: f32[n] column and row coordinates; those outside take the border.
            pixel: f32[n] size of the sample on the surface, m: chooses the level.
        Returns:
            Three arrays f32[n] in [0, 255].
        """
        # A level serves samples from 0.75 to 1.5 of its texel: sharper than the texel would alias,
        # coarser would blur.
        limits = self.texel * 1.5 * 2.0 ** np.arange(len(self.levels) - 1)
        number = np.zeros(len(u), np.int8)
        for limit in limits.tolist():
            number += pixel > limit
        result = None
        for level in range(len(self.levels)):
            chosen = np.flatnonzero(number == level)
            if len(chosen) == len(u):
                return self._sample_level(level, u, v)
            if len(chosen):
                result = result or [np.empty(len(u), np.float32) for _ in range(3)]
                part = self._sample_level(level, u[chosen], v[chosen])
                for whole, values in zip(result, part, strict=True):
                    whole[chosen] = values
        return result or [np.empty(0, np.float32)] * 3

    def _sample_level(self, level, u, v):
        picture = self.levels[level]
        height, width = picture.shape
        factor = np.float32(0.5**level)
        u = np.clip(u * factor - np.float32(0.5), 0, np.float32(width - 1.001))
        v = np.clip(v * factor - np.float32(0.5), 0, np.float32(height - 1.001))
        column = u.astype(np.int32)
        row = v.astype(np.int32)
        u -= column
        v -= row
        index = row.astype(np.int64) * width + column
        flat = picture.reshape(-1)
        result = [0, 0, 0]
        for offset, weight in (
            (0, (1 - u) * (1 - v)),
            (1, u * (1 - v)),
            (width, (1 - u) * v),
            (width + 1, u * v),
        ):
            texels = flat[index + offset]
            for channel in range(3):
                value = (texels >> np.uint32(8 * channel)) & np.uint32(255)
                result[channel] = result[channel] + value.astype(np.float32) * weight
        return result


def make_texture(picture: np.ndarray, texel: float, num_levels: int) -> Texture:
    """A texture from its packed first level u32[h,w], both sides divisible by 2^(num_levels-1)."""
    levels = [picture]
    for _ in range(num_levels - 1):
        # Red and blue in one word, green in another: sums of four 8-bit values fit beside each
        # other.
        last = levels[-1]
        sums = []
        for part in (last & np.uint32(0xFF00FF), last >> np.uint32(8) & np.uint32(0xFF)):
            sums.append(part[0::2, 0::2] + part[1::2, 0::2] + part[0::2, 1::2] + part[1::2, 1::2])
        red_blue = (sums[0] + np.uint32(0x020002)) >> np.uint32(2) & np.uint32(0xFF00FF)
        green = (sums[1] + np.uint32(2)) >> np.uint32(2)
        levels.append(red_blue | green << np.uint32(8))
    return Texture(tuple(levels), texel)
