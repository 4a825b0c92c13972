"""Which pixels of rendered depth maps are trustworthy enough to be fused, and in which range depth
makes sense.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.view_pairs import (
    relative_pose,
    round_trip_reprojection,
    sample_inverse_depth,
)
from cosurfgs_jax.geometry.views import PointCloud, Views

_SMALLEST_BUCKET = 4096  # pixels; below, a call costs more than its work


def _depths_of_view(points: np.ndarray, views: Views, view: int) -> np.ndarray:
    """Camera z of those of the points f64[n,3] that fall into a view's image."""
    pixels, z = cameras.project(points, views.camera_from_dataset[view], views.intrinsics[view])
    size = views.image_sizes[view][::-1]
    inside = (z > 0) & (pixels >= 0).all(axis=-1) & (pixels < size).all(axis=-1)
    return z[inside]


def seen_depths(cloud: PointCloud, views: Views) -> list[np.ndarray]:
    """Camera z of the SfM points that each view sees.

    Args:
        cloud: without tracks, a view sees all points that fall into its image (which lets through
            what is hidden).
        views: V.
    Returns:
        V arrays of depths, in the unit of the points.
    """
    num_views = len(views)
    members: list[np.ndarray | None] = [None] * num_views
    if cloud.has_tracks:
        owners = cloud.track_points
        order = np.argsort(cloud.track_views, kind="stable")
        bounds = np.searchsorted(cloud.track_views[order], np.arange(num_views + 1))
        tracked = [owners[order[bounds[v] : bounds[v + 1]]] for v in range(num_views)]
        # A view without tracks (added later, or not matched) falls back to projection.
        members = [m if len(m) >= 10 else None for m in tracked]
    return [
        _depths_of_view(cloud.points if seen is None else cloud.points[seen], views, view)
        for view, seen in enumerate(members)
    ]


def depth_limits(depths: list[np.ndarray], margin: float = 1.5) -> np.ndarray:
    """Nearest and farthest depth worth fusing per view.

    Args:
        depths: from `seen_depths`.
        margin: factor by which the 1st and 99th percentile are widened.
    Returns:
        f64[V,2]; views that see fewer than 10 points take the limits over all views.
    """
    enough = [d for d in depths if len(d) >= 10]
    everywhere = (
        np.percentile(np.concatenate(enough), [1, 99]) if enough else np.array([0.0, np.inf])
    )
    ranges = np.array([np.percentile(d, [1, 99]) if len(d) >= 10 else everywhere for d in depths])
    return ranges * np.array([1 / margin, margin])


@jax.jit
def _ask_neighbor(
    pixels: Float[Array, "n 2"],
    depth: Float[Array, " n"],
    intrinsics: Float[Array, "3 3"],
    neighbor_depth: Float[Array, "h w"],
    neighbor_intrinsics: Float[Array, "3 3"],
    neighbor_from_view: Float[Array, "4 4"],
    max_pixels,
    max_relative_depth,
) -> tuple[Bool[Array, " n"], Bool[Array, " n"]]:
    """Whether a neighbour confirms each pixel's depth, and whether it could: it has a depth there,
    and nothing nearer.
    """
    back, back_z, is_back = round_trip_reprojection(
        pixels, depth, intrinsics, neighbor_depth, neighbor_intrinsics, neighbor_from_view
    )
    distance = jnp.hypot(back[..., 0] - pixels[..., 0], back[..., 1] - pixels[..., 1])
    is_confirmed = (
        is_back & (distance <= max_pixels) & (jnp.abs(back_z - depth) <= max_relative_depth * depth)
    )
    there, z = cameras.project(
        cameras.back_project(pixels, depth, intrinsics), neighbor_from_view, neighbor_intrinsics
    )
    shown, _ = sample_inverse_depth(neighbor_depth, there)
    return is_confirmed, is_back & (shown >= (1 - max_relative_depth) * z)


def _bucket(count: int, total: int) -> int:
    """The least of total, total/2, total/4, ... that holds `count`: programs are compiled for few
    sizes only.
    """
    while total > _SMALLEST_BUCKET and count <= (total + 1) // 2:
        total = (total + 1) // 2
    return total


def count_confirmations(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    camera_from_dataset: np.ndarray,
    neighbors: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    max_pixels: float = 1.0,
    max_relative_depth: float = 0.01,
    enough: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How many neighbours agree with each pixel's depth, and how many could.

    A pixel goes to the neighbour by its depth and comes back by the neighbour's depth there
    (bilinear, all four pixels valid); it is confirmed if it lands within `max_pixels` of itself and
    at its depth. A neighbour could confirm it unless the pixel lies outside its image, where it has
    no depth, or behind what it shows.

    Args:
        depth: f32[H,W], 0 = invalid. intrinsics: f64[3,3], pixels. camera_from_dataset: f64[4,4].
        neighbors: (depth f32[h,w], intrinsics, camera_from_dataset) of each, any image size.
        max_pixels: distance after the way there and back.
        max_relative_depth: difference of the depths as a fraction; it catches what a short baseline
            cannot.
        enough: neighbours farther down the list are not asked about a pixel that so many have
            confirmed; None = all are.
    Returns:
        Two i32[H,W]; where there were enough, of the neighbours that were asked.
    """
    depth = np.asarray(depth, np.float32)
    count, possible = np.zeros((2, depth.size), np.int32)
    for neighbor_depth, neighbor_intrinsics, neighbor_pose in neighbors:
        asked = np.flatnonzero((depth.ravel() > 0) & (enough is None or count < enough))
        if not len(asked):
            break
        padded = np.resize(asked, _bucket(len(asked), depth.size))
        rows, columns = np.divmod(padded, depth.shape[1])
        # Relative poses in float64: map coordinates of 1e6 would leave float32 no digits.
        neighbor_from_view = relative_pose(neighbor_pose, camera_from_dataset)
        arrays = (
            np.asarray(a, np.float32)
            for a in (
                np.stack([columns, rows], axis=-1) + 0.5,
                depth.ravel()[padded],
                intrinsics,
                neighbor_depth,
                neighbor_intrinsics,
                neighbor_from_view,
            )
        )
        answers = _ask_neighbor(*arrays, np.float32(max_pixels), np.float32(max_relative_depth))
        for total, answer in zip((count, possible), answers, strict=True):
            total[asked] += np.asarray(answer)[: len(asked)]
    return count.reshape(depth.shape), possible.reshape(depth.shape)


def filter_single_view(
    depth: np.ndarray,
    normal: np.ndarray | None,
    intrinsics: np.ndarray,
    camera_from_dataset: np.ndarray,
    *,
    limits: tuple[float, float] = (0.0, np.inf),
    max_angle_deg: float = 80.0,
) -> tuple[np.ndarray, dict[str, int]]:
    """Sets depths to 0 that a view alone shows to be untrustworthy: invalid, out of range, seen
    edge-on.

    Args:
        depth: f32[H,W], camera z, 0 or not finite = invalid.
        normal: f32[H,W,3], dataset frame, any length, either sign; None = from the depth map.
        intrinsics: f64[3,3], pixels. camera_from_dataset: f64[4,4].
        limits: nearest and farthest depth.
        max_angle_deg: between ray and normal.
    Returns:
        The depth f32[H,W] and counts {"pixels", "invalid", "out_of_range", "grazing"}; each dropped
        pixel is counted at the first check that drops it.
    """
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    is_valid = depth > 0
    is_near = is_valid & (depth >= limits[0]) & (depth <= limits[1])
    intrinsics = np.asarray(intrinsics, np.float32)
    if normal is None:
        normal_camera = cameras.normals_from_depth(depth, intrinsics)
    else:
        normal_camera = np.asarray(normal, np.float32) @ np.asarray(
            camera_from_dataset[:3, :3].T, np.float32
        )
    rays = cameras.pixel_rays(intrinsics, depth.shape)
    lengths = np.linalg.norm(rays, axis=-1) * np.linalg.norm(normal_camera, axis=-1)
    cosine = np.abs((rays * normal_camera).sum(axis=-1)) / np.where(lengths > 0, lengths, 1)
    keep = is_near & (cosine >= np.cos(np.radians(max_angle_deg)))
    counts = {
        "pixels": depth.size,
        "invalid": int((~is_valid).sum()),
        "out_of_range": int((is_valid & ~is_near).sum()),
        "grazing": int((is_near & ~keep).sum()),
    }
    return np.where(keep, depth, 0).astype(np.float32), counts


def filter_multi_view(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    camera_from_dataset: np.ndarray,
    neighbors: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    min_neighbor_views: int = 2,
    max_pixels: float = 1.0,
    max_relative_depth: float = 0.01,
) -> tuple[np.ndarray, dict[str, int]]:
    """Sets depths to 0 that too few neighbours confirm.

    Args:
        depth, intrinsics, camera_from_dataset, neighbors, max_pixels, max_relative_depth: see
        `count_confirmations`.
        min_neighbor_views: confirmations needed, of as many as could confirm the pixel if those are
            fewer, but at least one: at the rim of a flight two photographs see what no third does.
                0 keeps everything.
    Returns:
        The depth f32[H,W] and counts {"unconfirmed", "kept"}.
    """
    keep = depth > 0
    if min_neighbor_views > 0:
        count, possible = count_confirmations(
            depth,
            intrinsics,
            camera_from_dataset,
            neighbors,
            max_pixels,
            max_relative_depth,
            enough=min_neighbor_views,
        )
        keep &= count >= np.clip(possible, 1, min_neighbor_views)
    counts = {"unconfirmed": int(((depth > 0) & ~keep).sum()), "kept": int(keep.sum())}
    return np.where(keep, depth, 0).astype(np.float32), counts
