"""Which pixels of rendered depth maps are trustworthy enough to be fused, and in which range depth
makes sense.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.view_pairs import (
    is_inside,
    relative_pose,
    round_trip_reprojection,
    sample_inverse_depth,
)
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.surface.few_sizes import parts_of

_SQUARE = 64  # pixels: of the squares by which is found what a neighbour cannot show
# Pixels of which one call asks; for fewer than the smaller one it costs more than its work.
_LARGE_CALL = 32_768
_SMALL_CALL = 4096


def seen_points(
    cloud: PointCloud, views: Views, numbers: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The SfM points that each view sees, and that fall into its image.

    Args:
        cloud: without tracks, a view sees all points that fall into its image (which lets through
            what is hidden).
        views: V.
        numbers: i64[m], of the views that are wanted; None = all.
    Yields:
        f64[n,3] of each.
    """
    in_order = None
    for view in range(len(views)) if numbers is None else numbers:
        tracked = cloud.sightings.of(view)
        # A view without tracks (added later, or not matched) falls back to projection.
        if len(tracked) >= 10:
            points = cloud.points[tracked]
        else:
            if in_order is None:  # of a cloud in another order it is found from all points
                in_order = cloud.points_in_order
            points = in_order
        yield points[is_inside(views, int(view), points)]


def camera_depths(points: np.ndarray, views: Views, view: int) -> np.ndarray:
    """Camera z of points f64[n,3], dataset, in a view: f64[n], unit of the points."""
    pose = views.camera_from_dataset[view]
    return points @ pose[2, :3] + pose[2, 3]


def seen_depths(cloud: PointCloud, views: Views) -> list[np.ndarray]:
    """Camera z of the SfM points that each view sees.

    Args:
        cloud, views: see `seen_points`.
    Returns:
        V arrays of depths, in the unit of the points.
    """
    return [
        camera_depths(points, views, view) for view, points in enumerate(seen_points(cloud, views))
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


class Witness(NamedTuple):
    """A view that may confirm the depth of another.

    | field                 | shape          | unit, frame                              |
    |-----------------------|----------------|------------------------------------------|
    | `load`                | () -> f32[h,w] | camera z, 0 = invalid; called where a    |
    |                       |                | pixel falls into the image               |
    | `image_size`          |                | (h, w), pixels                           |
    | `intrinsics`          | f64[3,3]       | pixels                                   |
    | `camera_from_dataset` | f64[4,4]       | rigid                                    |
    """

    load: Callable[[], np.ndarray]
    image_size: tuple[int, int]
    intrinsics: np.ndarray
    camera_from_dataset: np.ndarray


def _is_beside(hull: np.ndarray, witness: Witness, pose: np.ndarray) -> bool:
    """Whether each eight corners [n,3], camera frame of the view, all lie on the outer side of one
    border of a witness's image, so that it shows nothing of what is between them.

    Args:
        pose: f64[4,4], the witness from the view.
    """
    x, y, z = (hull @ pose[:3, :3].T + pose[:3, 3]).T
    u = witness.intrinsics[0, 0] * x + witness.intrinsics[0, 2] * z
    v = witness.intrinsics[1, 1] * y + witness.intrinsics[1, 2] * z
    height, width = witness.image_size
    outside = np.stack([z <= 0, u < 0, u > width * z, v < 0, v > height * z])
    return bool(outside.reshape(5, -1, 8).all(axis=-1).any(axis=0).all())


@jax.jit
def _is_shown(
    pixels: Float[Array, "n 2"],
    depth: Float[Array, " n"],
    intrinsics: Float[Array, "3 3"],
    image_size: Float[Array, "2"],
    neighbor_intrinsics: Float[Array, "3 3"],
    neighbor_from_view: Float[Array, "4 4"],
) -> tuple[Bool[Array, " n"]]:
    """Whether each pixel falls into a neighbour's image."""
    there, z = cameras.project(
        cameras.back_project(pixels, depth, intrinsics), neighbor_from_view, neighbor_intrinsics
    )
    is_inside = (there >= 0) & (there < image_size[::-1][None])
    return ((z > 0) & is_inside.all(axis=-1),)


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


class _Pixels:
    """The pixels of a depth map, for questions about some of them."""

    def __init__(self, depth: np.ndarray, intrinsics: np.ndarray):
        self._depth = depth
        self._intrinsics = np.asarray(intrinsics, np.float32)

    def hull(self, asked: np.ndarray) -> np.ndarray:
        """f64[n,3], camera frame: corners around the points of the pixels i64[m], eight for each
        square of the image that has one of them.
        """
        rows, columns = np.divmod(asked, self._depth.shape[1])
        num_across = -(-self._depth.shape[1] // _SQUARE)
        square = rows // _SQUARE * num_across + columns // _SQUARE
        depths = self._depth.ravel()[asked].astype(np.float64)
        num = -(-self._depth.shape[0] // _SQUARE) * num_across
        nearest = np.full(num, np.inf)
        farthest = np.zeros(num)
        np.minimum.at(nearest, square, depths)
        np.maximum.at(farthest, square, depths)
        used = np.flatnonzero(farthest > 0)
        top, left = np.divmod(used, num_across)
        corners = []
        for down in (0, 1):
            for right in (0, 1):
                pixels = np.stack([left + right, top + down], axis=1) * float(_SQUARE)
                corners += [
                    cameras.back_project(pixels, z[used], self._intrinsics.astype(np.float64))
                    for z in (nearest, farthest)
                ]
        return np.stack(corners, axis=1).reshape(-1, 3)

    def ask(self, question: Callable, asked: np.ndarray, operands: tuple) -> list[np.ndarray]:
        """What a compiled function (pixels, depth, intrinsics, *operands) says of the pixels
        i64[n], at least one: its arrays [n, ...].
        """
        flat = self._depth.ravel()
        operands = tuple(jnp.asarray(operand, jnp.float32) for operand in operands)
        answers = []
        for entries, size in parts_of(len(asked), _LARGE_CALL, _SMALL_CALL):
            padded = np.resize(asked[entries], size)
            rows, columns = np.divmod(padded, self._depth.shape[1])
            pixels = np.stack([columns, rows], axis=-1).astype(np.float32) + np.float32(0.5)
            answers.append(question(pixels, flat[padded], self._intrinsics, *operands))
        return [np.concatenate(parts)[: len(asked)] for parts in zip(*answers, strict=True)]


def count_confirmations(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    camera_from_dataset: np.ndarray,
    witnesses: Iterable[Witness],
    max_pixels: float = 1.0,
    max_relative_depth: float = 0.01,
    enough: int | None = None,
    max_asked: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How many neighbours agree with each pixel's depth, and how many could.

    A pixel goes to the neighbour by its depth and comes back by the neighbour's depth there
    (bilinear, all four pixels valid); it is confirmed if it lands within `max_pixels` of itself and
    at its depth. A neighbour could confirm it unless the pixel lies outside its image, where it has
    no depth, or behind what it shows.

    Args:
        depth: f32[H,W], 0 = invalid. intrinsics: f64[3,3], pixels. camera_from_dataset: f64[4,4].
        witnesses: the neighbours, of any image size, in the order in which they are asked.
        max_pixels: distance after the way there and back.
        max_relative_depth: difference of the depths as a fraction; it catches what a short baseline
            cannot.
        enough: neighbours farther down the list are not asked about a pixel that so many have
            confirmed; None = all are.
        max_asked: nor about one that falls into the images of so many before them.
    Returns:
        Two i32[H,W]; where there were enough, of the neighbours that were asked.
    """
    depth = np.asarray(depth, np.float32)
    pixels = _Pixels(depth, intrinsics)
    count, possible, num_asked = np.zeros((3, depth.size), np.int32)
    asked = np.flatnonzero(depth.ravel() > 0)
    num_in_hull = -1
    hull = np.zeros((0, 3))
    for witness in witnesses:
        is_open = np.ones(len(asked), bool)
        if enough is not None:
            is_open &= count[asked] < enough
        if max_asked is not None:
            is_open &= num_asked[asked] < max_asked
        asked = asked[is_open]
        if not len(asked):
            break
        # Relative poses in float64: map coordinates of 1e6 would leave float32 no digits.
        pose = relative_pose(witness.camera_from_dataset, camera_from_dataset)
        if len(asked) != num_in_hull:
            hull = pixels.hull(asked)
            num_in_hull = len(asked)
        if _is_beside(hull, witness, pose):
            continue
        camera = (witness.intrinsics, pose)
        (is_shown,) = pixels.ask(_is_shown, asked, (witness.image_size, *camera))
        shown = asked[is_shown]
        if not len(shown):
            continue
        num_asked[shown] += 1
        operands = (witness.load(), *camera, max_pixels, max_relative_depth)
        answers = pixels.ask(_ask_neighbor, shown, operands)
        for total, answer in zip((count, possible), answers, strict=True):
            total[shown] += answer
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
    witnesses: Iterable[Witness],
    *,
    min_neighbor_views: int = 2,
    max_pixels: float = 1.0,
    max_relative_depth: float = 0.01,
    max_asked: int | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Sets depths to 0 that too few neighbours confirm.

    Args:
        depth, intrinsics, camera_from_dataset, witnesses, max_pixels, max_relative_depth,
            max_asked: see `count_confirmations`.
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
            witnesses,
            max_pixels,
            max_relative_depth,
            enough=min_neighbor_views,
            max_asked=max_asked,
        )
        keep &= count >= np.clip(possible, 1, min_neighbor_views)
    counts = {"unconfirmed": int(((depth > 0) & ~keep).sum()), "kept": int(keep.sum())}
    return np.where(keep, depth, 0).astype(np.float32), counts
