"""Height map (DSM) and true orthophoto of a model, drawn straight from above with parallel rays,
tile by tile: heights of its mesh where there is one, colours of its surfels.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.raster import Maps, RasterOptions, render
from cosurfgs_jax.raster.culling import REACH
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.settings import GeoSettings
from cosurfgs_jax.surface import depth_filter, from_above, geotiff, ground
from cosurfgs_jax.surface.from_above import MeshFromAbove
from cosurfgs_jax.surface.ground import GroundFrame, GroundGrid
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.point_heights import PointHeights, agreement
from cosurfgs_jax.surface.voxel_size import choose_voxel_size
from cosurfgs_jax.types import Camera, Surfels

TILE = geotiff.BLOCK  # pixels along the side of what is drawn at a time
# World lengths from the camera down to the highest surface: hits that are nearer are above it, and
# are not drawn.
_NEAR = 0.1
_LOG = logging.getLogger(__name__)


@functools.partial(jax.jit, static_argnames=("options",))
def _draw(surfels: Surfels, camera: Camera, options: RasterOptions):
    out = render(
        surfels,
        camera,
        (TILE, TILE),
        options,
        maps=Maps.GEOMETRY,
        projection="orthographic",
    )
    # Colours are those of the surfels alone: nothing of the background where they are half
    # transparent.
    color = out.color / jnp.maximum(out.alpha, MIN_PLANE_ALPHA)[..., None]
    return jnp.round(jnp.clip(color, 0.0, 1.0) * 255).astype(jnp.uint8), out.alpha, out.median_depth


class _Drawing:
    """A model ready to be drawn from above, piece by piece."""

    def __init__(
        self,
        surfels: Surfels,
        frame: SceneFrame,
        axes: GroundFrame,
        grid: GroundGrid,
        limits: tuple[float, float],
        backend: str,
    ):
        self._surfels = jax.tree.map(np.asarray, surfels)
        self._frame = frame
        self._axes = axes
        self._grid = grid
        self._options = RasterOptions(near=_NEAR, backend=backend)
        place = axes.from_dataset(frame.to_dataset(self._surfels.means))
        alive = self._surfels.alive
        self.num_above = int((alive & (place[:, 2] > limits[1])).sum())
        self.num_below = int((alive & (place[:, 2] < limits[0])).sum())
        self._is_used = alive & (place[:, 2] >= limits[0]) & (place[:, 2] <= limits[1])
        self._eye_height = limits[1] + _NEAR / frame.scale
        # In pixels of the raster; a surfel ends at its cut-off, or at that of the low-pass filter.
        reach = (
            np.exp(self._surfels.log_scales.astype(np.float64).max(axis=1))
            / frame.scale
            / grid.pixel_size
        )
        reach = REACH * np.maximum(reach, 1.0)
        column = (place[:, 0] - grid.left) / grid.pixel_size
        row = (grid.top - place[:, 1]) / grid.pixel_size
        self._low = np.stack([row - reach, column - reach]).astype(np.float32)
        self._high = np.stack([row + reach, column + reach]).astype(np.float32)

    def _near_tile(self, row: int, column: int) -> Surfels | None:
        """The surfels that may touch a tile, with dead ones behind them up to one of few array
        sizes; None: there is none.
        """
        keep = np.flatnonzero(
            self._is_used
            & (self._high[0] >= row)
            & (self._low[0] <= row + TILE)
            & (self._high[1] >= column)
            & (self._low[1] <= column + TILE)
        )
        if not len(keep):
            return None
        slots = max(1024, 1 << int(np.ceil(np.log2(len(keep)))))  # each size compiles anew
        padded = np.pad(keep, (0, slots - len(keep)), mode="edge")
        chosen = jax.tree.map(lambda field: field[padded], self._surfels)
        return chosen.replace(alive=np.arange(slots) < len(keep))

    def tile(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Heights f32[h,w] (NODATA where there is no surface) and colours u8[h,w,4] of a whole
        tile; None: there is nothing.
        """
        grid = self._grid
        scale = self._frame.scale
        surfels = self._near_tile(row, column)
        if surfels is None:
            return None
        middle = (
            grid.left + (column + TILE / 2) * grid.pixel_size,
            grid.top - (row + TILE / 2) * grid.pixel_size,
        )
        # The camera stands above the middle of the tile, so that its float32 has no large numbers.
        pose = self._frame.camera_to_world_frame(
            self._axes.camera_from_dataset(np.array([*middle, self._eye_height]))
        )
        pixels_per_length = 1 / (grid.pixel_size * scale)
        intrinsics = np.array(
            [[pixels_per_length, 0, TILE / 2], [0, pixels_per_length, TILE / 2], [0, 0, 1]]
        )
        camera = Camera(jnp.asarray(pose, jnp.float32), jnp.asarray(intrinsics, jnp.float32))
        color, alpha, depth = map(
            np.asarray, _draw(jax.tree.map(jnp.asarray, surfels), camera, self._options)
        )
        is_surface = alpha >= MIN_PLANE_ALPHA
        heights = np.where(
            is_surface, self._eye_height - depth.astype(np.float64) / scale, geotiff.NODATA
        )
        bands = (
            np.concatenate([color, np.full((TILE, TILE, 1), 255, np.uint8)], axis=-1)
            * is_surface[..., None]
        )
        return heights.astype(np.float32), bands


class _Drawn(NamedTuple):
    """A part of a tile that is within the raster.

    | field        | shape     | unit, frame                                                |
    |--------------|-----------|------------------------------------------------------------|
    | `heights`    | f32[h,w]  | ground coordinates, NODATA where `mark` is NOTHING         |
    | `colors`     | u8[4,h,w] | RGB and alpha                                              |
    | `confidence` | f32[h,w]  | see `SeenFromAbove`; 0 without a mesh                      |
    | `mark`       | u8[h,w]   | see `SeenFromAbove`                                        |
    """

    heights: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray
    mark: np.ndarray


class _Layers:
    """What is drawn of a model: its mesh, if there is one, and its surfels."""

    def __init__(self, drawing: _Drawing, surface: MeshFromAbove | None, grid: GroundGrid):
        self._drawing = drawing
        self._surface = surface
        self._grid = grid

    def tile(self, row: int, column: int) -> _Drawn | None:
        """The tile that begins at a pixel; None: there is nothing."""
        drawn = self._drawing.tile(row, column)
        if drawn is None and self._surface is None:
            return None
        if drawn is None:
            drawn = (
                np.full((TILE, TILE), geotiff.NODATA, np.float32),
                np.zeros((TILE, TILE, 4), np.uint8),
            )
        heights, colors = drawn
        confidence = np.zeros_like(heights)
        if self._surface is None:
            mark = np.where(heights != geotiff.NODATA, from_above.SURFACE, from_above.NOTHING)
        else:
            # Not of surfels where the mesh ends: of the quickstart's town those 12 % were off by
            # 0.52 m (median), the mesh by 0.027 m.
            seen = self._surface.tile(row, column, TILE)
            mark = seen.mark
            confidence = seen.confidence
            is_surface = mark != from_above.NOTHING
            heights = np.where(is_surface, seen.heights, geotiff.NODATA).astype(np.float32)
            # Surfels are sharper than vertices: those are for what no surfel covers.
            is_bare = is_surface & (colors[..., 3] == 0)
            opaque = np.concatenate([seen.colors, np.full((TILE, TILE, 1), 255, np.uint8)], axis=-1)
            colors = np.where(is_bare[..., None], opaque, colors)
        size = (slice(0, self._grid.height - row), slice(0, self._grid.width - column))
        bands = np.moveaxis(colors[size], -1, 0)
        return _Drawn(heights[size], bands, confidence[size], mark[size].astype(np.uint8))


def choose_pixel_size(scene: Scene, settings: GeoSettings) -> float:
    """The setting, or the median footprint of a photograph's pixel on the SfM points that it sees,
    to two digits, as maps have; dataset length.

    Raises:
        InputError: no photograph sees a point.
    """
    if settings.pixel_size:
        return settings.pixel_size
    seen = depth_filter.seen_depths(scene.cloud, scene.views)
    if not any(map(len, seen)):
        raise InputError(
            "geo.pixel_size: expected SfM points inside the images to derive it from, got none; "
            "set "
            "config.geo.pixel_size in the unit of the dataset"
        )
    return float(f"{choose_voxel_size(seen, scene.views.intrinsics, pixels=1):.2g}")


def _tiles(grid: GroundGrid) -> Iterator[tuple[int, int]]:
    for row in range(0, grid.height, TILE):
        for column in range(0, grid.width, TILE):
            yield row, column


def _tags(axes: GroundFrame) -> dict[str, str]:
    """Which axes the raster has, in words and numbers."""
    if axes.is_map:
        return {"AXES": "x and y of the dataset; heights are its z"}
    rows = ("EAST", "NORTH", "UP")
    return {
        "AXES": "not those of the dataset: its vertical is not z; coordinates are AXIS . (dataset "
        "point - AXES_ORIGIN)",
        "AXES_ORIGIN": " ".join(f"{x:.12g}" for x in axes.origin),
        **{
            f"AXIS_{name}": " ".join(f"{x:.12g}" for x in axis)
            for name, axis in zip(rows, axes.axes, strict=True)
        },
    }


def _fractions(num_marked: np.ndarray, grid: GroundGrid) -> dict[str, float]:
    """Fractions of the raster by the origin of their height."""
    fractions = num_marked / (grid.width * grid.height)
    return {
        "covered_share": float(fractions[1:].sum()),
        "filled_share": float(fractions[from_above.FILLED]),
    }


def check_geo(up: np.ndarray, settings: GeoSettings) -> None:
    """Refuses map coordinates that a dataset cannot have.

    Raises:
        InputError: an offset or a coordinate system for a dataset whose z is not up, an unknown
            one, or rasterio is missing.
    """
    geotiff.check_epsg(settings.epsg)
    if (settings.epsg or any(settings.offset_xyz())) and not ground.is_map(up):
        raise InputError(
            "config.geo.offset, geo.epsg: expected none for a dataset whose z axis is not up "
            f"(up is {np.round(up, 3).tolist()}), as its axes are not those of a map; align "
            "the dataset first"
        )


def write_dsm(
    dsm_path: Path,
    orthophoto_path: Path,
    surfels: Surfels,
    frame: SceneFrame,
    scene: Scene,
    settings: GeoSettings,
    *,
    mesh: Mesh | None = None,
    memory_mb: int = 4096,
    backend: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Draws a model straight from above into a height map and a true orthophoto, GeoTIFF both.

    Height is that of the highest triangle of the mesh, and in gaps of a few pixels that of the mesh
    around them; a second band has the confidence, the photographs that the mesh is fused from
    there, 0 in filled gaps. Without a mesh height is that of the median hit of the surfels where
    they stop at least half of the light. Colour is that of the surfels there, seen from straight
    above, also beyond the mesh. Elsewhere there is no data. North is up; what is drawn at a time is
    one tile, and what is near it.

    Args:
        dsm_path: of float32 heights, and with a mesh of a band of confidence.
        orthophoto_path: of uint8 red, green, blue and alpha (255 or 0).
        surfels: N, world frame.
        frame: the similarity from the dataset to the world.
        scene: its views, points and vertical are used, and for the pixel size the tracks.
        settings: pixel size, offset and coordinate system.
        mesh: the fused surface of the model, dataset frame; without confidence that band has it in
            filled gaps alone. None = heights are those of surfels.
        memory_mb: the largest raster.
        backend: of the rasterizer.
        progress: called with tiles done and all tiles.
    Returns:
        What was chosen and found, for a JSON file; lengths in the dataset's unit.
    Raises:
        InputError: nothing would be seen, the raster would be too large, or see `check_geo`.
    """
    check_geo(scene.up, settings)
    axes = ground.choose_frame(scene.up, frame)
    centers = axes.from_dataset(scene.views.centers)
    points = axes.from_dataset(scene.cloud.points)
    is_near = ground.is_near(points, centers)
    if not is_near.all():
        _LOG.warning(
            "height map: %d of %d SfM points are too far away to be of this place and were not "
            "looked at",
            (~is_near).sum(),
            len(is_near),
        )
    points = points[is_near]
    grid = ground.choose_grid(points, choose_pixel_size(scene, settings), memory_mb)
    limits = ground.height_limits(points[:, 2], centers[:, 2])
    offset = settings.offset_xyz()
    drawing = _Drawing(surfels, frame, axes, grid, limits, backend)
    surface = None
    if mesh is not None:
        surface = MeshFromAbove(mesh, axes, grid, limits)
    layers = _Layers(drawing, surface, grid)
    at_points = PointHeights(points, grid)
    tiles = list(_tiles(grid))
    num_marked = np.zeros(3, np.int64)
    height_kind = "height" if mesh is None else "height and confidence"
    options = {"offset": offset, "epsg": settings.epsg, "tags": _tags(axes)}
    with (
        geotiff.create(dsm_path, grid, height_kind, **options) as dsm,
        geotiff.create(orthophoto_path, grid, "color", **options) as orthophoto,
    ):
        for number, (row, column) in enumerate(tiles):
            drawn = layers.tile(row, column)
            if drawn is not None:
                num_marked += np.bincount(drawn.mark.ravel(), minlength=3)
                at_points.take(number, drawn.heights)
                bands = [drawn.heights + offset[2]]
                if mesh is not None:
                    bands.append(drawn.confidence)
                known = np.where((drawn.mark > 0) & np.isfinite(bands), bands, geotiff.NODATA)
                dsm.write(known.astype(np.float32), row, column)
                orthophoto.write(drawn.colors, row, column)
            if progress:
                progress(number + 1, len(tiles))
        if not num_marked[1:].any():
            raise InputError(
                "height map: nothing is seen from above: no surfel between the heights "
                f"{limits[0]:.4g} and {limits[1]:.4g} "
                f"stops half of the light ({drawing.num_above} of {len(surfels.alive)} surfels are "
                f"above, {drawing.num_below} "
                "below); train longer, or look at the model with `cosurfgs render`"
            )
    if drawing.num_above:
        _LOG.info(
            "height map: %d surfels above %.4g, far above the SfM points, were not drawn",
            drawing.num_above,
            limits[1],
        )
    return {
        "pixel_size": grid.pixel_size,
        "width": grid.width,
        "height": grid.height,
        "left": grid.left + offset[0],
        "top": grid.top + offset[1],
        "offset": offset,
        "epsg": settings.epsg,
        "nodata": geotiff.NODATA,
        "is_map": axes.is_map,
        "axes": axes.axes,
        "axes_origin": axes.origin,
        "min_alpha": MIN_PLANE_ALPHA,
        "height_limits": limits,
        "num_surfels_above": drawing.num_above,
        "num_surfels_below": drawing.num_below,
        "num_tiles": len(tiles),
        **_fractions(num_marked, grid),
        "agreement": agreement(at_points.heights, at_points.found, grid.pixel_size),
    }
