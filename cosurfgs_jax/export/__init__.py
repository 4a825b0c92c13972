"""Models in the file formats of other programs."""

from cosurfgs_jax.export.ply import read_surfels_ply, write_surfels_ply

__all__ = ["read_surfels_ply", "write_surfels_ply"]
