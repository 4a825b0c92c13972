"""Blocks of voxels: which ones a depth map touches, their integer keys, areas and tiles of them."""

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.surface.depth_view import DepthView

# Voxels along the side of a block. On the generated town blocks of 16 hold 1.6 times as many voxels
# around the same surface, and those of a view take 1.7 times as long.
BLOCK = 8
_SPACING_VOXELS = 2  # between the places at which a view is asked for the blocks that it touches
_KEY_BITS = 20
# Blocks along the side of an area. What a mesh is made of must not depend on who makes it, and each
# area draws its views anew into its voxels, so that small ones cost time: a place of 1,000 voxels
# is one area.
AREA = 128


def touched_blocks(
    view: DepthView, origin: np.ndarray, voxel_size: float, truncation: float
) -> np.ndarray:
    """Sorted keys i64[n] of the voxel blocks within the truncation distance of a view's surface."""
    focal_px = float(np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1]))
    depth = view.depth
    block_size = BLOCK * voxel_size
    if not (depth > 0).any():
        return np.zeros(0, np.int64)
    # Rays two voxels apart on the farthest surface clip at most a corner of two voxels; with eight
    # and without the last row and column 6 % of the blocks at the surface were missed.
    stride = int(
        np.clip(_SPACING_VOXELS * voxel_size * focal_px / np.percentile(depth[depth > 0], 99), 1, 8)
    )
    rows, columns = (np.append(np.arange(0, size - 1, stride), size - 1) for size in depth.shape)
    rays = cameras.pixel_rays(view.intrinsics, depth.shape)[np.ix_(rows, columns)].reshape(-1, 3)
    z = depth[np.ix_(rows, columns)].reshape(-1).astype(np.float64)
    rays = rays[z > 0]
    z = z[z > 0]
    dataset_from_camera = cameras.invert_rigid(view.camera_from_dataset)
    num_steps = int(np.ceil(truncation / (_SPACING_VOXELS * voxel_size)))
    keys = []
    for offset in np.linspace(-truncation, truncation, 2 * num_steps + 1):
        points = (rays * (z + offset)[:, None]) @ dataset_from_camera[:3, :3].T + (
            dataset_from_camera[:3, 3] - origin
        )
        keys.append(np.unique(pack_keys(np.floor(points / block_size))))
    return np.unique(np.concatenate(keys))


def pack_keys(blocks: np.ndarray) -> np.ndarray:
    """One number i64[n] for the indices i64[n,3] of each block of voxels.

    Raises:
        InputError: a block is too far from the middle of the scene for its number.
    """
    half = 1 << (_KEY_BITS - 1)
    if np.abs(blocks).max(initial=0) >= half:
        farthest = np.abs(blocks).max()
        raise InputError(
            f"surface.voxel_size: expected depth within {half * BLOCK} voxels of the middle of the "
            "scene, "
            f"got {farthest * BLOCK:.3g}; set config.surface.voxel_size "
            f"{1.01 * farthest / half:.3g} times as large"
        )
    shifted = blocks.astype(np.int64) + half
    return (shifted[:, 0] << 2 * _KEY_BITS) | (shifted[:, 1] << _KEY_BITS) | shifted[:, 2]


def unpack_keys(keys: np.ndarray) -> np.ndarray:
    """The inverse of `pack_keys`."""
    mask = (1 << _KEY_BITS) - 1
    half = 1 << (_KEY_BITS - 1)
    return np.stack([keys >> 2 * _KEY_BITS, (keys >> _KEY_BITS) & mask, keys & mask], axis=1) - half


def area_of(blocks: np.ndarray) -> np.ndarray:
    """The area i64[n,3] of each block i64[n,3]: a cell of a lattice with `AREA` blocks a side. The
    origin of the blocks is in the middle of area 0.
    """
    return (blocks + AREA // 2) // AREA


def box_of_area(area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The blocks [low, high) of an area i64[3]."""
    low = area * AREA - AREA // 2
    return low, low + AREA


def touched_areas(keys: np.ndarray) -> np.ndarray:
    """The areas i64[n,3] that own some of the blocks, or have them in the halo at their upper
    faces.
    """
    blocks = unpack_keys(keys)
    shifts = np.stack(np.meshgrid(*((0, 1),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.unique(np.concatenate([area_of(blocks - shift) for shift in shifts]), axis=0)


def keys_in_box(keys: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Those of the keys whose blocks are in a box [low, high) or its halo."""
    # Cubes at the upper faces take their far corners from the next block, hence the halo of one.
    blocks = unpack_keys(keys)
    return keys[np.all((blocks >= low) & (blocks <= high), axis=1)]


def split_into_tiles(
    keys: np.ndarray, max_blocks: int, box: tuple[np.ndarray, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes of blocks [low, high) that hold at most `max_blocks` with their halo: (low, high, keys
    with halo).

    Args:
        keys: those in a box and its halo.
        max_blocks: of a tile.
        box: (low, high) that is split.
    """
    blocks = unpack_keys(keys)
    tiles = []
    waiting = [box]
    while waiting:
        low, high = waiting.pop()
        members = np.all((blocks >= low) & (blocks <= high), axis=1)
        owned = np.all((blocks >= low) & (blocks < high), axis=1)
        if not owned.any():
            continue
        if members.sum() <= max_blocks or np.all(high - low <= 1):
            tiles.append((low, high, keys[members]))
            continue
        axis = int(np.argmax(high - low))
        cut = int(np.clip(np.median(blocks[owned, axis]), low[axis] + 1, high[axis] - 1))
        upper = low.copy()
        lower = high.copy()
        upper[axis] = lower[axis] = cut
        waiting += [(upper, high), (low, lower)]
    return tiles


def is_among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool[n]: which of the sorted `keys` are among the sorted `others`, of which there is at least
    one.
    """
    return others[np.minimum(np.searchsorted(others, keys), len(others) - 1)] == keys
