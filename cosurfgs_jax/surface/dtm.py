"""The terrain model (DTM) of a height map, read and written piece by piece: what is in memory of
the whole map is its raster of cells (`terrain`).
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import TerrainSettings
from cosurfgs_jax.surface import geotiff, terrain
from cosurfgs_jax.surface.geotiff import HeightFile
from cosurfgs_jax.surface.terrain import GroundSurface

# Of the shorter side of the map: no object is wider.
_WIDEST = 1 / 4
# Of the pixels of a cell, which must be ground for the cell to be.
_GROUND_FRACTION = 1 / 4
_FITS = 2
_PASSES = 1 + _FITS + 1  # over the height map: the lows, the fits, and the terrain


class _Passes:
    """Passes over the pixels of a height map, for whoever waits."""

    def __init__(self, pixels: int, progress: Callable[[int, int], None] | None):
        self._pixels = pixels
        self._progress = progress
        self._passed = 0

    def show(self, done: int) -> None:
        """So many pixels are done in this pass; with all of them it ends."""
        done = min(done, self._pixels)
        if self._progress:
            self._progress(self._passed * self._pixels + done, _PASSES * self._pixels)
        self._passed += done == self._pixels


class _Cells(NamedTuple):
    """A raster of cells over a height map."""

    file: HeightFile
    num: int  # pixels along the side of a cell
    passes: _Passes

    def pieces(self) -> Iterator[tuple[slice, slice, int, int, int]]:
        """Pieces of about a block of the file: their rows and columns of cells, their first pixel,
        and pixels along their side.
        """
        side = max(1, geotiff.BLOCK // self.num)
        rows, columns = self.shape
        for first in range(0, rows, side):
            for second in range(0, columns, side):
                cells = (slice(first, first + side), slice(second, second + side))
                yield *cells, first * self.num, second * self.num, side * self.num
            self.passes.show((first + side) * self.num * self.file.grid.width)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        grid = self.file.grid
        return -(-grid.height // self.num), -(-grid.width // self.num)

    def lows(self) -> np.ndarray:
        """The lowest height of each cell, NaN where there is none."""
        lows = np.full(self.shape, np.nan)
        for rows, columns, row, column, side in self.pieces():
            heights = terrain.in_cells(self.file.heights(row, column, (side, side)), self.num)
            lowest = np.where(np.isfinite(heights), heights, np.inf).min(axis=-1)
            size = lows[rows, columns].shape
            lows[rows, columns] = np.where(lowest < np.inf, lowest, np.nan)[: size[0], : size[1]]
        return lows

    def fit(self, surface: GroundSurface, reach: float) -> GroundSurface:
        """A surface moved to the means of the ground pixels around it."""
        heights = np.full(self.shape, np.nan)
        margin = terrain.MARGIN
        inner = slice(margin, -margin)
        for rows, columns, row, column, side in self.pieces():
            corner = (row - margin, column - margin)
            found = self.file.heights(*corner, (side + 2 * margin, side + 2 * margin))
            off = found - surface.heights_at(*corner, found.shape)
            off = np.where(surface.is_ground(found, *corner), off, np.nan)[inner, inner]
            parts = terrain.in_cells(off, self.num)
            count = np.isfinite(parts).sum(axis=-1)
            mean = np.nansum(parts, axis=-1) / np.maximum(count, 1)
            mean[count < _GROUND_FRACTION * self.num**2] = np.nan
            size = heights[rows, columns].shape
            heights[rows, columns] = surface.heights[rows, columns] + mean[: size[0], : size[1]]
        is_known = np.isfinite(heights)
        if not is_known.any():
            raise InputError(
                "terrain: expected ground in the height map, got nothing near its lowest places; "
                "give a smaller config.terrain.object_width"
            )
        return terrain.surface_of(
            heights, is_known, reach=reach, num=self.num, pixel_size=surface.pixel_size
        )


class _Blocks(NamedTuple):
    """The terrain, block by block of its file."""

    file: HeightFile
    surface: GroundSurface
    is_inside: np.ndarray  # of cells: `terrain.enclosed`

    def drawn(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Bands f32[2,h,w] of a block, and its pixels i64[3] with a height, with an interpolated
        one, and without one though the height map has it.
        """
        grid = self.file.grid
        margin = terrain.MARGIN
        corner = (row - margin, column - margin)
        size = (min(geotiff.BLOCK, grid.height - row), min(geotiff.BLOCK, grid.width - column))
        found = self.file.heights(*corner, (size[0] + 2 * margin, size[1] + 2 * margin))
        is_ground = self.surface.is_ground(found, *corner)
        inner = (slice(margin, margin + size[0]), slice(margin, margin + size[1]))
        heights = self.surface.drawn(found, is_ground, *corner)[inner]
        is_ground = is_ground[inner]
        is_seen = np.isfinite(found[inner])
        rows = np.arange(row, row + size[0]) // self.surface.num
        columns = np.arange(column, column + size[1]) // self.surface.num
        has_height = (is_seen | self.is_inside[np.ix_(rows, columns)]) & np.isfinite(heights)
        confidence = np.where(is_ground, self.file.confidence(row, column, size), 0)
        bands = [heights, np.where(np.isfinite(confidence), confidence, geotiff.NODATA)]
        bands = np.where(has_height, bands, geotiff.NODATA).astype(np.float32)
        counts = [has_height, has_height & ~is_ground, is_seen & ~has_height]
        return bands, np.array([marked.sum() for marked in counts])


def write_dtm(
    dsm_path: str | os.PathLike,
    dtm_path: str | os.PathLike,
    settings: TerrainSettings,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Takes away what stands on the ground of a height map, and interpolates the ground there.

    The file has the raster, the coordinate system and the bands of the height map. Band 2 is the
    height map's where the ground is seen from above, and 0 where it is interpolated. Ground farther
    than `object_width` from any that is seen has no height.

    Args:
        dsm_path: a file of `write_dsm`.
        dtm_path: of the terrain model.
        settings: what counts as an object.
        progress: called with pixels done and all pixels.
    Returns:
        What was chosen and found, for a JSON file: lengths in the map's unit, fractions of the
        terrain that has a height, and of the height map.
    Raises:
        InputError: nothing of the height map is ground, it is damaged, or the file system refused.
    """
    with geotiff.open_heights(dsm_path) as file:
        grid = file.grid
        shorter = min(grid.width, grid.height) * grid.pixel_size
        width = min(settings.object_width, _WIDEST * shorter)
        num = terrain.choose_cell(width, grid.pixel_size)
        total = grid.width * grid.height
        passes = _Passes(total, progress)
        cells = _Cells(file, num, passes)
        lows = cells.lows()
        cell = num * grid.pixel_size
        is_ground = terrain.is_ground_cell(lows, cell, width, settings.slope)
        if not is_ground.any():
            raise InputError(f"{dsm_path}: expected a map with heights, got none; export it again")
        surface = terrain.surface_of(
            lows, is_ground, reach=width, num=num, pixel_size=grid.pixel_size
        )
        for _ in range(_FITS):
            surface = cells.fit(surface, width)
        blocks = _Blocks(file, surface, terrain.enclosed(np.isfinite(lows)))
        counts = np.zeros(3, np.int64)
        with geotiff.create(dtm_path, grid, "terrain", epsg=file.epsg, tags=file.tags) as out:
            for row in range(0, grid.height, geotiff.BLOCK):
                for column in range(0, grid.width, geotiff.BLOCK):
                    bands, found = blocks.drawn(row, column)
                    counts += found
                    out.write(bands, row, column)
                passes.show((row + geotiff.BLOCK) * grid.width)
    has_height, interpolated, lost = counts
    return {
        "pixel_size": grid.pixel_size,
        "width": grid.width,
        "height": grid.height,
        "object_width": width,
        "slope": settings.slope,
        "cell": cell,
        "covered_share": float(has_height / total),
        "interpolated_share": float(interpolated / max(has_height, 1)),
        "lost_share": float(lost / total),
    }
