"""From rendered views to a clean mesh: render, filter, fuse, drop small pieces. Depth maps and
tiles wait on disk, not in RAM.
"""

import collections
import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import Onlookers
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface import depth_filter, fusion, mesh_files, simplify
from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dropped_depth import explain_counts, explain_empty
from cosurfgs_jax.surface.mesh import MeshParts, write_mesh_ply
from cosurfgs_jax.surface.smoothing import Voxels, smoothed
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.surface.voxel_blocks import BLOCK
from cosurfgs_jax.surface.voxel_size import check_voxel_size, choose_voxel_size

_LOG = logging.getLogger(__name__)
# Neighbours that are asked about a pixel, of those whose pictures show its place, nearest first.
# (With exact depth of the generated town the 8 nearest of all confirm 91.7 % of the pixels twice,
# the 16 nearest 97.5 %, 30 98.3 %.)
_MOST_ASKED = 16
# What `progress` of `extract_mesh` is told, in this order; "extract" comes once per tile, amid
# "fuse".
PHASES = ("render depth", "filter depth", "find blocks", "fuse", "extract", "smooth", "write")
_MAP_OF = {"plane": "plane_depth", "median": "median_depth", "expected": "depth"}


class _StoredViews(Sequence):
    """DepthViews in files of a folder, loaded when asked for; the last few stay in memory for their
    neighbours.
    """

    def __init__(
        self,
        folder: Path,
        views: Views,
        num_cached: int = 2 * _MOST_ASKED,
    ):
        self._folder = folder
        self._views = views
        self._depths: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._num_cached = num_cached

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, number: Any) -> DepthView:  # an int: nobody takes slices of it
        if not 0 <= number < len(self):
            raise IndexError(number)
        return DepthView(
            self.depth(number),
            np.load(self._folder / f"{number}_color.npy"),
            self._views.intrinsics[number],
            self._views.camera_from_dataset[number],
        )

    def depth(self, number: int) -> np.ndarray:
        if number not in self._depths:
            self._depths[number] = np.load(self._folder / f"{number}_depth.npy")
            if len(self._depths) > self._num_cached:
                self._depths.popitem(last=False)
        self._depths.move_to_end(number)
        return self._depths[number]

    def witness(self, number: int) -> depth_filter.Witness:
        return depth_filter.Witness(
            functools.partial(self.depth, number),
            tuple(self._views.image_sizes[number]),
            self._views.intrinsics[number],
            self._views.camera_from_dataset[number],
        )

    def store(self, number: int, depth: np.ndarray, color: np.ndarray | None = None) -> None:
        self._depths.pop(number, None)
        np.save(self._folder / f"{number}_depth.npy", depth)
        if color is not None:
            np.save(self._folder / f"{number}_color.npy", color)


def _render_view(
    maps: dict[str, np.ndarray],
    intrinsics: np.ndarray,
    pose: np.ndarray,
    limits: np.ndarray,
    settings: SurfaceSettings,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The depth of a view that it may trust by itself, its colours u8[H,W,3], and what
    was dropped.
    """
    # Where more than half of the light passes, what was hit is no surface.
    opaque = np.where(
        np.asarray(maps["alpha"]) >= MIN_PLANE_ALPHA, maps[_MAP_OF[settings.depth_map]], 0
    )
    depth, dropped = depth_filter.filter_single_view(
        opaque,
        maps.get("normal"),
        intrinsics,
        pose,
        limits=tuple(limits),
        max_angle_deg=settings.max_angle_deg,
    )
    color: np.ndarray = np.clip(np.asarray(maps["color"]), 0, 1)
    return depth, np.round(color * 255).astype(np.uint8), dropped


def _check_neighbors(onlookers: Onlookers, min_neighbor_views: int) -> None:
    """Says before the long work that depth cannot be confirmed."""
    if min_neighbor_views <= 0:
        return
    num_views = len(onlookers.views)
    num_alone = sum(not len(onlookers.of(view)) for view in range(num_views))
    if not num_alone:
        return
    if num_alone == num_views:
        raise InputError(
            f"mesh: none of the {num_alone} views has a neighbour that looks the same way from "
            "another place, so "
            "no depth could be confirmed; use photographs that overlap, or set "
            "config.surface.min_neighbor_views=0 to fuse depth that nothing confirms"
        )
    _LOG.warning(
        "mesh: %d of %d views have no neighbour that could confirm their depth, and are left out; "
        "config.surface.min_neighbor_views=0 takes them",
        num_alone,
        num_views,
    )


def _write(fused: MeshParts, path: Path, form: str, up: np.ndarray, target_triangles: int) -> int:
    """Writes the mesh as PLY, and in another format if one is wanted; returns the number of
    triangles written.
    """
    mesh = fused
    if target_triangles or form != "ply":
        mesh = simplify.decimate(fused.to_mesh(), target_triangles)
        if target_triangles and mesh.num_triangles > 1.1 * target_triangles:
            _LOG.warning(
                "mesh: %d triangles are left, not %d: no more edges could be collapsed",
                mesh.num_triangles,
                target_triangles,
            )
    write_mesh_ply(path, mesh)
    if form != "ply":
        whole: Any = mesh  # a `Mesh`, by `decimate`
        mesh_files.write_mesh(path.with_suffix(f".{form}"), whole, form, up)
    return mesh.num_triangles


def extract_mesh(
    render_fn: Callable[[int], dict[str, np.ndarray]],
    scene: Scene,
    views: np.ndarray,
    settings: SurfaceSettings,
    path: str | Path,
    *,
    form: str = "ply",
    scratch_dir: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Fuses the rendered depth of a model into a mesh file.

    Args:
        render_fn: view number -> maps of the model: "color" f32[H,W,3], "alpha" f32[H,W], "normal"
            f32[H,W,3] (dataset frame, may be left out) and the depth that
            `settings.depth_map` names ("plane_depth", "median_depth" or "depth"), f32[H,W], 0 =
            invalid; all in the frame and unit of the dataset.
        scene: its views, points and vertical are used.
        views: i64[n], which to render, usually the training views.
        settings: lengths of 0 are derived from the SfM points.
        path: of the PLY file, in the dataset's frame. Neither the field nor the mesh is in memory
            as a whole, unless settings.target_triangles or `form` wants it.
        form: one of `mesh_files.FORMATS`; obj and glb are written beside the PLY file.
        scratch_dir: folder for temporary files (11 bytes per pixel and view, 95 per triangle); None
            = the system's.
        progress: called with (what is done now, done, total), as `PHASES` says.
    Returns:
        What was chosen and counted: voxel_size, counts, num_views, num_triangles,
            num_triangles_before_cleaning,
        num_tiles, num_blocks, num_voxels, depth_map, truncation_voxels, min_neighbor_views,
        max_angle_deg, min_cluster_share, smoothing_passes, target_triangles.
    Raises:
        InputError: see `fusion.fuse_into`; there is no view, no view has neighbours, or no surface
            is left.
    """
    if not len(views):
        raise InputError(
            "mesh: expected at least one view to render, got none; check config.data.split"
        )
    import_open3d()  # what is missing is said before the long work
    mesh_files.check_format(form)
    chosen = scene.views.pick(views)
    all_seen = depth_filter.seen_depths(scene.cloud, scene.views)
    seen = [all_seen[view] for view in views]
    voxel_size = settings.voxel_size or choose_voxel_size(seen, chosen.intrinsics)
    check_voxel_size(voxel_size, seen, chosen.intrinsics)
    limits = depth_filter.depth_limits(seen)
    onlookers = Onlookers(chosen, limits[:, 1])
    _check_neighbors(onlookers, settings.min_neighbor_views)
    tell = progress or (lambda *_: None)
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory(dir=scratch_dir, prefix="depth-") as folder:
        for name in ("rendered", "confirmed", "tiles", "smoothed"):
            (Path(folder) / name).mkdir()
        rendered = _StoredViews(Path(folder) / "rendered", chosen)
        confirmed = _StoredViews(Path(folder) / "confirmed", chosen, num_cached=1)
        for number, view in enumerate(views):
            depth, color, dropped = _render_view(
                render_fn(int(view)),
                chosen.intrinsics[number],
                chosen.camera_from_dataset[number],
                limits[number],
                settings,
            )
            counts.update(dropped)
            rendered.store(number, depth)
            confirmed.store(number, depth, color)
            tell("render depth", number + 1, len(views))
        for number in range(len(views)):
            depth, dropped = depth_filter.filter_multi_view(
                rendered.depth(number),
                chosen.intrinsics[number],
                chosen.camera_from_dataset[number],
                (rendered.witness(int(other)) for other in onlookers.of(number)),
                min_neighbor_views=settings.min_neighbor_views,
                most_asked=_MOST_ASKED,
            )
            counts.update(dropped)
            confirmed.store(number, depth)
            tell("filter depth", number + 1, len(views))
        _LOG.info("mesh: voxel size %.4g, %s", voxel_size, explain_counts(counts))
        store = TileStore(Path(folder) / "tiles")
        whole_mesh_bytes = max(
            simplify.BYTES_PER_TRIANGLE * bool(settings.target_triangles),
            mesh_files.BYTES_PER_TRIANGLE[form],
        )
        num_blocks = fusion.fuse_into(
            store,
            confirmed,
            voxel_size,
            truncation_voxels=settings.truncation_voxels,
            memory_mb=settings.memory_mb,
            whole_mesh_bytes=whole_mesh_bytes,
            counts=counts,
            progress=tell,
        )
        joined = store.join(settings.min_cluster_share)
        if not joined.num_triangles:
            raise InputError(explain_empty(voxel_size, 1, counts))
        num_triangles = _write(
            smoothed(
                joined,
                settings.smoothing_passes,
                Voxels(store.origin, voxel_size),
                folder=Path(folder) / "smoothed",
                progress=functools.partial(tell, "smooth"),
            ),
            Path(path),
            form,
            up=scene.up,
            target_triangles=settings.target_triangles,
        )
        tell("write", 1, 1)
    return {
        "voxel_size": voxel_size,
        "counts": dict(counts),
        "num_views": len(views),
        "num_triangles": num_triangles,
        "num_triangles_before_cleaning": joined.num_triangles_before,
        "num_tiles": store.num_tiles,
        "num_blocks": num_blocks,
        "num_voxels": num_blocks * BLOCK**3,
        "depth_map": settings.depth_map,
        "truncation_voxels": settings.truncation_voxels,
        "min_neighbor_views": settings.min_neighbor_views,
        "max_angle_deg": settings.max_angle_deg,
        "min_cluster_share": settings.min_cluster_share,
        "smoothing_passes": settings.smoothing_passes,
        "target_triangles": settings.target_triangles,
    }
