"""Rasters and contour lines, read by others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foreign.comparison import Box, Check, Comparison
from foreign.expected import Expected
from foreign.readers import package, program, run_program

_BANDS = {
    "dsm.tif": ("height", "confidence"),
    "dtm.tif": ("height", "confidence"),
    "orthophoto.tif": ("red", "green", "blue", "alpha"),
}
_FORMATS = {"dsm.tif": "dsm", "dtm.tif": "dtm", "orthophoto.tif": "dsm"}
_BLOCK = 512  # pixels; a raster that is no larger needs no overview
# Of the mesh's vertices that have to be on the map, which reaches along each axis over the 1st to
# 99th percentile of the SfM points and a twentieth more: 0.955 and 0.958 of two runs are.
_INSIDE = 0.9
_MAKER = "cosurfgs export --format="


class Raster(NamedTuple):
    """A raster as a reader has it.

    | field       | content                                                          |
    |-------------|------------------------------------------------------------------|
    | `epsg`      | of its system; 0 = none                                          |
    | `size`      | (width, height) in pixels                                        |
    | `transform` | (left, pixel width, 0, top, 0, -pixel height), as GDAL has it    |
    | `bands`     | their names                                                      |
    | `units`     | of the bands; "" = none                                          |
    | `overviews` | number of the first band                                         |
    | `layout`    | "COG" for a cloud-optimised file                                 |
    """

    epsg: int
    size: tuple[int, int]
    transform: tuple[float, ...]
    bands: tuple[str, ...]
    units: tuple[str, ...]
    overviews: int
    layout: str

    @property
    def box(self) -> Box:
        """What it covers, map."""
        left, width, _, top, _, height = self.transform
        right, bottom = left + width * self.size[0], top + height * self.size[1]
        return Box(np.array([left, bottom]), np.array([right, top]))


def by_rasterio(path: Path) -> Raster:
    """Reads what rasterio says of a file."""
    import rasterio

    with rasterio.open(path) as file:
        return Raster(
            epsg=file.crs.to_epsg() if file.crs else 0,
            size=(file.width, file.height),
            transform=file.transform.to_gdal(),
            bands=file.descriptions,
            units=tuple(unit or "" for unit in file.units),
            overviews=len(file.overviews(1)),
            layout=file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT", ""),
        )


def parse_gdalinfo(text: str) -> Raster:
    """What `gdalinfo -json` says."""
    info = json.loads(text)
    wkt = info.get("coordinateSystem", {}).get("wkt", "")
    codes = re.findall(r'ID\["EPSG",(\d+)\]', wkt)
    bands = info["bands"]
    return Raster(
        epsg=int(codes[-1]) if codes else 0,  # the last one is that of the whole
        size=tuple(info["size"]),
        transform=tuple(info["geoTransform"]),
        bands=tuple(band.get("description", "") for band in bands),
        units=tuple(band.get("unit", "") for band in bands),
        overviews=len(bands[0].get("overviews", [])),
        layout=info.get("metadata", {}).get("IMAGE_STRUCTURE", {}).get("LAYOUT", ""),
    )


def compare_raster(seen: Raster, wanted: Expected, name: str, found: Comparison) -> None:
    """Compares a raster with the note of its export and with the mesh.

    Args:
        seen: by a reader.
        wanted: what the workdir has.
        name: of the file.
        found: gets the result.
    """
    note = wanted.note("dsm.json")
    found.equal("system", seen.epsg, wanted.epsg)
    found.equal("size", seen.size, (note["width"], note["height"]))
    left, width, skew, top, tilt, height = seen.transform
    pixel = note["pixel_size"]
    found.close("pixel", (width, skew, tilt, height), (pixel, 0, 0, -pixel), 1e-9 * pixel)
    found.close("corner", (left, top), (note["left"], note["top"]), 1e-6)
    found.equal("bands", seen.bands, _BANDS[name])
    units = [""] * len(seen.bands)
    if name != "orthophoto.tif" and wanted.epsg:
        units[0] = "metre"
    found.equal("units", seen.units, tuple(units))
    needs = max(seen.size) > _BLOCK
    found.holds("overviews", not needs or seen.overviews > 0, "some", seen.overviews)
    found.equal("layout", seen.layout, "COG")
    points = wanted.mesh.vertices[:, :2] + wanted.offset[:2]
    is_inside = ((points >= seen.box.low) & (points <= seen.box.high)).all(axis=1)
    words = f"{_INSIDE:.0%} of {wanted.on_map(wanted.mesh.vertices)} inside"
    found.holds("bounds around the mesh", bool(is_inside.mean() >= _INSIDE), words, seen.box)


def compare_heights(path: Path, wanted: Expected, found: Comparison) -> None:
    """Compares the heights at the places of the mesh's vertices with the vertices: the highest one
    of a pixel, in the median within a voxel.
    """
    import rasterio

    with rasterio.open(path) as file:
        heights = file.read(1, masked=True)
        inverse = ~file.transform
    points = wanted.mesh.vertices + wanted.offset
    columns, rows = inverse * points[:, :2].T
    columns, rows = np.floor(columns).astype(int), np.floor(rows).astype(int)
    inside = (columns >= 0) & (rows >= 0) & (columns < heights.shape[1]) & (rows < heights.shape[0])
    top = np.full(heights.shape, -np.inf)
    np.maximum.at(top, (rows[inside], columns[inside]), points[inside, 2])
    both = np.isfinite(top) & ~np.ma.getmaskarray(heights)
    gap = float(np.median(np.abs(heights.data[both] - top[both])))
    words = f"at most {wanted.voxel_size:.3g} from the mesh in the median"
    found.holds("heights", gap <= wanted.voxel_size, words, gap)


def raster_checks(wanted: Expected) -> Iterator[Check]:
    """All checks of rasters."""
    for name in _BANDS:

        def compare_rasterio(path: Path, found: Comparison, name: str = name) -> None:
            compare_raster(by_rasterio(path), wanted, name, found)
            if name == "dsm.tif":
                compare_heights(path, wanted, found)

        def compare_gdal(path: Path, found: Comparison, name: str = name) -> None:
            seen = parse_gdalinfo(run_program(["gdalinfo", "-json", path]))
            compare_raster(seen, wanted, name, found)

        file, maker = f"export/{name}", _MAKER + _FORMATS[name]
        yield Check(file, "GeoTIFF", package("rasterio"), compare_rasterio, maker)
        yield Check(file, "GeoTIFF", program("gdalinfo"), compare_gdal, maker)


class Lines(NamedTuple):
    """A layer of lines as a reader has it.

    | field    | content                       |
    |----------|-------------------------------|
    | `epsg`   | of its system; 0 = none       |
    | `count`  | lines                         |
    | `fields` | names                         |
    | `box`    | of all of them, map           |
    """

    epsg: int
    count: int
    fields: tuple[str, ...]
    box: Box


def by_pyogrio(path: Path) -> Lines:
    """Reads what pyogrio says of a layer."""
    import pyogrio

    info = pyogrio.read_info(path, force_feature_count=True, force_total_bounds=True)
    bounds = np.array(info["total_bounds"])
    codes = re.findall(r"\d+", info["crs"] or "")
    return Lines(
        epsg=int(codes[-1]) if codes else 0,
        count=info["features"],
        fields=tuple(info["fields"]),
        box=Box(bounds[:2], bounds[2:]),
    )


def parse_ogrinfo(text: str) -> Lines:
    """What `ogrinfo -ro -so -al` says."""
    count = re.search(r"^Feature Count: (\d+)", text, re.M)
    extent = re.search(r"^Extent: \((.*), (.*)\) - \((.*), (.*)\)", text, re.M)
    if not count or not extent:
        raise ValueError("expected a layer with a count and an extent")
    numbers = np.array([float(number) for number in extent.groups()])
    codes = re.findall(r'ID\["EPSG",(\d+)\]\]', text)
    fields = re.findall(r"^(\w+): (?:Real|Integer|String)", text, re.M)
    box = Box(numbers[:2], numbers[2:])
    return Lines(int(codes[-1]) if codes else 0, int(count[1]), tuple(fields), box)


def compare_lines(seen: Lines, wanted: Expected, found: Comparison) -> None:
    """Compares contour lines with the note of their export, and with the height map.

    Args:
        seen: by a reader.
        wanted: what the workdir has.
        found: gets the result.
    """
    note = wanted.note("contours.json")
    found.equal("system", seen.epsg, wanted.epsg)
    found.equal("count", seen.count, note["num_lines"])
    found.holds("fields", "elevation" in seen.fields, "elevation", seen.fields)
    outer = by_rasterio(wanted.workdir.export / f"{note['contours_of']}.tif").box
    found.contains("bounds in the raster's", outer, seen.box, 1e-6)


def _compare_elevations(path: Path, wanted: Expected, found: Comparison) -> None:
    import pyogrio

    note = wanted.note("contours.json")
    heights = np.unique(pyogrio.raw.read(path, columns=["elevation"])[3][0])
    found.equal("heights", len(heights), note["num_heights"])
    ends = [note["lowest"], note["highest"]]
    found.close("elevation", heights[[0, -1]], ends, 1e-9 * max(map(abs, ends)))
    mesh = wanted.on_map(wanted.mesh.vertices)
    low, high = mesh.low[2], mesh.high[2]
    is_inside = bool(low <= heights[0] and heights[-1] <= high)
    found.holds("heights of the mesh", is_inside, f"{low:.6g} to {high:.6g}", ends)


def line_checks(wanted: Expected) -> Iterator[Check]:
    """All checks of contour lines."""

    def compare_pyogrio(path: Path, found: Comparison) -> None:
        compare_lines(by_pyogrio(path), wanted, found)
        _compare_elevations(path, wanted, found)

    def compare_ogrinfo(path: Path, found: Comparison) -> None:
        text = run_program(["ogrinfo", "-ro", "-so", "-al", path])
        compare_lines(parse_ogrinfo(text), wanted, found)

    file, maker = "export/contours.gpkg", _MAKER + "contours"
    yield Check(file, "GeoPackage", package("pyogrio"), compare_pyogrio, maker)
    yield Check(file, "GeoPackage", program("ogrinfo"), compare_ogrinfo, maker)
