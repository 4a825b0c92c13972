"""Cloud-optimised GeoTIFF files, written piece by piece and whole in the end.

GDAL's COG driver, which rasterio's wheel (36 MB, the extra `geo`) brings along, makes the order of
the file, its overviews and its blocks. There is no other writer: coordinate systems need PROJ's
tables anyway, which come with the same wheel.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.surface.ground import GroundGrid
from cosurfgs_jax.surface.mesh import CONFIDENCE

NODATA = -9999.0
_BANDS = {
    "height": ("height",),
    "height and confidence": ("height", "confidence"),
    "terrain": ("height", "confidence"),
    "color": ("red", "green", "blue", "alpha"),
}
_MEANING = "number of photographs that the surface is fused from here; 0 = "
_ZERO = {"height and confidence": "a filled gap", "terrain": "interpolated ground"}
_EXPECTED = ("a GeoTIFF file of export", "export it again")  # where a file cannot be read
BLOCK = 512  # pixels along the side of a block of the file


def import_rasterio():
    """The rasterio module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import rasterio
        import rasterio.fill
        import rasterio.shutil
        import rasterio.windows
    except ImportError as error:
        raise InputError(
            f"rasterio is needed for GeoTIFF files and EPSG numbers ({error}): "
            'pip install "cosurfgs_jax[geo]"'
        ) from error
    return rasterio


def check_epsg(epsg: int) -> None:
    """Refuses a number that is no projected coordinate system; 0 is none at all.

    Raises:
        InputError: unknown to PROJ, or in degrees.
    """
    if not epsg:
        return
    rasterio = import_rasterio()
    try:
        with rasterio.Env():  # keeps GDAL's own message off the terminal
            system = rasterio.crs.CRS.from_epsg(epsg)
    except rasterio.errors.CRSError as error:
        raise InputError(
            f"config.geo.epsg: expected the EPSG number of a projected system, got {epsg} ({error})"
        ) from error
    if not system.is_projected:
        raise InputError(
            "config.geo.epsg: expected a projected system, whose coordinates are lengths, got "
            f"{epsg}, which is "
            "not; take the UTM zone, for example"
        )


def wkt_of(epsg: int) -> str:
    """The coordinate system as WKT 1, which is what LAS files have; "" of none.

    Args:
        epsg: that `check_epsg` took; 0 = none.
    Raises:
        InputError: rasterio is missing.
    """
    if not epsg:
        return ""
    rasterio = import_rasterio()
    with rasterio.Env():
        return rasterio.crs.CRS.from_epsg(epsg).to_wkt(version="WKT1_GDAL")


class Reduced(NamedTuple):
    """A file as it is seen from afar.

    | field        | shape    | unit, frame                                                   |
    |--------------|----------|---------------------------------------------------------------|
    | `bands`      | [B,h,w]  | as in the file                                                |
    | `pixel_size` |          | of these pixels, map coordinates                              |
    | `full_size`  |          | (H, W) of the file                                            |
    | `epsg`       |          | 0 = none                                                      |
    """

    bands: np.ndarray
    pixel_size: float
    full_size: tuple[int, int]
    epsg: int


def read_reduced(path: str | os.PathLike, longest: int) -> Reduced:
    """Reads a file of `create` with at most so many pixels along its longer side.

    Raises:
        InputError: rasterio is missing, or the file is damaged.
    """
    rasterio = import_rasterio()
    with files.reading(path, *_EXPECTED):
        with rasterio.Env(), rasterio.open(path) as file:
            factor = max(1.0, max(file.shape) / longest)
            shape = [max(1, round(side / factor)) for side in file.shape]
            bands = file.read(out_shape=(file.count, *shape))
            return Reduced(
                bands=bands,
                pixel_size=float(file.res[0] * file.width / shape[1]),
                full_size=file.shape,
                epsg=(file.crs and file.crs.to_epsg()) or 0,
            )


class HeightFile:
    """An open file of heights, read piece by piece; pieces may reach beyond its edges.

    Attributes:
        grid: its raster, map coordinates.
        epsg: of its coordinate system, 0 = none.
        tags: the texts of its metadata.
    """

    def __init__(self, path: str | os.PathLike, dataset, rasterio):
        """Takes the path, the open dataset, and the rasterio module."""
        place = dataset.transform
        self._path = path
        self._dataset = dataset
        self._rasterio = rasterio
        self.grid = GroundGrid(
            place.c, place.f, place.a, width=dataset.width, height=dataset.height
        )
        self.epsg: int = (dataset.crs and dataset.crs.to_epsg()) or 0
        self.tags: dict[str, str] = dataset.tags()

    def _read(self, band: int, row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
        values = np.full(shape, np.nan, np.float32)
        rows = slice(max(row, 0), max(min(row + shape[0], self.grid.height), 0))
        columns = slice(max(column, 0), max(min(column + shape[1], self.grid.width), 0))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return values
        window = self._rasterio.windows.Window.from_slices(rows, columns)
        with files.reading(self._path, *_EXPECTED):
            found = self._dataset.read(band, window=window)
        place = (
            slice(rows.start - row, rows.stop - row),
            slice(columns.start - column, columns.stop - column),
        )
        values[place] = np.where(found == NODATA, np.nan, found)
        return values

    def heights(self, row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
        """Heights f32[h,w] from (row, column) on, NaN where there is none."""
        return self._read(1, row, column, shape)

    def confidence(self, row: int, column: int, shape: tuple[int, int]) -> np.ndarray:
        """The second band f32[h,w] from (row, column) on, NaN where there is none of it."""
        if self._dataset.count < 2:
            return np.full(shape, np.nan, np.float32)
        return self._read(2, row, column, shape)


@contextlib.contextmanager
def open_heights(path: str | os.PathLike) -> Iterator[HeightFile]:
    """Opens a file of heights by `create` for reading.

    Raises:
        InputError: rasterio is missing, or the file is damaged.
    """
    rasterio = import_rasterio()
    with rasterio.Env():
        with files.reading(path, *_EXPECTED):
            dataset = rasterio.open(path)
        with dataset:
            yield HeightFile(path, dataset, rasterio)


class _File:
    """An open raster file."""

    def __init__(self, dataset, rasterio):
        self._dataset = dataset
        self._rasterio = rasterio

    def write(self, bands: np.ndarray, row: int, column: int) -> None:
        """Writes a piece [bands,h,w] whose first pixel is at (row, column)."""
        window = self._rasterio.windows.Window(column, row, bands.shape[2], bands.shape[1])
        self._dataset.write(bands, window=window)


@contextlib.contextmanager
def _refusals(path: str | os.PathLike) -> Iterator[None]:
    """What GDAL could not write becomes an InputError: its errors are none of the system's."""
    rasterio = import_rasterio()
    try:
        yield
    except Exception as error:
        is_gdals = isinstance(error, SystemError | rasterio.errors.RasterioError)
        # Others have no public class.
        if not is_gdals and not type(error).__name__.startswith("CPLE_"):
            raise
        reason = f"GDAL: {str(error).partition('. ')[0][:200]}"
        raise InputError(_not_written(path, reason)) from error


def _not_written(path: str | os.PathLike, reason: str) -> str:
    return (
        f"{path}: could not be written ({reason}); make room or choose another folder, then run "
        "the same command again"
    )


def _check_whole(written: Path, path: str | os.PathLike) -> None:
    """Refuses a file that was closed without an error though the file system had no room: GDAL
    does not tell then.

    Args:
        written: the file.
        path: what it is to be, for the message.
    Raises:
        InputError: a block of it, or of one of its overviews, is missing or ends behind the file.
        RasterioError: it cannot be opened.
    """
    rasterio = import_rasterio()
    with open(written, "rb+") as file:
        os.fsync(file.fileno())  # some file systems refuse only now
    num_bytes = written.stat().st_size
    with rasterio.open(written) as file:
        levels = [{}] + [{"overview_level": number} for number in range(len(file.overviews(1)))]
    for level in levels:
        with rasterio.open(written, **level) as file:
            if _end_of_blocks(file) > num_bytes:
                raise InputError(_not_written(path, "it is cut off"))


def _end_of_blocks(file) -> float:
    """Where the last block of an open file ends, in bytes; infinity where one was not written."""
    last = 0.0
    for band in file.indexes:
        for (row, column), _ in file.block_windows(band):
            begin, size = (
                file.get_tag_item(f"BLOCK_{name}_{column}_{row}", "TIFF", bidx=band)
                for name in ("OFFSET", "SIZE")
            )
            if not begin or not size:
                return np.inf
            last = max(last, int(begin) + int(size))
    return last


@contextlib.contextmanager
def create(
    path: str | os.PathLike,
    grid: GroundGrid,
    kind: str,
    *,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    epsg: int = 0,
    tags: dict[str, str] | None = None,
) -> Iterator[_File]:
    """Opens a new file, which is there when the block ends well, and not at all otherwise: a
    cloud-optimised GeoTIFF, deflated, in blocks of `BLOCK`, with overviews by halves down to one
    block. Those of heights are every second one, for they are heights that were found, and filled
    gaps stay marked; those of colours are means.

    Args:
        path: the file.
        grid: its raster.
        kind: "height": one band of float32, NODATA where there is none; "height and confidence":
            that, and a band of the photographs that it is fused from, 0 in filled gaps; "terrain":
            the same, 0 where it is interpolated; "color": red, green, blue and alpha of uint8.
        offset: added to the grid's coordinates (the heights are the caller's).
        epsg: of the coordinate system, whose unit is that of the heights; 0 = none.
        tags: texts for the file's metadata.
    Yields:
        An object with `write`.
    Raises:
        InputError: rasterio is missing, or the file system refused.
    """
    rasterio = import_rasterio()
    names = _BANDS[kind]
    transform = rasterio.Affine(
        grid.pixel_size, 0, grid.left + offset[0], 0, -grid.pixel_size, grid.top + offset[1]
    )
    options = (
        {"dtype": "uint8", "photometric": "RGB", "alpha": "YES"}
        if kind == "color"
        else {"dtype": "float32", "nodata": NODATA}
    )
    system = rasterio.crs.CRS.from_epsg(epsg) if epsg else None
    with files.atomic_path(path) as partial, _refusals(path):
        with rasterio.open(
            partial,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=len(names),
            transform=transform,
            crs=system,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            zlevel=1,  # it is read once
            bigtiff="IF_SAFER",
            **options,
        ) as dataset:
            dataset.descriptions = names
            if CONFIDENCE in names:
                dataset.update_tags(names.index(CONFIDENCE) + 1, MEANING=_MEANING + _ZERO[kind])
            if system and kind != "color":
                dataset.units = (system.linear_units, *[""] * (len(names) - 1))
            dataset.update_tags(**(tags or {}) | {"AREA_OR_POINT": "Area"})
            yield _File(dataset, rasterio)
        _check_whole(partial, path)
        with files.atomic_path(partial) as whole, _refusals(path):
            rasterio.shutil.copy(
                partial,
                whole,
                driver="COG",
                compress="deflate",
                predictor="YES",
                blocksize=BLOCK,
                overview_resampling="AVERAGE" if kind == "color" else "NEAREST",
                bigtiff="IF_SAFER",
            )
            _check_whole(whole, path)
