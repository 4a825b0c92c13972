"""Points from their marks in photographs with poses, and which marks do not agree."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import Lens, normalised_from_pixels, pixels_from_normalised

# A mark is wrong beyond this fraction of the longer side of its photograph, and that many pixels:
# by hand marks are good to two or three pixels, and poses to one.
_MAX_ERROR = 0.002
_MIN_LIMIT_PX = 4.0
_NUM_ROUNDS = 10  # of Gauss and Newton; from the middle of the rays three are enough
_MARK_SIGMA_PX = 1.0  # at least


class Sighting(NamedTuple):
    """A mark in a photograph that has a pose."""

    photo: str
    camera_from_mapper: np.ndarray  # f64[4,4]
    lens: Lens
    pixel: tuple[float, float]

    @property
    def limit_px(self) -> float:
        """The distance to a point's projection from which on the mark is wrong."""
        return max(_MIN_LIMIT_PX, _MAX_ERROR * max(self.lens.height, self.lens.width))


@dataclasses.dataclass(frozen=True)
class Triangulated:
    """A point that n marks are said to show.

    | field       | shape   | unit, frame                                                     |
    |-------------|---------|-----------------------------------------------------------------|
    | `point`     | f64[3]  | the mapper's; NaN where fewer than two marks agree              |
    | `errors_px` | f64[n]  | from each mark to the projection; infinite behind a camera      |
    | `is_used`   | bool[n] | marks that agree                                                |
    | `sigma`     |         | standard deviation where it is largest, the mapper's            |
    | `angle_deg` |         | largest angle between two of the used rays                      |
    """

    point: Float[np.ndarray, " 3"]
    errors_px: Float[np.ndarray, " n"]
    is_used: Bool[np.ndarray, " n"]
    sigma: float
    angle_deg: float


class _Rays(NamedTuple):
    """n marks as rays."""

    rotations: np.ndarray  # f64[n,3,3], camera_from_mapper
    translations: np.ndarray  # f64[n,3]
    centers: np.ndarray  # f64[n,3], the mapper's
    image: np.ndarray  # f64[n,2], normalised
    focal_px: np.ndarray  # f64[n,2]

    def pick(self, chosen: np.ndarray) -> "_Rays":
        return _Rays(*(values[chosen] for values in self))

    @property
    def directions(self) -> np.ndarray:
        ahead = np.concatenate([self.image, np.ones((len(self.image), 1))], axis=1)
        turned = np.einsum("nji,nj->ni", self.rotations, ahead)
        return turned / np.linalg.norm(turned, axis=1, keepdims=True)


def triangulate(sightings: list[Sighting]) -> Triangulated:
    """The point that most marks agree on, and which those are.

    Where two groups of equally many marks agree on different points, none is used.

    Args:
        sightings: n marks of one point in different photographs.
    """
    rays = _rays_of(sightings)
    limits = np.array([sighting.limit_px for sighting in sightings])
    can_see = np.isfinite(rays.image).all(axis=1).reshape(-1)
    nothing = Triangulated(
        np.full(3, np.nan),
        np.full(len(sightings), np.inf),
        np.zeros(len(sightings), bool),
        sigma=np.inf,
        angle_deg=0.0,
    )
    if can_see.sum() < 2:
        return nothing
    is_used = can_see
    point = _solve(rays, is_used)
    if not (_errors(point, sightings)[can_see] <= limits[can_see]).all():
        agreeing = _most_agreed(rays, sightings, limits, can_see)
        if agreeing is None:
            return dataclasses.replace(nothing, errors_px=_errors(point, sightings))
        is_used = agreeing
        point = _solve(rays, is_used)
    used = rays.pick(is_used)
    errors_px = _errors(point, sightings)
    directions = used.directions
    cosines = np.clip(directions @ directions.T, -1, 1)
    angle_deg = float(np.rad2deg(np.arccos(cosines)).max())
    _, slopes = _residuals(used, point)
    sigma_px = max(float(np.sqrt((errors_px[is_used] ** 2).mean() / 2)), _MARK_SIGMA_PX)
    information = slopes.T @ slopes / sigma_px**2
    sigma = float(np.linalg.eigvalsh(information)[0].clip(1e-300) ** -0.5)
    return Triangulated(point, errors_px, is_used, sigma=sigma, angle_deg=angle_deg)


def _rays_of(sightings: list[Sighting]) -> _Rays:
    poses = np.array([sighting.camera_from_mapper for sighting in sightings])
    image = [normalised_from_pixels(mark.lens, np.array(mark.pixel)) for mark in sightings]
    return _Rays(
        rotations=poses[:, :3, :3],
        translations=poses[:, :3, 3],
        centers=camera_center(poses),
        image=np.array(image),
        focal_px=np.array([sighting.lens.focal_px for sighting in sightings]),
    )


def _residuals(rays: _Rays, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from marks to projections, f64[2n], and their derivatives by the point, f64[2n,3]; as
    if lenses had no distortion.
    """
    local = np.einsum("nij,j->ni", rays.rotations, point) + rays.translations
    depth = local[:, 2:]
    image = local[:, :2] / depth
    residuals = (image - rays.image) * rays.focal_px
    rows = rays.rotations[:, :2] - image[:, :, None] * rays.rotations[:, 2:]
    slopes = rows * (rays.focal_px / depth)[:, :, None]
    return residuals.reshape(-1), slopes.reshape(-1, 3)


def _solve(rays: _Rays, chosen: np.ndarray) -> np.ndarray:
    """The point of least squares: in space first, then of the distances in pixels. NaN where there
    is none.
    """
    used = rays.pick(chosen)
    directions = used.directions
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    try:
        point = np.linalg.solve(across.sum(axis=0), np.einsum("nij,nj->i", across, used.centers))
        for _ in range(_NUM_ROUNDS):
            with np.errstate(all="ignore"):
                residuals, slopes = _residuals(used, point)
            point = point - np.linalg.lstsq(slopes, residuals)[0]
    except np.linalg.LinAlgError:  # parallel rays
        return np.full(3, np.nan)
    return point


def _errors(point: np.ndarray, sightings: list[Sighting]) -> np.ndarray:
    """Pixels from each mark to the projection of a point; infinite behind the camera."""
    errors = []
    for sighting in sightings:
        pose = sighting.camera_from_mapper
        local = pose[:3, :3] @ point + pose[:3, 3]
        if not local[2] > 0:
            errors.append(np.inf)
            continue
        pixel = pixels_from_normalised(sighting.lens, local[:2] / local[2])
        distance = float(np.linalg.norm(pixel - np.array(sighting.pixel)))
        errors.append(distance if np.isfinite(distance) else np.inf)
    return np.array(errors)


def _most_agreed(
    rays: _Rays, sightings: list[Sighting], limits: np.ndarray, can_see: np.ndarray
) -> np.ndarray | None:
    """The largest group of marks that agree, bool[n]; None where there is none, or several."""
    best: np.ndarray | None = None
    is_alone = True
    for pair in itertools.combinations(np.flatnonzero(can_see), 2):
        chosen = np.zeros(len(sightings), bool)
        chosen[list(pair)] = True
        agreeing = (_errors(_solve(rays, chosen), sightings) <= limits) & can_see
        if agreeing.sum() < 2:
            continue
        if best is None or agreeing.sum() > best.sum():
            best = agreeing
            is_alone = True
        elif agreeing.sum() == best.sum() and (agreeing & best).sum() < 2:
            is_alone = False
    return best if is_alone else None
