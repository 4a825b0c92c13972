"""Test views in the report: photograph, render, depth, normals and error side by side."""

from pathlib import Path

import numpy as np

from cosurfgs_jax import files, pictures
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.workdir import DEPTHS, NORMALS, PHOTOGRAPHS, RENDERS, TEST_NAMES

_KINDS = {PHOTOGRAPHS: "photograph", RENDERS: "render", DEPTHS: "depth", NORMALS: "normals"}
_WIDTH = 400


def view_pictures(given: ReportInput) -> str:
    """The newest test views, evenly chosen, a row each; "" without any."""
    workdir = given.workdir
    folder = workdir.newest_test()
    if folder is None:
        return ""
    names = sorted(path.name for path in (folder / RENDERS).glob("*.png"))
    if not names:
        return ""
    photo_names = _read_if_there(folder / TEST_NAMES)
    psnr = _read_if_there(workdir.per_view).get(folder.name, {}).get("PSNR", {})
    picks = np.linspace(0, len(names) - 1, given.num_views).round().astype(int)
    rows = []
    for name in (names[i] for i in np.unique(picks)):
        captions = dict(_KINDS)
        captions[PHOTOGRAPHS] += f": {photo_names.get(name, name)}"
        if psnr.get(name) is not None:
            captions[RENDERS] += f", {psnr[name]:.2f} dB"
        shown = [(folder / kind / name, caption) for kind, caption in captions.items()]
        shown.append((workdir.before / name, "before training"))
        cells = [
            _figure(pictures.read_image(path), caption) for path, caption in shown if path.exists()
        ]
        render, photo = (
            pictures.read_image(folder / kind / name) for kind in (RENDERS, PHOTOGRAPHS)
        )
        error = pictures.colorize_error(render, photo)
        cells.append(_figure(error, "error, bright = 25 % or more"))
        rows.append(f'<div class="views">{"".join(cells)}</div>')
    return "".join(rows)


def _read_if_there(path: Path) -> dict:
    return files.read_json_object(path) if path.exists() else {}


def _figure(image: np.ndarray, caption: str) -> str:
    return page.figure(pictures.data_url(pictures.shrink(image, _WIDTH)), caption)
