"""Surfels as coloured points: PLY, and LAS as programs for laser scans read it."""

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import atomic_path
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.ply import names_of, table_of, write_ply_parts
from cosurfgs_jax.formats.splat_ply import is_drawable, unit_normals
from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.types import Surfels

MIN_OPACITY = 0.5  # of the surfels that become points: fainter ones are no surface by themselves


class Points(NamedTuple):
    """Points on a surface.

    | field        | shape    | unit, frame                                   |
    |--------------|----------|-----------------------------------------------|
    | `positions`  | f64[M,3] | dataset                                       |
    | `colors`     | u8[M,3]  | RGB, the mean over all directions             |
    | `normals`    | f32[M,3] | unit length, towards the nearest camera       |
    | `log_scales` | f32[M,2] | natural log of the surfels' standard deviations, dataset lengths |
    """

    positions: np.ndarray
    colors: np.ndarray
    normals: np.ndarray
    log_scales: np.ndarray


def points_of(surfels: Surfels, camera_centers: np.ndarray) -> Points:
    """The centres of the surfels that stop at least half of the light.

    Args:
        surfels: dataset frame.
        camera_centers: f64[V,3], dataset; a normal looks towards the nearest.
    """
    opacities = 1 / (1 + np.exp(-np.clip(np.asarray(surfels.logit_opacities, np.float64), -50, 50)))
    keep = is_drawable(surfels) & (opacities >= MIN_OPACITY)
    positions = np.asarray(surfels.means, np.float64)[keep]
    normals = unit_normals(np.asarray(surfels.quats, np.float64)[keep])
    nearest = np.asarray(camera_centers)[cKDTree(camera_centers).query(positions)[1]]
    is_away = ((nearest - positions) * normals).sum(axis=1) < 0
    colors = np.clip(np.asarray(surfels.sh, np.float64)[keep, 0] * C0 + 0.5, 0, 1)
    return Points(
        positions,
        np.round(colors * 255).astype(np.uint8),
        np.where(is_away[:, None], -normals, normals).astype(np.float32),
        np.asarray(surfels.log_scales, np.float32)[keep],
    )


def extent_of(parts: Iterable[Points]) -> Extent:
    """Of the points of all parts.

    Raises:
        InputError: there is none.
    """
    extent = Extent()
    for points in parts:
        extent.add(points.positions, points.log_scales)
    if not extent.count:
        raise InputError(
            f"points: expected surfels with an opacity of at least {MIN_OPACITY}, got none; was "
            "the model trained?"
        )
    return extent


def point_table(points: Points) -> np.ndarray:
    """The columns x y z, nx ny nz, red green blue of points; the places in float64."""
    return table_of(
        ("x y z", "f8", points.positions),
        ("nx ny nz", "f4", points.normals),
        ("red green blue", "u1", points.colors),
    )


def write_points_ply(path: str | os.PathLike, tables: Iterable[np.ndarray], extent: Extent) -> None:
    """Writes x y z, normals and colours (binary PLY) part by part, atomically; x y z are double
    where float would be too coarse.

    Args:
        path: the file.
        tables: at least one, of `point_table`.
        extent: of all points.
    Raises:
        InputError: the file system refused.
    """
    place = "f8" if extent.needs_double else "f4"

    def narrowed(table: np.ndarray) -> np.ndarray:
        kinds = {name: table.dtype[name] for name in names_of(table.dtype)}
        return table.astype(list((kinds | dict.fromkeys("xyz", place)).items()))

    parts = map(narrowed, tables)
    write_ply_parts(path, extent.count, parts, comments=("cosurfgs_jax points",))


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
    tables: Iterable[np.ndarray],
    extent: Extent,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    epsg: int = 0,
) -> None:
    """Writes a LAS 1.2 file (point format 2: coordinates and colours) part by part, atomically.

    LAS keeps coordinates as whole numbers of steps from an origin; a step is a power of ten, at
    most a millionth of the extent.

    Args:
        path: the file.
        tables: of `point_table`.
        extent: of all points.
        offset: added to the coordinates.
        epsg: of the projected system that they are in then; 0 = none.
    Raises:
        InputError: laspy is missing, or the file system refused.
    """
    laspy = import_laspy()
    low = extent.low + np.asarray(offset)
    longest = max((extent.high - extent.low).max(), 1e-9)
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales = np.full(3, 10.0 ** np.floor(np.log10(longest * 1e-6)))
    header.offsets = np.floor(low / header.scales) * header.scales
    header.generating_software = "cosurfgs_jax"
    if epsg:
        header.vlrs.append(
            laspy.VLR(user_id="LASF_Projection", record_id=34735, record_data=_geo_keys(epsg))
        )
    with (
        atomic_path(path) as temporary,
        laspy.open(str(temporary), mode="w", header=header) as file,
    ):
        for table in tables:
            record = laspy.ScaleAwarePointRecord.zeros(len(table), header=header)
            for axis, shift in zip("xyz", offset, strict=True):
                setattr(record, axis, table[axis] + shift)
            for name in ("red", "green", "blue"):
                setattr(record, name, table[name].astype(np.uint16) * 257)  # LAS has 16 bits
            file.write_points(record)
