"""Fusion of depth maps into a mesh: a sparse truncated signed distance field, tile by tile within a memory budget."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.surface.mesh import Mesh, keep_vertices, vertex_normals

BLOCK = 16  # voxels along the side of a block
# Per voxel: distance, weight and colour in the grid (20 bytes), and 4 x int32 in the extraction of the surface.
BYTES_PER_BLOCK = BLOCK**3 * (20 + 16)
# What a block leaves in the finished mesh and its temporaries: 200 vertices and 400 triangles (measured on a sphere).
MESH_BYTES_PER_BLOCK = 32 * 1024
_MAX_REFINED_PIXELS = 8_000_000
_KEY_BITS = 20


class DepthView(NamedTuple):
    """One depth map to be fused.

    | field               | shape                       | unit, frame                                       |
    |---------------------|-----------------------------|---------------------------------------------------|
    | `depth`             | f32[H,W]                    | camera z in the unit of the poses, 0 = invalid    |
    | `color`             | u8[H,W,3] or f32 in [0,1]   | RGB                                               |
    | `intrinsics`        | f64[3,3]                    | pixels, x+0.5 is the centre of pixel x            |
    | `camera_from_world` | f64[4,4]                    | rigid; the world frame is the frame of the mesh   |
    """

    depth: np.ndarray
    color: np.ndarray
    intrinsics: np.ndarray
    camera_from_world: np.ndarray


def import_open3d():
    """The open3d module.

    Raises:
        InputError: it is not installed, or a system library that it needs is missing.
    """
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise InputError('open3d is needed for meshes: pip install "cosurfgs_jax[mesh]"') from error
    except ImportError as error:
        raise InputError(f"open3d is installed but cannot be loaded ({error}); install that system library, "
                         "on Debian and Ubuntu: apt-get install libusb-1.0-0 libgl1 libgomp1") from error
    return open3d


def choose_voxel_size(depths: Sequence[np.ndarray], intrinsics: np.ndarray, pixels: float = 1.5) -> float:
    """A voxel size that the photographs can fill.

    Args:
        depths: per view the camera z of the SfM points that it sees (`depth_filter.seen_depths`).
        intrinsics: f64[V,3,3], pixels.
        pixels: sides of a pixel, on the surface, per voxel. On the generated town with 0.3 % noise on the depths,
            1, 1.5 and 2.5 pixels gave a mean error of 34, 35 and 47 mm from 1.7, 0.7 and 0.25 million triangles.
    Returns:
        Length in the unit of the depths: `pixels` times the median over views of median depth / focal length.
    Raises:
        InputError: no view sees a point.
    """
    focals_px = np.sqrt(intrinsics[:, 0, 0] * intrinsics[:, 1, 1])
    footprints = [np.median(d) / f for d, f in zip(depths, focals_px, strict=True) if len(d)]
    if not footprints:
        raise InputError("surface.voxel_size: expected SfM points inside the images to derive it from, got none; "
                         "set config.surface.voxel_size in the unit of the dataset")
    return float(pixels * np.median(footprints))


def touched_blocks(view: DepthView, origin: np.ndarray, voxel_size: float, truncation: float) -> np.ndarray:
    """Sorted keys i64[n] of the voxel blocks within the truncation distance of a view's surface."""
    focal_px = float(np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1]))
    depth, block_size = view.depth, BLOCK * voxel_size
    if not (depth > 0).any():
        return np.zeros(0, np.int64)
    # Rays an eighth of a block apart on the farthest surface clip at most a corner of two voxels; with half a block and
    # without the last row and column 6 % of the blocks at the surface were missed.
    stride = int(np.clip(BLOCK / 8 * voxel_size * focal_px / np.percentile(depth[depth > 0], 99), 1, 8))
    rows, columns = (np.append(np.arange(0, size - 1, stride), size - 1) for size in depth.shape)
    rays = cameras.pixel_rays(view.intrinsics, depth.shape)[np.ix_(rows, columns)].reshape(-1, 3)
    z = depth[np.ix_(rows, columns)].reshape(-1).astype(np.float64)
    rays, z = rays[z > 0], z[z > 0]
    world_from_camera = cameras.invert_rigid(view.camera_from_world)
    num_steps = int(np.ceil(4 * truncation / block_size)) + 1
    keys = []
    for offset in np.linspace(-truncation, truncation, 2 * num_steps + 1):
        points = (rays * (z + offset)[:, None]) @ world_from_camera[:3, :3].T + (world_from_camera[:3, 3] - origin)
        keys.append(np.unique(_pack(np.floor(points / block_size))))
    return np.unique(np.concatenate(keys))


def _pack(blocks: np.ndarray) -> np.ndarray:
    half = 1 << (_KEY_BITS - 1)
    if np.abs(blocks).max(initial=0) >= half:
        raise InputError(f"surface.voxel_size: expected depth within {half * BLOCK} voxels of the middle of the scene, "
                         f"got {np.abs(blocks).max() * BLOCK:.3g}; set a larger config.surface.voxel_size")
    shifted = blocks.astype(np.int64) + half
    return (shifted[:, 0] << 2 * _KEY_BITS) | (shifted[:, 1] << _KEY_BITS) | shifted[:, 2]


def _unpack(keys: np.ndarray) -> np.ndarray:
    mask, half = (1 << _KEY_BITS) - 1, 1 << (_KEY_BITS - 1)
    return np.stack([keys >> 2 * _KEY_BITS, (keys >> _KEY_BITS) & mask, keys & mask], axis=1) - half


def _split_into_tiles(keys: np.ndarray, max_blocks: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes of blocks [low, high) that hold at most `max_blocks` with their halo: (low, high, keys with halo)."""
    blocks = _unpack(keys)
    tiles, waiting = [], [(blocks.min(axis=0), blocks.max(axis=0) + 1)]
    while waiting:
        low, high = waiting.pop()
        # Cubes at the upper faces take their far corners from the next block, hence the halo of one.
        members = np.all((blocks >= low) & (blocks <= high), axis=1)
        owned = np.all((blocks >= low) & (blocks < high), axis=1)
        if not owned.any():
            continue
        if members.sum() <= max_blocks or np.all(high - low <= 1):
            tiles.append((low, high, keys[members]))
            continue
        axis = int(np.argmax(high - low))
        cut = int(np.clip(np.median(blocks[owned, axis]), low[axis] + 1, high[axis] - 1))
        upper, lower = low.copy(), high.copy()
        upper[axis] = lower[axis] = cut
        waiting += [(upper, high), (low, lower)]
    return tiles


def refine_depth(depth: np.ndarray, factor: int, max_step: float) -> np.ndarray:
    """Interpolates depth to `factor` times as many pixels per side, so that the nearest pixel is near enough.

    Args:
        depth: f32[H,W], 0 = invalid.
        factor: whole number.
        max_step: largest difference within 2x2 pixels that is interpolated over; larger ones are edges, and stay sharp.
    Returns:
        f32[H*factor, W*factor]. Inverse depth is what is interpolated: it is linear in the image on any plane.
    """
    if factor == 1:
        return depth
    nearest = np.repeat(np.repeat(depth, factor, axis=0), factor, axis=1)
    padded = np.pad(depth, 1, mode="edge")
    positions = [(np.arange(size * factor) + 0.5) / factor + 0.5 for size in depth.shape]
    (top, down), (left, right) = ((p.astype(np.int64), (p % 1).astype(np.float32)) for p in positions)
    windows = np.stack([padded[i:i + depth.shape[0] + 1, j:j + depth.shape[1] + 1] for i in (0, 1) for j in (0, 1)])
    is_smooth = (windows > 0).all(axis=0) & (windows.max(axis=0) - windows.min(axis=0) <= max_step)
    inverse = 1 / np.where(padded > 0, padded, 1)
    rows_a, rows_b = inverse[top], inverse[top + 1]
    rows = rows_a + (rows_b - rows_a) * down[:, None]
    blended = rows[:, left] + (rows[:, left + 1] - rows[:, left]) * right[None, :]
    return np.where(is_smooth[np.ix_(top, left)], 1 / blended, nearest).astype(np.float32)


def _float_color(color: np.ndarray) -> np.ndarray:
    return color.astype(np.float32) / 255 if color.dtype == np.uint8 else np.asarray(color, np.float32)


def _integrate(grid, open3d, view: DepthView, keys: np.ndarray, origin: np.ndarray, voxel_size: float,
               truncation_voxels: float) -> None:
    """Adds one view to the blocks `keys` of a grid."""
    tensor = open3d.core.Tensor
    factor = int(np.clip(np.sqrt(_MAX_REFINED_PIXELS / view.depth.size), 1, 4))
    depth = refine_depth(view.depth, factor, truncation_voxels * voxel_size)
    # Open3D takes the pixel of a voxel by truncation: pixel x is [x, x+1), as here. So intrinsics pass unchanged.
    depth_intrinsics = view.intrinsics * np.array([[factor], [factor], [1.0]])
    # It takes no colour from the outer half of the last pixels, which would leave black rims: hence one more pixel.
    color = np.pad(_float_color(view.color), ((1, 1), (1, 1), (0, 0)), mode="edge")
    color_intrinsics = view.intrinsics + np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0]])
    # The grid is float32: it is laid around `origin`, which large map coordinates need.
    pose = np.array(view.camera_from_world, np.float64)
    pose[:3, 3] += pose[:3, :3] @ origin
    blocks = np.ascontiguousarray(_unpack(keys).astype(np.int32))
    image = open3d.t.geometry.Image
    grid.integrate(tensor(blocks), image(tensor(np.ascontiguousarray(depth))), image(tensor(color)),
                   tensor(depth_intrinsics), tensor(color_intrinsics), tensor(pose), 1.0, float(depth.max()) * 1.01,
                   float(truncation_voxels))


def _extract(grid, low: np.ndarray, high: np.ndarray, voxel_size: float, min_views: int) -> Mesh:
    """The surface of the cubes that the tile [low, high) owns, relative to the origin."""
    # Every view weighs 1; half a view less than asked is safe whether a voxel must reach or exceed the threshold.
    extracted = grid.extract_triangle_mesh(min_views - 0.5)
    if not extracted.triangle or not len(extracted.triangle.indices):
        return Mesh(*(np.zeros((0, 3), kind) for kind in (np.float32, np.int32, np.uint8, np.float32)))
    vertices = extracted.vertex.positions.numpy()
    triangles = extracted.triangle.indices.numpy().astype(np.int32)
    colors = np.round(np.clip(extracted.vertex.colors.numpy(), 0, 1) * 255).astype(np.uint8)
    mesh = Mesh(vertices, triangles, colors, np.zeros_like(vertices))
    block = np.floor(vertices[triangles].mean(axis=1, dtype=np.float64) / (BLOCK * voxel_size))
    return keep_vertices(mesh, np.all((block >= low) & (block < high), axis=1))


def _join(parts: list[Mesh], origin: np.ndarray) -> Mesh:
    """One mesh of the tiles'; vertices on common faces are equal to the last bit: both tiles computed them alike."""
    vertices = np.concatenate([part.vertices for part in parts])
    colors = np.concatenate([part.vertex_colors for part in parts])
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    triangles = np.concatenate([part.triangles + start for part, start in zip(parts, starts, strict=False)])
    if len(parts) > 1:
        _, first, inverse = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
        vertices, colors, triangles = vertices[first], colors[first], inverse.reshape(-1)[triangles]
    triangles = triangles.astype(np.int32)
    absolute = vertices.astype(np.float64)
    normals = vertex_normals(absolute, triangles)
    return Mesh(absolute + origin, triangles, colors, normals)


def explain_counts(counts: dict[str, int] | None) -> str:
    """How many depth pixels there were and which check dropped how many, as words for a message."""
    if not counts:
        return "nothing is known of what was dropped before"
    names = {"invalid": "had no depth", "out_of_range": "were outside the depth range of the SfM points",
             "grazing": "were seen edge-on", "unconfirmed": "were not confirmed by enough neighbours"}
    parts = [f"{counts[key]} {text}" for key, text in names.items() if counts.get(key)]
    return f"of {counts['pixels']} depth pixels {', '.join(parts) or 'none was dropped'}"


def _check_budget(num_blocks: int, voxel_size: float, memory_mb: int) -> int:
    """The blocks that one tile may hold; refuses what cannot fit whatever the tiles."""
    budget = memory_mb * 2**20
    need = num_blocks * MESH_BYTES_PER_BLOCK
    if need > budget:
        # The number of blocks along a surface falls with the square of the voxel size.
        fitting = voxel_size * np.sqrt(need / budget) * 1.05
        raise InputError(
            f"surface.voxel_size: {voxel_size:.4g} gives about {num_blocks} voxel blocks and a mesh of "
            f"{need / 2**20:.0f} MB, expected at most config.surface.memory_mb = {memory_mb}; "
            f"set config.surface.voxel_size={fitting:.3g} or allow more memory")
    return max(64, (budget - need // 2) // BYTES_PER_BLOCK)


def fuse(views: Sequence[DepthView], voxel_size: float, *, truncation_voxels: float = 4.0, memory_mb: int = 4096,
         min_views: int = 1, counts: dict[str, int] | None = None) -> Mesh:
    """Fuses depth maps into a triangle mesh.

    Args:
        views: a sequence that is read twice or more (once to find the blocks, then tile by tile); it may load lazily.
        voxel_size: length in the unit of the poses.
        truncation_voxels: distance to the surface, in voxels, up to which the field is kept.
        memory_mb: budget; a scene that needs more is fused tile by tile, with the same result.
        min_views: views that must see a voxel.
        counts: what the filters dropped (`depth_filter`), for the message if nothing is left.
    Returns:
        A mesh in the frame of the poses.
    Raises:
        InputError: open3d is missing; no surface, with the reason; or the mesh itself would not fit.
    """
    open3d = import_open3d()
    origin, keys_of_view = None, []
    for view in views:
        if origin is None and (view.depth > 0).any():
            points = cameras.unproject(view.depth.astype(np.float64), view.intrinsics, view.camera_from_world)
            origin = points[view.depth > 0].mean(axis=0)
        keys_of_view.append(np.zeros(0, np.int64) if origin is None else
                            touched_blocks(view, origin, voxel_size, truncation_voxels * voxel_size))
    if origin is None:
        raise InputError(f"mesh: there is no depth to fuse: {explain_counts(counts)}")
    keys = np.unique(np.concatenate(keys_of_view))
    parts = []
    for low, high, tile_keys in _split_into_tiles(keys, _check_budget(len(keys), voxel_size, memory_mb)):
        float32 = open3d.core.float32
        grid = open3d.t.geometry.VoxelBlockGrid(
            attr_names=("tsdf", "weight", "color"), attr_dtypes=(float32,) * 3, attr_channels=(1, 1, 3),
            voxel_size=voxel_size, block_resolution=BLOCK, block_count=len(tile_keys),
            device=open3d.core.Device("CPU:0"))
        for number, view_keys in enumerate(keys_of_view):
            common = np.intersect1d(view_keys, tile_keys, assume_unique=True)
            if len(common):
                _integrate(grid, open3d, views[number], common, origin, voxel_size, truncation_voxels)
        parts.append(_extract(grid, low, high, voxel_size, min_views))
        del grid  # before the next tile's is made
    mesh = _join([part for part in parts if len(part.triangles)] or parts[:1], origin)
    if not len(mesh.triangles):
        raise InputError(f"mesh: the fused depth has no surface seen by {min_views} views at voxel size "
                         f"{voxel_size:.4g} ({explain_counts(counts)}); set config.surface.voxel_size to another length "
                         "in the unit of the dataset, or to 0 to take it from the data")
    return mesh
