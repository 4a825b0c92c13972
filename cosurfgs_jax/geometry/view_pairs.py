"""Which views look at the same place from another one, and how pixels go from one to the other and
back.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.spatial import cKDTree

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.types import AnyArray

_BASELINE_RANGE = (
    0.05,
    1.0,
)  # of the depth: nearer views hardly see depth, farther ones see other sides of things


def choose_neighbors(
    views: Views,
    num_neighbors: int = 8,
    max_axis_angle_deg: float = 45.0,
    min_baseline: float = 0.05,
    depths: np.ndarray | None = None,
) -> list[np.ndarray]:
    """For each view the nearest others that look the same way from another place.

    Args:
        views: V; their poses are compared.
        num_neighbors: the most per view.
        max_axis_angle_deg: between the optical axes.
        min_baseline: as a fraction of the median distance between nearest cameras; nearer ones
            confirm anything.
        depths: f64[V], what each view looks at, in the unit of the poses. Where some candidates
            stand off by 5 to 100 % of it, only those are taken; None or NaN = no such choice.
    Returns:
        V arrays of view numbers, nearest first; empty where there is none.
    """
    centers = views.centers
    axes = views.camera_from_dataset[:, 2, :3]
    if len(centers) < 2:
        return [np.zeros(0, np.int64) for _ in centers]
    shortest = min_baseline * np.median(cKDTree(centers).query(centers, k=2)[0][:, 1])
    result = []
    for view in range(len(centers)):
        # Row by row: the full table of distances does not fit into memory for tens of thousands of
        # photographs.
        distances = np.linalg.norm(centers - centers[view], axis=1)
        is_candidate = (axes @ axes[view] > np.cos(np.radians(max_axis_angle_deg))) & (
            distances >= shortest
        )
        is_candidate[view] = False
        if depths is not None:
            low, high = np.multiply(_BASELINE_RANGE, depths[view])
            is_good = is_candidate & (distances >= low) & (distances <= high)
            is_candidate = is_good if is_good.any() else is_candidate
        order = np.flatnonzero(is_candidate)
        result.append(order[np.argsort(distances[order], kind="stable")][:num_neighbors])
    return result


def sample_inverse_depth(
    depth: Float[Array, "h w"], pixels: Float[Array, "*batch 2"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Depth between pixel centres.

    Args:
        depth: [H,W], 0 = invalid. Takes gradient.
        pixels: [...,2] (x, y), centres at x+0.5. Take gradient.
    Returns:
        [...], interpolated as inverse depth, which is linear in the image on any plane (depth is
        not); and whether the four pixels around are inside the image and valid. 1 where they are
        not.
    """
    height, width = depth.shape
    x = pixels[..., 0] - 0.5
    y = pixels[..., 1] - 0.5
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left = jnp.clip(jnp.floor(x), 0, width - 2).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, height - 2).astype(jnp.int32)
    right = x - left.astype(x.dtype)
    down = y - top.astype(y.dtype)
    total = jnp.zeros_like(x)
    for i, j, weight in (
        (0, 0, (1 - right) * (1 - down)),
        (0, 1, right * (1 - down)),
        (1, 0, (1 - right) * down),
        (1, 1, right * down),
    ):
        corner = depth[top + i, left + j]
        is_inside &= corner > 0
        total += weight / jnp.where(corner > 0, corner, 1)
    return 1 / jnp.where(is_inside, total, 1), is_inside


def round_trip_reprojection(
    pixels: Float[Array, "*batch 2"],
    depth: Float[Array, "*batch"],
    intrinsics: Float[Array, "3 3"],
    neighbor_depth: Float[Array, "h w"],
    neighbor_intrinsics: Float[Array, "3 3"],
    neighbor_from_view: Float[Array, "4 4"],
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Where pixels land that go to a neighbouring view by their depth and come back by the
    neighbour's depth there.

    Args:
        pixels: [...,2] (x, y). depth: [...], camera z there, 0 = invalid. Takes gradient.
        intrinsics, neighbor_intrinsics: [3,3], pixels.
        neighbor_depth: [h,w], camera z, 0 = invalid. Takes gradient.
        neighbor_from_view: [4,4], rigid.
    Returns:
        Pixels [...,2] and camera z [...] after the way back, and whether there was one: a depth
        here and there, in front of both cameras and inside the image.
    Source: forward-backward check of multi-view stereo; the geometric term of PGSR (Chen et al.
        2024).
    """
    is_valid = depth > 0
    points = cameras.back_project(pixels, jnp.where(is_valid, depth, 1), intrinsics)
    there, z = cameras.project(points, neighbor_from_view, neighbor_intrinsics)
    found, is_found = sample_inverse_depth(neighbor_depth, there)
    returned = cameras.back_project(there, found, neighbor_intrinsics)
    back, back_z = cameras.project(returned, cameras.invert_rigid(neighbor_from_view), intrinsics)
    return back, back_z, is_valid & is_found & (z > 0) & (back_z > 0)


def relative_pose(
    neighbor: Float[AnyArray, "4 4"], view: Float[AnyArray, "4 4"]
) -> Float[AnyArray, "4 4"]:
    """neighbor_from_view [4,4] of two poses [4,4], camera from one common frame."""
    return neighbor @ cameras.invert_rigid(view)
