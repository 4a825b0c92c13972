"""Small meshes, and triangles in an order that does not depend on the mesh."""

import numpy as np

from cosurfgs_jax.surface import mesh as meshes
from cosurfgs_jax.workdir import Workdir


def triangle_set(mesh):
    """Triangles as sorted rows of corners f[F,9], each turned so that its smallest
    corner is first.
    """
    corners = mesh.vertices[mesh.triangles]
    order = np.lexsort(corners.reshape(-1, 3).T[::-1])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    start = rank.reshape(-1, 3).argmin(axis=1)
    turned = corners[np.arange(len(corners))[:, None], (start[:, None] + np.arange(3)) % 3].reshape(
        -1, 9
    )
    return turned[np.lexsort(turned.T[::-1])]


def two_squares(num_small=1):
    """A square of 4 x 4 cells and, apart, `num_small` triangles."""
    x, y = np.meshgrid(np.arange(5.0), np.arange(5.0))
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(25)], axis=1)
    corner = (np.arange(4)[:, None] * 5 + np.arange(4)).ravel()
    triangles = np.concatenate(
        [np.stack([corner, corner + a, corner + b], axis=1) for a, b in ((1, 6), (6, 5))]
    )
    extra = np.array([[10, 0, 0], [11, 0, 0], [10, 1, 0.0]])
    for i in range(num_small):
        triangles = np.concatenate(
            [triangles, [[len(vertices), len(vertices) + 1, len(vertices) + 2]]]
        )
        vertices = np.concatenate([vertices, extra + i * 5])
    triangles = triangles.astype(np.int32)
    return meshes.Mesh(
        vertices,
        triangles,
        np.arange(3 * len(vertices), dtype=np.uint8).reshape(-1, 3),
        meshes.vertex_normals(vertices, triangles),
        np.linspace(1, 30, len(vertices), dtype=np.float32),
    )


def write_triangle(workdir: Workdir) -> None:
    """The mesh of a workdir: one triangle."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
    colors = np.zeros((3, 3), np.uint8)
    normals = np.tile([0.0, 0, 1], (3, 1)).astype(np.float32)
    mesh = meshes.Mesh(corners, np.array([[0, 1, 2]], np.int32), colors, normals)
    meshes.write_mesh_ply(workdir.mesh, mesh)


def fuse_into(workdir: Workdir):
    """A stand-in for `surface.write_parts`, which is given the settings as the plan."""

    def fuse(settings, *_, **__):
        write_triangle(workdir)
        made = {"num_triangles": 1, "voxel_size": settings.voxel_size or 0.5}
        return made | {"confidence": dict(below_3=0.2, below_6=0.5)}

    return fuse
