"""What `prepare` found, in words and numbers."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cosurfgs_jax.sfm.database import Contents
from cosurfgs_jax.sfm.georeference import Placement
from cosurfgs_jax.sfm.photos import PhotoFolder

_FEW_FEATURES = 0.25  # of the median: blurred, or of water, snow or sky
_MAX_ERROR_PX = 1.5
_MIN_REGISTERED = 0.5  # of the photographs
_MAX_SCALE_ERROR = 0.05
_FOCAL_DIFFERENCE = 0.1
_TRAINED_SIDE = 1000  # pixels: what the preset for aerial photographs is made for
_NUM_SHOWN = 8  # names in a sentence


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Numbers of a reconstruction.

    | field              | content                                                                 |
    |--------------------|-------------------------------------------------------------------------|
    | `registered`       | names of the photographs that have a pose                               |
    | `group_sizes`      | photographs in each model that was found, the largest first             |
    | `error_px`         | mean reprojection error in pixels; None: points have no tracks          |
    | `num_points`       | SfM points                                                              |
    | `track_length`     | mean number of photographs that see a point                             |
    | `cameras`          | of each: "model", "width", "height", "params", "focal", "focal_before"  |
    | `keeps_focal`      | whether focal lengths are not refined                                   |
    | `tells_focal`      | whether the photographs can tell them from the height                   |
    | `poses_of`         | the program that found the poses; "" = the mapper                       |
    """

    registered: list[str]
    group_sizes: list[int]
    error_px: float | None
    num_points: int
    track_length: float
    cameras: list[dict[str, Any]]
    keeps_focal: bool
    tells_focal: bool
    poses_of: str = ""


def camera_facts(camera: Any, *, focal_before: float | None, num_photographs: int) -> dict:
    """An entry of `ModelFacts.cameras`.

    Args:
        camera: pycolmap.Camera.
        focal_before: in pixels, before it was refined; 0: unknown, None: it was not.
        num_photographs: that it took.
    """
    return {
        "model": camera.model_name,
        "width": camera.width,
        "height": camera.height,
        "params": camera.params,
        "focal": camera.mean_focal_length(),
        "focal_before": focal_before,
        "photographs": num_photographs,
    }


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sentences: what was found, and what is suspicious; missing photographs with the reasons; by
    which factor photographs are best shrunk for training; whether the dataset says which of them
    are for testing.
    """

    found: list[str]
    suspicious: list[str]
    missing: dict[str, str]
    downscale: int = 1
    has_split: bool = False

    def lines(self) -> list[str]:
        """The summary as it is printed."""
        return [*self.found, *(f"suspicious: {sentence}" for sentence in self.suspicious)]


def some_of(names: Iterable[str]) -> str:
    """Names with commas between, no more than a reader wants."""
    names = list(names)
    text = ", ".join(names[:_NUM_SHOWN])
    if len(names) > _NUM_SHOWN:
        text += f" and {len(names) - _NUM_SHOWN} more"
    return text


def metres(residual: dict[str, float]) -> str:
    """Distances along axes in words."""
    return ", ".join(f"{value:+.3f} m {axis}" for axis, value in residual.items())


def counted(number: int, thing: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{number} {thing}" + "s" * (number != 1)


def _missing_reasons(
    folder: PhotoFolder, contents: Contents, registered: Sequence[str], blurred: Sequence[str]
) -> dict[str, str]:
    """Why photographs have no pose, by name."""
    has_pose = set(registered)
    reasons = {}
    for photo in folder.photos:
        name = photo.name
        if name in has_pose:
            continue
        partners = contents.num_partners.get(name, 0)
        if not contents.num_features.get(name):
            reasons[name] = "no features: without texture, or of a format that COLMAP cannot read"
        elif name in blurred:
            reasons[name] = "few features: blurred, or without texture"
        elif not partners:
            reasons[name] = "no photograph that it was compared with shows the same"
        else:
            reasons[name] = f"overlaps with {partners} others, too little to be placed"
    return reasons


def _few_features(folder: PhotoFolder, contents: Contents, max_image_size: int) -> list[str]:
    """Names of photographs with fewer features than others; of a smaller one fewer are expected,
    in proportion to the pixels that features are looked for in.
    """
    if not contents.num_features:
        return []
    least = _FEW_FEATURES * np.median(list(contents.num_features.values()))
    num_pixels = {}
    for photo in folder.photos:
        factor = min(1.0, max_image_size / photo.longer_side)
        num_pixels[photo.name] = photo.width * photo.height * factor**2
    usual = np.median(list(num_pixels.values()))
    return [
        name
        for name, count in contents.num_features.items()
        if count < least * min(1.0, num_pixels[name] / usual)
    ]


def summarize(
    folder: PhotoFolder,
    contents: Contents,
    facts: ModelFacts,
    placement: Placement,
    *,
    max_image_size: int,
) -> Summary:
    """The summary of a preparation.

    Args:
        folder: the photographs.
        contents: of the database.
        facts: of the model.
        placement: of the model.
        max_image_size: in pixels, to which longer sides were shrunk before features were found.
    """
    blurred = _few_features(folder, contents, max_image_size)
    missing = _missing_reasons(folder, contents, facts.registered, blurred)
    found = [
        _registered(folder, facts, missing),
        _error_words(facts),
        *_focal_words(facts),
        *_place_words(placement, _without_gps(folder, facts)),
    ]
    suspicious = [
        *_photo_warnings(folder, contents, [name for name in blurred if name not in missing]),
        *_size_warnings(folder, facts),
        *_registered_warnings(folder, facts),
        *_model_warnings(facts),
        *_scale_warnings(placement),
        *placement.warnings,
    ]
    longest = max(photo.longer_side for photo in folder.photos)
    return Summary(found, suspicious, missing, fitting_downscale(longest))


def fitting_downscale(longest_side: int) -> int:
    """The `data.downscale` with which photographs of this longest side, in pixels, are trained on
    in a reasonable time.
    """
    return max(1, round(longest_side / _TRAINED_SIDE))


def _registered(folder: PhotoFolder, facts: ModelFacts, missing: dict[str, str]) -> str:
    text = f"registered {len(facts.registered)} of {len(folder.photos)} photographs"
    if missing:
        by_reason: dict[str, list[str]] = collections.defaultdict(list)
        for name, reason in missing.items():
            by_reason[reason].append(name)
        parts = [f"{some_of(names)} ({reason})" for reason, names in by_reason.items()]
        text += f"; missing: {'; '.join(parts)}"
    return text


def _error_words(facts: ModelFacts) -> str:
    if facts.error_px is None:
        return (
            f"{facts.num_points:,} points, of which the files do not say which photographs see "
            "them: the reprojection error is unknown"
        )
    return (
        f"reprojection error {facts.error_px:.2f} px (mean), {facts.num_points:,} points, each "
        f"seen by {facts.track_length:.1f} photographs"
    )


def _focal_words(facts: ModelFacts) -> list[str]:
    lengths = some_of(f"{camera['focal']:.0f} px" for camera in facts.cameras)
    if len(facts.cameras) > 1:
        lengths = some_of(
            f"{camera['focal']:.0f} px ({camera['width']}x{camera['height']})"
            for camera in facts.cameras
        )
    if facts.poses_of:
        return [f"poses and lenses: of {facts.poses_of}, kept, focal length {lengths}"]
    if not facts.keeps_focal:
        return [f"focal length: refined, {lengths}"]
    text = f"focal length: kept, {lengths}"
    if not facts.tells_focal:
        text += (
            ", as a flight straight down over flat ground cannot tell it from the height; heights "
            "above ground are as good as it is, a few percent where it is of EXIF data"
        )
    return [text]


def _without_gps(folder: PhotoFolder, facts: ModelFacts) -> list[str]:
    """The photographs with a pose whose EXIF data have no position."""
    tags = folder.tags
    return [name for name in facts.registered if not tags[name].has_position]


def _place_words(placement: Placement, without_gps: list[str]) -> list[str]:
    geo = placement.geo
    fit = geo.details["fit"]
    if not geo.has_scale:
        frame = "z is up, by the photographs"
        if "program" in fit:
            frame = f"the frame is that of {fit['program']}"
        return [f"scale unknown ({fit['reason']}): lengths have no unit; {frame}"]
    place = (
        f"map: EPSG:{geo.epsg} ({geo.details['system']}); map coordinates are those of the dataset "
        f"plus {geo.offset_text}; heights are above {geo.details['vertical_datum']}"
    )
    if "program" in fit:
        return [f"scale and place: of {fit['program']}, in metres", place]
    gps = []
    by = f"GPS of {fit['num_used']} photographs"
    if "control_points" in geo.details:
        by = f"{fit['num_used']} ground control points"
    elif without_gps:
        gps = [f"without GPS, and placed by the others: {some_of(without_gps)}"]
    return [
        f"scale: metres, by {by}, good to {100 * fit['scale_error']:.2g} % if their errors are "
        f"independent; residuals {_rms_words(fit['residual_rms'])} (rms)",
        *gps,
        *_control_words(geo.details),
        place,
    ]


def _rms_words(rms: dict[str, float]) -> str:
    return ", ".join(f"{value:.2g} m {axis}" for axis, value in rms.items())


def _control_words(details: dict[str, Any]) -> list[str]:
    """A line for each ground control point that has a place, and what GPS says beside them."""
    kinds = {"control": "control point", "check": "check point, not used", "left out": "left out"}
    words = []
    for point in details.get("control_points", []):
        if point["use"] in kinds:
            residual = metres(point["residual"])
            words.append(
                f"{point['name']} ({kinds[point['use']]}): {residual}; "
                f"{counted(point['num_photographs'], 'photograph')}, {point['error_px']:.1f} px"
            )
    fit = details["fit"]
    if "check_rms" in fit:
        words.append(
            f"{counted(fit['num_check_points'], 'check point')}: {_rms_words(fit['check_rms'])} "
            "(rms)"
        )
    if "gps_difference" in details:
        by_gps = dict(details["gps_difference"])
        scale = by_gps.pop("scale")
        words.append(
            f"GPS, which was not used, puts the photographs {metres(by_gps)} of there (median); "
            f"by it lengths are {100 * scale:+.2f} %"
        )
    return words


def _photo_warnings(folder: PhotoFolder, contents: Contents, blurred: list[str]) -> list[str]:
    warnings = []
    if folder.unreadable:
        first = next(iter(folder.unreadable.values()))
        warnings.append(
            f"{counted(len(folder.unreadable), 'file')} cannot be read, left out: "
            f"{some_of(folder.unreadable)} ({first})"
        )
    if blurred:
        warnings.append(
            f"{some_of(blurred)}: less than {_FEW_FEATURES:.0%} of the usual number of features; "
            "blurred, or without texture?"
        )
    if contents.doubles:
        pairs = [f"{first} and {second}" for first, second in contents.doubles]
        warnings.append(
            f"taken twice from the same place, or copies: {some_of(pairs)}; copies count twice, "
            "and scores of test photographs whose copies are trained on are too good: remove one "
            "of each"
        )
    return warnings


def _size_warnings(folder: PhotoFolder, facts: ModelFacts) -> list[str]:
    names_of: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for photo in folder.photos:
        names_of[photo.width, photo.height].append(photo.name)
    if len(names_of) == 1:
        return []
    texts = []
    for (width, height), names in sorted(names_of.items(), key=lambda row: -len(row[1])):
        who = names[0] if len(names) == 1 else len(names)
        texts.append(f"{width}x{height} ({who})")
    sentence = f"photographs of {len(names_of)} sizes, as they are stored: {some_of(texts)}"
    if not facts.poses_of:
        sentence += "; each size is taken for a camera of its own"
    return [sentence]


def _registered_warnings(folder: PhotoFolder, facts: ModelFacts) -> list[str]:
    if len(facts.registered) >= _MIN_REGISTERED * len(folder.photos):
        return []
    return [
        f"only {len(facts.registered)} of {len(folder.photos)} photographs have a pose: neighbours "
        "should share two thirds of what they show; a larger --max_image_size, or "
        "--matching=exhaustive, may find more"
    ]


def _model_warnings(facts: ModelFacts) -> list[str]:
    warnings = []
    if len(facts.group_sizes) > 1:
        sizes = some_of(map(str, facts.group_sizes))
        warnings.append(
            f"the photographs fall into groups that do not hang together, of {sizes} photographs; "
            "only the largest is used"
        )
    is_high = facts.error_px is not None and facts.error_px > _MAX_ERROR_PX
    if is_high and facts.poses_of:
        warnings.append(
            f"the reprojection error is above {_MAX_ERROR_PX} px: the poses and lenses of "
            f"{facts.poses_of} do not fit these photographs, or are read wrongly"
        )
    elif is_high:
        warnings.append(
            f"the reprojection error is above {_MAX_ERROR_PX} px: another --lens may fit better"
        )
    if not facts.keeps_focal and not facts.tells_focal:
        warnings.append(
            "the focal length was refined though a flight straight down over flat ground cannot "
            "tell it from the height: heights may be wrong by a third; give that of a calibration "
            "as --focal_px"
        )
    for camera in facts.cameras:
        before = camera["focal_before"]
        if before and abs(camera["focal"] / before - 1) > _FOCAL_DIFFERENCE:
            warnings.append(
                f"the focal length became {camera['focal']:.0f} px, it was "
                f"{before:.0f} before; --focal=fix keeps it"
            )
    return warnings


def _scale_warnings(placement: Placement) -> list[str]:
    fit = placement.geo.details["fit"]
    if not placement.geo.has_scale or fit["scale_error"] < _MAX_SCALE_ERROR:
        return []
    percent = f"{100 * fit['scale_error']:.0f}"
    if "control_points" in placement.geo.details:
        return [
            f"the scale is only good to {percent} %: ground control points do not fit, or are all "
            "in nearly one place"
        ]
    return [
        f"the scale is only good to {percent} %: GPS is poor, or all photographs are from nearly "
        "one place"
    ]
