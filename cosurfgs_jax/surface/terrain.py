"""The ground in a height map, apart from what stands on it: a coarse raster of cells is cleared of
objects by morphological openings, and pixels near its surface are ground. NumPy, SciPy; gaps of the
coarse raster are filled harmonically.

Source: T. J. Pingel, K. C. Clarke, W. A. McBride, An improved simple morphological filter for the
terrain classification of airborne LIDAR data, ISPRS Journal 77, 2013 (SMRF). Different here:
windows are squares, whose openings take no longer for large ones; thresholds are from the pixel
size; the surface is fitted to the ground pixels before the last test; and pixels beside removed
ones go, too, as a fused mesh rounds the feet of walls.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Bool, Float
from scipy import ndimage

from cosurfgs_jax.surface import geotiff

# Across the widest object. With twice as many the generated town's terrain is the same.
_CELLS = 32
# Pixels that ground may be off the surface, and what is added on slopes, in cells.
_TOLERANCE = 1.0
_SLOPE_CELLS = 1.0
# Pixels beside removed ones that are removed, too: without it the terrain under the generated
# town's houses is 0.5 m too high, with three pixels 0.04 m.
_RIM = 3
# Height by length: what lies deeper below all that is around it is an error. As in the source.
_PIT = 5.0
# Pixels beside interpolated ground over which it is led to the heights around it.
_RELAXATIONS = 64
# What a tile needs to know beyond its edges.
MARGIN = _RELAXATIONS + _RIM
_SQUARE = ndimage.generate_binary_structure(2, 2)


def choose_cell(object_width: float, pixel_size: float) -> int:
    """Pixels along the side of a cell."""
    return max(1, int(object_width / _CELLS / pixel_size))


def in_cells(values: Float[np.ndarray, "h w"], num: int) -> Float[np.ndarray, "r c n"]:
    """The pixels of each cell of `num` x `num` pixels, NaN beyond the edges.

    Args:
        values: their first pixel is the first one of a cell.
        num: pixels along the side of a cell.
    """
    rows, columns = (-(-side // num) for side in values.shape)
    padded = np.full((rows * num, columns * num), np.nan, values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    pieces = padded.reshape(rows, num, columns, num).swapaxes(1, 2)
    return pieces.reshape(rows, columns, num * num)


def _nearest(heights: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """The heights, and the nearest known one where there is none."""
    places = ndimage.distance_transform_edt(~is_known, return_distances=False, return_indices=True)
    return heights[tuple(places)]


def is_ground_cell(
    lows: Float[np.ndarray, "r c"], cell: float, object_width: float, slope: float
) -> Bool[np.ndarray, "r c"]:
    """Which cells are ground: those that no opening lowers by more than `slope` times the radius of
    its window, up to windows as wide as the widest object. A plane of any slope stays.

    Args:
        lows: the lowest height of each cell, NaN where there is none, which is no ground.
        cell: side of a cell.
        object_width: of the widest object, in the same unit.
        slope: height by length.
    """
    lows = _without_pits(lows, cell)
    is_known = np.isfinite(lows)
    if not is_known.any():
        return is_known
    opened = _nearest(lows, is_known)
    is_object = np.zeros(lows.shape, bool)
    for radius in range(1, int(np.ceil(object_width / 2 / cell)) + 1):
        # Continued as a slope: edges of the raster are no edges of the ground.
        padded = np.pad(opened, radius, mode="reflect", reflect_type="odd")
        lower = ndimage.grey_opening(padded, size=2 * radius + 1)
        lower = lower[radius:-radius, radius:-radius]
        is_object |= opened - lower > slope * radius * cell
        opened = lower
    return is_known & ~is_object


def _without_pits(lows: np.ndarray, cell: float) -> np.ndarray:
    """The lows of cells, NaN for those that all around them rises above steeply."""
    closed = ndimage.grey_closing(_nearest(lows, np.isfinite(lows)), size=3)
    return np.where(closed - lows > _PIT * cell, np.nan, lows)


def fill(
    heights: Float[np.ndarray, "r c"], is_known: Bool[np.ndarray, "r c"], reach: float
) -> Float[np.ndarray, "r c"]:
    """The known heights, and between them the harmonic surface, as of a membrane: planes go on. NaN
    farther than `reach` cells from any. GDAL's means of what is around are the first guess.
    """
    rasterio = geotiff.import_rasterio()
    middle = heights[is_known].mean()  # GDAL's float32 has its digits for the relief
    known = np.where(is_known, heights - middle, geotiff.NODATA).astype(np.float32)
    filled = rasterio.fill.fillnodata(
        known, mask=is_known.astype(np.uint8), max_search_distance=reach, smoothing_iterations=3
    )
    filled = np.where(filled == geotiff.NODATA, np.nan, filled.astype(np.float64) + middle)
    return _harmonic(np.where(is_known, heights, filled), is_known, middle)


def _harmonic(heights: np.ndarray, is_known: np.ndarray, middle: float) -> np.ndarray:
    """Heights f64[r,c] of which the unknown ones, where they are not NaN, became means of their
    four neighbours, but for a thousandth of what they were off.
    """
    is_open = np.isfinite(heights) & ~is_known
    if not is_open.any():
        return heights
    numbers = np.full(heights.shape, -1)
    numbers[is_open] = np.arange(is_open.sum())
    heights = heights - middle
    links = []
    for axis in (0, 1):
        ends = np.moveaxis(np.stack([numbers, np.roll(numbers, -1, axis)]), axis + 1, 1)[:, :-1]
        values = np.moveaxis(np.stack([heights, np.roll(heights, -1, axis)]), axis + 1, 1)[:, :-1]
        for one, other in ((0, 1), (1, 0)):
            is_link = (ends[one] >= 0) & np.isfinite(values[other])
            links.append((ends[one][is_link], ends[other][is_link], values[other][is_link]))
    cells, around, values = (np.concatenate(parts) for parts in zip(*links, strict=True))
    num = int(is_open.sum())
    is_fixed = around < 0
    fixed = np.bincount(cells[is_fixed], weights=values[is_fixed], minlength=num)
    pairs = (cells[~is_fixed], around[~is_fixed])
    degrees = np.bincount(cells, minlength=num).astype(np.float64)
    matrix = scipy.sparse.diags_array(degrees) - scipy.sparse.csr_array(
        (np.ones(len(pairs[0])), pairs), shape=(num, num)
    )
    first = heights[is_open]
    rest = np.linalg.norm(fixed - matrix @ first)
    found, _ = scipy.sparse.linalg.cg(matrix, fixed, first, rtol=0, atol=1e-3 * rest, maxiter=500)
    heights[is_open] = found
    return heights + middle


class GroundSurface(NamedTuple):
    """The ground in cells.

    | field        | shape    | unit, frame                                                   |
    |--------------|----------|---------------------------------------------------------------|
    | `heights`    | f64[r,c] | at the middle of each cell, as in the height map; NaN = none  |
    | `slopes`     | f64[r,c] | height by length                                              |
    | `num`        |          | pixels along the side of a cell                               |
    | `pixel_size` |          | of the height map                                             |
    """

    heights: np.ndarray
    slopes: np.ndarray
    num: int
    pixel_size: float

    def _at(self, values: np.ndarray, row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
        """Values of cells at the pixels of a piece, linear between the middles."""
        places = [
            np.clip((np.arange(first, first + size) + 0.5) / self.num - 0.5, 0, most - 1)
            for first, size, most in zip((row, column), shape, values.shape, strict=True)
        ]
        return ndimage.map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=1)

    def heights_at(self, row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
        """Heights f64[h,w] at the pixels of a piece that begins at (row, column)."""
        return self._at(self.heights, row, column, shape)

    def is_ground(
        self, heights: Float[np.ndarray, "h w"], row: int, column: int
    ) -> Bool[np.ndarray, "h w"]:
        """Which pixels of a piece of the height map are ground; those within `MARGIN` of its edges
        may differ from those of a larger piece.

        Args:
            heights: NaN where there is none.
            row, column: of its first pixel.
        """
        slopes = self._at(self.slopes, row, column, heights.shape)
        tolerance = _TOLERANCE * self.pixel_size
        tolerance = tolerance + _SLOPE_CELLS * self.num * self.pixel_size * slopes
        near = np.abs(heights - self.heights_at(row, column, heights.shape)) <= tolerance
        is_off = np.isfinite(heights) & ~near
        return near & ~ndimage.binary_dilation(is_off, _SQUARE, iterations=_RIM)

    def drawn(
        self, heights: np.ndarray, is_ground: np.ndarray, row: int, column: int
    ) -> np.ndarray:
        """Heights f64[h,w] of the ground at all pixels of a piece: its own, and elsewhere the
        surface's, which is led to them.
        """
        drawn = np.where(is_ground, heights, self.heights_at(row, column, heights.shape))
        if is_ground.all():
            return drawn
        # Where the surface has no height nothing is drawn, and nothing is led there.
        is_known = np.isfinite(drawn)
        number = _sums_of_four(is_known.astype(np.float64))
        is_open = is_known & ~is_ground & (number > 0)
        values = np.where(is_known, drawn, 0)
        for _ in range(_RELAXATIONS):
            values = np.where(is_open, _sums_of_four(values) / np.maximum(number, 1), values)
        return np.where(is_known, values, np.nan)


def _sums_of_four(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The sum of the four neighbours of each pixel; beyond the edges is what is at them."""
    padded = np.pad(values, 1, mode="edge")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]


def surface_of(
    heights: Float[np.ndarray, "r c"],
    is_known: Bool[np.ndarray, "r c"],
    *,
    reach: float,
    num: int,
    pixel_size: float,
) -> GroundSurface:
    """The surface through the cells that are ground.

    Args:
        heights: of cells.
        is_known: which of them are ground; at least one.
        reach: how far from them ground is interpolated, a length.
        num: pixels along the side of a cell.
        pixel_size: of the height map.
    """
    cell = num * pixel_size
    filled = fill(heights, is_known, reach / cell)
    whole = np.pad(_nearest(filled, np.isfinite(filled)), 1, mode="edge")
    down, right = np.gradient(whole, cell)
    return GroundSurface(filled, np.hypot(down, right)[1:-1, 1:-1], num, pixel_size)


def enclosed(is_known: Bool[np.ndarray, "r c"]) -> Bool[np.ndarray, "r c"]:
    """The cells within what is known, with its holes: where terrain is drawn though the height map
    has nothing.
    """
    return ndimage.binary_erosion(ndimage.binary_fill_holes(is_known), _SQUARE)
