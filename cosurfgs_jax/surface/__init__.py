"""Surfaces of trained models: meshes (filtering and fusion of rendered depth, cleaning, files),
height maps, orthophotos.
"""

from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dsm import check_geo, write_dsm
from cosurfgs_jax.surface.extraction import PHASES, extract_mesh
from cosurfgs_jax.surface.fusion import fuse
from cosurfgs_jax.surface.mesh import Mesh, drop_small_clusters, read_mesh_ply, write_mesh_ply
from cosurfgs_jax.surface.mesh_files import write_mesh
from cosurfgs_jax.surface.voxel_size import choose_voxel_size

__all__ = [
    "PHASES",
    "DepthView",
    "Mesh",
    "check_geo",
    "choose_voxel_size",
    "drop_small_clusters",
    "extract_mesh",
    "fuse",
    "read_mesh_ply",
    "write_dsm",
    "write_mesh",
    "write_mesh_ply",
]
