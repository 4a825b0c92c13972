"""Orthophoto and height map in the report, and the way to the model in three dimensions."""

import html

import numpy as np

from cosurfgs_jax import files, pictures
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.workdir import Workdir

_LONGEST = 1200  # pixels of a picture
_COLORS = "orthophoto.tif"
_HEIGHTS = "dsm.tif"
_ABOUT = "dsm.json"
# File of `export` -> what a link to it says.
_VIEWS = {
    "model.html": "3-D view of the model, in this browser",
    "textured.glb": "textured mesh as GLB, for 3-D viewers such as Blender",
    "textured/tileset.json": "textured mesh in tiles, for viewers of 3D Tiles",
}


def map_pictures(given: ReportInput) -> str:
    """The orthophoto, and the height map shaded, side by side, with a note where they are of an
    older model or damaged, and links to the model in three dimensions; "" before there is a model
    or a map.
    """
    shown = ((_COLORS, "orthophoto", _with_alpha), (_HEIGHTS, "heights", _shaded))
    cells = []
    notes = []
    has_north = False
    for file, name, draw in shown:
        path = given.workdir.export / file
        if not path.exists():
            continue
        try:
            reduced = geotiff.read_reduced(path, _LONGEST)
        except InputError as error:  # such a file is no reason to have no report
            notes.append(page.note(str(error)))
            continue
        height, width = reduced.full_size
        place = ""
        if reduced.epsg:
            place = f", EPSG:{reduced.epsg}"
            has_north = True
        range_words = _range(reduced) if file == _HEIGHTS else ""
        caption = f"{name}: export/{path.name}, {width} x {height} pixels{place}{range_words}"
        cells.append(page.figure(pictures.data_url(draw(reduced)), caption))
    has_model = given.workdir.newest_point_cloud() is not None
    if cells:
        up = "North is up." if has_north else "Up is the y axis of the dataset or of its ground."
        light = "Heights are lit from the upper left; where there are none it is dark."
        notes += [page.note(f"{up} {light}"), page.note(_age(given.workdir))]
        cells = ['<div class="pair">', *cells, "</div>"]
    elif has_model and not notes:
        notes.append(page.note("There is no orthophoto: `cosurfgs export --format=dsm` makes one."))
    parts = [*notes, *cells]
    if parts or has_model:
        parts.append(_views(given.workdir))
    return "".join(parts)


def _views(workdir: Workdir) -> str:
    """Links to the model in three dimensions, and how those are made that there are not."""
    links = []
    for file, words in _VIEWS.items():
        path = workdir.export / file
        if path.exists():
            address = html.escape(path.relative_to(workdir.root).as_posix())
            parts = path.parent.glob("*.glb") if path.suffix == ".json" else [path]
            size = f"{sum(part.stat().st_size for part in parts) / 1e6:,.1f} MB"
            link = f'<a href="{address}">{html.escape(words)}</a>'
            links.append(f'<p class="link">{link} ({address}, {size})</p>')
    if links:
        words = "The files lie beside this page and do not travel with it alone."
        return "".join([*links, page.note(words)])
    return page.note(
        "In three dimensions: `cosurfgs export --format=html` makes a page that shows the model, "
        "and `--format=textured` a mesh with photographs on it; this report then has links to "
        "them. `cosurfgs view` shows the run without an export."
    )


def orthophoto(
    workdir: Workdir,
) -> tuple[np.ndarray, tuple[float, float, float, float], int] | None:
    """The orthophoto from afar.

    Args:
        workdir: of the run.
    Returns:
        u8[h,w,3]; where it lies on the ground, without the offset to the map: left, right, bottom,
        top; its EPSG number, 0 = none. None where there is no such file, or nothing says where it
        lies.
    Raises:
        InputError: rasterio is missing, or a file is damaged.
    """
    path = workdir.export / _COLORS
    about = workdir.export / _ABOUT
    if not path.exists() or not about.exists():
        return None
    with files.reading(about, "the place of a map", "export it again"):
        table = files.read_json_object(about)
        left, top = (float(table[name]) for name in ("left", "top"))
        x, y, _ = map(float, table["offset"])
        width, height = (table["pixel_size"] * int(table[name]) for name in ("width", "height"))
    reduced = geotiff.read_reduced(path, _LONGEST)
    extent = (left - x, left - x + width, top - y - height, top - y)
    return _with_alpha(reduced), extent, reduced.epsg


def _age(workdir: Workdir) -> str:
    """Says that the maps are of an older model; "" where they are not."""
    path = workdir.export / _ABOUT
    if not path.exists():
        return "Nothing says which model these maps are of: export/dsm.json is missing."
    step = files.read_json_object(path).get("step")
    newest = workdir.newest_point_cloud()
    if newest is None or (isinstance(step, int) and step >= newest):
        return ""
    return (
        f"These maps are of step {step}, and the newest model is of step {newest}; run "
        "`cosurfgs export --format=dsm` again."
    )


def _with_alpha(reduced: geotiff.Reduced) -> np.ndarray:
    """Colours on white."""
    bands = np.moveaxis(reduced.bands, 0, -1)
    alpha = bands[..., 3:] / np.float32(255)
    return pictures.to_uint8((bands[..., :3] / np.float32(255)) * alpha + 1 - alpha)


def _range(reduced: geotiff.Reduced) -> str:
    """The heights of the map but for the lowest and the highest hundredth, which may be spikes."""
    heights = reduced.bands[0]
    known = heights[heights != geotiff.NODATA]
    if not known.size:
        return ""
    low, high = np.percentile(known, (1, 99))
    return f", heights {low:.1f} to {high:.1f} (of 98 %)"


def _shaded(reduced: geotiff.Reduced) -> np.ndarray:
    heights = reduced.bands[0]
    heights = np.where(heights == geotiff.NODATA, np.nan, heights)
    return pictures.hillshade(heights, reduced.pixel_size)
