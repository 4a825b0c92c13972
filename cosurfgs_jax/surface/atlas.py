"""A texture atlas: a place in a picture for every triangle of a mesh, and the pixels of that
picture as points on the mesh. NumPy; the charts are Open3D's.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.pixels_in_triangles import pixels_in_triangles

# Texels between charts: mipmaps of two levels do not mix them.
_GUTTER = 4
# Parts of this size are unwrapped apart: 355,000 triangles took 27 s in one thread, and the time
# grows with the number of parts. Of 35,500 triangles in 9 or 44 parts charts covered 68 % and 65 %
# of the picture, of one part 68 %.
_PART = 4000
_STRETCH = 1 / 6  # Open3D's default


class TexturedMesh(NamedTuple):
    """A mesh with an atlas and its picture.

    | field     | shape         | unit, frame                                                     |
    |-----------|---------------|-----------------------------------------------------------------|
    | `mesh`    | `Mesh`        | dataset frame                                                   |
    | `uvs`     | f32[F,3,2]    | of each corner: to the right and down from the picture's upper  |
    |           |               | left corner, 1 = its side                                       |
    | `picture` | u8[S,S,3]     | RGB                                                             |
    """

    mesh: Mesh
    uvs: np.ndarray
    picture: np.ndarray


class Texels(NamedTuple):
    """The T pixels of an atlas whose middle is on the mesh, triangle by triangle.

    | field      | shape    | unit, frame                        |
    |------------|----------|------------------------------------|
    | `pixel`    | i64[T]   | row * size + column                |
    | `triangle` | i32[T]   | number                             |
    | `weights`  | f32[T,3] | of the triangle's corners          |
    """

    pixel: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray


def unwrap(mesh: Mesh, size: int) -> Float[np.ndarray, "f 3 2"]:
    """Places f32[F,3,2] of the triangles in a square picture (`TexturedMesh.uvs`), none above
    another, with texels of about the same size on the mesh.

    Args:
        mesh: whose edges have at most two triangles (`without_fans`).
        size: texels along the side of the picture.
    Raises:
        InputError: open3d is missing, or finds no atlas.
    The charts differ from call to call. xatlas gives the same ones every time and covers 84 % of
    the picture instead of 65 %, in three times the time; it would be one more package.

    Source: Zhou et al. 2004, isocharts, by Microsoft's UVAtlas in Open3D.
    """
    open3d = import_open3d()
    charts = open3d.t.geometry.TriangleMesh()
    charts.vertex.positions = open3d.core.Tensor((mesh.vertices - mesh.middle).astype(np.float32))
    charts.triangle.indices = open3d.core.Tensor(mesh.triangles.astype(np.int64))
    try:
        with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
            charts.compute_uvatlas(
                size=size,
                gutter=_GUTTER,
                max_stretch=_STRETCH,
                parallel_partitions=max(1, mesh.num_triangles // _PART),
                nthreads=1,  # each thread would need the memory of a part
            )
    except RuntimeError as error:
        raise InputError(
            f"texture: expected a mesh that can be laid flat, got one that cannot ({error}); give "
            "another config.texture.triangles"
        ) from error
    return charts.triangle.texture_uvs.numpy().astype(np.float32)


def texels_of(uvs: Float[np.ndarray, "f 3 2"], size: int) -> Texels:
    """The pixels of a picture with `size` pixels to a side whose middle is in a triangle."""
    corners = uvs.astype(np.float64) * size
    found = [
        Texels(covered.pixel, covered.triangle.astype(np.int32), covered.weights.astype(np.float32))
        for covered in pixels_in_triangles(corners, size)
    ]
    whole = Texels(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
    # Of the triangles that share an edge through the middle of a pixel the first has it.
    _, once = np.unique(whole.pixel, return_index=True)
    once.sort()
    return Texels(*(array[once] for array in whole))


def without_fans(mesh: Mesh) -> Mesh:
    """The same triangles, but no edge has more than two of them: at edges with more, and where
    two turn against each other, each of these triangles gets vertices of its own.
    """
    edges = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low_high = np.sort(edges, axis=1).astype(np.int64)
    code = low_high[:, 0] * mesh.num_vertices + low_high[:, 1]
    _, which, counts = np.unique(code, return_inverse=True, return_counts=True)
    turns = np.bincount(which, weights=np.sign(edges[:, 1] - edges[:, 0]))
    is_bad = (counts > 2) | ((counts == 2) & (turns != 0))
    alone = np.flatnonzero(is_bad[which].reshape(-1, 3).any(axis=1))
    if not len(alone):
        return mesh
    copied = mesh.triangles[alone].ravel()
    triangles = mesh.triangles.copy()
    triangles[alone] = mesh.num_vertices + np.arange(len(copied)).reshape(-1, 3)
    return Mesh(
        np.concatenate([mesh.vertices, mesh.vertices[copied]]),
        triangles,
        np.concatenate([mesh.vertex_colors, mesh.vertex_colors[copied]]),
        np.concatenate([mesh.vertex_normals, mesh.vertex_normals[copied]]),
    )
