"""From rendered views to a clean mesh: render, filter, fuse, drop small pieces. Depth maps and
tiles wait on disk, not in RAM.
"""

import collections
import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply_parts import vertex_parts
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface import depth_filter, fusion, mesh_files, simplify
from cosurfgs_jax.surface.confidence import confidence_fractions
from cosurfgs_jax.surface.depth_view import DepthView
from cosurfgs_jax.surface.dropped_depth import explain_counts, explain_empty, explain_no_depth
from cosurfgs_jax.surface.mesh import CONFIDENCE, MeshParts, write_mesh_ply
from cosurfgs_jax.surface.mesh_plan import MAX_ASKED, MeshPlan, plan_mesh
from cosurfgs_jax.surface.smoothing import Voxels, smoothed
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.surface.voxel_blocks import BLOCK

_LOG = logging.getLogger(__name__)
# What `progress` of `extract_mesh` is told, in this order; "extract" comes once per tile, amid
# "fuse".
PHASES = ("render depth", "filter depth", "find blocks", "fuse", "extract", "smooth", "write")
_ROWS = 1_000_000  # vertices that are read at a time
_MAP_OF = {"plane": "plane_depth", "median": "median_depth", "expected": "depth"}


class _StoredViews(Sequence):
    """DepthViews in files of a folder, loaded when asked for; the last few stay in memory for their
    neighbours.
    """

    def __init__(
        self,
        folder: Path,
        views: Views,
        num_cached: int = 2 * MAX_ASKED,
        draw: Callable[[int], np.ndarray] | None = None,
    ):
        """
        Args:
            folder: an empty one.
            views: V.
            num_cached: depths that stay in memory.
            draw: gives the depth of a view that was not stored and is asked for.
        """
        self._folder = folder
        self._draw = draw
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
            path = self._folder / f"{number}_depth.npy"
            if self._draw is not None and not path.exists():
                self.store(number, self._draw(number))
            self._depths[number] = np.load(path)
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
    # Where more than half of the light passes, the depth is of no surface.
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


class Fused(NamedTuple):
    """What a part of a mesh is, besides the tiles in its folder. JSON data."""

    counts: dict[str, int]  # of depth pixels, by what became of them (`depth_filter`)
    num_blocks: int  # of voxels, each once


def fuse_part(
    plan: MeshPlan,
    part: Part,
    render_fn: Callable[[int], dict[str, np.ndarray]],
    folder: Path,
    *,
    whole_mesh_bytes: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Fused:
    """Draws the views that the areas of a part need, and fuses their depth.

    Args:
        plan: of the mesh.
        part: of its areas.
        render_fn, progress: see `extract_mesh`.
        folder: an empty one, which gets the meshes of the areas; and, meanwhile, 11 bytes per pixel
            and view that is drawn.
        whole_mesh_bytes: see `fusion.fuse_into`.
    Raises:
        InputError: see `fusion.fuse_into`.
    """
    import_open3d()  # what is missing is said before the long work
    tell = progress or (lambda *_: None)
    own = plan.fused_by(part)
    counted = plan.counted_by(part)
    counts: collections.Counter = collections.Counter()
    wanted = {area.index for area in plan.areas_of(part)}
    with tempfile.TemporaryDirectory(dir=folder, prefix="depth-") as scratch:
        for name in ("rendered", "confirmed"):
            (Path(scratch) / name).mkdir()

        def draw(view: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
            return _render_view(
                render_fn(int(plan.numbers[view])),
                plan.views.intrinsics[view],
                pose=plan.views.camera_from_dataset[view],
                limits=plan.limits[view],
                settings=plan.settings,
            )

        # Of the views that may confirm a depth those are drawn that are asked.
        rendered = _StoredViews(
            Path(scratch) / "rendered", plan.views, draw=lambda view: draw(view)[0]
        )
        confirmed = _StoredViews(Path(scratch) / "confirmed", plan.views.pick(own), num_cached=1)
        place = {int(view): number for number, view in enumerate(own)}
        for done, view in enumerate(map(int, own), start=1):
            depth, color, dropped = draw(view)
            if view in counted:
                counts.update(dropped)
            rendered.store(view, depth)
            confirmed.store(place[view], depth, color)
            tell("render depth", done, len(own))
        for done, view in enumerate(map(int, own), start=1):
            depth, dropped = depth_filter.filter_multi_view(
                rendered.depth(view),
                plan.views.intrinsics[view],
                plan.views.camera_from_dataset[view],
                (rendered.witness(int(other)) for other in plan.onlookers.of(view)),
                min_neighbor_views=plan.settings.min_neighbor_views,
                max_asked=MAX_ASKED,
            )
            if view in counted:
                counts.update(dropped)
            confirmed.store(place[view], depth)
            tell("filter depth", done, len(own))
        _LOG.info("mesh: voxel size %.4g, %s", plan.grid.voxel_size, explain_counts(counts))
        num_blocks = fusion.fuse_into(
            TileStore(folder),
            confirmed,
            plan.grid,
            memory_mb=plan.settings.memory_mb,
            whole_mesh_bytes=whole_mesh_bytes,
            is_wanted=lambda area: area.index in wanted,
            progress=tell,
        )
    return Fused(dict(counts), num_blocks)


def write_parts(
    plan: MeshPlan,
    parts: list[tuple[Path, Fused]],
    path: Path,
    form: str,
    *,
    up: np.ndarray,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Joins the parts of a mesh and writes it.

    Args:
        plan: of the mesh.
        parts: folder and findings of each, in order.
        path, form, progress: see `extract_mesh`.
        up: f64[3], dataset frame.
    Returns, Raises: see `extract_mesh`.
    """
    counts: collections.Counter = collections.Counter()
    for _, fused in parts:
        counts.update(fused.counts)
    counts = collections.Counter({name: counts[name] for name in sorted(counts)})
    if not counts["kept"]:
        raise InputError(explain_no_depth(counts))
    store = TileStore(parts[0][0])
    store.origin = plan.grid.origin
    store.take([folder for folder, _ in parts])
    joined = store.join(plan.settings.min_cluster_share)
    if not joined.num_triangles:
        raise InputError(explain_empty(plan.grid.voxel_size, 1, counts))
    with tempfile.TemporaryDirectory(dir=parts[0][0], prefix="smoothed-") as scratch:
        num_triangles = _write(
            smoothed(
                joined,
                plan.settings.smoothing_passes,
                Voxels(store.origin, plan.grid.voxel_size),
                folder=Path(scratch),
                progress=progress and functools.partial(progress, "smooth"),
            ),
            path,
            form,
            up=up,
            target_triangles=plan.settings.target_triangles,
        )
    num_blocks = sum(fused.num_blocks for _, fused in parts)
    written = vertex_parts(path, _ROWS)
    fractions = confidence_fractions(table[CONFIDENCE] for table in written)
    return {
        "voxel_size": plan.grid.voxel_size,
        "counts": dict(counts),
        "num_views": len(plan.numbers),
        "num_triangles": num_triangles,
        "num_triangles_before_cleaning": joined.num_triangles_before,
        "num_tiles": store.num_tiles,
        "num_blocks": num_blocks,
        "num_voxels": num_blocks * BLOCK**3,
        "depth_map": plan.settings.depth_map,
        "truncation_voxels": plan.settings.truncation_voxels,
        "min_neighbor_views": plan.settings.min_neighbor_views,
        "max_angle_deg": plan.settings.max_angle_deg,
        "min_cluster_share": plan.settings.min_cluster_share,
        "smoothing_passes": plan.settings.smoothing_passes,
        "target_triangles": plan.settings.target_triangles,
        "confidence": fractions,
    }


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


def whole_mesh_bytes(settings: SurfaceSettings, form: str) -> int:
    """Memory per triangle that a mesh needs as a whole at the end; 0 = it does not."""
    return max(
        simplify.BYTES_PER_TRIANGLE * bool(settings.target_triangles),
        mesh_files.BYTES_PER_TRIANGLE[form],
    )


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
        views, settings: see `plan_mesh`.
        path: of the PLY file, in the dataset's frame. Neither the field nor the mesh is in memory
            as a whole, unless settings.target_triangles or `form` wants it.
        form: one of `mesh_files.FORMATS`; obj and glb are written beside the PLY file.
        scratch_dir: folder for temporary files (11 bytes per pixel and view, 97 per triangle); None
            = the system's.
        progress: called with (what is done now, done, total), as `PHASES` says.
    Returns:
        What was chosen and counted: voxel_size, counts, num_views, num_triangles,
        num_triangles_before_cleaning, num_tiles, num_blocks, num_voxels, depth_map,
        truncation_voxels, min_neighbor_views, max_angle_deg, min_cluster_share, smoothing_passes,
        target_triangles, confidence.
    Raises:
        InputError: see `plan_mesh` and `fusion.fuse_into`; or no surface is left.
    """
    import_open3d()
    mesh_files.check_format(form)
    plan = plan_mesh(scene, views, settings)
    with tempfile.TemporaryDirectory(dir=scratch_dir, prefix="mesh-") as folder:
        fused = fuse_part(
            plan,
            WHOLE,
            render_fn,
            folder=Path(folder),
            whole_mesh_bytes=whole_mesh_bytes(settings, form),
            progress=progress,
        )
        choices = write_parts(
            plan,
            [(Path(folder), fused)],
            path=Path(path),
            form=form,
            up=scene.up,
            progress=progress,
        )
    if progress:
        progress("write", 1, 1)
    return choices
