"""Fusion of depth maps into a mesh: a sparse truncated signed distance field, tile by tile within a
memory budget.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.host_memory import available_memory
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface import integration
from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dropped_depth import explain_counts, explain_empty, suggest_cure
from cosurfgs_jax.surface.mesh import Mesh, in_order, keep_vertices
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.surface.voxel_blocks import (
    BLOCK,
    is_among,
    split_into_tiles,
    touched_blocks,
    unpack_keys,
)

_LOG = logging.getLogger(__name__)
# Of the finished mesh, kept up to three voxels from the surface; 79 measured on the town. Fewer
# blocks are touched at less.
TRIANGLES_PER_BLOCK = 85
# Per voxel: distance, weight and colour in the grid (20 bytes), and 4 x int32 in the extraction of
# the surface; then the mesh of the tile and its temporaries.
BYTES_PER_BLOCK = BLOCK**3 * (20 + 16) + 8 * 1024
# 24 bytes a triangle and 141 a vertex (`smoothing`) wait in the scratch folder, 13 and up to 39 are
# in the file.
_DISK_BYTES_PER_BLOCK = 11 * 1024
_KEY_BYTES = 16  # of a block that a view touches: its key, and once more while they are sorted


def _open_field(
    open3d, keys: np.ndarray, voxel_size: float
) -> tuple[Any, integration.Field, np.ndarray]:
    """Open3D's grid of the blocks `keys`, which extracts the surface; its arrays as a field that
    shares their memory; and the row of each block there.
    """
    float32 = open3d.core.float32
    grid = open3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(float32,) * 3,
        attr_channels=(1, 1, 3),
        voxel_size=voxel_size,
        block_resolution=BLOCK,
        block_count=len(keys),
        device=open3d.core.Device("CPU:0"),
    )
    blocks = np.ascontiguousarray(unpack_keys(keys).astype(np.int32))
    rows, _ = grid.hashmap().activate(open3d.core.Tensor(blocks))
    values = [
        grid.attribute(name).numpy().reshape(-1, BLOCK**3, *channels)
        for name, channels in (("tsdf", ()), ("weight", ()), ("color", (3,)))
    ]
    return grid, integration.Field(*values), rows.numpy()


def _extract(
    grid, low: np.ndarray, high: np.ndarray, voxel_size: float, min_views: int
) -> tuple[Mesh, np.ndarray]:
    """The surface of the cubes that the tile [low, high) owns, relative to the origin, and which
    vertices are on its faces.
    """
    # Every view weighs 1; half a view less than asked is safe whether a voxel must reach or exceed
    # the threshold.
    extracted = grid.extract_triangle_mesh(min_views - 0.5)
    if not extracted.triangle or not len(extracted.triangle.indices):
        return Mesh(
            *(np.zeros((0, 3), kind) for kind in (np.float32, np.int32, np.uint8, np.float32))
        ), np.zeros(0, bool)
    vertices = extracted.vertex.positions.numpy()
    triangles = extracted.triangle.indices.numpy().astype(np.int32)
    colors = np.round(np.clip(extracted.vertex.colors.numpy(), 0, 1) * 255).astype(np.uint8)
    block_size = BLOCK * voxel_size
    block = np.floor(vertices[triangles].mean(axis=1, dtype=np.float64) / block_size)
    is_own = np.all((block >= low) & (block < high), axis=1)
    mesh = in_order(
        keep_vertices(Mesh(vertices, triangles, colors, np.zeros_like(vertices)), is_own)
    )
    # Generous: a vertex that only this tile has does no harm on the list.
    is_on_seam = np.zeros(len(mesh.vertices), bool)
    for face in (low, high):
        is_on_seam |= (np.abs(mesh.vertices - face * block_size) < 0.5 * voxel_size).any(axis=1)
    return mesh, is_on_seam


def _usable_memory(memory_mb: int) -> int:
    """Bytes: what the setting allows, and no more than four fifths of what the machine
    has to give.
    """
    allowed = memory_mb * 2**20
    available = available_memory()
    if available is not None and 0.8 * available < allowed:
        _LOG.info(
            "mesh: config.surface.memory_mb = %d, but only %d MB are free: smaller tiles",
            memory_mb,
            available // 2**20,
        )
        return int(0.8 * available)
    return allowed


def _refuse(what: str, need: float, have: float, name: str, voxel_size: float) -> None:
    """An error if more bytes are needed than there are, with the voxel size that fits."""
    if need > have:
        # The number of blocks along a surface falls with the square of the voxel size.
        fitting = voxel_size * np.sqrt(need / max(have, 1)) * 1.05
        raise InputError(
            f"surface.voxel_size: {voxel_size:.4g} gives {what} of about {need / 2**20:.0f} MB, "
            "expected at most "
            f"{have / 2**20:.0f} MB ({name}); set config.surface.voxel_size={fitting:.3g} or make "
            "more room"
        )


def _find_blocks(
    views: Sequence[DepthView],
    voxel_size: float,
    truncation: float,
    usable: int,
    counts: dict[str, int] | None,
    tell: Callable[[str, int, int], None],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The origin f64[3] of the grid, amid the surface, and per view the keys of the blocks that it
    touches.
    """
    origin = None
    keys_of_view = []
    num_keys = 0
    for number, view in enumerate(views):
        if origin is None and (view.depth > 0).any():
            points = cameras.unproject(
                view.depth.astype(np.float64), view.intrinsics, view.camera_from_dataset
            )
            origin = points[view.depth > 0].mean(axis=0)
        keys_of_view.append(
            np.zeros(0, np.int64)
            if origin is None
            else touched_blocks(view, origin, voxel_size, truncation)
        )
        num_keys += len(keys_of_view[-1])
        # Half of the memory is for tiles. Said as soon as it is known: a tiny voxel size finds
        # blocks for hours.
        _refuse(
            "lists of voxel blocks",
            num_keys * _KEY_BYTES,
            usable / 2,
            "half of config.surface.memory_mb",
            voxel_size,
        )
        tell("find blocks", number + 1, len(views))
    if origin is None:
        raise InputError(
            f"mesh: there is no depth to fuse: {explain_counts(counts)}; {suggest_cure(counts)}"
        )
    return origin, keys_of_view


def fuse_into(
    store: TileStore,
    views: Sequence[DepthView],
    voxel_size: float,
    *,
    truncation_voxels: float = 3.0,
    memory_mb: int = 2048,
    min_views: int = 1,
    whole_mesh_bytes: int = 0,
    counts: dict[str, int] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Fuses depth maps into the meshes of tiles, one tile in memory at a time.

    Args:
        store: an empty one; gets the tiles.
        views: a sequence that is read twice or more (once to find the blocks, then tile by tile);
            it may load lazily.
        voxel_size: length in the unit of the poses.
        truncation_voxels: distance to the surface, in voxels, up to which the field is kept.
        memory_mb: budget of a tile and of the lists of blocks; tiles do not change the result.
        min_views: views that must see a voxel.
        whole_mesh_bytes: memory per triangle that the caller needs for the joined mesh at once; 0 =
            it does not.
        counts: what the filters dropped (`depth_filter`), for the message if nothing is left.
        progress: called with ("find blocks", "fuse" or "extract", done, total).
    Returns:
        The number of voxel blocks, each once.
    Raises:
        InputError: open3d is missing; no depth, with the reason; or the voxel size needs more
            memory or disk than there is.
    """
    open3d = import_open3d()
    tell = progress or (lambda *_: None)
    usable = _usable_memory(memory_mb)
    store.origin, keys_of_view = _find_blocks(
        views, voxel_size, truncation_voxels * voxel_size, usable, counts, tell
    )
    all_keys = np.unique(np.concatenate(keys_of_view))
    _refuse(
        "files",
        len(all_keys) * _DISK_BYTES_PER_BLOCK,
        shutil.disk_usage(store.folder).free,
        f"free in {store.folder}",
        voxel_size,
    )
    _refuse(
        "a mesh that is wanted in memory",
        len(all_keys) * TRIANGLES_PER_BLOCK * max(1, 3 / truncation_voxels) * whole_mesh_bytes,
        usable,
        "config.surface.memory_mb; target_triangles and formats other than ply need it",
        voxel_size,
    )
    tiles = split_into_tiles(all_keys, max(512, usable // 2 // BYTES_PER_BLOCK))
    # Found again tile by tile: the lists of all tiles at once would be as large as those of all
    # views.
    total = sum(
        bool(is_among(view_keys, tile_keys).any())
        for _, _, tile_keys in tiles
        for view_keys in keys_of_view
    )
    done = 0
    for low, high, tile_keys in tiles:
        grid, field, rows = _open_field(open3d, tile_keys, voxel_size)
        for number, view_keys in enumerate(keys_of_view):
            keys = view_keys[is_among(view_keys, tile_keys)]
            if len(keys):
                integration.integrate(
                    field,
                    rows[np.searchsorted(tile_keys, keys)],
                    unpack_keys(keys),
                    views[number],
                    integration.FieldGrid(store.origin, voxel_size, truncation_voxels),
                )
                done += 1
                tell("fuse", done, total)
        store.add(*_extract(grid, low, high, voxel_size, min_views))
        del grid, field  # before the next tile's is made
        tell("extract", store.num_tiles, len(tiles))
    return len(all_keys)


def fuse(
    views: Sequence[DepthView],
    voxel_size: float,
    *,
    min_views: int = 1,
    counts: dict[str, int] | None = None,
    **choices,
) -> Mesh:
    """Fuses depth maps into a triangle mesh in memory.

    Args:
        views, voxel_size, min_views, counts: see `fuse_into`.
        **choices: the others of `fuse_into`.
    Returns:
        A mesh in the frame of the poses.
    Raises:
        InputError: see `fuse_into`; or there is no surface, with the reason.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        store = TileStore(folder)
        fuse_into(store, views, voxel_size, min_views=min_views, counts=counts, **choices)
        mesh = store.join().to_mesh()
    if not len(mesh.triangles):
        raise InputError(explain_empty(voxel_size, min_views, counts))
    return mesh
