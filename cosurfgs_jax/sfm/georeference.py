"""Where a reconstruction lies: metric scale, vertical and place from GPS; without it, the vertical
of the photographs alone.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import GeoReference
from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.scene_frame import measure_up, rotation_to_z
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import map_system
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.gps_words import fit_warnings, tag_warnings
from cosurfgs_jax.sfm.similarity import (
    RobustFit,
    Similarity,
    fit_robust,
    line_fraction,
    tilt_deg,
    tilt_error,
)

MIN_POSITIONS = 3
# Where cameras stand on a line, to this fraction of its length, GPS does not say which side is up.
MIN_LINE_FRACTION = 0.1
# Above this uncertainty of the vertical by GPS, that of the photographs is taken; degrees.
_MAX_TILT_ERROR = 2.0
# Beyond this difference of the two verticals the one by GPS is not believed; degrees.
_MAX_TILT = 15.0
_SUSPICIOUS_TILT = 5.0
# A mirrored map that fits so much better than the map itself is what was meant.
_MIRRORED = 0.3
_MAX_FAR_DEG = 1
_ALIKE = 2e-3  # by which metres of a map may differ from those on the ground
_MAX_SCALE_ERROR = 0.15  # above it lengths are not called metres; of noise alone it is 0.27
ROUND_OFFSET = -1  # digits: whole tens of metres, which are easy to type
# Standard deviation in metres that positions are given at least: of nine good ones on two lines,
# three were left out without it, since the other six happened to fit to 7 cm.
_GPS_SIGMA = 0.5


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """What the mapper found, in a frame of its own.

    | field                | shape      | unit, frame                                             |
    |----------------------|------------|---------------------------------------------------------|
    | `names`              | V          | of the registered photographs                           |
    | `camera_from_mapper` | f64[V,4,4] | rigid                                                   |
    | `points`             | f64[P,3]   | the mapper's                                            |
    """

    names: list[str]
    camera_from_mapper: np.ndarray
    points: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """Where the cameras stand, f64[V,3], the mapper's frame."""
        return cameras.camera_center(self.camera_from_mapper)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a reconstruction was put."""

    similarity: Similarity  # from the mapper's frame to the dataset's
    geo: GeoReference  # with the numbers of the fit under "fit"
    warnings: list[str]  # sentences

    def with_warnings(self, before: list[str]) -> "Placement":
        """The same with other sentences before its own."""
        return dataclasses.replace(self, warnings=[*before, *self.warnings])


def level(model: Reconstructed) -> Similarity:
    """The rotation that turns the vertical of the photographs to +z."""
    up = measure_up(model.camera_from_mapper, model.points)
    return Similarity(1.0, rotation_to_z(up), np.zeros(3))


def place(model: Reconstructed, tags: dict[str, PhotoTags], settings: PrepareSettings) -> Placement:
    """Finds scale, vertical and place of a reconstruction.

    Args:
        model: of the mapper.
        tags: of all photographs, by name.
        settings: `gps` and `epsg`.
    Raises:
        InputError: too few positions where GPS is required, a system that does not fit, or
            positions that are mirrored.
    """
    known = known_names(model, tags, settings)
    if len(known) < MIN_POSITIONS:
        check_positions(len(known), len(model.names), settings)
        reason = f"{len(known)} of the registered photographs have GPS, and three are needed"
        if settings.gps == "ignore":
            reason = "GPS is ignored"
        return place_without_gps(model, reason)
    _check_not_a_line(model, known, settings)
    placement = place_by_gps(model, tags, known, settings.epsg)
    if tells_scale(placement):
        return placement
    if settings.needs_gps:
        error = placement.geo.details["fit"]["scale_error"]
        raise InputError(
            f"GPS: expected positions that tell the scale to {_MAX_SCALE_ERROR:.0%}, got them to "
            f"{error:.0%}: they are all alike, or noise; give --gps=ignore for a model without "
            "scale"
        )
    found = place_without_gps(model, "its GPS is all alike, or noise beside its size")
    return dataclasses.replace(found, warnings=placement.warnings)


def _check_not_a_line(model: Reconstructed, known: list[str], settings: PrepareSettings) -> None:
    is_asked = settings.gps == "require" or settings.gps_path
    chosen = np.isin(model.names, known)
    if is_asked and line_fraction(model.centers[chosen]) <= MIN_LINE_FRACTION:
        raise InputError(
            f"--gps={settings.gps}: expected positions that tell the vertical, got {len(known)} on "
            "one line; give --gcp=FILE with ground control points, or --gps=auto with GPS in the "
            "EXIF data for the vertical of the photographs"
        )


def known_names(
    model: Reconstructed, tags: dict[str, PhotoTags], settings: PrepareSettings
) -> list[str]:
    """The registered photographs whose GPS is there and not ignored."""
    if settings.gps == "ignore":
        return []
    return [name for name in model.names if tags[name].has_position]


def tells_scale(placement: Placement) -> bool:
    """Whether a placement by positions is more than noise."""
    error = placement.geo.details["fit"]["scale_error"]
    return error < _MAX_SCALE_ERROR and placement.similarity.scale > 0


def check_positions(num_known: int, num_photos: int, settings: PrepareSettings) -> None:
    """Refuses to go on without positions where the settings need them.

    Raises:
        InputError: --gps=require or --epsg is given, and there are too few.
    """
    if not settings.needs_gps or (settings.gps != "ignore" and num_known >= MIN_POSITIONS):
        return
    flag = "--epsg" if settings.gps in ("auto", "ignore") else f"--gps={settings.gps}"
    source = settings.gps_path or "their EXIF data"
    found = f"{num_known} of {num_photos}"
    if settings.gps == "ignore":
        found = "--gps=ignore"
    raise InputError(
        f"{flag}: expected at least {MIN_POSITIONS} photographs with latitude and longitude in "
        f"{source}, got {found}; leave the flag out for a model without scale, or copy the "
        "photographs from the camera again, as some programs drop EXIF data"
    )


def check_epsg(tags: dict[str, PhotoTags], epsg: int) -> int:
    """The system of the map coordinates: the one that is given, or the UTM zone.

    Args:
        tags: of photographs, some with positions.
        epsg: the setting.
    Raises:
        InputError: it does not fit the photographs, or pyproj is missing.
    """
    map_system.import_pyproj()
    found = [tag for tag in tags.values() if tag.has_position]
    latitude = float(np.median(np.array([tag.latitude for tag in found], np.float64)))
    longitude = float(np.median(np.array([tag.longitude for tag in found], np.float64)))
    if not epsg:
        return map_system.utm_epsg(latitude, longitude)
    map_system.check_system(epsg, latitude, longitude)
    return epsg


def _near_positions(tags: dict[str, PhotoTags], names: list[str]) -> list[str]:
    """Names without those whose position is far from the others: receivers write latitude and
    longitude of about 0 before they know better, and maps have no place for it.
    """
    degrees = np.array([(tags[name].latitude, tags[name].longitude) for name in names], np.float64)
    distances = np.abs(degrees - np.median(degrees, axis=0)).max(axis=1)
    near = [name for name, far in zip(names, distances, strict=True) if far <= _MAX_FAR_DEG]
    return near if len(near) >= MIN_POSITIONS else names


def place_without_gps(model: Reconstructed, reason: str) -> Placement:
    """The place of a reconstruction of which only the vertical of the photographs is known."""
    upright = level(model)
    middle = np.median(upright.apply(model.points), axis=0)
    details = {
        "fit": {
            "method": "vertical of the photographs; scale and place are unknown",
            "reason": reason,
        }
    }
    return Placement(
        dataclasses.replace(upright, translation=-middle),
        GeoReference(0, (0.0, 0.0, 0.0), False, details),
        [],
    )


def _positions(
    tags: dict[str, PhotoTags], names: list[str], epsg: int
) -> tuple[Float[np.ndarray, "n 3"], bool]:
    """Map coordinates, and whether heights are among them (else they are 0)."""
    latitudes = np.array([tags[name].latitude for name in names], np.float64)
    longitudes = np.array([tags[name].longitude for name in names], np.float64)
    ground = map_system.to_map(epsg, latitudes, longitudes)
    has_heights = all(tags[name].altitude is not None for name in names)
    heights = [tags[name].altitude if has_heights else 0.0 for name in names]
    return np.column_stack([ground, np.array(heights, np.float64)]), has_heights


def _with_heights(tags: dict[str, PhotoTags], names: list[str]) -> list[str]:
    """Those with a height, if they are the most; else all, without heights."""
    found = [name for name in names if tags[name].altitude is not None]
    return found if len(found) >= max(MIN_POSITIONS, len(names) / 2) else names


class Vertical(NamedTuple):
    """Which of two fits is taken, and why."""

    fit: RobustFit
    is_by_points: bool  # whether the vertical is that of the points
    tilt_deg: float  # between the two
    warnings: list[str]


def choose_vertical(
    upright: RobustFit,
    free: RobustFit | None,
    levelled: Float[np.ndarray, "n 3"],
    *,
    by: tuple[str, str],
    min_sigma: float = 0.0,
) -> Vertical:
    """Takes the vertical of points, if they tell it well and it is not far from the one before.

    Args:
        upright: fit that keeps the vertical of the source.
        free: fit of all three angles; None: the points cannot tell them.
        levelled: f64[n,3], the points, source.
        by: what gives the vertical of the points, and that of the source, for the words.
        min_sigma: standard deviation that heights have at least.
    """
    if free is None:
        return Vertical(upright, False, 0.0, [])
    tilt = tilt_deg(free.similarity)
    is_certain = tilt_error(free, levelled, min_sigma) < _MAX_TILT_ERROR
    is_by_points = is_certain and tilt < _MAX_TILT
    warnings = []
    if is_certain and tilt > _SUSPICIOUS_TILT:
        warnings.append(
            f"the vertical by {by[0]} and that of {by[1]} differ by {tilt:.1f} degrees; "
            f"that of {by[0] if is_by_points else by[1]} is used"
        )
    return Vertical(free if is_by_points else upright, is_by_points, tilt, warnings)


def place_by_gps(
    model: Reconstructed, tags: dict[str, PhotoTags], known: list[str], epsg: int
) -> Placement:
    """Scale, vertical and place by the GPS of photographs.

    Args:
        model: of the mapper.
        tags: of all photographs, by name.
        known: names of those that have a position, at least `MIN_POSITIONS`.
        epsg: of the map system; 0: the UTM zone.
    Raises:
        InputError: a system that does not fit, or positions that are mirrored.
    """
    near = _near_positions(tags, known)
    names = _with_heights(tags, near)
    epsg = check_epsg(tags, epsg)
    target, has_heights = _positions(tags, names, epsg)
    number = {name: row for row, name in enumerate(model.names)}
    centers = model.centers[[number[name] for name in names]]
    upright = level(model)
    source = "the photographs"
    if has_heights and _is_placed(centers, target, upright):
        upright = Similarity(1.0, np.eye(3), np.zeros(3))
        source = "the model"
    levelled = upright.apply(centers)
    if not has_heights:
        levelled = levelled * [1, 1, 0]
    by_source = fit_robust(levelled, target, is_upright=True, min_sigma=_GPS_SIGMA)
    _check_not_mirrored(levelled, target, by_source)
    by_gps = None
    if has_heights and line_fraction(levelled) > MIN_LINE_FRACTION and len(names) > 3:
        by_gps = fit_robust(levelled, target, min_sigma=_GPS_SIGMA)
    vertical = choose_vertical(by_source, by_gps, levelled, by=("GPS", source))
    chosen = vertical.fit
    to_map = upright.then(chosen.similarity)
    if not has_heights:
        middle = np.median(to_map.apply(model.points), axis=0)
        to_map = dataclasses.replace(to_map, translation=to_map.translation - [0, 0, middle[2]])
    left_out = [name for name, is_used in zip(names, chosen.is_used, strict=True) if not is_used]
    details = _details(chosen, "GPS" if vertical.is_by_points else source, has_heights) | {
        "vertical_difference_deg": vertical.tilt_deg,
        "left_out": left_out,
    }
    datums = sorted({tags[name].datum for name in names})
    placement = placed_on_map(
        model,
        to_map,
        epsg,
        {
            "vertical_datum": " and ".join(datums) if has_heights else "the ground at 0",
            "fit": details,
        },
    )
    warnings = [*vertical.warnings]
    if line_fraction(levelled) <= MIN_LINE_FRACTION:
        warnings.append(
            "all photographs are on one line: GPS cannot tell left from right of it, so a mixed up "
            "north and south, or east and west, would not be noticed"
        )
    warnings += fit_warnings(chosen, names) + tag_warnings(tags, known)
    far = sorted(set(known) - set(near))
    if far:
        warnings.append(
            f"GPS of {', '.join(far[:5])} is more than {_MAX_FAR_DEG} degree from the others "
            "and was not used"
        )
    return dataclasses.replace(placement, warnings=warnings)


def placed_on_map(
    model: Reconstructed, to_map: Similarity, epsg: int, details: dict[str, Any]
) -> Placement:
    """A placement near the origin, with the offset to the map.

    Args:
        model: of the mapper.
        to_map: from its frame to map coordinates.
        epsg: of the map system.
        details: for geo.json.
    """
    middle = np.median(to_map.apply(model.points), axis=0)
    offset = np.round(middle, ROUND_OFFSET) + 0.0  # not -0
    x, y, z = map(float, offset)
    system = {"system": map_system.name_of(epsg)}
    return Placement(
        dataclasses.replace(to_map, translation=to_map.translation - offset),
        GeoReference(epsg, (x, y, z), True, system | details),
        [],
    )


def _is_placed(centers: np.ndarray, target: np.ndarray, upright: Similarity) -> bool:
    """Whether a model is in metres already and its z is up, as one that was aligned: its vertical
    is better than that of the photographs then, if GPS does not tell it.

    Args:
        centers: f64[n,3], where its cameras stand.
        target: f64[n,3], on the map.
        upright: turns the vertical of the photographs to +z.
    """
    fit = fit_robust(centers, target, is_upright=True, min_sigma=_GPS_SIGMA)
    is_metric = abs(fit.similarity.scale - 1) < _ALIKE + 3 * fit.scale_error < _MAX_SCALE_ERROR
    return is_metric and tilt_deg(upright) < _MAX_TILT


def _details(fit: RobustFit, vertical: str, has_heights: bool) -> dict[str, Any]:
    by = "by GPS" if vertical == "GPS" else f"of {vertical}"
    axes = ("east", "north", "up") if has_heights else ("east", "north")
    return {
        "method": f"robust similarity to the GPS of the photographs, vertical {by}",
        "num_positions": len(fit.is_used),
        "num_used": int(fit.is_used.sum()),
        "residual_rms": dict(zip(axes, fit.rms, strict=False)),
        "residual_median": fit.median,
        "scale_error": fit.scale_error,
    }


def _check_not_mirrored(source: np.ndarray, target: np.ndarray, fit: RobustFit) -> None:
    mirrored = fit_robust(source, target * [-1, 1, 1], is_upright=True, min_sigma=_GPS_SIGMA)
    if mirrored.median < _MIRRORED * fit.median and mirrored.scale_error < 0.1:
        raise InputError(
            "GPS of the photographs: expected positions that fit the photographs, got their mirror "
            f"image ({mirrored.median:.2g} m median residual mirrored, {fit.median:.2g} m as they "
            "are): north and south, or east and west, are mixed up in their EXIF data; mend "
            "GPSLatitudeRef and GPSLongitudeRef, or give --gps=ignore"
        )
