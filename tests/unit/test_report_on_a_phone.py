"""The report in a browser as narrow as a telephone: nothing hangs over, and pictures are seen."""

import socket

import numpy as np
import pytest
from browser import CHROMIUM, open_page

from cosurfgs_jax import files, pictures, report
from cosurfgs_jax.workdir import Workdir

_SCRIPT = """(() => ({
  width: document.scrollingElement.scrollWidth,
  right: Math.max(...[...document.querySelectorAll('section *')].filter(
    (each) => !each.closest('table')).map((each) => each.getBoundingClientRect().right)),
  widths: [...document.querySelectorAll('img')].map((each) => each.getBoundingClientRect().width),
}))()"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing")
def test_the_report_fits_a_telephone(tmp_path):
    pytest.importorskip("websockets")
    pytest.importorskip("matplotlib")
    workdir = Workdir(tmp_path / "run")
    for kind in ("renders", "gt", "depth", "normal"):
        image = np.zeros((30, 40, 3), np.uint8)
        pictures.write_image(workdir.test(3) / kind / "0.png", image)
    long = "a_long_name_without_a_space" * 5
    files.write_json(workdir.test(3) / "views.json", {"0.png": f"{long}.jpg"})
    stage = {"name": long, "seconds": 1.0, "num_surfels": [10**9] * 20}
    files.write_json(workdir.metrics, {"final": {"psnr": 24.3}, "stages": [stage] * 2})
    workdir.point_cloud(3).parent.mkdir(parents=True)  # the words on exports
    rows = [{"step": step, "loss": 0.5, "psnr/train": 20.0} for step in (1, 2)]
    path = report.write_report(workdir, title=long, curves=report.curves_from_rows(rows))
    with open_page(path.as_uri(), tmp_path / "browser", _free_port()) as browser:
        browser.wait_for_file()
        for width in (390, 360):
            browser.resize(width, 800)
            found = browser.evaluate(_SCRIPT)
            # Tables scroll by themselves. The page's own width may follow a frame later.
            assert max(found["width"], found["right"]) <= width
            assert len(found["widths"]) == 5 + 2 and min(found["widths"]) >= 150
