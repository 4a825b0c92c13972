"""A height map and a true orthophoto in map coordinates."""

import logging
import time
import zlib
from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.fused_mesh import mesh_of, why_fuse
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.settings_file import first_change
from cosurfgs_jax.surface import geotiff, write_dsm
from cosurfgs_jax.training.run_log import Progress

_ABOUT = "draws heights and colours from straight above, tile by tile"
_log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Refuses a map that cannot be written."""
    geotiff.import_rasterio()
    geotiff.check_epsg(settings.geo.epsg)


def content_of(path: Path) -> int | None:
    """A number that is another one when the content of a file is; None where there is no file."""
    if not path.exists():
        return None
    return zlib.crc32(path.read_bytes())


def dsm_of(trained: Trained, folder: Path, what: str) -> Path:
    """The height map in a folder where it is of this model and as the settings want it, else a new
    one, which stays there.

    Args:
        trained: the model.
        folder: of exports.
        what: is made of it, for messages: "terrain".
    Raises:
        InputError: see `write_dsm` and `mesh_of`.
    """
    path = folder / "dsm.tif"
    why_not = _why_draw(trained, folder)
    if why_not:
        _log.info("%s; drawing one first, for the %s", why_not, what)
        _write(trained, folder)
    else:
        _log.info("%s: of %s", what, path)
    return path


def _why_draw(trained: Trained, folder: Path) -> str:
    """Why the height map is not what is wanted; "" where it is. What nobody has set may be as it
    was when it was drawn.
    """
    path = folder / "dsm.tif"
    about = folder / "dsm.json"
    if not path.exists() or not about.exists():
        return "there is no height map yet"
    found = files.read_json_object(about)
    geo = trained.settings.geo
    if found.get("model") != trained.model.identity:
        return f"{path} is not of this model"
    is_of_mesh = found.get("heights") == "surface"
    mesh = content_of(trained.workdir.mesh_choices)
    if is_of_mesh and (why_fuse(trained) or found.get("mesh") != mesh):
        return f"{path} is not of this mesh"
    if found.get("offset") == list(geo.offset_xyz()):
        found["offset"] = geo.offset  # in the words of the setting
    changed = first_change(geo, found)
    if changed:
        return f"{path} was made with another config.geo.{changed}"
    return ""


def _write(trained: Trained, folder: Path) -> None:
    started = time.monotonic()
    settings = trained.settings
    mesh = None
    if settings.geo.heights == "surface":
        mesh = mesh_of(
            trained,
            "heights",
            "; or give --config.geo.heights=surfels, for heights without a mesh",
        )
    (folder / "dsm.json").unlink(missing_ok=True)  # it is of the files before
    with Progress("height map, percent", 100, about=_ABOUT) as progress:
        found = write_dsm(
            folder / "dsm.tif",
            folder / "orthophoto.tif",
            trained.surfels,
            trained.partitioned.frame,
            trained.partitioned.scene,
            settings.geo,
            mesh=mesh,
            memory_mb=settings.surface.memory_mb,
            backend=settings.raster.backend,
            progress=lambda done, total: progress.update(100 * done // total),
        )
    about = {
        "heights": settings.geo.heights,
        "model": trained.model.identity,
        "mesh": None if mesh is None else content_of(trained.workdir.mesh_choices),
        "step": trained.step,
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(folder / "dsm.json", found | about)
    _log.info(
        "height map and orthophoto: %dx%d pixels of %.4g, %.0f %% covered, in %s and "
        "orthophoto.tif",
        found["width"],
        found["height"],
        found["pixel_size"],
        100 * found["covered_share"],
        folder / "dsm.tif",
    )
    agreement = found["agreement"]["visible_points"]
    if agreement:
        _log.info(
            "SfM points: median difference %.3g pixels, signed %+.3g (height map minus point)",
            agreement["median_absolute_pixels"],
            agreement["median_signed_pixels"],
        )


DSM = ExportFormat(
    "dsm",
    "dsm.tif (heights of the mesh, which is fused first where it is missing), "
    "orthophoto.tif, and dsm.json with how well the heights fit the SfM points, "
    "in map coordinates by config.geo.offset and config.geo.epsg",
    check,
    _write,
    is_in_report=True,
)
