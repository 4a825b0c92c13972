"""Lenses of other programs as camera models of COLMAP."""

import functools

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.data.sizes import is_scaled
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.posed_photos import BrownLens
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params, pixels_from_normalised

_GRID = 17  # points along a side of twice the picture, where a model is fitted
_MIN_SEEN = 12  # of them in the picture: as many as the model has parameters
_MAX_STEPS = 30  # the error has settled after twenty
_REACH = 1.5  # of the picture's half sides, in which the grid's points are looked for
# Between the lens and the fitted model. A good calibration is known to 0.1 px.
MAX_ERROR_PX = 1.0
SAID_ERROR_PX = 0.1


def to_lens(brown: BrownLens, height: int, width: int, where: str) -> tuple[Lens, float]:
    """The camera model of COLMAP for a photograph of this size.

    Three radial and two tangential coefficients are those of FULL_OPENCV, four and two of a fisheye
    those of THIN_PRISM_FISHEYE. A fourth radial coefficient of another lens, and a skew, have no
    model there: the parameters of FULL_OPENCV are fitted to them.

    Args:
        brown: the lens.
        height, width: pixels of the photograph.
        where: file and photograph, for messages.
    Returns:
        The lens, and by how many pixels it differs at most.
    Raises:
        InputError: the photograph is of another shape, the lens is none of any camera, or the
            model differs by more than `MAX_ERROR_PX`.
    """
    try:
        return _to_lens(brown, height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


@functools.lru_cache(maxsize=4096)
def _to_lens(brown: BrownLens, height: int, width: int) -> tuple[Lens, float]:
    size = brown.size or (height, width)
    if not is_scaled((height, width), size):
        raise InputError(
            f"expected a photograph of {size[1]}x{size[0]} pixels, or of that size times "
            f"a factor, got {width}x{height}; give the photographs that were aligned"
        )
    full = _in_pixels(brown, height, width)
    try:
        lens = _model_of(full, *size)
    except InputError as error:
        raise InputError(f"{error}; export the cameras again") from error
    error = 0.0
    if full.skew or (full.radial[3] and not full.is_fisheye):
        lens, error = _fitted(full, lens)
        if not error <= MAX_ERROR_PX:
            raise InputError(
                f"expected a lens that COLMAP's models can follow to {MAX_ERROR_PX} px, got one "
                f"that differs by {error:.2g} px; optimize the cameras again without skew (B2) "
                "and the fourth radial coefficient (K4)"
            )
    return lens.resized(height, width, height / size[0], width / size[1]), error


def _in_pixels(brown: BrownLens, height: int, width: int) -> BrownLens:
    if brown.size is not None:
        return brown
    side = max(height, width)
    return brown._replace(
        size=(height, width),
        focal=(brown.focal[0] * side, brown.focal[1] * side),
        principal=(width / 2 + brown.principal[0] * side, height / 2 + brown.principal[1] * side),
        skew=brown.skew * side,
    )


def _model_of(brown: BrownLens, height: int, width: int) -> Lens:
    """The model that has the coefficients; skew, and the fourth of a lens that is no fisheye, are
    left out.
    """
    k1, k2, k3, k4 = brown.radial
    model = "FULL_OPENCV"
    coefficients = (k1, k2, *brown.tangential, k3, 0.0, 0.0, 0.0)
    if brown.is_fisheye:
        model = "THIN_PRISM_FISHEYE"
        coefficients = (k1, k2, *brown.tangential, k3, k4, 0.0, 0.0)
    elif not k3:
        model = "OPENCV"
        coefficients = coefficients[:4]
    params = [*brown.focal, *brown.principal, *coefficients]
    return lens_from_params(model, height, width, params)


def _project(brown: BrownLens, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Pixels of normalised points, by a lens that is no fisheye."""
    squared = (points * points).sum(axis=1, keepdims=True)
    factor = np.ones_like(squared)
    for power, coefficient in enumerate(brown.radial, start=1):
        factor = factor + coefficient * squared**power
    x, y = points.T
    p1, p2 = brown.tangential
    shift = np.stack(
        [
            2 * p1 * x * y + p2 * (squared[:, 0] + 2 * x * x),
            2 * p2 * x * y + p1 * (squared[:, 0] + 2 * y * y),
        ],
        axis=1,
    )
    distorted = points * factor + shift
    pixels = distorted * brown.focal + brown.principal
    pixels[:, 0] += brown.skew * distorted[:, 1]
    return pixels


def _fitted(brown: BrownLens, start: Lens) -> tuple[Lens, float]:
    """FULL_OPENCV fitted to a lens where its picture is, and the largest difference in pixels:
    infinite where hardly a point is in its picture, or no such model is near.
    """
    from scipy.optimize import least_squares

    size = np.array([start.width, start.height], np.float64)
    reach = _REACH * size / 2 / np.array(brown.focal)
    axes = [np.linspace(-side, side, _GRID) for side in reach]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    with np.errstate(all="ignore"):  # no point of a damaged lens is in the picture
        target = _project(brown, points)
    is_seen = ((target > -0.5) & (target < size + 0.5)).all(axis=1)
    if is_seen.sum() < _MIN_SEEN:
        return start, np.inf
    points = points[is_seen]
    target = target[is_seen]

    def lens_of(values: np.ndarray) -> Lens:
        return lens_from_params("FULL_OPENCV", start.height, start.width, values)

    def residuals(values: np.ndarray) -> np.ndarray:
        return (pixels_from_normalised(lens_of(values), points) - target).reshape(-1)

    guess = [*start.focal_px, *start.principal_px, *start.coefficients, *[0.0] * 8]
    try:
        with np.errstate(all="ignore"):
            found = least_squares(
                residuals, np.array(guess[:12]), x_scale="jac", max_nfev=_MAX_STEPS
            )
            distances = np.linalg.norm(residuals(found.x).reshape(-1, 2), axis=1)
    except ValueError:  # the residuals are not finite, or the fit has left what a lens can be
        return start, np.inf
    return lens_of(found.x), float(distances.max())
