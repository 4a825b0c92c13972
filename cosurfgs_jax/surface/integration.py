"""Integration of depth maps into a truncated signed distance field on blocks of voxels.

The distance of a voxel is that to the tangent plane of the surface at its pixel, not that along the
ray, which grows without bound as the surface turns away from the camera (Curless and Levoy 1996;
point-to-plane distances: Bylow et al. 2013). The plane comes from the depth map itself: where
depths of two surfaces mix at an edge, the map is steep and its distances are small, so the clean
views of either surface decide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.few_sizes import parts_of
from cosurfgs_jax.surface.voxel_blocks import BLOCK

# Of the cosine between ray and normal: planes seen from their edge say nothing of a distance.
MIN_COSINE = 0.1
# Blocks in one call: their voxels and temporaries (50 MB) are reused from call to call.
_LARGE_CALL = 2048
_SMALL_CALL = 256
_MAX_REFINED_PIXELS = 8_000_000
_BAND_PIXELS = 1_000_000


class Field(NamedTuple):
    """A signed distance field on blocks of voxels; x is the fastest axis of a block.

    | field      | shape         | unit                                                      |
    |------------|---------------|-----------------------------------------------------------|
    | `distance` | f32[B,512]    | truncation distances, positive in front of the surface    |
    | `weight`   | f32[B,512]    | views that saw the voxel                                  |
    | `color`    | f32[B,512,3]  | display values, 0 to 255                                  |
    """

    distance: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    color: np.ndarray | jax.Array


class FieldGrid(NamedTuple):
    """Where the voxels of a field are, and how far from the surface it is kept.

    | field               | shape  | unit, frame                                    |
    |---------------------|--------|------------------------------------------------|
    | `origin`            | f64[3] | of block 0, frame and unit of the poses        |
    | `voxel_size`        |        | unit of the poses                              |
    | `truncation_voxels` |        | largest distance to the surface, in voxels     |
    """

    origin: np.ndarray
    voxel_size: float
    truncation_voxels: float

    @property
    def truncation(self) -> float:
        """The largest distance to the surface, in the unit of the poses."""
        return self.truncation_voxels * self.voxel_size


class _PreparedView(NamedTuple):
    """A depth map as `_updated` takes it.

    | field        | shape      | unit, frame                                                   |
    |--------------|------------|---------------------------------------------------------------|
    | `voxel_axes` | f32[3,3]   | camera frame; rows are the steps of a voxel along x, y and z  |
    | `intrinsics` | f32[3,3]   | of `factors` and `colors`, pixels                             |
    | `depth`      | f32[FH,FW] | camera z, by a whole factor F finer than `factors`            |
    | `factors`    | f32[H,W]   | see `plane_factors`                                           |
    | `colors`     | u8[H,W,3]  | display values                                                |
    | `truncation` | f32[]      | unit of the depth                                             |
    """

    voxel_axes: Float[Array, "3 3"]
    intrinsics: Float[Array, "3 3"]
    depth: Float[Array, "H W"]
    factors: Float[Array, "h w"]
    colors: UInt8[Array, "h w 3"]
    truncation: Float[Array, ""]


def refine_depth(depth: np.ndarray, factor: int, max_step: float) -> np.ndarray:
    """Interpolates depth to `factor` times as many pixels per side, so that the nearest pixel is
    near enough.

    Args:
        depth: f32[H,W], 0 = invalid.
        factor: whole number.
        max_step: largest difference within 2x2 pixels that is interpolated over; larger ones are
            edges, and stay sharp.
    Returns:
        f32[H*factor, W*factor]. Inverse depth is what is interpolated: it is linear in the image on
        any plane.
    """
    if factor == 1:
        return depth
    height, width = depth.shape
    padded = np.pad(depth, 1, mode="edge")
    windows = np.stack(
        [padded[i : i + height + 1, j : j + width + 1] for i in (0, 1) for j in (0, 1)]
    )
    is_smooth = (windows > 0).all(axis=0) & (windows.max(axis=0) - windows.min(axis=0) <= max_step)
    inverse = 1 / np.where(padded > 0, padded, 1)
    fine = np.empty((height, factor, width, factor), np.float32)
    # The new pixels at one place within their pixels are one blend of shifted images: 5 times as
    # fast as gathering them.
    places = [divmod((i + 0.5) / factor + 0.5, 1) for i in range(factor)]
    for i, (top, down) in enumerate(places):
        above, below = (inverse[int(top) + k : int(top) + k + height] for k in (0, 1))
        rows = above + (below - above) * np.float32(down)
        for j, (left, right) in enumerate(places):
            here, beside = (rows[:, int(left) + k : int(left) + k + width] for k in (0, 1))
            blended = here + (beside - here) * np.float32(right)
            smooth = is_smooth[int(top) : int(top) + height, int(left) : int(left) + width]
            fine[:, i, :, j] = np.where(smooth, 1 / blended, depth)
    return fine.reshape(height * factor, width * factor)


def _tangent(points: np.ndarray, axis: int, max_step: float) -> tuple[np.ndarray, np.ndarray]:
    """Differences f32[H,W,3] between a pixel's surface point and its neighbours' along an axis of
    the image, and where there is one, bool[H,W].

    The central one where no side steps by more than `max_step` in depth, else that of the smaller
    step: of two surfaces at an edge the pixel lies on the nearer one.
    """
    step = np.diff(points, axis=axis)
    is_there = points[..., 2] > 0
    both = np.logical_and(
        *(np.take(is_there, range(k, is_there.shape[axis] - 1 + k), axis=axis) for k in (0, 1))
    )
    size = np.where(both, np.abs(step[..., 2]), np.inf)

    def at(values, fill, side):
        """Of the step behind (side 0) or ahead (1) of each pixel."""
        pad = [(0, 0)] * values.ndim
        pad[axis] = (1 - side, side)
        return np.pad(values, pad, constant_values=fill)

    behind, ahead = (at(size, np.inf, side) for side in (0, 1))
    behind_step, ahead_step = (at(step, 0, side) for side in (0, 1))
    is_central = np.maximum(behind, ahead) <= max_step
    nearer = np.where((ahead <= behind)[..., None], ahead_step, behind_step)
    tangent = np.where(is_central[..., None], behind_step + ahead_step, nearer)
    return tangent, np.isfinite(np.minimum(behind, ahead))


def plane_factors(depth: np.ndarray, intrinsics: np.ndarray, max_step: float) -> np.ndarray:
    """What turns a difference of depths at a pixel into a distance to the surface's plane there.

    Args:
        depth: f32[H,W], camera z, 0 = invalid.
        intrinsics: f64[3,3], pixels.
        max_step: unit of the depth; steps between pixels above it are edges.
    Returns:
        f32[H,W], |normal . ray| with rays of camera z 1, at least MIN_COSINE; 1 where a pixel has
        no neighbour.
    """
    factors = np.empty(depth.shape, np.float32)
    height = len(depth)
    # Bands of rows, with a row of the neighbours on either side: 124 bytes a pixel are in use.
    num_rows = max(1, _BAND_PIXELS // max(depth.shape[1], 1))
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        first = max(top - 1, 0)
        shifted = intrinsics - np.array([[0, 0, 0], [0, 0, first], [0, 0, 0]])
        band = _plane_factors(depth[first : bottom + 1], shifted, max_step)
        factors[top:bottom] = band[top - first : bottom - first]
    return factors


def _plane_factors(depth: np.ndarray, intrinsics: np.ndarray, max_step: float) -> np.ndarray:
    rays = cameras.pixel_rays(intrinsics, depth.shape).astype(np.float32)
    points = rays * depth[..., None]
    across, has_across = _tangent(points, 1, max_step)
    down, has_down = _tangent(points, 0, max_step)
    normal = np.cross(down, across)
    length = np.linalg.norm(normal, axis=-1)
    is_known = has_across & has_down & (length > 0)
    factor = np.abs((normal * rays).sum(axis=-1)) / np.where(is_known, length, 1)
    return np.where(is_known, np.maximum(factor, MIN_COSINE), 1).astype(np.float32)


@jax.jit
def _updated(field: Field, corners: Float[Array, "b 3"], view: _PreparedView) -> Field:
    """The field of B blocks with one view added; corners are those of each block's first voxel,
    camera frame.
    """
    steps = jnp.stack(jnp.meshgrid(*(jnp.arange(BLOCK),) * 3, indexing="ij"), axis=-1)
    steps = steps.reshape(-1, 3)[:, ::-1].astype(jnp.float32)
    points = corners[:, None] + (steps @ view.voxel_axes)[None]
    z = points[..., 2]
    in_front = z > 0
    scale = 1 / jnp.where(in_front, z, 1.0)
    x = points[..., 0] * scale * view.intrinsics[0, 0] + view.intrinsics[0, 2]
    y = points[..., 1] * scale * view.intrinsics[1, 1] + view.intrinsics[1, 2]
    height, width = view.factors.shape
    finer = view.depth.shape[0] // height
    is_seen = in_front & (x >= 0) & (y >= 0) & (x < width) & (y < height)

    def index(value, size, factor=1):
        return jnp.clip((value * factor).astype(jnp.int32), 0, size * factor - 1)

    def pixel(values, factor=1):
        return values[index(y, height, factor), index(x, width, factor)]

    hit = pixel(view.depth, finer)
    gap = hit - z
    # Behind the surface by more than the truncation nothing is known.
    is_used = is_seen & (hit > 0) & (gap >= -view.truncation)
    distance = jnp.minimum(gap * pixel(view.factors) / view.truncation, 1.0)
    color = pixel(view.colors).astype(jnp.float32)
    weight = field.weight + is_used.astype(jnp.float32)
    part = jnp.where(is_used, 1 / jnp.maximum(weight, 1.0), 0.0)
    return Field(
        field.distance + (distance - field.distance) * part,
        weight,
        field.color + (color - field.color) * part[..., None],
    )


def _prepared(view: DepthView, grid: FieldGrid) -> _PreparedView:
    """A depth map, refined, with its planes."""
    finer = int(np.clip(np.sqrt(_MAX_REFINED_PIXELS / view.depth.size), 1, 4))
    colors = view.color
    if colors.dtype != np.uint8:
        colors = np.round(np.clip(colors, 0, 1) * 255).astype(np.uint8)
    return _PreparedView(
        voxel_axes=jnp.asarray(view.camera_from_dataset[:3, :3].T * grid.voxel_size, jnp.float32),
        intrinsics=jnp.asarray(view.intrinsics, jnp.float32),
        depth=jnp.asarray(refine_depth(view.depth, finer, grid.truncation)),
        factors=jnp.asarray(plane_factors(view.depth, view.intrinsics, grid.truncation)),
        colors=jnp.asarray(colors),
        truncation=jnp.float32(grid.truncation),
    )


def integrate(
    field: Field, rows: np.ndarray, blocks: np.ndarray, view: DepthView, grid: FieldGrid
) -> None:
    """Adds one view to blocks of a field, in place.

    Args:
        field: NumPy arrays.
        rows: i64[n], of the blocks in the field.
        blocks: i64[n,3], their indices; voxel v of block b lies at (b * BLOCK + v) * voxel_size.
        view: the depth map.
        grid: of the field.
    """
    pose = view.camera_from_dataset
    # Around the origin, and in float64: map coordinates of 1e6 would leave float32 no digits.
    center = pose[:3, :3] @ grid.origin + pose[:3, 3]
    corners = (blocks * (BLOCK * grid.voxel_size)) @ pose[:3, :3].T + center
    prepared = _prepared(view, grid)
    for entries, size in parts_of(len(rows), _LARGE_CALL, _SMALL_CALL):
        part = rows[entries]
        padded = np.resize(part, size)
        at = np.resize(corners[entries].astype(np.float32), (size, 3))
        updated = _updated(Field(*(values[padded] for values in field)), at, prepared)
        for values, new in zip(field, updated, strict=True):
            values[part] = np.asarray(new)[: len(part)]
