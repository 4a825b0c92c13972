"""Real spherical harmonics up to degree 3 in the basis and signs of 3DGS files, and
their rotation.
"""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.types import AnyArray

MAX_DEGREE = 3

# Orthonormal on the unit sphere; the Condon-Shortley sign (-1)^m is in the basis functions below.
C0 = math.sqrt(1 / (4 * math.pi))
C1 = math.sqrt(3 / (4 * math.pi))
C2_XY = math.sqrt(15 / (4 * math.pi))
C2_ZZ = math.sqrt(5 / (16 * math.pi))
C2_XX_YY = math.sqrt(15 / (16 * math.pi))
C3_M3 = math.sqrt(35 / (32 * math.pi))
C3_M2 = math.sqrt(105 / (4 * math.pi))
C3_M1 = math.sqrt(21 / (32 * math.pi))
C3_M0 = math.sqrt(7 / (16 * math.pi))


def num_coefficients(degree: int) -> int:
    """Coefficients per colour channel of all bands up to `degree`."""
    return (degree + 1) ** 2


def degree_of(num_coefficients: int) -> int:
    """The degree that has this many coefficients per colour channel.

    Raises:
        InputError: the number is not 1, 4, 9 or 16.
    """
    for degree in range(MAX_DEGREE + 1):
        if (degree + 1) ** 2 == num_coefficients:
            return degree
    raise InputError(f"sh: expected 1, 4, 9 or 16 coefficients, got {num_coefficients}")


def _band(degree: int, x, y, z) -> list:
    if degree == 0:
        return [0 * x + C0]
    if degree == 1:
        return [-C1 * y, C1 * z, -C1 * x]
    xx = x * x
    yy = y * y
    zz = z * z
    if degree == 2:
        return [
            C2_XY * x * y,
            -C2_XY * y * z,
            C2_ZZ * (2 * zz - xx - yy),
            -C2_XY * x * z,
            C2_XX_YY * (xx - yy),
        ]
    return [
        -C3_M3 * y * (3 * xx - yy),
        C3_M2 * x * y * z,
        -C3_M1 * y * (4 * zz - xx - yy),
        C3_M0 * z * (2 * zz - 3 * xx - 3 * yy),
        -C3_M1 * x * (4 * zz - xx - yy),
        C3_M2 / 2 * z * (xx - yy),
        -C3_M3 * x * (xx - 3 * yy),
    ]


def basis(degree: int, directions: Float[AnyArray, "*batch 3"]) -> Float[AnyArray, "*batch k"]:
    """The basis functions of all bands up to `degree`.

    Args:
        degree: 0 to 3.
        directions: [...,3], unit vectors. Takes gradient.
    Returns:
        [...,(degree+1)^2].
    Source: Kerbl et al. 2023, whose files define order and signs; the constants are those of the
        orthonormal basis.
    """
    xp = directions.__array_namespace__()
    x = directions[..., 0]
    y = directions[..., 1]
    z = directions[..., 2]
    return xp.stack(
        [value for band in range(degree + 1) for value in _band(band, x, y, z)], axis=-1
    )


def evaluate(
    degree: int, sh: Float[AnyArray, "n k 3"], directions: Float[AnyArray, "n 3"]
) -> Float[AnyArray, "n 3"]:
    """RGB of N sets of coefficients, each seen along its own direction, without the offset of 0.5
    and the clamp.

    Args:
        degree: 0 to 3; coefficients of higher bands are ignored.
        sh: [N,K,3] with K >= (degree+1)^2. Takes gradient.
        directions: [N,3], unit vectors from the camera to the surfel, in the frame of the
            coefficients. Takes gradient.
    Returns:
        [N,3].
    """
    values: Any = basis(degree, directions)
    return (values[..., None] * sh[:, : values.shape[-1]]).sum(axis=-2)


@functools.cache
def _samples(band: int) -> tuple[np.ndarray, np.ndarray]:
    # More directions than the 2*band+1 unknowns, spread by the golden angle: the inverse is well
    # conditioned.
    index = np.arange(2 * (2 * band + 1)) + 0.5
    height = 1 - 2 * index / index.size
    angle = index * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - height**2)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    return directions, np.linalg.pinv(np.stack(_band(band, *directions.T), axis=-1))


def rotate(
    sh: Float[AnyArray, "n k 3"], rotation: Float[AnyArray, "3 3"]
) -> Float[AnyArray, "n k 3"]:
    """Coefficients of the same colours after the scene was turned.

    Args:
        sh: [N,K,3], K one of 1, 4, 9, 16. Takes gradient.
        rotation: [3,3], new frame from old frame, same dtype as `sh`. Takes gradient.
    Returns:
        [N,K,3] such that evaluating them along `rotation @ d` gives what `sh` gives along `d`.
    Raises:
        InputError: K is not a square up to 16.
    Source: **ours**. A rotation maps each band onto itself, so its matrix follows from the basis at
        a few rotated directions; no recursion for Wigner matrices is needed.
    """
    xp = rotation.__array_namespace__()
    parts = [sh[:, :1]]
    for band in range(1, degree_of(sh.shape[1]) + 1):
        directions, inverse = (xp.asarray(array, dtype=rotation.dtype) for array in _samples(band))
        turned = directions @ rotation  # rotation.T applied to each direction
        matrix = inverse @ xp.stack(_band(band, turned[:, 0], turned[:, 1], turned[:, 2]), axis=-1)
        parts.append(xp.einsum("ij,njc->nic", matrix, sh[:, band**2 : (band + 1) ** 2]))
    return xp.concatenate(parts, axis=1)
