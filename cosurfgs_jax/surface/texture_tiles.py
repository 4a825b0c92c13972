"""Textured tiles of a mesh that is too large for one picture: one tile in memory at a time, with
what hides it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.surface import atlas, texture
from cosurfgs_jax.surface.cell_store import CellStore
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.mesh_cells import area_of
from cosurfgs_jax.surface.ray_scene import Camera, RayScene, Window
from cosurfgs_jax.surface.texture_scores import Shown, shown

COVERED = 0.62  # of a picture, by triangles
_MULTIPLE = 128  # of texels, of the sides of pictures
# A texel's side in pixels of the photographs: about the mean of single pictures, whose sides are
# powers of two.
TEXEL = 0.75


class Sizes(NamedTuple):
    """How large the pictures of tiles are.

    | field     | content                                                |
    |-----------|--------------------------------------------------------|
    | `pixel`   | side of a photograph's pixel on the surface, dataset   |
    | `largest` | texels along a side, at most                           |
    """

    pixel: float
    largest: int

    def of(self, mesh: Mesh) -> tuple[int, float]:
        """Texels along the side of a mesh's picture, within the limit, and the side of a texel on
        its surface: `TEXEL` of a pixel.
        """
        side = float(np.sqrt(area_of(mesh.vertices[mesh.triangles]) / COVERED))
        wanted = int(np.ceil(side / (TEXEL * self.pixel) / _MULTIPLE)) * _MULTIPLE
        size = min(max(wanted, _MULTIPLE), self.largest)
        return size, side / size


class MadeTile(NamedTuple):
    """A tile.

    | field      | content                                                       |
    |------------|---------------------------------------------------------------|
    | `textured` | dataset frame                                                 |
    | `texel`    | side of a texel on the surface, dataset                       |
    | `seen`     | fraction of the texels that a photograph shows                |
    | `num_used` | photographs that may show it                                  |
    """

    textured: atlas.TexturedMesh
    texel: float
    seen: float
    num_used: int


class KeptViews(NamedTuple):
    """Views that tiles are compared with later, and the folder of what they show of each."""

    views: np.ndarray
    folder: Path


def _corners(mesh: Mesh) -> np.ndarray:
    """Of the box around a mesh, relative to its middle, f32[8,3]."""
    half = (mesh.vertices.max(axis=0) - mesh.vertices.min(axis=0)) / 2
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)
    return (signs * half).astype(np.float32)


def looking_at(mesh: Mesh, sources: texture.Sources) -> dict[int, Window]:
    """The chosen views that may show something of a mesh, and where in their picture."""
    corners = _corners(mesh)
    found = {}
    for view in map(int, sources.chosen):
        window = Camera(sources.views, view, mesh.middle).box_window(corners)
        if window is not None:
            found[view] = window
    return found


def make_tile(
    store: CellStore,
    cell: int,
    sources: texture.Sources,
    sizes: Sizes,
    kept: KeptViews,
) -> MadeTile:
    """Bakes a tile, and keeps what test views show of it.

    Args:
        store: after `reduce` of all cells.
        cell: of the tile.
        sources: photographs; those that do not look at the tile are not loaded.
        sizes: of the picture.
        kept: views that the result is compared with later (`kept_parts`).
    Raises:
        InputError: see `atlas.unwrap`, or the disk is full.
    """
    mesh = store.mesh(cell)
    used = np.array(list(looking_at(mesh, sources)), np.int64)
    eyes = camera_center(sources.views.camera_from_dataset[used])
    rays = RayScene(mesh, store.hiding(cell, eyes))
    size, texel = sizes.of(mesh)
    uvs = atlas.unwrap(mesh, size)
    texels = atlas.texels_of(uvs, size)
    picture, seen = texture.bake(mesh, texels, sources._replace(chosen=used), size, rays=rays)
    textured = atlas.TexturedMesh(mesh, uvs, picture)
    for view, window in looking_at(mesh, sources._replace(chosen=kept.views)).items():
        camera = rays.camera(sources.views, view)
        part: dict[str, Any] = shown(textured, rays, camera, window)._asdict()
        path = kept.folder / f"view{view}-{store.cells.name(cell)}.npz"
        with files.atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **part)
    return MadeTile(textured, texel, seen, len(used))


def kept_parts(view: int, folder: Path) -> Iterator[Shown]:
    """What `make_tile` has kept of all tiles that a view shows."""
    for path in sorted(folder.glob(f"view{view}-*.npz")):
        arrays = files.read_arrays(path, Shown._fields)
        yield Shown(Window(*arrays.pop("window").tolist()), **arrays)
