"""The terrain model: the height map without what stands on the ground."""

import logging
import time
from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.outputs.exports.dsm import check, content_of, dsm_of
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings_file import first_change
from cosurfgs_jax.surface.dtm import write_dtm
from cosurfgs_jax.training.run_log import Progress

# Of the terrain: where more is interpolated, it is mostly a guess.
_MUCH = 0.5
_FREE = ("contours_of", "interval")  # settings that the terrain model does not depend on
_log = logging.getLogger(__name__)


def dtm_of(trained: Trained, folder: Path, what: str) -> Path:
    """The terrain model in a folder where it is of the present height map and as the settings want
    it, else a new one, which stays there.

    Args:
        trained: the model.
        folder: of exports.
        what: is made of it, for messages: "contour lines".
    Raises:
        InputError: see `write_dtm` and `dsm_of`.
    """
    path = folder / "dtm.tif"
    dsm_of(trained, folder, what)
    why_not = _why_make(trained, folder)
    if why_not:
        _log.info("%s; making one first, for the %s", why_not, what)
        _make(trained, folder)
    else:
        _log.info("%s: of %s", what, path)
    return path


def _why_make(trained: Trained, folder: Path) -> str:
    """Why the terrain model is not what is wanted; "" where it is."""
    path = folder / "dtm.tif"
    about = folder / "dtm.json"
    if not path.exists() or not about.exists():
        return "there is no terrain model yet"
    found = files.read_json_object(about)
    if found.get("dsm") != content_of(folder / "dsm.json"):
        return f"{path} is not of this height map"
    changed = first_change(trained.settings.terrain, found.get("made_with", {}), _FREE)
    if changed:
        return f"{path} was made with another config.terrain.{changed}"
    return ""


def _make(trained: Trained, folder: Path) -> None:
    """Writes dtm.tif and dtm.json, of dsm.tif beside them."""
    started = time.monotonic()
    settings = trained.settings.terrain
    (folder / "dtm.json").unlink(missing_ok=True)  # it is of the file before
    with Progress("terrain, percent", 100) as progress:
        found = write_dtm(
            folder / "dsm.tif",
            folder / "dtm.tif",
            settings,
            progress=lambda done, total: progress.update(100 * done // total),
        )
    about = {
        "dsm": content_of(folder / "dsm.json"),
        "made_with": {"object_width": settings.object_width, "slope": settings.slope},
        "step": trained.step,
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(folder / "dtm.json", found | about)
    _log.info(
        "terrain: %dx%d pixels of %.4g, %.0f %% covered, %.0f %% of it interpolated where objects "
        "up to %.3g wide stand, in %s",
        found["width"],
        found["height"],
        found["pixel_size"],
        100 * found["covered_share"],
        100 * found["interpolated_share"],
        found["object_width"],
        folder,
    )
    if found["lost_share"] > 0:
        _log.info(
            "terrain: %.1f %% of the map is farther than %.3g from any ground that is seen, and "
            "has no height",
            100 * found["lost_share"],
            found["object_width"],
        )
    if found["interpolated_share"] > _MUCH:
        _log.warning(
            "terrain: most of it is interpolated, as under woods, which photographs do not see "
            "through; band 2 of dtm.tif is 0 there"
        )


def _write(trained: Trained, folder: Path) -> None:
    dsm_of(trained, folder, "terrain")
    _make(trained, folder)


DTM = ExportFormat(
    "dtm",
    "dtm.tif (heights of the ground: dsm.tif, which is drawn first where it is missing, without "
    "buildings and trees, by config.terrain), and dtm.json",
    check,
    _write,
    is_in_report=True,  # the height map is
)
