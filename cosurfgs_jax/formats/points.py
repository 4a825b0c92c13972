"""Coloured points, such as the centres of surfels: PLY, and LAS as programs for laser scans read
it.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
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

CONFIDENCE = "confidence"  # column of points that know from how many photographs they are
# Names of the columns that LAS has no place for: CloudCompare and PDAL take the first three for
# normals.
_LAS_DIMENSIONS = {"nx": "NormalX", "ny": "NormalY", "nz": "NormalZ", CONFIDENCE: CONFIDENCE}
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
    """Writes points as binary PLY part by part, atomically; x y z are double where float would be
    too coarse.

    Args:
        path: the file.
        tables: at least one, of `point_table` or with more columns.
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


def import_laspy(suffix: str = ".las"):
    """The laspy module.

    Args:
        suffix: of the file that it shall write; ".laz" needs lazrs, too.
    Raises:
        InputError: it is not installed.
    """
    needed = "laspy"
    try:
        import laspy

        if suffix == ".laz":
            needed = "lazrs"
            import lazrs  # noqa: F401  laspy takes it where it is there
    except ImportError as error:
        raise InputError(
            f"{needed} is needed for {suffix[1:].upper()} files ({error}): pip install "
            '"cosurfgs_jax[geo]"'
        ) from error
    return laspy


def _step_of(extent: Extent) -> float:
    """The step of the coordinates of a LAS file, which keeps them as whole numbers of 32 bits."""
    longest = float((extent.high - extent.low).max())
    fine = np.floor(np.log10(extent.typical / 100))
    coarse = np.ceil(np.log10(max(longest, 1e-300) / (2.0**31 - 2)))
    return float(10.0 ** max(fine, coarse))


def write_points_las(
    path: str | os.PathLike,
    tables: Iterable[np.ndarray],
    extent: Extent,
    *,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    wkt: str = "",
) -> None:
    """Writes a LAS 1.4 file (point format 7) part by part, atomically; a LAZ file where its name
    ends so.

    Beside coordinates and colours, which are of 16 bits in LAS, the points have the extra
    dimensions NormalX, NormalY and NormalZ, and confidence where the tables have it. Coordinates
    are whole numbers of steps from an origin; a step is a power of ten, at most a hundredth of the
    typical distance of the points where the extent allows it.

    Args:
        path: the file.
        tables: of `point_table`, or with these columns.
        extent: of all points, or a larger box.
        offset: added to the coordinates.
        wkt: of the system that they are in then (WKT 1); "" = none.
    Raises:
        InputError: laspy or lazrs is missing, or the file system refused.
    """
    suffix = Path(path).suffix
    laspy = import_laspy(suffix)
    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales = np.full(3, _step_of(extent))
    header.offsets = np.floor((extent.low + np.asarray(offset)) / header.scales) * header.scales
    header.generating_software = "cosurfgs_jax"
    header.global_encoding.wkt = True  # wanted of this point format, with and without a system
    if wkt:
        header.vlrs.append(laspy.vlrs.known.WktCoordinateSystemVlr(wkt))
    tables = iter(tables)
    first = next(tables)
    own = dict(_LAS_DIMENSIONS)
    if CONFIDENCE not in names_of(first.dtype):
        del own[CONFIDENCE]
    header.add_extra_dims(
        [laspy.ExtraBytesParams(name, first.dtype[column]) for column, name in own.items()]
    )
    with (
        atomic_path(path) as temporary,
        laspy.open(str(temporary), mode="w", header=header, do_compress=suffix == ".laz") as file,
    ):
        for table in itertools.chain([first], tables):
            record = laspy.ScaleAwarePointRecord.zeros(len(table), header=header)
            for axis, shift in zip("xyz", offset, strict=True):
                setattr(record, axis, table[axis] + shift)
            for name in ("red", "green", "blue"):
                setattr(record, name, table[name].astype(np.uint16) * 257)  # LAS has 16 bits
            for column, name in own.items():
                record[name] = table[column]
            for name in ("return_number", "number_of_returns"):  # counted from 1
                record[name] = np.ones(len(table), np.uint8)
            file.write_points(record)
