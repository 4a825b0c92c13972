"""How well a textured mesh shows photographs that it was not made of."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cosurfgs_jax import metrics, photograph
from cosurfgs_jax.surface.atlas import TexturedMesh
from cosurfgs_jax.surface.ray_scene import Camera, RayScene, Window
from cosurfgs_jax.surface.texture import Sources, sampled


class Shown(NamedTuple):
    """What a view sees of a textured mesh, without light.

    | field           | shape     | content                                             |
    |-----------------|-----------|-----------------------------------------------------|
    | `window`        | `Window`  | of the picture; there is nothing of it outside      |
    | `is_there`      | bool[h,w] | pixels of the window that show it                   |
    | `texture`       | u8[n,3]   | colours of these pixels with the texture            |
    | `vertex_colors` | u8[n,3]   | and with the colours of the vertices                |
    """

    window: Window
    is_there: np.ndarray
    texture: np.ndarray
    vertex_colors: np.ndarray


def shown(textured: TexturedMesh, rays: RayScene, camera: Camera, window: Window) -> Shown:
    """A textured mesh as a camera sees it.

    Args:
        textured: dataset frame.
        rays: its mesh, with what hides it.
        camera: of `rays`.
        window: pixels that are looked at.
    """
    mesh = textured.mesh
    found = rays.hits(camera, window)
    is_there = np.isfinite(found["t_hit"]) & (found["geometry_ids"] == 0)
    triangles = found["primitive_ids"][is_there].astype(np.int64)
    others = found["primitive_uvs"][is_there]
    weights = np.concatenate([1 - others.sum(axis=1, keepdims=True), others], axis=1)[:, :, None]
    size = np.float32(len(textured.picture))
    places = (textured.uvs[triangles] * weights).sum(axis=1) * size
    texture = sampled(textured.picture, places.astype(np.float32))
    colors = (mesh.vertex_colors[mesh.triangles[triangles]] * weights).sum(axis=1)
    return Shown(window, is_there, texture, np.round(colors).astype(np.uint8))


def score_view(parts: Iterable[Shown], photo: UInt8[np.ndarray, "h w c"]) -> dict[str, float]:
    """How a textured mesh fits a photograph, and how the colours of its vertices do: PSNR in dB
    over the pixels where the mesh is; {} where it is on none.

    Args:
        parts: of the mesh, as the photograph's view sees them.
        photo: with what counts of it, if it has masks.
    """
    names = {"psnr": "texture", "psnr_vertex_colors": "vertex_colors"}
    pictures = {name: np.zeros((*photo.shape[:2], 3), np.uint8) for name in names}
    is_counted = np.zeros(photo.shape[:2], bool)
    for part in parts:
        column, row, width, height = part.window
        at = (slice(row, row + height), slice(column, column + width))
        is_counted[at] |= part.is_there
        for name, field in names.items():
            pictures[name][at][part.is_there] = getattr(part, field)
    mask = photograph.mask_of(photo)
    if mask is not None:
        is_counted &= mask
    if not is_counted.any():
        return {}
    true = photo[..., :3] / np.float32(255)
    found = {}
    for name, picture in pictures.items():
        drawn = picture / np.float32(255)
        corrected = metrics.color_correct(drawn, true, is_counted)
        found[name] = float(metrics.psnr(drawn, true, is_counted))
        found[f"{name}_color_corrected"] = float(metrics.psnr(corrected, true, is_counted))
    return found


def mean_scores(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Means of `score_view` over the views that show the mesh; {} where none does."""
    found = [row for row in rows if row]
    if not found:
        return {}
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def scores(textured: TexturedMesh, sources: Sources) -> dict[str, float]:
    """How a textured mesh fits photographs (`score_view`), mean over the views.

    Args:
        textured: dataset frame.
        sources: the photographs; their gains are not used.
    """
    rays = RayScene(textured.mesh)
    rows = []
    for view in map(int, sources.chosen):
        camera = rays.camera(sources.views, view)
        seen = shown(textured, rays, camera, camera.picture)
        rows.append(score_view([seen], sources.load(view)))
    return mean_scores(rows)
