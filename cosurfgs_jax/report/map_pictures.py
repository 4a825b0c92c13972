"""Orthophoto and height map in the report."""

import numpy as np

from cosurfgs_jax import pictures
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface import geotiff

_LONGEST = 1200  # pixels of a picture


def map_pictures(given: ReportInput) -> str:
    """The orthophoto, and the height map shaded, side by side; "" where there are none."""
    shown = (
        (given.workdir.export / "orthophoto.tif", "orthophoto", _with_alpha),
        (given.workdir.export / "dsm.tif", "heights", _shaded),
    )
    cells = []
    for path, name, draw in shown:
        if not path.exists():
            continue
        try:
            reduced = geotiff.read_reduced(path, _LONGEST)
        except InputError as error:  # such a file is no reason to have no report
            return page.note(str(error))
        height, width = reduced.full_size
        place = f", EPSG:{reduced.epsg}" if reduced.epsg else ""
        caption = f"{name}: export/{path.name}, {width} x {height} pixels{place}"
        cells.append(page.figure(pictures.data_url(draw(reduced)), caption))
    return f'<div class="pair">{"".join(cells)}</div>' if cells else ""


def _with_alpha(reduced: geotiff.Reduced) -> np.ndarray:
    """Colours on white."""
    bands = np.moveaxis(reduced.bands, 0, -1)
    alpha = bands[..., 3:] / np.float32(255)
    return pictures.to_uint8((bands[..., :3] / np.float32(255)) * alpha + 1 - alpha)


def _shaded(reduced: geotiff.Reduced) -> np.ndarray:
    heights = reduced.bands[0]
    heights = np.where(heights == geotiff.NODATA, np.nan, heights)
    return pictures.hillshade(heights, reduced.pixel_size)
