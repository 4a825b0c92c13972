"""Orthophoto and height map in the report."""

import numpy as np

from cosurfgs_jax import files, pictures
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.workdir import Workdir

_LONGEST = 1200  # pixels of a picture


def map_pictures(given: ReportInput) -> str:
    """The orthophoto, and the height map shaded, side by side, with a note where they are of an
    older model or damaged; "" where there are none.
    """
    shown = (
        (given.workdir.export / "orthophoto.tif", "orthophoto", _with_alpha),
        (given.workdir.export / "dsm.tif", "heights", _shaded),
    )
    cells = []
    notes = []
    for path, name, draw in shown:
        if not path.exists():
            continue
        try:
            reduced = geotiff.read_reduced(path, _LONGEST)
        except InputError as error:  # such a file is no reason to have no report
            notes.append(page.note(str(error)))
            continue
        height, width = reduced.full_size
        place = f", EPSG:{reduced.epsg}" if reduced.epsg else ""
        caption = f"{name}: export/{path.name}, {width} x {height} pixels{place}"
        cells.append(page.figure(pictures.data_url(draw(reduced)), caption))
    if cells:
        notes.append(page.note(_age(given.workdir)))
        cells = ['<div class="pair">', *cells, "</div>"]
    return "".join([*notes, *cells])


def _age(workdir: Workdir) -> str:
    """Says that the maps are of an older model; "" where they are not."""
    path = workdir.export / "dsm.json"
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


def _shaded(reduced: geotiff.Reduced) -> np.ndarray:
    heights = reduced.bands[0]
    heights = np.where(heights == geotiff.NODATA, np.nan, heights)
    return pictures.hillshade(heights, reduced.pixel_size)
