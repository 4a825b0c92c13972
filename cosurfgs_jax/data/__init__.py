"""Datasets: readers for each format, one `Scene` for all of them, and photographs streamed from
disk.
"""

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.scene import Scene, load_scene

__all__ = ["ImageStore", "Scene", "load_scene"]
