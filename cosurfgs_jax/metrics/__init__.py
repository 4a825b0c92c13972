"""How good a picture, a depth map or a surface is: the only copy of every score that the package
reports.
"""

from cosurfgs_jax.metrics.confidence_rows import (
    confidence_line,
    confidence_range,
    confidence_ranges,
    confidence_rows,
    photographs_of,
)
from cosurfgs_jax.metrics.depth import (
    depth_errors,
    depth_steps,
    label_borders,
    normal_angles,
    normal_errors,
)
from cosurfgs_jax.metrics.images import color_correct, psnr, ssim, ssim_map
from cosurfgs_jax.metrics.lpips import LpipsWeights, lpips, weights_of
from cosurfgs_jax.metrics.mesh_distance import (
    area_normals,
    distance_to_mesh,
    sample_mesh,
    triangle_areas,
)
from cosurfgs_jax.metrics.seen_region import SeenRegion
from cosurfgs_jax.metrics.surface import (
    Comparison,
    compare_surfaces,
    grid_downsample,
    surface_scores,
)
from cosurfgs_jax.metrics.surface_classes import class_line, classes_of_triangles

__all__ = [
    "area_normals",
    "Comparison",
    "LpipsWeights",
    "SeenRegion",
    "class_line",
    "classes_of_triangles",
    "color_correct",
    "compare_surfaces",
    "confidence_line",
    "confidence_range",
    "confidence_ranges",
    "confidence_rows",
    "depth_errors",
    "depth_steps",
    "distance_to_mesh",
    "grid_downsample",
    "lpips",
    "label_borders",
    "normal_angles",
    "normal_errors",
    "photographs_of",
    "psnr",
    "sample_mesh",
    "ssim",
    "ssim_map",
    "surface_scores",
    "triangle_areas",
    "weights_of",
]
