"""The page of the HTML viewer, shown by a browser."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from foreign.comparison import Check, Comparison
from foreign.expected import Expected
from foreign.readers import program, run_program

_SIZE = (1000, 600)
_WAIT_MS = 30_000  # of the page's own clock
_MODEL = np.s_[60:-100, 50:-50]  # of the picture: no controls
_BACKGROUND_GAP = 24  # of 255 that a pixel differs from the background where something is shown
_SHOWN = 0.1  # of the pixels
_NUM_COLORS = 200


def screenshot(url: str, path: Path, chromium: str = "chromium") -> None:
    """Writes a picture of a page with WebGL, drawn on the CPU."""
    with tempfile.TemporaryDirectory() as profile:
        run_program(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={_SIZE[0]},{_SIZE[1]}",
                f"--virtual-time-budget={_WAIT_MS}",
                f"--screenshot={path}",
                url,
            ]
        )


def compare_picture(picture: np.ndarray, background: np.ndarray, found: Comparison) -> None:
    """Whether a picture shows something.

    Args:
        picture: u8[H,W,3].
        background: u8[3].
        found: gets the result.
    """
    part = picture[_MODEL].reshape(-1, 3).astype(int)
    gaps = np.abs(part - background.astype(int)).max(axis=1)
    shown = float((gaps > _BACKGROUND_GAP).mean())
    found.holds("pixels with the model", shown >= _SHOWN, f"at least {_SHOWN:.0%}", f"{shown:.1%}")
    colors = len(np.unique(part, axis=0))
    found.holds("colours", colors >= _NUM_COLORS, f"at least {_NUM_COLORS}", colors)


def page_checks(wanted: Expected, pictures: Path | None) -> Iterator[Check]:
    """The check of the page.

    Args:
        wanted: what the workdir has.
        pictures: folder that the screenshot stays in; None = it does not.
    """

    def compare(path: Path, found: Comparison) -> None:
        from cosurfgs_jax.outputs.exports.browser import viewer_settings

        settings = viewer_settings(wanted.trained.partitioned.frame)
        background = np.round(255 * np.array(settings["background"]["color"])).astype(np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder) / "page.png"
            screenshot(path.resolve().as_uri(), shot)
            picture = np.asarray(Image.open(shot).convert("RGB"))
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                shutil.copy(shot, pictures / "model.html.png")
        compare_picture(picture, background, found)

    maker = "cosurfgs export --format=html"
    yield Check("export/model.html", "page", program("chromium"), compare, maker)
