"""The size of the voxels: from the pixels of the photographs on the surface."""

from collections.abc import Sequence

import numpy as np

from cosurfgs_jax.errors import InputError

# sides of a pixel on the surface: with voxels of 0.12 a plane lost 8 % of its area, of 0.06 80 %
_FINEST_PIXELS = 0.25


def choose_voxel_size(
    depths: Sequence[np.ndarray], intrinsics: np.ndarray, pixels: float = 1.5
) -> float:
    """A voxel size that the photographs can fill.

    Args:
        depths: per view the camera z of the SfM points that it sees (`depth_filter.seen_depths`).
        intrinsics: f64[V,3,3], pixels.
        pixels: sides of a pixel, on the surface, per voxel. On the generated town with 0.3 % noise
            on the depths, 1, 1.5 and 2.5 pixels gave a mean error of 34, 35 and 47 mm from 1.7, 0.7
            and 0.25 million triangles.
    Returns:
        Length in the unit of the depths: `pixels` times the median over views of median depth /
            focal length.
    Raises:
        InputError: no view sees a point.
    """
    focals_px = np.sqrt(intrinsics[:, 0, 0] * intrinsics[:, 1, 1])
    footprints = [np.median(d) / f for d, f in zip(depths, focals_px, strict=True) if len(d)]
    if not footprints:
        raise InputError(
            "surface.voxel_size: expected SfM points inside the images to derive it from, got "
            "none; "
            "set config.surface.voxel_size in the unit of the dataset"
        )
    return float(pixels * np.median(footprints))


def check_voxel_size(
    voxel_size: float, depths: Sequence[np.ndarray], intrinsics: np.ndarray
) -> None:
    """Refuses voxels so much finer than the photographs' pixels that the surface would fall between
    their rays.

    Args:
        voxel_size: unit of the depths. depths, intrinsics: see `choose_voxel_size`.
    Raises:
        InputError: less than a quarter of a pixel on the surface.
    """
    if not any(map(len, depths)):
        return
    smallest = choose_voxel_size(depths, intrinsics, _FINEST_PIXELS)
    if voxel_size < smallest:
        raise InputError(
            f"surface.voxel_size: expected at least {smallest:.4g} ({_FINEST_PIXELS:g} of a pixel "
            "on the surface: "
            "finer voxels would lie between the rays, and the mesh be full of holes), got "
            f"{voxel_size:.4g}"
        )
