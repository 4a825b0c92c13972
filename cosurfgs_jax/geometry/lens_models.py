"""The camera models of COLMAP: their formulas of distortion and their parameters. NumPy, float64.

Perspective models act on normalised coordinates, fisheye models on the *angle vector*, the unit
image direction times the angle to the axis.

Source: the camera models of COLMAP and their names; FOV: Devernay and Faugeras 2001; division:
    Fitzgibbon 2001; EUCM: Khomutenko et al. 2016; the thin-prism fisheye of sixteen parameters is
    Project Aria's.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cosurfgs_jax.errors import InputError


def _radial(points, *k):
    """Points times 1 + k1 r^2 + k2 r^4 + ..."""
    squared = (points * points).sum(-1, keepdims=True)
    factor = np.zeros_like(squared)
    for coefficient in reversed(k):
        factor = (factor + coefficient) * squared
    return points * (1 + factor)


def _tangential(points, p1, p2):
    """The shift of decentred lens elements (Brown), in OpenCV's order of coefficients."""
    x = points[..., 0]
    y = points[..., 1]
    squared = x * x + y * y
    shift_x = 2 * p1 * x * y + p2 * (squared + 2 * x * x)
    shift_y = 2 * p2 * x * y + p1 * (squared + 2 * y * y)
    return np.stack([shift_x, shift_y], axis=-1)


def _brown(points, k1, k2, p1, p2):
    return _radial(points, k1, k2) + _tangential(points, p1, p2)


def _rational(points, k1, k2, p1, p2, k3, k4, k5, k6):
    squared = (points * points).sum(-1, keepdims=True)
    numerator = 1 + squared * (k1 + squared * (k2 + squared * k3))
    denominator = 1 + squared * (k4 + squared * (k5 + squared * k6))
    return points * numerator / denominator + _tangential(points, p1, p2)


def _field_of_view(points, omega):
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    if abs(omega) < 1e-6:
        return points
    slope = 2 * np.tan(omega / 2)
    safe = np.maximum(radius, 1e-12)
    return points * np.where(
        radius > 1e-12, np.arctan(safe * slope) / (safe * omega), slope / omega
    )


def _division(points, k):
    squared = (points * points).sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return points * 2 / (1 + np.sqrt(1 - 4 * k * squared))


def _enhanced_unified(points, alpha, beta):
    squared = (points * points).sum(-1, keepdims=True)
    return points / (alpha * np.sqrt(beta * squared + 1) + 1 - alpha)


def _thin_prism(points, k1, k2, p1, p2, k3, k4, sx1, sy1):
    squared = (points * points).sum(-1, keepdims=True)
    return (
        _radial(points, k1, k2, k3, k4)
        + _tangential(points, p1, p2)
        + squared * np.array([sx1, sy1])
    )


def _radial_tangential_thin_prism(points, k0, k1, k2, k3, k4, k5, p0, p1, s0, s1, s2, s3):
    distorted = _radial(points, k0, k1, k2, k3, k4, k5)
    squared = (distorted * distorted).sum(-1, keepdims=True)
    prism = squared * np.array([s0, s2]) + squared * squared * np.array([s1, s3])
    return distorted + _tangential(distorted, p1, p0) + prism


@dataclasses.dataclass(frozen=True)
class LensModel:
    """A camera model: how many parameters it has, and its formula.

    | field              |                                                          |
    |--------------------|----------------------------------------------------------|
    | `num_focal`        | focal lengths: 1 or 2                                    |
    | `num_coefficients` | coefficients of the distortion                           |
    | `is_fisheye`       | whether the formula acts on angle vectors                |
    | `distort`          | (points [...,2], *coefficients) -> distorted [...,2]     |
    """

    num_focal: int
    num_coefficients: int
    is_fisheye: bool
    distort: Callable[..., np.ndarray]


MODELS = {
    "SIMPLE_PINHOLE": LensModel(1, 0, False, _radial),
    "PINHOLE": LensModel(2, 0, False, _radial),
    "SIMPLE_RADIAL": LensModel(1, 1, False, _radial),
    "RADIAL": LensModel(1, 2, False, _radial),
    "OPENCV": LensModel(2, 4, False, _brown),
    "FULL_OPENCV": LensModel(2, 8, False, _rational),
    "FOV": LensModel(2, 1, False, _field_of_view),
    "SIMPLE_DIVISION": LensModel(1, 1, False, _division),
    "DIVISION": LensModel(2, 1, False, _division),
    "EUCM": LensModel(2, 2, False, _enhanced_unified),
    "SIMPLE_FISHEYE": LensModel(1, 0, True, _radial),
    "FISHEYE": LensModel(2, 0, True, _radial),
    "SIMPLE_RADIAL_FISHEYE": LensModel(1, 1, True, _radial),
    "RADIAL_FISHEYE": LensModel(1, 2, True, _radial),
    "OPENCV_FISHEYE": LensModel(2, 4, True, _radial),
    "THIN_PRISM_FISHEYE": LensModel(2, 8, True, _thin_prism),
    "RAD_TAN_THIN_PRISM_FISHEYE": LensModel(2, 12, True, _radial_tangential_thin_prism),
}


def num_params(model: str) -> int:
    """How many parameters a camera model of COLMAP has, focal lengths and principal point included.

    Raises:
        InputError: a panorama, which no pinhole camera can show, or an unknown name.
    """
    if model == "EQUIRECTANGULAR":
        raise InputError(
            "camera model: expected one that a pinhole camera can replace, got the panorama model "
            f"{model}; "
            "cut the panoramas into perspective views first"
        )
    if model not in MODELS:
        raise InputError(f"camera model: expected one of {', '.join(MODELS)}, got {model!r}")
    return MODELS[model].num_focal + 2 + MODELS[model].num_coefficients
