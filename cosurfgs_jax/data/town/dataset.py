"""The generated scene: a small town seen from a drone, with photographs, a COLMAP model and the
exact geometry.

The dataset's frame is x east, y north, z up, metres, with its origin far outside of the town, so
that nothing may rely on data around zero.
"""

import concurrent.futures
import dataclasses
import io
import json
import logging
import os
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np
from PIL import Image

from cosurfgs_jax import ended
from cosurfgs_jax.data.ground_truth import FOLDER
from cosurfgs_jax.data.town import exact_mesh, sfm
from cosurfgs_jax.data.town.facades import paint_faces
from cosurfgs_jax.data.town.flight import plan_flight
from cosurfgs_jax.data.town.ground import paint_ground
from cosurfgs_jax.data.town.layout import make_town_plan
from cosurfgs_jax.data.town.render import Renderer, View
from cosurfgs_jax.data.town.terrain import make_terrain
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import NO_JSON
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.settings import GeneratedSettings

__all__ = ["ORIGIN_M", "make_town"]

ORIGIN_M = np.array([500.0, -300.0, 40.0])  # of the town's centre, dataset frame
_MARKER = "generated.json"
_FORMAT = 1  # of the files and of what the town looks like; counted up with every change
_TEXELS_PER_PIXEL = 1 / 0.6  # on the ground below: the finest samples are half a pixel apart
_POINT_SPACING_PX = 3.0  # between points of the true surface
_POINT_LIMITS = (40_000, 400_000)
_SPARSE_PER_VIEW = 150
_SPARSE_LIMITS = (1500, 18_000)

_log = logging.getLogger(__name__)


def make_town(settings: GeneratedSettings, folder) -> None:
    """Make the town's dataset, unless it is there already.

    Writes `images/DJI_<n>.png`, `sparse/0/*.bin` and `ground_truth/` (points.ply, mesh.ply,
    depth/<image>.npz with `depth` and `normal`). All of it appears at once: an interrupted call
    leaves nothing behind under the folder's name, and what a killed one has left beside it the next
    one deletes. The same settings give the same files.

    Args:
        settings: size of the town, the flight and the photographs.
        folder: the dataset's folder, made where it is missing.
    Raises:
        InputError: the folder holds something else.
    """
    settings.validate()
    folder = pathlib.Path(folder)
    marker = {"format": _FORMAT, **dataclasses.asdict(settings)}
    if _is_made(folder, marker):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}-unfinished-"
    for left in folder.parent.glob(f"{prefix}*"):  # by jobs of blocks, too, which share the folder
        ended.delete_folder(left, ended.has_ended(left.name.removeprefix(prefix)))
    name = f"{prefix}{ended.own_name()}-"
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=folder.parent))
    try:
        _write_dataset(settings, unfinished)
        (unfinished / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was faster; its files are the same.
            if not _is_made(folder, marker):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_made(folder: pathlib.Path, marker: dict) -> bool:
    """Whether the folder holds just this town; an error if it holds anything else."""
    if not folder.exists():
        return False
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / _MARKER).read_text())
    except (OSError, *NO_JSON):
        raise InputError(
            f"{folder}: expected no folder, an empty one or a generated town, got other files; "
            "choose another folder"
        ) from None
    if found != marker:
        raise InputError(
            f"{folder}: expected the generated town of {marker}, got that of {found}; delete it or "
            "choose another folder"
        )
    return True


def _write_dataset(settings: GeneratedSettings, folder: pathlib.Path) -> None:
    for name in ("images", "sparse/0", f"{FOLDER}/depth"):
        (folder / name).mkdir(parents=True)
    num_threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    names = [f"DJI_{number + 1:04d}.png" for number in range(settings.num_views)]
    renderer, town, reach = _build(settings, num_threads)
    flight = renderer.flight
    planes = renderer.faces.planes
    mesh = exact_mesh.build_mesh(town, flight, reach)
    spacing = _POINT_SPACING_PX * flight.ground_pixel_m
    points, normals = exact_mesh.sample_surface(
        mesh, town, planes, spacing, _POINT_LIMITS, settings.seed
    )
    num_sparse = int(np.clip(_SPARSE_PER_VIEW * settings.num_views, *_SPARSE_LIMITS))
    few = slice(0, 6 * num_sparse)  # candidates for sparse points; the points are in no order
    gains = _exposures(settings)
    _log.info("generated town: %d solids, %d photographs", len(town.solids), settings.num_views)

    def photograph(number: int):
        view = renderer.render(number)
        image = np.clip(view.color * gains[number] * 255 + 0.5, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / names[number], compress_level=1)
        stem = pathlib.Path(names[number]).stem
        _write_maps(folder / FOLDER / "depth" / f"{stem}.npz", view)
        seen, _ = sfm.visible_points(flight, number, view, points, normals, min_cosine=0.1)
        observed = sfm.observe(
            flight, number, view, image, points[few], normals[few], settings.seed
        )
        return seen, observed

    times_seen = np.zeros(len(points), np.int64)
    observations = []
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for seen, observed in pool.map(photograph, range(settings.num_views)):
            times_seen[seen] += 1
            observations.append(observed)
    is_seen = times_seen >= 2
    # Double precision: large coordinates lose millimetres in float32.
    table = table_of(
        ("x y z", "f8", points[is_seen] + ORIGIN_M), ("nx ny nz", "f4", normals[is_seen])
    )
    write_ply(folder / FOLDER / "points.ply", table)
    write_ply(
        folder / FOLDER / "mesh.ply",
        table_of(("x y z", "f8", mesh.vertices + ORIGIN_M)),
        mesh.triangles,
    )
    sparse = sfm.triangulate(flight, observations, points[few], num_sparse)
    sfm.write_colmap(folder / "sparse" / "0", flight, names, sparse, ORIGIN_M)


def _build(settings: GeneratedSettings, num_threads: int):
    """Renderer, town, and half the side of the ground in metres."""
    terrain = make_terrain(settings.seed)
    flight = plan_flight(
        settings.num_views, settings.width, settings.height, settings.size_m, terrain, settings.seed
    )
    slope_deg = settings.embankment_deg
    size = settings.size_m
    town = make_town_plan(size, flight.reach, terrain, settings.seed, embankment_deg=slope_deg)
    if not town.solids:
        raise InputError(
            f"generated.size_m: expected a side on which something fits, got {size:g} m, on which "
            "nothing does; give a larger one or another generated.seed"
        )
    texel = flight.ground_pixel_m / _TEXELS_PER_PIXEL
    ground = paint_ground(town, flight.reach, texel, num_threads)
    return Renderer(terrain, ground, paint_faces(town, texel), flight), town, flight.reach


def _exposures(settings: GeneratedSettings) -> np.ndarray:
    """Factors f32[V,3] on the photographs' colours: brightness by `exposure_jitter` stops, tint by
    a fifth of that.
    """
    rng = np.random.default_rng([settings.seed, 8])
    stops = rng.normal(0, 1, (settings.num_views, 1)) + 0.2 * rng.normal(
        0, 1, (settings.num_views, 3)
    )
    return np.exp2(settings.exposure_jitter * stops).astype(np.float32)


def _write_maps(path: pathlib.Path, view: View) -> None:
    """A .npz as `numpy.savez_compressed` writes it, but quickly compressed and without the time of
    day.
    """
    # Normals to 2^-14, 0.004 degrees: the zeros in their last bits halve the file.
    normal = np.round(view.normal * np.float32(2.0**13)) * np.float32(2.0**-13)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in (("depth", view.depth.astype(np.float32)), ("normal", normal)):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, values, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=1)
