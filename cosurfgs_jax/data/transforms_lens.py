"""The lens of a frame of `transforms.json`, as nerfstudio, instant-ngp and their relatives describe
it.
"""

import functools
import logging
import math
import re

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params

_NUMBERS = (
    "fl_x",
    "fl_y",
    "camera_angle_x",
    "camera_angle_y",
    "x_fov",
    "y_fov",
    "cx",
    "cy",
    "w",
    "h",
    "k1",
    "k2",
    "k3",
    "k4",
    "p1",
    "p2",
)
# What would change where a pixel looks, and has no agreed meaning or no model here.
_OTHER_LENSES = re.compile(
    r"k([5-9]|\d\d+)|p([03-9]|\d\d+)|[sb]\d+|tau[_xy]*|xi|omega|skew\w*|shear\w*|affin\w*"
    r"|distortion\w*"
    r"|\w*fisheye\w*|\w*panoram\w*|\w*latlong\w*|equirect\w*|\w*spherical\w*|ortho\w*|ftheta\w*"
    r"|rolling_shutter\w*|lens\w*|camera_type|projection\w*",
    re.IGNORECASE,
)
_KNOWN = ("is_fisheye", "fisheye_crop_radius")  # the latter is nerfstudio's border of what it draws
_FISHEYE = {
    "OPENCV_FISHEYE": 4,
    "FISHEYE": 4,
    "SIMPLE_RADIAL_FISHEYE": 1,
    "RADIAL_FISHEYE": 2,
}  # how many radial terms
_ANGLE_TOLERANCE = 0.01  # of a focal length: far above rounding
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)
_PERSPECTIVE = ("PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE")


def _number(table: dict, key: str, where: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        file = where.partition(": frame")[0]
        _warn_once(f"{file}: {key} is written as text and read as a number")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: expected a number as {key}, got {str(value)[:60]!r}")
    if not math.isfinite(value):
        raise InputError(f"{where}: expected a finite number as {key}, got {value}")
    return float(value)


def number_of(table: dict, key: str, where: str) -> float | None:
    """A finite number of a JSON object, None where it has none; InputError names the place and the
    key.
    """
    return _number(table, key, where)


def _says_something(value) -> bool:
    """Whether a setting is not the zero, the false, the nothing or the word for a plain camera that
    stands for "none".
    """
    if isinstance(value, list):
        return any(map(_says_something, value))
    if isinstance(value, str):
        return value.lower() not in ("", "none", "perspective", "pinhole", "opencv", "global")
    return bool(value)


def _check_keys(table: dict, where: str) -> None:
    for key, value in table.items():
        if key not in _KNOWN and _OTHER_LENSES.fullmatch(key) and _says_something(value):
            raise InputError(
                f"{where}: expected a lens of fl_x, fl_y, cx, cy, k1 to k4, p1, p2, got {key} = "
                f"{str(value)[:60]}, "
                "which this program has no model for; undistort the images first"
            )


def _side(table: dict, values: dict, key: str, of_file: int, where: str) -> int:
    value = values[key]
    if value is None or value == 0:
        return of_file
    if value < 1 or not value.is_integer():
        raise InputError(f"{where}: expected a whole number of pixels as {key}, got {table[key]}")
    return int(value)


def _focal(values: dict, side: int, which: str, axis: str) -> float | None:
    """From fl_x; or camera_angle_x, in radians; or x_fov, in degrees."""
    if values[which] is not None:
        return values[which]
    angle = values[f"camera_angle_{axis}"]
    degrees = values[f"{axis}_fov"]
    if not angle and degrees:
        angle = math.radians(degrees)
    if not angle or not 0 < angle < math.pi:
        return None
    return side / 2 / math.tan(angle / 2)


def _check_angle(values: dict, side: int, axis: str, where: str) -> None:
    """Says where a file has a focal length and the angle of a camera that is no fisheye, and they
    are not the same.
    """
    focal = values[f"fl_{axis}"]
    angle = values[f"camera_angle_{axis}"]
    if focal is None or not angle or not 0 < angle < math.pi:
        return
    of_angle = side / 2 / math.tan(angle / 2)
    if not math.isclose(focal, of_angle, rel_tol=_ANGLE_TOLERANCE):
        _warn_once(
            f"{where.partition(': frame')[0]}: fl_{axis} = {focal:.6g} is taken, though "
            f"camera_angle_{axis} = {angle:.6g} says {of_angle:.6g} for {side} pixels: was it "
            "written for photographs of another size?"
        )


def _given_or(value: float | None, default: float) -> float:
    if value is None:
        return default
    return value


@functools.lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning("%s", text)


def _model_of(table: dict, where: str) -> str:
    named = table.get("camera_model")
    is_fisheye = table.get("is_fisheye")
    if named is not None and not isinstance(named, str):
        raise InputError(f"{where}: expected a name as camera_model, got {str(named)[:60]!r}")
    if is_fisheye not in (None, False, True, 0, 1):
        raise InputError(
            f"{where}: expected true or false as is_fisheye, got {str(is_fisheye)[:60]!r}"
        )
    if named is None and is_fisheye:
        return "OPENCV_FISHEYE"
    if named is None:
        return "OPENCV"
    if is_fisheye and named not in _FISHEYE:
        raise InputError(
            f"{where}: expected one lens, got is_fisheye and camera_model {named}; remove the "
            "wrong one"
        )
    return named


def lens_of(table: dict, size: tuple[int, int], where: str) -> Lens:
    """The lens of a frame.

    Args:
        table: its camera fields; those of the file where the frame has none of its own.
        size: (H, W) of the photograph on disk, used where `h` and `w` are missing.
        where: file and frame, for messages.
    Raises:
        InputError: no focal length, an unknown camera model, a coefficient that has no agreed
            meaning, or any other key that says something of the lens.
    """
    _check_keys(table, where)
    values = {key: _number(table, key, where) for key in _NUMBERS}
    height = _side(table, values, "h", size[0], where)
    width = _side(table, values, "w", size[1], where)
    focal_x = _focal(values, width, "fl_x", "x")
    focal_y = None
    if values["fl_x"] is None or values["fl_y"] is not None:
        focal_y = _focal(values, height, "fl_y", "y")
    if focal_x is None:
        raise InputError(
            f"{where}: expected fl_x (the focal length in pixels) or camera_angle_x, got neither"
        )
    params = [
        focal_x,
        _given_or(focal_y, focal_x),
        _given_or(values["cx"], width / 2),
        _given_or(values["cy"], height / 2),
    ]
    k1, k2, k3, k4, p1, p2 = (values[key] or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = _model_of(table, where)
    if model not in _FISHEYE:
        _check_angle(values, width, "x", where)
        _check_angle(values, height, "y", where)
    if model in ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV"):
        if k4:
            # nerfstudio multiplies it with r^8, OpenCV divides by 1 + k4 r^2: the file does not say
            # which is meant.
            raise InputError(
                f"{where}: expected no k4 with camera_model {model}, got {k4}; undistort the "
                "images first"
            )
        model = "OPENCV"
        params = [*params, k1, k2, p1, p2]
        if k3:
            model = "FULL_OPENCV"
            params = [*params, k3, 0, 0, 0]
    elif model in _FISHEYE:
        if p1 or p2 or any((k1, k2, k3, k4)[_FISHEYE[model] :]):
            raise InputError(
                f"{where}: expected {_FISHEYE[model]} radial coefficients with camera_model "
                f"{model}, got "
                f"{[k1, k2, k3, k4]} and p1, p2 = {p1}, {p2}; remove those that are not meant"
            )
        model = "OPENCV_FISHEYE"
        params = [*params, k1, k2, k3, k4]
    elif model in _PERSPECTIVE:
        if any((k1, k2, k3, k4, p1, p2)):
            _warn_once(
                f"{where.partition(': frame')[0]}: camera_model {model} has no distortion, so that "
                "k1 to k4, p1 "
                "and p2 are not used"
            )
        model = "PINHOLE"
    else:
        raise InputError(
            f"{where}: expected camera_model OPENCV, OPENCV_FISHEYE or PINHOLE, got "
            f"{str(model)[:60]!r}"
        )
    try:
        return lens_from_params(model, height, width, params)
    except (InputError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None
