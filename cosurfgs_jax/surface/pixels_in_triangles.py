"""The pixels of a square picture whose middle is in triangles. NumPy."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CANDIDATES = 2_000_000  # pixels of triangles' boxes at a time, 60 to 100 bytes each
_ROUNDING = 1e-6  # of a triangle: pixels on the edge between two belong to both


class Covered(NamedTuple):
    """P pixels, triangle by triangle; one that several triangles cover comes once for each.

    | field      | shape    | unit, frame                                                    |
    |------------|----------|----------------------------------------------------------------|
    | `pixel`    | i64[P]   | row * side + column                                            |
    | `triangle` | i64[P]   | number                                                         |
    | `weights`  | f64[P,3] | barycentric, of the triangle's corners; down to -1e-6 at edges |
    """

    pixel: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray


def pixels_in_triangles(corners: Float[np.ndarray, "f 3 2"], side: int) -> Iterator[Covered]:
    """The pixels in some triangles, part by part; those without area have none.

    Args:
        corners: column and row; the picture reaches from 0 to `side`.
        side: pixels along a side.
    """
    # Middles of pixels within the box of each triangle.
    first = np.clip(np.ceil(corners.min(axis=1) - 0.5), 0, side).astype(np.int64)
    last = np.clip(np.floor(corners.max(axis=1) - 0.5), -1, side - 1).astype(np.int64)
    extent = np.maximum(last - first + 1, 0)
    counts = extent[:, 0] * extent[:, 1]
    part = np.cumsum(counts) // _CANDIDATES
    for chosen in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(part)) + 1):
        number = np.repeat(chosen, counts[chosen])
        ends = np.cumsum(counts[chosen])
        within = np.arange(len(number)) - np.repeat(ends - counts[chosen], counts[chosen])
        width = np.maximum(extent[number, 0], 1)
        place = first[number] + np.stack([within % width, within // width], axis=1)
        weights, is_inside = _weights(corners, number, place + 0.5)
        pixel = place[:, 1] * side + place[:, 0]
        yield Covered(pixel[is_inside], number[is_inside], weights[is_inside])


def _weights(
    corners: np.ndarray, number: np.ndarray, middle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric weights f64[p,3] of places in triangles `number`, and whether each is inside."""
    base = corners[:, 0]
    one = corners[:, 1] - base
    two = corners[:, 2] - base
    area = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
    scale = 1 / np.where(area == 0, np.inf, area)[number]
    x, y = (middle - base[number]).T
    second = (x * two[number, 1] - y * two[number, 0]) * scale
    third = (y * one[number, 0] - x * one[number, 1]) * scale
    weights = np.stack([1 - second - third, second, third], axis=1)
    return weights, (weights >= -_ROUNDING).all(axis=1) & (scale != 0)
