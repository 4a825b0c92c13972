"""How a height map compares with the SfM points. NumPy."""

import numpy as np

from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.surface.ground import GroundGrid

# Pixels by which an SfM point must lie below the height map to count as hidden from above.
BELOW_PIXELS = 5.0


def agreement(point_heights: np.ndarray, dsm_heights: np.ndarray, pixel_size: float) -> dict:
    """How far the height map lies from the SfM points within it.

    A point is compared with the pixel that it falls into. Points under a roof, a crown or on a wall
    are not on the surface that is seen from above and say nothing of it: those more than
    BELOW_PIXELS below the height map are left out of the main figures and counted. Nothing is left
    out on the other side: a point above the height map is an error of it. As leaving out is
    one-sided, the figures over all points are given, too; the truth of the signed difference is
    between the two.

    Args:
        point_heights: f64[n], of the points. dsm_heights: f64[n], of their pixels, NaN where the
            map has no data.
        pixel_size: in the same unit.
    Returns:
        Counts; medians of the absolute and the signed difference (height map minus point) and the
        90th percentile of the absolute one, as lengths and in ground pixels; None where no point
        can be compared.
    """
    difference = (dsm_heights - point_heights)[np.isfinite(dsm_heights)]
    is_hidden = difference > BELOW_PIXELS * pixel_size

    def figures(values: np.ndarray) -> dict | None:
        if not len(values):
            return None
        found = {
            "median_absolute": float(np.median(np.abs(values))),
            "median_signed": float(np.median(values)),
            "absolute_90_percent": float(np.percentile(np.abs(values), 90)),
        }
        return {**found, **{f"{name}_pixels": value / pixel_size for name, value in found.items()}}

    return {
        "num_points_in_raster": len(point_heights),
        "num_without_data": int(len(point_heights) - len(difference)),
        "num_hidden": int(is_hidden.sum()),
        "hidden_below_pixels": BELOW_PIXELS,
        "visible_points": figures(difference[~is_hidden]),
        "all_points": figures(difference),
    }


class PointHeights:
    """The height map's values at the SfM points, gathered while tiles are drawn."""

    def __init__(self, points: np.ndarray, grid: GroundGrid):
        """Sorts points f64[P,3], ground coordinates, by the tiles of a raster."""
        rows, columns, inside = grid.pixels_of(points)
        tile = (rows // geotiff.BLOCK) * (
            -(-grid.width // geotiff.BLOCK)
        ) + columns // geotiff.BLOCK
        self._order = np.flatnonzero(inside)[np.argsort(tile[inside], kind="stable")]
        self._tile = tile[self._order]
        self._rows = rows[self._order] % geotiff.BLOCK
        self._columns = columns[self._order] % geotiff.BLOCK
        self.heights = points[self._order, 2]
        self.found = np.full(len(self._order), np.nan)

    def take(self, number: int, heights: np.ndarray) -> None:
        """Reads the points of tile `number` (row by row) off its heights."""
        mine = slice(*np.searchsorted(self._tile, [number, number + 1]))
        values = heights[self._rows[mine], self._columns[mine]].astype(np.float64)
        self.found[mine] = np.where(values == geotiff.NODATA, np.nan, values)
