"""Camera models with lens distortion, and the pinhole camera that each one is turned into. NumPy,
float64.

*Normalised* coordinates are x/z, y/z of a point in camera coordinates; *distorted* ones are what
the focal lengths and the principal point map to pixels. Pixel x covers [x, x+1) and its centre is
x+0.5.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.lens_models import MODELS, num_params

# Sides of the undistorted image may grow up to this factor over the original at the same focal
# length; what lies further out is cropped. A 180 degree fisheye keeps 134 degrees at 1.5; more only
# adds smeared pixels.
MAX_GROWTH = 1.5
# Lenses that move no pixel by more than this are taken as pinholes: a good calibration is known to
# 0.1 px.
NEGLIGIBLE_PX = 0.01
_NEWTON_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Lens:
    """The camera model of a photograph; hashable, so that what is computed from it can be cached.

    | field             |                                                                          |
    |-------------------|--------------------------------------------------------------------------|
    | `model`           | COLMAP's name                                                            |
    | `height`, `width` | of the photograph in pixels                                              |
    | `focal_px`        | (fx, fy)                                                                 |
    | `principal_px`    | (cx, cy), x+0.5 is the centre of pixel x                                 |
    | `coefficients`    | of the distortion, in COLMAP's order after focal lengths and principal   |
    |                   | point                                                                    |
    """

    model: str
    height: int
    width: int
    focal_px: tuple[float, float]
    principal_px: tuple[float, float]
    coefficients: tuple[float, ...] = ()

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """f64[3,3], pixels of this photograph."""
        return _intrinsics(self.focal_px, self.principal_px)

    def resized(self, height: int, width: int, factor_y: float, factor_x: float) -> "Lens":
        """The lens after the photograph was scaled by the two factors, and perhaps cropped at the
        right and below.
        """
        focal_px = (self.focal_px[0] * factor_x, self.focal_px[1] * factor_y)
        principal_px = (self.principal_px[0] * factor_x, self.principal_px[1] * factor_y)
        return dataclasses.replace(
            self, height=height, width=width, focal_px=focal_px, principal_px=principal_px
        )


def _intrinsics(focal_px, principal_px):
    return np.array(
        [[focal_px[0], 0, principal_px[0]], [0, focal_px[1], principal_px[1]], [0, 0, 1]],
        np.float64,
    )


def lens_from_params(model: str, height: int, width: int, params) -> Lens:
    """A lens from COLMAP's list of parameters.

    Args:
        model: COLMAP's name.
        height, width: pixels.
        params: focal lengths (1 or 2), principal point (2), distortion coefficients.
    Raises:
        InputError: unknown model, wrong number of parameters, one that is not finite, or no
            positive focal length.
    """
    count = num_params(model)
    params = [float(value) for value in params]
    if len(params) != count:
        raise InputError(f"camera model {model}: expected {count} parameters, got {len(params)}")
    num_focal = MODELS[model].num_focal
    focal_px = (params[0], params[num_focal - 1])
    if not np.all(np.isfinite(params)) or min(focal_px) <= 0 or min(height, width) < 1:
        raise InputError(
            f"camera model {model}: expected finite parameters, a positive focal length and size, "
            f"got {params} for {width}x{height} pixels"
        )
    principal_px = (params[num_focal], params[num_focal + 1])
    return Lens(
        model=model,
        height=int(height),
        width=int(width),
        focal_px=focal_px,
        principal_px=principal_px,
        coefficients=tuple(params[num_focal + 2 :]),
    )


def _angles_from_normalised(points):
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    safe = np.maximum(radius, 1e-12)
    return points * np.where(radius > 1e-12, np.arctan(safe) / safe, 1.0)


def _normalised_from_angles(angles):
    theta = np.linalg.norm(angles, axis=-1, keepdims=True)
    safe = np.clip(theta, 1e-12, 1.5)
    factor = np.where(theta > 1e-12, np.tan(safe) / safe, 1.0)
    # Beyond 1.5 rad (86 degrees) no pinhole image of sensible size reaches.
    return np.where(theta < 1.5, angles * factor, np.nan)


def distort(lens: Lens, points: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2"]:
    """Where the lens images points.

    Args:
        lens: its size, focal lengths and principal point do not matter.
        points: [...,2] normalised coordinates.
    Returns:
        [...,2] distorted coordinates; NaN where the model is not defined (division models far out).
    Source: `lens_models`.
    """
    model = MODELS[lens.model]
    points = np.asarray(points, np.float64)
    if model.is_fisheye:
        points = _angles_from_normalised(points)
    return model.distort(points, *lens.coefficients)


def undistort(lens: Lens, points: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2"]:
    """The inverse of `distort`, by Newton's method from the distorted point.

    Args:
        lens: as in `distort`.
        points: [...,2] distorted coordinates.
    Returns:
        [...,2] normalised coordinates, to about 1e-10; NaN where no ray in front of the camera
        gives the point.
    Source: **ours**; the derivative is by central differences, which only slows convergence, not
        its limit.
    """
    model = MODELS[lens.model]
    target = np.asarray(points, np.float64).reshape(-1, 2)
    distort_point = functools.partial(_distort_by, model, lens.coefficients)
    guess = target.copy()
    with np.errstate(all="ignore"):
        for _ in range(_NEWTON_STEPS):
            residual = target - distort_point(guess)
            jacobian = _jacobian(distort_point, guess)
            determinant = np.linalg.det(jacobian)
            step = np.stack(
                [
                    jacobian[:, 1, 1] * residual[:, 0] - jacobian[:, 0, 1] * residual[:, 1],
                    jacobian[:, 0, 0] * residual[:, 1] - jacobian[:, 1, 0] * residual[:, 0],
                ],
                axis=-1,
            )
            step /= determinant[:, None]
            # A step of more than the point's own radius leaps over folds of strong polynomials.
            limit = 0.5 * np.linalg.norm(guess, axis=-1) + 0.1
            guess = (
                guess
                + step * np.minimum(1, limit / np.linalg.norm(step, axis=-1).clip(1e-30))[:, None]
            )
            if not np.any(np.abs(residual) > 1e-13):
                break
        residual = np.abs(target - distort_point(guess)).max(-1)
        is_good = (residual < 1e-9) & (np.linalg.det(_jacobian(distort_point, guess)) > 0)
        found = np.where(is_good[:, None], guess, np.nan)
    if model.is_fisheye:
        found = _normalised_from_angles(found)
    return found.reshape(np.shape(points))


def _distort_by(model, coefficients, points):
    return model.distort(points, *coefficients)


def _jacobian(distort_point, points):
    step = 1e-6
    along_x = (distort_point(points + [step, 0]) - distort_point(points - [step, 0])) / (2 * step)
    along_y = (distort_point(points + [0, step]) - distort_point(points - [0, step])) / (2 * step)
    return np.stack([along_x, along_y], axis=-1)


def pixels_from_normalised(
    lens: Lens, points: Float[np.ndarray, "*batch 2"]
) -> Float[np.ndarray, "*batch 2"]:
    """Pixel positions, in the distorted photograph, of normalised coordinates [...,2]."""
    return distort(lens, points) * np.array(lens.focal_px) + np.array(lens.principal_px)


def normalised_from_pixels(
    lens: Lens, pixels: Float[np.ndarray, "*batch 2"]
) -> Float[np.ndarray, "*batch 2"]:
    """Normalised coordinates of pixel positions [...,2] of the distorted photograph; NaN as in
    `undistort`.
    """
    return undistort(
        lens,
        (np.asarray(pixels, np.float64) - np.array(lens.principal_px)) / np.array(lens.focal_px),
    )


def _border(left, right, top, bottom, count=101):
    across = np.linspace(left, right, count)
    down = np.linspace(top, bottom, count)
    sides = [
        np.stack([np.full(count, left), down], axis=-1),
        np.stack([np.full(count, right), down], axis=-1),
        np.stack([across, np.full(count, top)], axis=-1),
        np.stack([across, np.full(count, bottom)], axis=-1),
    ]
    return np.stack(sides)


def is_pinhole(lens: Lens) -> bool:
    """Whether the lens moves no pixel by more than NEGLIGIBLE_PX, so that its photographs need no
    resampling.
    """
    if MODELS[lens.model].num_coefficients == 0 and not MODELS[lens.model].is_fisheye:
        return True
    edges = np.array([0, lens.width, 0, lens.height]) - np.repeat(lens.principal_px, 2)
    corners = edges / np.repeat(lens.focal_px, 2)
    points = _border(*corners)[..., None, :] * np.linspace(0.1, 1, 10)[:, None]
    shift = (distort(lens, points) - points) * np.array(lens.focal_px)
    return bool(np.all(np.abs(shift) < NEGLIGIBLE_PX))


def _is_covered(lens, rectangle):
    """Whether the photograph shows, once and the right way round, all that is in a rectangle of
    normalised points.
    """
    points = _border(*rectangle)
    pixels = pixels_from_normalised(lens, points)
    # The rectangle was found from samples of the border: between two of them it may be out by some
    # thousandths.
    inside = (pixels >= 0.48) & (pixels <= np.array([lens.width, lens.height]) - 0.48)
    if not np.all(inside):
        return False
    rays = (points[..., None, :] * np.linspace(0.02, 1, 50)[:, None]).reshape(-1, 2)
    return bool(np.all(np.linalg.det(_jacobian(functools.partial(distort, lens), rays)) > 0))


def _inner_rectangle(lens):
    size = np.array([lens.width, lens.height], np.float64)
    focal_px = np.array(lens.focal_px)
    principal_px = np.array(lens.principal_px)
    # From pixel centres to pixel centres, so that bilinear sampling never leaves the photograph.
    left, right, top, bottom = normalised_from_pixels(
        lens, _border(0.5, size[0] - 0.5, 0.5, size[1] - 0.5)
    )
    limit_low = (0.5 - MAX_GROWTH * principal_px) / focal_px
    limit_high = (MAX_GROWTH * (size - principal_px) - 0.5) / focal_px

    def innermost(values, limit, pick):
        values = values[np.isfinite(values)]
        return pick(limit, pick(values)) if values.size else limit

    return np.array(
        [
            innermost(left[:, 0], limit_low[0], max),
            innermost(right[:, 0], limit_high[0], min),
            innermost(top[:, 1], limit_low[1], max),
            innermost(bottom[:, 1], limit_high[1], min),
        ]
    )


@functools.lru_cache(maxsize=4096)
def undistorted_pinhole(lens: Lens) -> Lens:
    """The pinhole camera that a lens is turned into: the same centre and focal lengths, and no
    black border.

    Its image is the largest upright rectangle (by sides) that the photograph covers; sides grow by
    MAX_GROWTH at most.

    Returns:
        A lens of model PINHOLE.
    Raises:
        InputError: less than a fifth of the photograph's sides is left, as after a failed
            calibration.
    Source: **ours**, with the aim of COLMAP's undistorter without blank pixels.
    """
    rectangle = _inner_rectangle(lens)
    is_usable = rectangle[0] < 0 < rectangle[1] and rectangle[2] < 0 < rectangle[3]
    # Folds of the polynomial can lie inside the border's image: shrink towards the axis until all
    # is covered.
    while is_usable and not _is_covered(lens, rectangle):
        rectangle = rectangle * 0.99
        is_usable = rectangle[1] * lens.focal_px[0] > 1
    focal_px = np.array(lens.focal_px)
    left, right, top, bottom = rectangle
    # The rectangle runs through the centres of the outermost pixels, hence the 1.
    width, height = np.floor(np.array([right - left, bottom - top]) * focal_px + 1 + 1e-6).astype(
        int
    )
    if not is_usable or width < 0.2 * lens.width or height < 0.2 * lens.height:
        raise InputError(
            f"camera model {lens.model}: expected distortion that leaves a usable pinhole image, "
            "got coefficients "
            f"{lens.coefficients} that leave {max(width, 0)}x{max(height, 0)} of "
            f"{lens.width}x{lens.height} pixels; "
            "calibrate the camera again"
        )
    centre = np.array([left + right, top + bottom]) / 2 * focal_px
    principal_px = np.array([width, height]) / 2 - centre
    return Lens(
        model="PINHOLE",
        height=int(height),
        width=int(width),
        focal_px=lens.focal_px,
        principal_px=(float(principal_px[0]), float(principal_px[1])),
    )


def source_pixels(lens: Lens, pinhole: Lens) -> Float[np.ndarray, "h w 2"]:
    """Where each pixel of the undistorted image is found in the photograph.

    Returns:
        f32[H,W,2], (x, y) of the pixel centres, in pixels of the photograph with x+0.5 at the
        centre of pixel x.
    """
    xs = (np.arange(pinhole.width) + 0.5 - pinhole.principal_px[0]) / pinhole.focal_px[0]
    ys = (np.arange(pinhole.height) + 0.5 - pinhole.principal_px[1]) / pinhole.focal_px[1]
    positions = np.empty((pinhole.height, pinhole.width, 2), np.float32)
    # A few rows at once: the temporaries of 20 megapixels in float64 are gigabytes.
    for first in range(0, pinhole.height, 16):
        rows = slice(first, first + 16)
        rays = np.stack(np.broadcast_arrays(xs, ys[rows, None]), axis=-1)
        positions[rows] = pixels_from_normalised(lens, rays)
    return positions
