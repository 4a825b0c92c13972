"""Surfels as coloured points: PLY, and LAS as programs for laser scans read it."""

import os
import struct
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import atomic_path
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.formats.splat_ply import is_drawable, needs_double, unit_normals
from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.types import Surfels

MIN_OPACITY = 0.5  # of the surfels that become points: fainter ones are no surface by themselves


class Points(NamedTuple):
    """Points on a surface.

    | field       | shape    | unit, frame                                    |
    |-------------|----------|------------------------------------------------|
    | `positions` | f64[M,3] | dataset                                        |
    | `colors`    | u8[M,3]  | RGB, the mean over all directions              |
    | `normals`   | f32[M,3] | unit length, towards the nearest camera        |
    | `is_large`  |          | float32 would be too coarse for the positions  |
    """

    positions: np.ndarray
    colors: np.ndarray
    normals: np.ndarray
    is_large: bool


def points_of(surfels: Surfels, camera_centers: np.ndarray) -> Points:
    """The centres of the surfels that stop at least half of the light.

    Args:
        surfels: dataset frame.
        camera_centers: f64[V,3], dataset; a normal looks towards the nearest.
    Raises:
        InputError: there is no such surfel.
    """
    opacities = 1 / (1 + np.exp(-np.clip(np.asarray(surfels.logit_opacities, np.float64), -50, 50)))
    keep = is_drawable(surfels) & (opacities >= MIN_OPACITY)
    if not keep.any():
        raise InputError(
            f"points: expected surfels with an opacity of at least {MIN_OPACITY}, got none of "
            f"{len(keep)}; "
            "was the model trained?"
        )
    positions = np.asarray(surfels.means, np.float64)[keep]
    normals = unit_normals(np.asarray(surfels.quats, np.float64)[keep])
    nearest = np.asarray(camera_centers)[cKDTree(camera_centers).query(positions)[1]]
    is_away = ((nearest - positions) * normals).sum(axis=1) < 0
    colors = np.clip(np.asarray(surfels.sh, np.float64)[keep, 0] * C0 + 0.5, 0, 1)
    return Points(
        positions,
        np.round(colors * 255).astype(np.uint8),
        np.where(is_away[:, None], -normals, normals).astype(np.float32),
        needs_double(np.asarray(surfels.means)[keep], np.asarray(surfels.log_scales)[keep]),
    )


def write_points_ply(path: str | os.PathLike, points: Points) -> None:
    """Writes x y z, normals and colours (binary PLY), atomically; x y z are double where float
    would be too coarse.

    Raises:
        InputError: the file system refused.
    """
    table = table_of(
        ("x y z", "f8" if points.is_large else "f4", points.positions),
        ("nx ny nz", "f4", points.normals),
        ("red green blue", "u1", points.colors),
    )
    write_ply(path, table, comments=("cosurfgs_jax points",))


def import_laspy():
    """The laspy module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import laspy
    except ImportError as error:
        raise InputError(
            f'laspy is needed for LAS files ({error}): pip install "cosurfgs_jax[geo]"'
        ) from error
    return laspy


def _geo_keys(epsg: int) -> bytes:
    """The GeoTIFF keys of a projected system, as LAS 1.2 keeps them."""
    keys = (
        (1024, 0, 1, 1),
        (1025, 0, 1, 1),
        (3072, 0, 1, epsg),
    )  # model type: projected; raster type: areas; the system
    return struct.pack(
        f"<{4 + 4 * len(keys)}H", 1, 1, 0, len(keys), *(number for key in keys for number in key)
    )


def write_points_las(
    path: str | os.PathLike,
    points: Points,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    epsg: int = 0,
) -> None:
    """Writes a LAS 1.2 file (point format 2: coordinates and colours), atomically.

    LAS keeps coordinates as whole numbers of steps from an origin; a step is a power of ten, at
    most a millionth of the extent.

    Args:
        path: the file.
        points: dataset frame.
        offset: added to the coordinates.
        epsg: of the projected system that they are in then; 0 = none.
    Raises:
        InputError: laspy is missing, or the file system refused.
    """
    laspy = import_laspy()
    positions = points.positions + np.asarray(offset)
    low = positions.min(axis=0)
    high = positions.max(axis=0)
    extent = max((high - low).max(), 1e-9)
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales = np.full(3, 10.0 ** np.floor(np.log10(extent * 1e-6)))
    header.offsets = np.floor(low / header.scales) * header.scales
    header.generating_software = "cosurfgs_jax"
    if epsg:
        header.vlrs.append(
            laspy.VLR(user_id="LASF_Projection", record_id=34735, record_data=_geo_keys(epsg))
        )
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = positions.T
    for name, channel in zip(("red", "green", "blue"), points.colors.T, strict=True):
        setattr(cloud, name, channel.astype(np.uint16) * 257)  # colours of LAS have 16 bits
    with atomic_path(path) as temporary:
        cloud.write(str(temporary))
