"""Height map (DSM) and true orthophoto of a model: surfels drawn straight from above with parallel
rays, tile by tile.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.raster import Maps, RasterOptions, render
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.settings import GeoSettings
from cosurfgs_jax.surface import depth_filter, geotiff, ground
from cosurfgs_jax.surface.ground import GroundFrame, GroundGrid
from cosurfgs_jax.surface.voxel_size import choose_voxel_size
from cosurfgs_jax.types import Camera, Surfels

TILE = geotiff.BLOCK  # pixels along the side of what is drawn at a time
# World lengths from the camera down to the highest surface: hits that are nearer are above it, and
# are not drawn.
_NEAR = 0.1
_CUTOFF = 3.34  # standard deviations from its centre to where an opaque surfel ends (alpha 1/255)
# Pixels by which an SfM point must lie below the height map to count as hidden from above.
BELOW_PIXELS = 5.0
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
        reach = _CUTOFF * np.maximum(reach, 1.0)
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
        """Heights f32[h,w] (NODATA where there is no surface) and colours u8[4,h,w] of a tile;
        None: there is nothing.
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
        size = (slice(0, grid.height - row), slice(0, grid.width - column))
        return heights.astype(np.float32)[size], np.moveaxis(bands, -1, 0)[(slice(None), *size)]


def agreement(point_heights: np.ndarray, dsm_heights: np.ndarray, pixel_size: float) -> dict:
    """How far the height map lies from the SfM points within it.

    A point is compared with the pixel that it falls into. Points under a roof, a crown or on a wall
    are not on the surface that
    is seen from above and say nothing of it: those more than BELOW_PIXELS below the height map are
        left out of the main
    figures and counted. Nothing is left out on the other side: a point above the height map is an
    error of it. As leaving out is one-sided, the figures over all points are given, too; the truth
    of the signed difference is between the two.

    Args:
        point_heights: f64[n], of the points. dsm_heights: f64[n], of their pixels, NaN where the
            map has no data.
        pixel_size: in the same unit.
    Returns:
        Counts; medians of the absolute and the signed difference (height map minus point) and the
        90th percentile of the absolute one, as lengths and in ground pixels; None where no point
        can be compared.
    """
    difference = (dsm_heights - point_heights)[np.isfinite(dsm_heights)]
    is_hidden = difference > BELOW_PIXELS * pixel_size

    def figures(values: np.ndarray) -> dict | None:
        if not len(values):
            return None
        found = {
            "median_absolute": float(np.median(np.abs(values))),
            "median_signed": float(np.median(values)),
            "absolute_90_percent": float(np.percentile(np.abs(values), 90)),
        }
        return {**found, **{f"{name}_pixels": value / pixel_size for name, value in found.items()}}

    return {
        "num_points_in_raster": len(point_heights),
        "num_without_data": int(len(point_heights) - len(difference)),
        "num_hidden": int(is_hidden.sum()),
        "hidden_below_pixels": BELOW_PIXELS,
        "visible_points": figures(difference[~is_hidden]),
        "all_points": figures(difference),
    }


class _PointHeights:
    """The height map's values at the SfM points, gathered while tiles are drawn."""

    def __init__(self, points: np.ndarray, grid: GroundGrid):
        rows, columns, inside = grid.pixels_of(points)
        tile = (rows // TILE) * (-(-grid.width // TILE)) + columns // TILE
        self._order = np.flatnonzero(inside)[np.argsort(tile[inside], kind="stable")]
        self._tile = tile[self._order]
        self._rows = rows[self._order] % TILE
        self._columns = columns[self._order] % TILE
        self.heights = points[self._order, 2]
        self.found = np.full(len(self._order), np.nan)

    def take(self, number: int, heights: np.ndarray) -> None:
        """Reads the points of tile `number` (row by row) off its heights."""
        mine = slice(*np.searchsorted(self._tile, [number, number + 1]))
        values = heights[self._rows[mine], self._columns[mine]].astype(np.float64)
        self.found[mine] = np.where(values == geotiff.NODATA, np.nan, values)


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
    memory_mb: int = 4096,
    backend: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Draws a model straight from above into a height map and a true orthophoto, GeoTIFF both.

    Height is that of the median hit where at least half of the light is stopped, colour that of the
    surfels there, seen from straight above; elsewhere there is no data. North is up; what is drawn
    at a time is one tile and the surfels near it.

    Args:
        dsm_path: of float32 heights.
        orthophoto_path: of uint8 red, green, blue and alpha (255 or 0).
        surfels: N, world frame.
        frame: the similarity from the dataset to the world.
        scene: its views, points and vertical are used, and for the pixel size the tracks.
        settings: pixel size, offset and coordinate system.
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
    at_points = _PointHeights(points, grid)
    tiles = list(_tiles(grid))
    num_covered = 0
    options = {"offset": offset, "epsg": settings.epsg, "tags": _tags(axes)}
    with (
        geotiff.create(dsm_path, grid, "height", **options) as dsm,
        geotiff.create(orthophoto_path, grid, "color", **options) as orthophoto,
    ):
        for number, (row, column) in enumerate(tiles):
            drawn = drawing.tile(row, column)
            if drawn is not None:
                heights, colors = drawn
                is_surface = heights != geotiff.NODATA
                num_covered += int(is_surface.sum())
                at_points.take(number, heights)
                dsm.write(
                    np.where(is_surface, heights + offset[2], geotiff.NODATA).astype(np.float32)[
                        None
                    ],
                    row,
                    column,
                )
                orthophoto.write(colors, row, column)
            if progress:
                progress(number + 1, len(tiles))
        if not num_covered:
            raise InputError(
                "height map: nothing is seen from above: no surfel between the heights "
                f"{limits[0]:.4g} and {limits[1]:.4g} "
                f"stops half of the light ({drawing.num_above} of {len(surfels.alive)} surfels are "
                f"above, {drawing.num_below} "
                "below); train longer, or look at the model with `python -m cosurfgs_jax.render`"
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
        "covered_share": num_covered / (grid.width * grid.height),
        "agreement": agreement(at_points.heights, at_points.found, grid.pixel_size),
    }
