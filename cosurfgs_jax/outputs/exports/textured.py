"""A mesh with few triangles and a texture of the photographs."""

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.collab.merged_model import load_exposures
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import placing
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.exports.textured_tiles import Wanted, write_tiles
from cosurfgs_jax.outputs.fused_mesh import find_mesh, mesh_places
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings, TextureSettings
from cosurfgs_jax.surface import (
    Mesh,
    atlas,
    choose_voxel_size,
    depth_filter,
    texture,
    texture_scores,
)
from cosurfgs_jax.surface.mesh import in_order, read_mesh_ply
from cosurfgs_jax.surface.mesh_cells import area_of, survey
from cosurfgs_jax.surface.simplify import decimate
from cosurfgs_jax.surface.texture_tiles import COVERED, Sizes
from cosurfgs_jax.surface.textured_files import write_textured_glb, write_textured_obj
from cosurfgs_jax.training.run_log import Progress

_REDUCTION = 10  # of the mesh's triangles one is kept
_LARGEST = 4096  # texels along a side, where nobody asks for more: graphics cards take that
_SMALLEST = 256
_ABOUT = "gives each texel the mean of the training photographs that see it"
_NOTE = "textured.json"
_TILES = "textured"  # folder of tiles, where there are any
_FILES = ("textured.glb", "textured.obj", "textured.mtl", "textured.jpg")  # where there are none
_log = logging.getLogger(__name__)


def _check(settings: Settings) -> None:
    import_open3d()


class TextureSize(NamedTuple):
    """How fine a texture is.

    | field         | unit, frame                                                               |
    |---------------|---------------------------------------------------------------------------|
    | `size`        | texels along its side                                                     |
    | `wanted`      | the same, with which a texel is no larger than a photograph's pixel       |
    | `texel`       | side of a texel on the surface, dataset                                   |
    | `photo_pixel` | of a pixel of the photographs that it is made of, dataset                 |
    """

    size: int
    wanted: int
    texel: float
    photo_pixel: float


def photo_pixel(trained: Trained) -> float:
    """Side of a pixel of the photographs on the surface, dataset."""
    scene = trained.partitioned.scene
    seen = depth_filter.seen_depths(scene.cloud, scene.views)
    return choose_voxel_size(seen, scene.views.intrinsics, pixels=1)


def _wanted(area: float, pixel: float) -> int:
    """Texels along the side of a picture of this area, with which one is no larger than a pixel."""
    return int(2 ** np.ceil(np.log2(np.sqrt(area / COVERED) / pixel)))


def choose_size(mesh: Mesh, pixel: float, asked: int) -> TextureSize:
    """Texels along the side of the texture: what is asked for, or the power of two with which a
    texel is no larger than a pixel of the photographs on the surface, within what graphics cards
    take.

    Args:
        mesh: with as many triangles as are wanted.
        pixel: see `photo_pixel`.
        asked: `TextureSettings.size`.
    """
    area = area_of(mesh.vertices[mesh.triangles])
    wanted = _wanted(area, pixel)
    size = asked or int(np.clip(wanted, _SMALLEST, _LARGEST))
    return TextureSize(size, wanted, float(np.sqrt(area / COVERED)) / size, photo_pixel=pixel)


def with_photographs(trained: Trained) -> Trained:
    """The model with the photographs that its texture is made of: those of training, or shrunk less
    by `texture.downscale`.

    Raises:
        InputError: they cannot be shrunk by that, or other photographs are used then.
    """
    factor = trained.settings.texture.downscale
    if factor in (0, trained.settings.data.downscale):
        return trained
    data = dataclasses.replace(trained.settings.data, downscale=factor)
    before = trained.partitioned.scene
    try:
        scene = load_scene(
            data, trained.settings.generated, trained.workdir.data, compares_colors=False
        )
    except InputError as error:
        raise InputError(f"config.texture.downscale={factor}: {error}") from error
    if scene.image_names != before.image_names or (scene.is_test != before.is_test).any():
        raise InputError(
            f"config.texture.downscale: expected the {before.num_views} photographs of training, "
            f"got {scene.num_views} with {factor}; give 0, for those as training used them"
        )
    return trained._replace(
        settings=dataclasses.replace(trained.settings, data=data),
        partitioned=trained.partitioned._replace(scene=scene),
    )


def _say_size(chosen: TextureSize, settings: Settings) -> None:
    words = "as training used them"
    if settings.texture.downscale:
        words = "as config.texture.downscale wants them"
    _log.info(
        "texture: %d texels a side; a texel is %.3g on the surface, %.2g pixels of the photographs "
        "%s (data.downscale=%d)",
        chosen.size,
        chosen.texel,
        chosen.texel / chosen.photo_pixel,
        words,
        settings.data.downscale,
    )
    if chosen.size < chosen.wanted and not settings.texture.size:
        _log.warning(
            "texture: coarser than the photographs: %d texels a side would show all of them, and "
            "more than %d are only made where they are asked for (--config.texture.size)",
            chosen.wanted,
            _LARGEST,
        )


def reduce(mesh: Mesh, settings: TextureSettings) -> Mesh:
    """The mesh with as many triangles as are wanted."""
    target = settings.triangles or max(1, mesh.num_triangles // _REDUCTION)
    # The files have no place for the confidence: its means are not made.
    bare = dataclasses.replace(mesh, vertex_confidence=None)
    return atlas.without_fans(in_order(decimate(bare, target)))


def _bake(
    mesh: Mesh, trained: Trained, gains: np.ndarray, size: int
) -> tuple[atlas.TexturedMesh, dict[str, Any]]:
    """A mesh with its texture, and the fraction of it that photographs show and how it fits those
    that were not used.
    """
    scene = trained.partitioned.scene
    uvs = atlas.unwrap(mesh, size)
    texels = atlas.texels_of(uvs, size)
    with (
        ImageStore(scene, trained.settings.data.host_memory_mb) as images,
        Progress("texture", len(scene.train_views), about=_ABOUT) as progress,
    ):
        images.prefetch(scene.train_views)
        sources = texture.Sources(scene.views, scene.train_views, images.load, gains)
        picture, seen = texture.bake(
            mesh, texels, sources, size, progress=lambda done, total: progress.update(done)
        )
        textured = atlas.TexturedMesh(mesh, uvs, picture)
        scores = texture_scores.scores(textured, sources._replace(chosen=scene.test_views))
    return textured, {"photographed_share": seen, "test_views": scores}


def _write(trained: Trained, folder: Path) -> None:
    started = time.monotonic()
    shown = with_photographs(trained)
    find_mesh(trained, "texture")
    path = trained.workdir.mesh
    found = survey(path, trained.partitioned.scene.up)
    pixel = photo_pixel(shown)
    settings = trained.settings.texture
    exposures = load_exposures(trained.settings, trained.workdir, trained.partitioned)
    gains = texture.relative_gains(exposures, shown.partitioned.scene.train_views)
    too_large = not settings.size and _wanted(found.area, pixel) > _LARGEST
    if settings.tile_size or too_large:
        fraction = 1 / _REDUCTION
        if settings.triangles:
            fraction = min(1.0, settings.triangles / found.num_triangles)
        sizes = Sizes(pixel, settings.size or _LARGEST)
        wanted = Wanted(path, found, shown, gains=gains, fraction=fraction, sizes=sizes)
        (folder / _NOTE).unlink(missing_ok=True)  # it is of the files before
        made = write_tiles(wanted, folder / _TILES)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
    else:
        made = _write_one(read_mesh_ply(path), shown, gains, pixel=pixel, folder=folder)
    made |= {
        "num_triangles_before": found.num_triangles,
        # Of a pixel of the photographs that it is made of, on the surface, in the dataset's unit.
        "photo_pixel": pixel,
        "downscale": shown.settings.data.downscale,
        "step": trained.step,
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(folder / _NOTE, made)
    _say(made, folder)


def _write_one(
    whole: Mesh, shown: Trained, gains: np.ndarray, pixel: float, folder: Path
) -> dict[str, Any]:
    """Writes the mesh with one picture."""
    mesh = reduce(whole, shown.settings.texture)
    chosen = choose_size(mesh, pixel, shown.settings.texture.size)
    _say_size(chosen, shown.settings)
    textured, quality = _bake(mesh, shown, gains, chosen.size)
    (folder / _NOTE).unlink(missing_ok=True)  # it is of the files before
    shutil.rmtree(folder / _TILES, ignore_errors=True)
    up = shown.partitioned.scene.up
    with placing(folder, mesh_places(shown.settings.geo, up, "textured", ("glb", "obj"))):
        write_textured_glb(folder / "textured.glb", textured, up)
        write_textured_obj(folder / "textured.obj", textured)
    sizes = {"size": chosen.size, "texel": chosen.texel}
    return {"num_triangles": mesh.num_triangles} | sizes | quality


def _say(made: dict[str, Any], folder: Path) -> None:
    pictures = f"{made['size']}x{made['size']} texels"
    if "tiles" in made:
        pictures = f"{made['tiles']['number']} tiles of up to {pictures}"
    _log.info(
        "textured mesh: %d of %d triangles, %s, of which photographs show %.1f %%, in %s",
        made["num_triangles"],
        made["num_triangles_before"],
        pictures,
        100 * made["photographed_share"],
        folder,
    )
    scores = made["test_views"]
    if scores:
        _log.info(
            "test views where the mesh is: PSNR %.2f dB with the texture (%.2f after colour "
            "correction), %.2f with the colours of its vertices (%.2f)",
            scores["psnr"],
            scores["psnr_color_corrected"],
            scores["psnr_vertex_colors"],
            scores["psnr_vertex_colors_color_corrected"],
        )


TEXTURED = ExportFormat(
    "textured",
    "textured.glb, and textured.obj with .mtl and .jpg: the mesh, which is fused first where it is "
    "missing, with fewer triangles (config.texture.triangles) and a texture of the training "
    "photographs, as training used them or sharper (config.texture.size, "
    "config.texture.downscale); of a large place the folder textured with tiles and tileset.json "
    "(config.texture.tile_size); the dataset's frame",
    _check,
    _write,
    is_in_report=True,
)
