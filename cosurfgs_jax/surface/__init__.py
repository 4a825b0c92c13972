"""Surfaces of trained models: meshes (filtering and fusion of rendered depth, cleaning, files),
height maps, orthophotos.
"""

from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dsm import check_geo, write_dsm
from cosurfgs_jax.surface.extraction import (
    PHASES,
    Fused,
    extract_mesh,
    fuse_part,
    whole_mesh_bytes,
    write_parts,
)
from cosurfgs_jax.surface.fusion import fuse
from cosurfgs_jax.surface.mesh import Mesh, drop_small_clusters, read_mesh_ply, write_mesh_ply
from cosurfgs_jax.surface.mesh_files import write_mesh
from cosurfgs_jax.surface.mesh_plan import MeshPlan, plan_mesh
from cosurfgs_jax.surface.voxel_size import choose_voxel_size

__all__ = [
    "PHASES",
    "DepthView",
    "Fused",
    "Mesh",
    "MeshPlan",
    "check_geo",
    "choose_voxel_size",
    "drop_small_clusters",
    "extract_mesh",
    "fuse",
    "fuse_part",
    "plan_mesh",
    "read_mesh_ply",
    "whole_mesh_bytes",
    "write_dsm",
    "write_mesh",
    "write_mesh_ply",
    "write_parts",
]
