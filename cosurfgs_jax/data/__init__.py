"""Datasets: readers for each format, one `Scene` for all of them, and photographs streamed from
disk.
"""

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.data.readers import Reader, register_reader
from cosurfgs_jax.data.scene import Scene

__all__ = ["ImageStore", "Reader", "Scene", "load_scene", "register_reader"]
