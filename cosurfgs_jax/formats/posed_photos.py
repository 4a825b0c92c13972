"""What the files of other programs say of photographs with poses: the lens as they have it, the
pose, and the coordinate system.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError

_ROTATION_TOLERANCE = 1e-4  # of a rotation's entries: files have seven digits or more


class BrownLens(NamedTuple):
    """A lens with the distortion of Brown and Conrady, which acts on normalised coordinates x/z and
    y/z, in a fisheye on the unit image direction times the angle to the axis.

    | field         | unit                                                                      |
    |---------------|---------------------------------------------------------------------------|
    | `size`        | (H, W) in pixels; None: lengths are fractions of the longer side, and the |
    |               | principal point is relative to the middle of the picture                  |
    | `focal`       | (fx, fy)                                                                  |
    | `principal`   | (cx, cy), x+0.5 is the centre of pixel x                                  |
    | `radial`      | of r^2, r^4, r^6, r^8                                                     |
    | `tangential`  | (p1, p2) in OpenCV's order: p2 goes with r^2 + 2 x^2 in x                 |
    | `skew`        | of distorted y, added to the column                                       |
    | `is_fisheye`  |                                                                           |
    """

    size: tuple[int, int] | None
    focal: tuple[float, float]
    principal: tuple[float, float]
    radial: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)
    skew: float = 0.0
    is_fisheye: bool = False


@dataclasses.dataclass(frozen=True)
class PosedPhoto:
    """A photograph with a pose.

    | field               | shape    | unit, frame                                        |
    |---------------------|----------|----------------------------------------------------|
    | `name`              |          | as the file has it                                 |
    | `camera_from_local` | f64[4,4] | rigid; camera x right, y down, z forward           |
    | `lens`              |          | of the full-sized photograph                       |
    """

    name: str
    camera_from_local: np.ndarray
    lens: BrownLens


@dataclasses.dataclass(frozen=True)
class PoseFile:
    """The photographs of a file, in a frame of its own ("local").

    | field               | content                                                              |
    |---------------------|----------------------------------------------------------------------|
    | `program`           | that wrote it                                                        |
    | `path`              | of the file, or of the folder of files                               |
    | `photos`            | with poses                                                           |
    | `left_out`          | names of photographs without a pose                                  |
    | `has_vertical`      | whether +z of the frame below is up                                  |
    | `system`            | coordinate system as text (WKT, EPSG); "" = the file names none      |
    | `is_geocentric`     | whether the frame below is that of metres from the earth's centre    |
    | `system_from_local` | f64[4,4], a similarity, to coordinates of the system                 |
    """

    program: str
    path: Path
    photos: list[PosedPhoto]
    left_out: list[str] = dataclasses.field(default_factory=list)
    has_vertical: bool = True
    system: str = ""
    is_geocentric: bool = False
    system_from_local: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))


def rigid(
    rotation: Float[np.ndarray, "3 3"], center: Float[np.ndarray, " 3"], where: str
) -> Float[np.ndarray, "4 4"]:
    """camera_from_local of a rotation camera from local, and of where the camera stands.

    Args:
        rotation: f64[3,3], rounded as files have it; the nearest rotation is taken.
        center: f64[3], local.
        where: file and photograph, for the message.
    Raises:
        InputError: it is no rotation, or a number is not finite.
    """
    pose = np.eye(4)
    if not (np.isfinite(rotation).all() and np.isfinite(center).all()):
        raise InputError(f"{where}: expected finite numbers of a pose, got others; export it again")
    left, scales, right = np.linalg.svd(rotation)
    if np.abs(scales - 1).max() > _ROTATION_TOLERANCE or np.linalg.det(left @ right) < 0:
        raise InputError(
            f"{where}: expected a rotation, got {np.round(rotation, 4).tolist()}; export it again"
        )
    pose[:3, :3] = left @ right
    pose[:3, 3] = -pose[:3, :3] @ center
    return pose
