"""Large-scale surface reconstruction from photographs with collaborative surfel
splatting, in JAX.
"""

from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.types import Camera, RenderOutput, Surfels

__all__ = ["Camera", "RenderOutput", "Surfels", "rasterize"]
__version__ = "0.1.0"
