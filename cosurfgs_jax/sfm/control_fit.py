"""Where a reconstruction lies by ground control points: their marks are triangulated, and the
similarity to their coordinates on the map is fitted. They place, turn and scale the reconstruction;
they do not bend it.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import georeference
from cosurfgs_jax.sfm.control_points import MIN_POINTS, ControlPoint, ControlPoints
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.georeference import MIN_LINE_FRACTION, Placement, Reconstructed
from cosurfgs_jax.sfm.gps_difference import AXES, compare_gps, gps_warnings
from cosurfgs_jax.sfm.similarity import RobustFit, fit_robust, line_fraction
from cosurfgs_jax.sfm.summary import metres, some_of
from cosurfgs_jax.sfm.triangulation import Sighting, Triangulated, triangulate

_SURVEY_SIGMA_M = 0.02  # of a receiver with corrections, and of the middle of a target
_MIN_ANGLE_DEG = 2.0  # between rays; below it the height of a point is a hundred times less certain
_MIRRORED = 0.3  # as in georeference: a mirrored map that fits so much better was meant
_FOOT_M = 0.3048
_FOOT_TOLERANCE = 0.05
# Where heights of several points are so many times farther off than positions, and that far, the
# model is bent.
_BENT = 5.0
_MIN_BENT_M = 0.1
_MANY = 12  # points, among which those that agree do not agree by chance
_MIN_WIDTH = 0.4  # of the extent of the points, as a fraction of that of the photographs


@dataclasses.dataclass(frozen=True)
class _Located:
    """A point with its place in the mapper's frame, or why it has none."""

    point: ControlPoint
    sightings: list[Sighting]
    found: Triangulated | None
    problem: str = ""


class _Fitted(NamedTuple):
    """The fit of the used points; of all points that have a place, what it leaves."""

    vertical: georeference.Vertical
    residuals: Float[np.ndarray, "n 3"]
    is_used: Bool[np.ndarray, " n"]


def place_by_control(
    model: Reconstructed,
    lenses: dict[str, Lens],
    control: ControlPoints,
    tags: dict[str, PhotoTags],
    settings: PrepareSettings,
) -> Placement:
    """Scale, vertical and place of a reconstruction by ground control points.

    GPS, where it is there, is compared with; where the points lie on a line, the roll about it is
    that by GPS, or that of the photographs.

    Args:
        model: of the mapper.
        lenses: of the registered photographs, by name.
        control: the points.
        tags: of all photographs, by name.
        settings: `gps`.
    Raises:
        InputError: fewer than `MIN_POINTS` points that can be used, with the reasons; east and
            north exchanged, or heights in feet.
    """
    located = [_locate(point, model, lenses) for point in control.points]
    usable = [item for item in located if item.found is not None]
    is_check = np.array([item.point.is_check for item in usable], bool)
    _check_enough(located, control, int((~is_check).sum()))
    base, has_gps = _base(model, tags, settings, control.epsg)
    found = np.array([item.found.point for item in usable if item.found is not None])
    source = base.similarity.apply(found)
    target = np.array([item.point.position for item in usable])
    scale = _scale_of(source[~is_check], target[~is_check])
    spreads = np.array([item.found.sigma for item in usable if item.found is not None])
    sigmas = np.hypot(_SURVEY_SIGMA_M, scale * base.similarity.scale * spreads)
    _check_order(source[~is_check], target[~is_check], control)
    _check_feet(source[~is_check] * scale, target[~is_check], control)
    by = ("the ground control points", "GPS" if has_gps else "the photographs")
    fitted = _fit(source, target, sigmas, is_check=is_check, by=by)
    to_map = base.similarity.then(fitted.vertical.fit.similarity)
    details = {
        "vertical_datum": control.vertical,
        "fit": _details(fitted, is_check, by),
        "control_points": _table(located, usable, fitted, is_check),
    }
    warnings = [*control.warnings, *_mark_warnings(located), *fitted.vertical.warnings]
    warnings += _fit_warnings(usable, fitted, is_check) + _bent_warnings(fitted)
    warnings += _shape_warnings(source[~is_check], base.similarity.apply(model.centers))
    if has_gps:
        difference = compare_gps(base, to_map, model.centers)
        details["gps_difference"] = difference
        warnings += gps_warnings(difference, base.geo.details["fit"]["scale_error"])
    placement = georeference.placed_on_map(model, to_map, control.epsg, details)
    return dataclasses.replace(placement, warnings=warnings)


def _locate(point: ControlPoint, model: Reconstructed, lenses: dict[str, Lens]) -> _Located:
    number = {name: row for row, name in enumerate(model.names)}
    sightings = [
        Sighting(
            mark.photo,
            model.camera_from_mapper[number[mark.photo]],
            lenses[mark.photo],
            mark.pixel,
        )
        for mark in point.marks
        if mark.photo in number
    ]
    if np.isnan(point.position[2]):
        return _Located(point, sightings, None, "it has no height")
    if len(sightings) < 2:
        where = "no photograph that has a pose"
        if sightings:
            where = f"{sightings[0].photo} alone, of the photographs that have a pose"
        return _Located(point, sightings, None, f"it is marked in {where}")
    found = triangulate(sightings)
    if not np.isfinite(found.point).all():
        errors = [
            f"{sighting.photo} {error:.0f} px"
            for sighting, error in zip(sightings, found.errors_px, strict=True)
        ]
        return _Located(point, sightings, None, f"its marks do not agree ({some_of(errors)})")
    if found.angle_deg < _MIN_ANGLE_DEG:
        problem = f"its photographs see it under {found.angle_deg:.1f} degrees only"
        return _Located(point, sightings, None, problem)
    return _Located(point, sightings, found)


def _check_enough(located: list[_Located], control: ControlPoints, num_usable: int) -> None:
    if num_usable >= MIN_POINTS:
        return
    problems = [f"{item.point.name}: {item.problem}" for item in located if item.problem]
    raise InputError(
        f"{control.path}: expected at least {MIN_POINTS} ground control points (check points "
        "apart) that two photographs with poses show under an angle, got "
        f"{num_usable}; {'; '.join(problems[:20])}; mark more photographs, or leave --gcp out"
    )


def _base(
    model: Reconstructed, tags: dict[str, PhotoTags], settings: PrepareSettings, epsg: int
) -> tuple[Placement, bool]:
    """The place before the points are looked at, and whether it is by GPS."""
    known = georeference.known_names(model, tags, settings)
    if len(known) >= georeference.MIN_POSITIONS:
        placement = georeference.place_by_gps(model, tags, known, epsg)
        if georeference.tells_scale(placement):
            return placement, True
    return georeference.place_without_gps(model, ""), False


def _upright_fit(source: np.ndarray, target: np.ndarray) -> RobustFit:
    """Of east and north alone."""
    return fit_robust(
        source * [1, 1, 0], target * [1, 1, 0], is_upright=True, min_sigma=_SURVEY_SIGMA_M
    )


def _scale_of(source: np.ndarray, target: np.ndarray) -> float:
    return _upright_fit(source, target).similarity.scale


def _check_order(source: np.ndarray, target: np.ndarray, control: ControlPoints) -> None:
    as_it_is = _upright_fit(source, target)
    mirrored = _upright_fit(source, target * [-1, 1, 1])
    if mirrored.median < _MIRRORED * as_it_is.median and mirrored.scale_error < 0.1:
        raise InputError(
            f"{control.path}: expected east before north (longitude before latitude), got ground "
            f"control points that fit exchanged ({mirrored.median:.2g} m median residual, "
            f"{as_it_is.median:.2g} m as they are); exchange the first two numbers of each line"
        )


def _check_feet(source: np.ndarray, target: np.ndarray, control: ControlPoints) -> None:
    """Refuses heights in feet, where there are enough points, and hills enough, to tell.

    Args:
        source: f64[n,3], by the photographs, in metres but for a tilt.
        target: f64[n,3], on the map.
    """
    if len(source) < 5:
        return
    offsets = source - source.mean(axis=0)
    columns = np.column_stack([offsets, np.ones(len(source))])
    heights = target[:, 2]
    solution, _, rank, _ = np.linalg.lstsq(columns, heights)
    if rank < 4:
        return
    free = len(source) - 4
    variance = ((heights - columns @ solution) ** 2).sum() / free + _SURVEY_SIGMA_M**2
    error = float(np.sqrt(variance * np.linalg.inv(columns.T @ columns)[2, 2]))
    factor = float(solution[2])
    if abs(factor * _FOOT_M - 1) < _FOOT_TOLERANCE and error < _FOOT_TOLERANCE * factor:
        raise InputError(
            f"{control.path}: expected heights in metres, got heights that are {factor:.2f} times "
            "those of the photographs, which are in feet; multiply them by 0.3048"
        )


def _fit(
    source: np.ndarray,
    target: np.ndarray,
    sigmas: np.ndarray,
    *,
    is_check: np.ndarray,
    by: tuple[str, str],
) -> _Fitted:
    """East and north tell blunders of a single point even if the model is bent, as four numbers
    explain all of them; heights beside a tilt do not, where points are few.
    """
    chosen = ~is_check
    if chosen.sum() > MIN_POINTS:
        is_near = _upright_fit(source[chosen], target[chosen]).is_used
        if is_near.sum() >= MIN_POINTS:
            chosen[chosen] = is_near
    arguments = (source[chosen], target[chosen])
    options: dict[str, Any] = {
        "min_sigma": 1.0,
        "sigmas": sigmas[chosen],
        "from_all": bool(chosen.sum() < _MANY),
    }
    upright = fit_robust(*arguments, is_upright=True, **options)
    free = None
    if line_fraction(source[chosen]) > MIN_LINE_FRACTION:
        free = fit_robust(*arguments, **options)
    vertical = georeference.choose_vertical(
        upright, free, source[chosen], by=by, min_sigma=float(np.median(sigmas))
    )
    residuals = vertical.fit.similarity.apply(source) - target
    is_used = np.zeros(len(source), bool)
    is_used[chosen] = vertical.fit.is_used
    return _Fitted(vertical, residuals, is_used)


def _rms(residuals: np.ndarray) -> dict[str, float]:
    return dict(zip(AXES, np.sqrt((residuals**2).mean(axis=0)).tolist(), strict=True))


def _details(fitted: _Fitted, is_check: np.ndarray, by: tuple[str, str]) -> dict[str, Any]:
    fit = fitted.vertical.fit
    vertical = f"vertical by {by[0] if fitted.vertical.is_by_points else by[1]}"
    details = {
        "method": f"robust similarity to ground control points, {vertical}",
        "num_positions": int((~is_check).sum()),
        "num_used": int(fit.is_used.sum()),
        "residual_rms": _rms(fitted.residuals[fitted.is_used]),
        "residual_median": fit.median,
        "scale_error": fit.scale_error,
        "vertical_difference_deg": fitted.vertical.tilt_deg,
        "num_check_points": int(is_check.sum()),
    }
    if is_check.any():
        details["check_rms"] = _rms(fitted.residuals[is_check])
    return details


def _table(
    located: list[_Located], usable: list[_Located], fitted: _Fitted, is_check: np.ndarray
) -> list[dict[str, Any]]:
    """Each point for geo.json."""
    rows = {item.point.name: row for row, item in enumerate(usable)}
    table = []
    for item in located:
        point = item.point
        entry: dict[str, Any] = {"name": point.name, "position": point.position}
        if item.found is None:
            table.append(entry | {"use": "none", "problem": item.problem})
            continue
        row = rows[point.name]
        use = "left out"
        if is_check[row]:
            use = "check"
        elif fitted.is_used[row]:
            use = "control"
        errors = item.found.errors_px
        table.append(
            entry
            | {
                "use": use,
                "residual": dict(zip(AXES, fitted.residuals[row].tolist(), strict=True)),
                "num_photographs": int(item.found.is_used.sum()),
                "error_px": float(np.sqrt((errors[item.found.is_used] ** 2).mean())),
                "marks_px": {
                    sighting.photo: float(error)
                    for sighting, error in zip(item.sightings, errors, strict=True)
                },
            }
        )
    return table


def _mark_warnings(located: list[_Located]) -> list[str]:
    warnings = []
    for item in located:
        name = item.point.name
        if item.found is None:
            warnings.append(f"ground control point {name} was not used: {item.problem}")
            continue
        marks = zip(item.sightings, item.found.errors_px, item.found.is_used, strict=True)
        wrong = [f"{mark.photo} ({error:.0f} px)" for mark, error, is_used in marks if not is_used]
        if wrong:
            warnings.append(
                f"marks of ground control point {name} do not agree with its others, and were not "
                f"used: {some_of(wrong)}"
            )
    return warnings


def _fit_warnings(usable: list[_Located], fitted: _Fitted, is_check: np.ndarray) -> list[str]:
    warnings = []
    for item, residual, is_used, check in zip(
        usable, fitted.residuals, fitted.is_used, is_check, strict=True
    ):
        if not is_used and not check:
            words = metres(dict(zip(AXES, residual.tolist(), strict=True)))
            warnings.append(
                f"ground control point {item.point.name} does not fit the others and was not used: "
                f"the photographs put it {words} of its coordinates"
            )
    num_used = int(fitted.is_used.sum())
    if num_used <= MIN_POINTS and not is_check.any():
        warnings.append(
            f"{num_used} ground control points fit nearly always: an error of one of them would "
            "not show; measure more, or name check points"
        )
    return warnings


def _bent_warnings(fitted: _Fitted) -> list[str]:
    """Where heights of several points are off and positions are not."""
    used = fitted.residuals[fitted.is_used, :2]
    flat = max(float(np.sqrt((used**2).mean())), _SURVEY_SIGMA_M)
    heights = np.abs(fitted.residuals[:, 2])
    if (heights > max(_BENT * flat, _MIN_BENT_M)).sum() < 2:
        return []
    return [
        f"heights of ground control and check points differ by up to {heights.max():.2g} m from "
        f"those of the photographs, and positions by {flat:.2g} m (rms): where several do, the "
        "model is bent, as by a lens that is not known well; give the focal length of a "
        "calibration (--focal_px), or take oblique photographs, too"
    ]


def _shape_warnings(source: np.ndarray, centers: np.ndarray) -> list[str]:
    """Args: points and photographs, f64[n,3] and f64[V,3], level."""
    if line_fraction(source) <= MIN_LINE_FRACTION:
        return [
            "the ground control points are nearly on one line: how the model is rolled about it is "
            "not by them"
        ]
    width = np.ptp(source[:, :2], axis=0).max() / max(np.ptp(centers[:, :2], axis=0).max(), 1e-300)
    if width < _MIN_WIDTH:
        return [
            f"the ground control points span {width:.0%} of the flight: farther out, errors of "
            "scale and vertical grow"
        ]
    return []
