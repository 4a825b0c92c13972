"""Contour lines of a file of heights. The whole map is in memory, in float64."""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import line_layer
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.surface.ground import GroundGrid

_NUM_HEIGHTS = 14  # about; with steps of 1, 2 and 5 there are 9 to 22 of them
_STEPS = (1.0, 2.0, 5.0, 10.0)
# Pixels by which a line may leave its place for fewer corners.
_STRAY = 0.25
# More are a mistake of the unit: each takes a walk through the map.
_MAX_HEIGHTS = 10_000
# Pixels; shorter closed lines are bumps of the surface and no shape of the ground.
_SHORTEST = 16


def choose_interval(lowest: float, highest: float) -> float:
    """The height between two lines: 1, 2 or 5 times a power of ten, so that about 14 of its
    multiples lie between two heights; 0 where these are equal.
    """
    wanted = (highest - lowest) / _NUM_HEIGHTS
    if wanted <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(wanted))
    return power * min(_STEPS, key=lambda step: abs(math.log(step * power / wanted)))


def contour_lines(
    heights: Float[np.ndarray, "h w"], grid: GroundGrid, interval: float
) -> tuple[np.ndarray, Float[np.ndarray, " n"]]:
    """The lines at all multiples of an interval.

    Args:
        heights: NaN where there is none, and no line.
        grid: their raster, whose pixels have their heights in the middle.
        interval: above 0.
    Returns:
        n lines (shapely), in the grid's coordinates, and their heights.
    Raises:
        InputError: a package is missing.
    """
    shapely = line_layer.import_packages().shapely
    contourpy = line_layer.import_packages().contourpy
    pixel = grid.pixel_size
    generator = contourpy.contour_generator(
        x=grid.left + (np.arange(grid.width) + 0.5) * pixel,
        y=grid.top - (np.arange(grid.height) + 0.5) * pixel,
        z=np.ma.masked_invalid(heights, copy=False),
        line_type=contourpy.LineType.ChunkCombinedOffset,
    )
    lines = [np.zeros(0, object)]
    levels = [np.zeros(0)]
    first = math.ceil(np.nanmin(heights) / interval)
    last = math.floor(np.nanmax(heights) / interval)
    for number in range(first, last + 1):
        (points,), (offsets,) = generator.lines(number * interval)
        if points is None:
            continue
        drawn = shapely.from_ragged_array(
            shapely.GeometryType.LINESTRING, points, (offsets.astype(np.int64),)
        )
        is_bump = shapely.is_closed(drawn) & (shapely.length(drawn) < _SHORTEST * pixel)
        drawn = shapely.simplify(drawn[~is_bump], _STRAY * pixel)
        lines.append(drawn)
        # 0.3, and not 0.30000000000000004: maps show them.
        levels.append(np.full(len(drawn), float(f"{number * interval:.12g}")))
    return np.concatenate(lines), np.concatenate(levels)


def write_contours(heights_path: str | os.PathLike, path: Path, interval: float = 0.0) -> dict:
    """Writes the contour lines of a file of heights as GeoPackage, in its coordinate system.

    Args:
        heights_path: a file of `write_dsm` or `write_dtm`.
        path: of the lines, each with its height as `elevation`.
        interval: height between two lines; 0 = `choose_interval` of what lies between the 1st and
            the 99th percentile.
    Returns:
        What was chosen and found, for a JSON file.
    Raises:
        InputError: there would be no line or too many, a package is missing, the file of heights is
            damaged, or the file system refused.
    """
    with geotiff.open_heights(heights_path) as file:
        grid = file.grid
        heights = file.heights(0, 0, (grid.height, grid.width)).astype(np.float64)
        epsg = file.epsg
    is_known = np.isfinite(heights)
    if not interval and is_known.any():
        interval = choose_interval(*np.percentile(heights[is_known], [1, 99]))
    if not interval:
        raise InputError(
            f"{heights_path}: expected heights that differ, for contour lines, got none; export it "
            "again"
        )
    lowest, highest = np.nanmin(heights), np.nanmax(heights)
    if (highest - lowest) / interval > _MAX_HEIGHTS:
        raise InputError(
            f"config.terrain.interval: expected at most {_MAX_HEIGHTS} heights of lines between "
            f"{lowest:.4g} and {highest:.4g}, got {(highest - lowest) / interval:.0f} with "
            f"{interval:.4g}; give at least {(highest - lowest) / _MAX_HEIGHTS:.2g}"
        )
    lines, levels = contour_lines(heights, grid, interval)
    if not len(lines):
        raise InputError(
            "config.terrain.interval: expected one that gives lines between "
            f"{lowest:.4g} and {highest:.4g}, got {interval:.4g}; give a smaller one"
        )
    line_layer.write_lines(path, "contours", lines, {"elevation": levels}, epsg=epsg)
    return {
        "interval": interval,
        "lowest": float(levels.min()),
        "highest": float(levels.max()),
        "num_heights": len(np.unique(levels)),
        "num_lines": len(lines),
        "epsg": epsg,
    }
