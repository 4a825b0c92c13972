"""The differentiable surfel rasterizer: `rasterize`, and `render`, which the package itself calls
with the options of a run."""

from cosurfgs_jax.raster.backends import (
    available_backends,
    backend_of,
    best_backend,
    choose_backend,
    portable_cost,
)
from cosurfgs_jax.raster.options import Maps, RasterOptions
from cosurfgs_jax.raster.rasterizer import Removal, rasterize, removal_effects, render, render_sums

__all__ = [
    "Maps",
    "RasterOptions",
    "Removal",
    "available_backends",
    "backend_of",
    "best_backend",
    "choose_backend",
    "portable_cost",
    "rasterize",
    "removal_effects",
    "render",
    "render_sums",
]
