"""What a dataset must be to be believed, whatever format it has: names, sizes, lenses, poses,
points.
"""

import logging
import shlex

import numpy as np

from cosurfgs_jax.data import track_checks
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import check_name
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import Lens

COPY_OR_NAME = "copy the images there, or give their folder as config.data.images"
_MAX_SIDE = 2**17  # pixels of a photograph
# Of the longer side: 0.03 degrees to 179 degrees across.
_MIN_FOCAL = 0.005
_MAX_FOCAL = 2000
_MAX_ANAMORPHIC = 4  # between the two: twice that of the lenses that squeeze pictures for a cinema
# Of lenses that are said to be unusual: pixels are square, and the axis is near the middle.
_USUAL_ANAMORPHIC = 1.05
_USUAL_CENTRE = 0.25  # of the longer side
_TANGENTIAL = ("OPENCV", "FULL_OPENCV")  # models whose coefficients are k1 k2 p1 p2 ...
_USUAL_TANGENTIAL = 0.05  # p1 and p2: lenses that sit askew have a hundredth
_MAX_CENTRE = (
    50  # sides that the principal point may lie outside: of a piece cut from a large picture
)
# Dataset units: map coordinates in millimetres reach 10^10.
_MAX_COORDINATE = 1e12
# Times the typical distance of cameras from their middle. A camera so far away is a mistake; a
# point there tells less than a hundredth of a pixel of its place.
_MAX_REACH = 1e5
_ROTATION_TOLERANCE = 1e-6
_log = logging.getLogger(__name__)


def check_lens(lens: Lens, where: str) -> None:
    """Refuses a lens that no camera has.

    Args:
        lens: of the full-sized photograph.
        where: file and image, for the message.
    Raises:
        InputError: sides, focal lengths or their ratio, principal point or coefficients far from
            all there are.
    """
    side = max(lens.height, lens.width)
    if side > _MAX_SIDE:
        raise InputError(
            f"{where}: expected a photograph of at most {_MAX_SIDE} pixels a side, got "
            f"{lens.width}x{lens.height}; "
            "the file is damaged, or cut the photographs"
        )
    if not _MIN_FOCAL * side <= min(lens.focal_px) <= max(lens.focal_px) <= _MAX_FOCAL * side:
        raise InputError(
            f"{where}: expected a focal length of {_MIN_FOCAL} to {_MAX_FOCAL} times the longer "
            f"side of {side} "
            f"pixels, got {lens.focal_px[0]:.6g} and {lens.focal_px[1]:.6g}; calibrate the camera "
            "again"
        )
    if max(lens.focal_px) > _MAX_ANAMORPHIC * min(lens.focal_px):
        raise InputError(
            f"{where}: expected two focal lengths in pixels that hardly differ, got "
            f"{lens.focal_px[0]:.6g} and {lens.focal_px[1]:.6g}; calibrate the camera again"
        )
    offset = np.abs(np.array(lens.principal_px) - np.array([lens.width, lens.height]) / 2)
    if not np.all(offset <= _MAX_CENTRE * side):
        raise InputError(
            f"{where}: expected the principal point in the photograph or near it, got "
            f"{lens.principal_px[0]:.6g}, {lens.principal_px[1]:.6g}; calibrate the camera again"
        )
    if not np.all(np.abs(lens.coefficients) < 1e6):
        raise InputError(
            f"{where}: expected coefficients of distortion below 10^6, got "
            f"{lens.coefficients}; calibrate the camera again"
        )


def _is_unusual(lens: Lens) -> bool:
    """Whether few cameras are like that, though some are."""
    offset = max(
        abs(principal - side / 2)
        for principal, side in zip(lens.principal_px, (lens.width, lens.height), strict=True)
    )
    is_oblong = max(lens.focal_px) > _USUAL_ANAMORPHIC * min(lens.focal_px)
    if lens.model in _TANGENTIAL and max(map(abs, lens.coefficients[2:4])) > _USUAL_TANGENTIAL:
        return True
    return is_oblong or offset > _USUAL_CENTRE * max(lens.height, lens.width)


def _check_lenses(capture: Capture) -> None:
    """Refuses lenses that no camera has, and says which are unusual."""
    unusual: dict[Lens, bool] = {}  # thousands of photographs may share one
    for name, lens in zip(capture.image_names, capture.lenses, strict=True):
        if lens not in unusual:
            check_lens(lens, f"{capture.source}: image {name}")
            unusual[lens] = _is_unusual(lens)
    views = [view for view, lens in enumerate(capture.lenses) if unusual[lens]]
    if views:
        lens = capture.lenses[views[0]]
        _log.warning(
            "%s: the cameras of %d of %d photographs are unusual, the first is that of %s, with "
            "focal lengths of %.6g and %.6g pixels, the principal point at %.6g, %.6g of %dx%d and "
            "coefficients of distortion %s: right where pixels are not square or pictures were cut "
            "out of larger ones, else calibrate the camera again",
            capture.source,
            len(views),
            capture.num_views,
            capture.image_names[views[0]],
            *lens.focal_px,
            *lens.principal_px,
            lens.width,
            lens.height,
            lens.coefficients,
        )


def check_missing(
    wanted: list[str],
    is_there: list[bool],
    source: str,
    remedy: str = COPY_OR_NAME,
) -> None:
    """Says how many photographs are missing and which, and refuses a dataset of which most are.

    Args:
        wanted: what the dataset's files name.
        is_there: of each of them.
        source: the file or folder that names them, for messages.
        remedy: what to do.
    Raises:
        InputError: none is there, or less than half.
    """
    missing = [name for name, there in zip(wanted, is_there, strict=True) if not there]
    num_found = len(wanted) - len(missing)
    if not wanted or 2 * num_found < len(wanted):
        first = missing[0] if missing else "no frames"
        raise InputError(
            f"{source}: expected its photographs, got {num_found or 'none'} of {len(wanted)} (the "
            f"first that is missing: {first}); {remedy}"
        )
    if missing:
        _log.warning(
            "%s: %d of %d photographs are not there and are left out: %s",
            source,
            len(missing),
            len(wanted),
            some_of(missing),
        )


def some_of(names: list[str], most: int = 5) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _check_poses(capture: Capture) -> None:
    names = capture.image_names
    source = capture.source
    broken = np.flatnonzero(~np.isfinite(capture.camera_from_dataset).all(axis=(1, 2)))
    if broken.size:
        raise InputError(
            f"{source}: expected finite poses, got NaN or infinity in {broken.size} of "
            f"{len(names)}, the first is that "
            f"of {names[broken[0]]}; remove these images from the model"
        )
    rotations = capture.camera_from_dataset[:, :3, :3]
    products = rotations @ np.swapaxes(rotations, 1, 2)
    broken = np.flatnonzero(np.abs(products - np.eye(3)).max(axis=(1, 2)) > _ROTATION_TOLERANCE)
    if broken.size:
        raise InputError(
            f"{source}: expected rotations, got other matrices in {broken.size} of {len(names)} "
            "poses, the first is "
            f"that of {names[broken[0]]}; remove these images from the model"
        )
    centers = camera_center(capture.camera_from_dataset)
    with np.errstate(over="ignore", invalid="ignore"):
        distances = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
        is_far = ~(np.abs(centers).max(axis=1) <= _MAX_COORDINATE)
        if np.median(distances) > 0:
            is_far |= ~(distances <= _MAX_REACH * np.median(distances))
    if is_far.any():
        raise InputError(
            f"{source}: expected cameras around one place, got {is_far.sum()} of {len(names)} far "
            "away from the "
            f"others, the first is that of {names[is_far.argmax()]}; remove these images from the "
            "model"
        )


def _without_far_points(capture: Capture) -> Capture:
    """Leaves out points that are too far away to be placed by the photographs."""
    centers = camera_center(capture.camera_from_dataset)
    middle = np.median(centers, axis=0)
    reach = np.median(np.linalg.norm(centers - middle, axis=1))
    with np.errstate(over="ignore"):
        distances = np.linalg.norm(capture.cloud.points - middle, axis=1)
    is_near = distances <= (_MAX_REACH * reach if reach > 0 else _MAX_COORDINATE)
    if is_near.all():
        return capture
    if not is_near.any():
        raise InputError(
            f"{capture.source}: expected points near the cameras, got none of {len(is_near)}; "
            "points and poses are of two frames or units"
        )
    _log.warning(
        "%s: %d of %d points are left out: they are %.0f times as far away as the cameras are from "
        "each other, or more",
        capture.source,
        (~is_near).sum(),
        len(is_near),
        _MAX_REACH,
    )
    return capture.of_points(is_near)


def checked(capture: Capture, needs_points: bool = True) -> Capture:
    """A capture that can be believed; what can be left out is, with a word in the log.

    Args:
        capture: views sorted by name.
        needs_points: whether one without points is refused.
    Raises:
        InputError: names that are there twice or unsafe, fewer than two views, lenses, poses or
            points that make no sense.
    """
    names = capture.image_names
    source = capture.source
    if len(names) < 2:
        raise InputError(
            f"{source}: expected at least 2 images with poses, got {len(names)}; check the "
            "reconstruction"
        )
    for name in names:
        check_name(name, source)
    twice = next(
        (name for name, following in zip(names, names[1:], strict=False) if name == following), None
    )
    if twice:
        raise InputError(
            f"{source}: expected every image once, got {twice} twice; remove one of them"
        )
    _check_lenses(capture)
    _check_poses(capture)
    if not len(capture.cloud.points) and not needs_points:
        return capture
    if not len(capture.cloud.points):
        raise InputError(
            f"{source}: expected points to start from, got poses without any; give the point cloud "
            "or the COLMAP model that the poses were made from, or triangulate points: cosurfgs "
            f"prepare --poses={shlex.quote(str(capture.root))} --out=FOLDER"
        )
    broken = np.flatnonzero(~np.isfinite(capture.cloud.points).all(axis=1))
    if broken.size:
        raise InputError(
            f"{source}: expected finite points, got NaN or infinity in {broken.size} of "
            f"{len(capture.cloud.points)}, the "
            f"first is point {broken[0]} of the file; remove them"
        )
    capture = _without_far_points(capture)
    track_checks.check(capture)
    return capture
