"""Fusion of depth maps into a mesh: a sparse truncated signed distance field, area by area, and
where an area does not fit into the memory budget, tile by tile.
"""

import collections
import dataclasses
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.host_memory import available_memory
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface import integration
from cosurfgs_jax.surface.areas import Area, index_of
from cosurfgs_jax.surface.confidence import views_of_vertices
from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dropped_depth import explain_empty, explain_no_depth
from cosurfgs_jax.surface.mesh import Mesh, in_order, keep_vertices
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.surface.voxel_blocks import (
    BLOCK,
    area_of,
    box_of_area,
    is_among,
    keys_in_box,
    split_into_tiles,
    touched_areas,
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
# 24 bytes a triangle and 145 a vertex (`smoothing`) wait in the scratch folder, 13 and up to 43 are
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
    fused: tuple[Any, integration.Field, np.ndarray],
    tile: tuple[np.ndarray, np.ndarray, np.ndarray],
    voxel_size: float,
    min_views: int,
) -> tuple[Mesh, np.ndarray]:
    """The surface of the cubes that a tile owns, relative to the origin, and which vertices are on
    its faces.

    Args:
        fused: see `_open_field`.
        tile: see `split_into_tiles`.
    """
    grid, field, rows = fused
    low, high, keys = tile
    # Every view weighs 1; half a view less than asked is safe whether a voxel must reach or exceed
    # the threshold.
    extracted = grid.extract_triangle_mesh(min_views - 0.5)
    if not extracted.triangle or not len(extracted.triangle.indices):
        kinds = (np.float32, np.int32, np.uint8, np.float32)
        nothing = (np.zeros((0, 3), kind) for kind in kinds)
        return Mesh(*nothing, np.zeros(0, np.float32)), np.zeros(0, bool)
    vertices = extracted.vertex.positions.numpy()
    triangles = extracted.triangle.indices.numpy().astype(np.int32)
    colors = np.round(np.clip(extracted.vertex.colors.numpy(), 0, 1) * 255).astype(np.uint8)
    block_size = BLOCK * voxel_size
    block = np.floor(vertices[triangles].mean(axis=1, dtype=np.float64) / block_size)
    is_own = np.all((block >= low) & (block < high), axis=1)
    mesh = keep_vertices(Mesh(vertices, triangles, colors, np.zeros_like(vertices)), is_own)
    num_views = views_of_vertices(
        mesh.vertices, voxel_size, keys=keys, weight=np.asarray(field.weight), rows=rows
    )
    mesh = in_order(dataclasses.replace(mesh, vertex_confidence=num_views))
    return mesh, _is_on_faces(mesh.vertices, (low, high), voxel_size)


def _is_on_faces(
    vertices: np.ndarray, box: tuple[np.ndarray, np.ndarray], voxel_size: float
) -> np.ndarray:
    """The vertices bool[n] near the faces of a box of blocks, which others may have, too."""
    # Generous: a vertex that only this tile has does no harm on the list.
    is_on_seam = np.zeros(len(vertices), bool)
    for face in box:
        distance = np.abs(vertices - face * (BLOCK * voxel_size))
        is_on_seam |= (distance < 0.5 * voxel_size).any(axis=1)
    return is_on_seam


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


class _Touched:
    """The blocks that views touch: a file of keys per view, and which areas they are in."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.views_of: dict[tuple[int, int, int], list[int]] = {}  # with the halo
        self._owned: set[tuple[int, int, int]] = set()
        self._num_keys: collections.Counter = collections.Counter()  # per area, with repetitions

    def add(self, view: int, keys: np.ndarray) -> int:
        """Notes the sorted keys of a view; how many there are in the fullest area now."""
        with files.writing(self._folder):
            np.save(self._folder / f"{view}.npy", keys)
        own = np.unique(area_of(unpack_keys(keys)), axis=0)
        self._owned |= {index_of(row) for row in own}
        for index in map(index_of, touched_areas(keys)):
            self.views_of.setdefault(index, []).append(view)
            self._num_keys[index] += len(keys)
        return max(self._num_keys.values(), default=0)

    def areas(self) -> list[Area]:
        """The areas that own a block, in the order of their names."""
        areas = [Area(index, np.array(self.views_of[index])) for index in self._owned]
        return sorted(areas, key=lambda area: area.name)

    def keys(self, view: int, area: Area) -> np.ndarray:
        """Those of a view's keys that are in an area or its halo."""
        keys = np.load(self._folder / f"{view}.npy")
        return keys_in_box(keys, *box_of_area(np.array(area.index)))

    def all_keys(self, area: Area) -> np.ndarray:
        """Those of all views, each once."""
        return np.unique(np.concatenate([self.keys(view, area) for view in area.views.tolist()]))


def middle_of(views: Sequence[DepthView], counts: dict[str, int] | None) -> np.ndarray:
    """A place f64[3] amid the surface: the mean of what the first view with depth shows.

    Raises:
        InputError: there is no depth, with the reason.
    """
    for view in views:
        if (view.depth > 0).any():
            points = cameras.unproject(
                view.depth.astype(np.float64), view.intrinsics, view.camera_from_dataset
            )
            return points[view.depth > 0].mean(axis=0)
    raise InputError(explain_no_depth(counts))


def _find_blocks(
    views: Sequence[DepthView],
    grid: integration.FieldGrid,
    folder: Path,
    usable: int,
    tell: Callable[[str, int, int], None],
) -> _Touched:
    """The blocks that the views touch."""
    touched = _Touched(folder)
    for number, view in enumerate(views):
        keys = touched_blocks(view, grid.origin, grid.voxel_size, grid.truncation)
        num_keys = touched.add(number, keys)
        # Half of the memory is for tiles. Said as soon as it is known: a tiny voxel size finds
        # blocks for hours.
        _refuse(
            "lists of voxel blocks",
            num_keys * _KEY_BYTES,
            usable / 2,
            "half of config.surface.memory_mb",
            grid.voxel_size,
        )
        tell("find blocks", number + 1, len(views))
    return touched


def fuse_into(
    store: TileStore,
    views: Sequence[DepthView],
    grid: integration.FieldGrid,
    *,
    memory_mb: int = 2048,
    min_views: int = 1,
    whole_mesh_bytes: int = 0,
    is_wanted: Callable[[Area], bool] = lambda area: True,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Fuses depth maps into the meshes of areas, one in memory at a time.

    An area's mesh depends on nothing but the views that touch it and the grid.

    Args:
        store: an empty one; gets the areas that have a surface.
        views: a sequence that is read twice or more (once to find the blocks, then area by area);
            it may load lazily. All that touch a wanted area.
        grid: of the field.
        memory_mb: budget of the voxels that are fused at a time, and of the lists of blocks of an
            area; it does not change the result.
        min_views: views that must see a voxel.
        whole_mesh_bytes: memory per triangle that the caller needs for the joined mesh at once; 0 =
            it does not.
        is_wanted: whether an area is fused; its `views` are not asked for.
        progress: called with ("find blocks", "fuse" or "extract", done, total).
    Returns:
        The number of voxel blocks of the areas, each once.
    Raises:
        InputError: open3d is missing; or the voxel size needs more memory or disk than there is.
    """
    open3d = import_open3d()
    tell = progress or (lambda *_: None)
    usable = _usable_memory(memory_mb)
    store.origin = grid.origin
    with tempfile.TemporaryDirectory(dir=store.folder, prefix="keys-") as folder:
        touched = _find_blocks(views, grid, Path(folder), usable, tell)
        areas = [area for area in touched.areas() if is_wanted(area)]
        max_blocks = max(512, usable // 2 // BYTES_PER_BLOCK)
        num_blocks, total = _count(touched, areas, max_blocks)
        _refuse(
            "files",
            num_blocks * _DISK_BYTES_PER_BLOCK,
            shutil.disk_usage(store.folder).free,
            f"free in {store.folder}",
            grid.voxel_size,
        )
        _refuse(
            "a mesh that is wanted in memory",
            num_blocks
            * TRIANGLES_PER_BLOCK
            * max(1, 3 / grid.truncation_voxels)
            * whole_mesh_bytes,
            usable,
            "config.surface.memory_mb; target_triangles and formats other than ply need it",
            grid.voxel_size,
        )
        done = itertools.count(1)
        for number, area in enumerate(areas):
            parts = TileStore(Path(folder) / area.name)
            parts.folder.mkdir()
            low, high = box_of_area(np.array(area.index))
            found = None
            tiles = split_into_tiles(touched.all_keys(area), max_blocks, (low, high))
            for tile in tiles:
                fused = _open_field(open3d, tile[2], grid.voxel_size)
                for view in area.views.tolist():
                    if _integrate_view(fused, tile[2], touched.keys(view, area), views[view], grid):
                        tell("fuse", next(done), total)
                found = _extract(fused, tile, grid.voxel_size, min_views)
                del fused  # before the next tile's is made
                if len(tiles) > 1:
                    parts.add(*found)
            if len(tiles) > 1:
                found = _joined(parts, (low, high), grid.voxel_size)
            if found is not None:
                store.add(*found, name=area.name)
            shutil.rmtree(parts.folder)
            tell("extract", number + 1, len(areas))
    return num_blocks


def _integrate_view(
    fused: tuple[Any, integration.Field, np.ndarray],
    tile_keys: np.ndarray,
    view_keys: np.ndarray,
    view: DepthView,
    grid: integration.FieldGrid,
) -> bool:
    """Adds a view to the field of a tile; whether it touches it."""
    _, field, rows = fused
    keys = view_keys[is_among(view_keys, tile_keys)]
    if not len(keys):
        return False
    places = rows[np.searchsorted(tile_keys, keys)]
    integration.integrate(field, places, unpack_keys(keys), view, grid)
    return True


def _count(touched: _Touched, areas: Sequence[Area], max_blocks: int) -> tuple[int, int]:
    """The blocks of the areas, each once, and how often a view is added to a tile."""
    num_blocks = 0
    total = 0
    for area in areas:
        box = box_of_area(np.array(area.index))
        keys = touched.all_keys(area)
        num_blocks += int((unpack_keys(keys) < box[1]).all(axis=1).sum())
        tiles = split_into_tiles(keys, max_blocks, box)
        for view in area.views.tolist():
            view_keys = touched.keys(view, area)
            total += sum(bool(is_among(view_keys, tile[2]).any()) for tile in tiles)
    return num_blocks, total


def _joined(
    parts: TileStore, box: tuple[np.ndarray, np.ndarray], voxel_size: float
) -> tuple[Mesh, np.ndarray]:
    """The mesh of an area of several tiles, as if it had been one tile."""
    mesh = parts.join().to_mesh()
    vertices = mesh.vertices.astype(np.float32)  # as they were: the origin of the parts is 0
    mesh = in_order(
        dataclasses.replace(mesh, vertices=vertices, vertex_normals=np.zeros_like(vertices))
    )
    return mesh, _is_on_faces(mesh.vertices, box, voxel_size)


def fuse(
    views: Sequence[DepthView],
    voxel_size: float,
    *,
    truncation_voxels: float = 3.0,
    min_views: int = 1,
    counts: dict[str, int] | None = None,
    **choices,
) -> Mesh:
    """Fuses depth maps into a triangle mesh in memory.

    Args:
        views, min_views: see `fuse_into`.
        voxel_size: length in the unit of the poses.
        truncation_voxels: distance to the surface, in voxels, up to which the field is kept.
        counts: what the filters dropped (`depth_filter`), for the message if nothing is left.
        **choices: the others of `fuse_into`.
    Returns:
        A mesh in the frame of the poses.
    Raises:
        InputError: see `fuse_into`; or there is no depth or no surface, with the reason.
    """
    grid = integration.FieldGrid(middle_of(views, counts), voxel_size, truncation_voxels)
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        store = TileStore(folder)
        fuse_into(store, views, grid, min_views=min_views, **choices)
        mesh = store.join().to_mesh()
    if not len(mesh.triangles):
        raise InputError(explain_empty(voxel_size, min_views, counts))
    return mesh
