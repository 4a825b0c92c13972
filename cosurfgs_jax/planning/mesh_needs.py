"""What the mesh of a model will need: triangles, memory and scratch files."""

from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface.depth_filter import seen_depths
from cosurfgs_jax.surface.fusion import BYTES_PER_BLOCK, TRIANGLES_PER_BLOCK
from cosurfgs_jax.surface.voxel_size import choose_voxel_size
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, surface_pixels

_TRIANGLES_A_VOXEL = 2.0  # that the surface cuts
# Of the surface that pixels show in one photograph after the other, so much is meshed: 5.1 million
# triangles of caliterra, 0.35 million of the town.
_MESHED = 0.63
_FILE_BYTES = 27  # of a triangle in the PLY file, with half a vertex
_SCRATCH_BYTES = 95  # of a triangle, with half a vertex, while tiles are joined and smoothed
_VIEW_BYTES = 11  # of a pixel of a view that waits in the scratch folder


class MeshNeeds(NamedTuple):
    """Of `extract_mesh`."""

    voxel_size: float  # dataset unit
    num_triangles: int
    memory: int  # bytes of the fusion, besides the process
    scratch: int  # bytes of files that are deleted
    file: int  # bytes of the mesh


def estimate(partitioned: PartitionedScene, settings: SurfaceSettings) -> MeshNeeds:
    """What the mesh will need, from what the photographs show of the surface.

    Args:
        partitioned: the dataset.
        settings: of the mesh.
    """
    scene = partitioned.scene
    views = scene.train_views
    chosen = scene.views.pick(views)
    seen = seen_depths(scene.cloud, scene.views)
    depths = [seen[view] for view in views]
    try:
        one_pixel = choose_voxel_size(depths, chosen.intrinsics, 1.0)
        voxel_size = settings.voxel_size or choose_voxel_size(depths, chosen.intrinsics)
    except InputError:  # no view sees a point: extract_mesh will ask for a size
        return MeshNeeds(voxel_size=0.0, num_triangles=0, memory=0, scratch=0, file=0)
    voxels = _MESHED * surface_pixels(scene, views) * (one_pixel / voxel_size) ** 2
    num_triangles = round(_TRIANGLES_A_VOXEL * voxels)
    num_blocks = num_triangles / TRIANGLES_PER_BLOCK
    memory = min(num_blocks * BYTES_PER_BLOCK, settings.memory_mb * 2**20 / 2)
    pixels = int(np.sum(chosen.image_sizes.prod(axis=1)))
    return MeshNeeds(
        voxel_size=voxel_size,
        num_triangles=num_triangles,
        memory=round(memory),
        scratch=_VIEW_BYTES * pixels + _SCRATCH_BYTES * num_triangles,
        file=_FILE_BYTES * num_triangles,
    )
