"""Scores of the merged model at a stage: on test views rendered sort-last, and in the band along
the walls between cells.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax import metrics, photograph
from cosurfgs_jax.collab.composite import RequestPlanner, receive_parts, render_views
from cosurfgs_jax.collab.exchange import Exchange, Grouping
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout, sharded
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.raster import Maps, RasterOptions
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.training.block_renders import views_in_step
from cosurfgs_jax.training.first_state import surfels_on_points
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.world_cameras import render_compiled
from cosurfgs_jax.types import Surfels, on_host

SEAM_WIDTH = 0.05  # of the cell's size, on either side of a wall
NUM_SUMS = 7  # of `score_view`
_SOLID_LOGIT = 3.0  # opacity 0.95 of the SfM discs that say where a pixel's hit is
_MIN_ALPHA = 1e-6  # thinner hits have no depth
_ssim = jax.jit(metrics.ssim)


class Scores(NamedTuple):
    """Means over the test views; None where there are none, or no pixel at a seam.

    "Fitted" is after a quadratic colour fit to each photograph (`metrics.color_correct`), which
    takes exposure out."""

    psnr: float | None
    psnr_fitted: float | None
    ssim: float | None
    psnr_seam: float | None
    psnr_seam_fitted: float | None


class SeamMasks:
    """Which pixels of a view show the band along the walls.

    Where a pixel's hit lies is read from the discs of the SfM points, not from a trained model: so
    every model of a place is judged on the same pixels.
    """

    def __init__(self, partitioned: PartitionedScene, settings):
        """
        Args:
            partitioned: with its partition.
            settings: `surfels`, `raster`, `seed`.
        """
        self._partitioned = partitioned
        self._settings = settings
        self._discs: dict[int, Surfels] = {}
        self._masks: dict[int, np.ndarray] = {}

    def mask(self, view: int) -> Bool[np.ndarray, "h w"]:
        """bool[H,W]; all False for one block."""
        if view not in self._masks:
            self._masks[view] = self._make(view)
        return self._masks[view]

    def _make(self, view: int) -> np.ndarray:
        partitioned = self._partitioned
        size = self._partitioned.views.image_size(view)
        if partitioned.partition.num_blocks == 1:
            return np.zeros(size, bool)
        block: Block = partitioned.blocks[int(partitioned.partition.home[view])]
        if block.number not in self._discs:
            points = partitioned.partition.points[block.number]  # with those around the block
            surfels = surfels_on_points(
                partitioned,
                block,
                points,
                settings=self._settings,
                num_slots=min(len(points), block.capacity),
            )
            self._discs[block.number] = surfels.replace(
                logit_opacities=jnp.full_like(surfels.logit_opacities, _SOLID_LOGIT)
            )
        camera = partitioned.views.camera_arrays(view)
        options = RasterOptions.from_settings(self._settings.raster)
        out = render_compiled(self._discs[block.number], camera, size, options, maps=Maps.GEOMETRY)
        depth = on_host(np.asarray(out.depth))
        points = np.asarray(unproject(depth, camera.intrinsics, camera.camera_from_world))
        return (np.asarray(out.alpha) >= MIN_PLANE_ALPHA) & (
            partitioned.partition.wall_distance(points) <= SEAM_WIDTH
        )


def score_view(
    color: Float[np.ndarray, "h w 3"], photo: np.ndarray, seam: Bool[np.ndarray, "h w"]
) -> np.ndarray:
    """Sums that means are made of: f64[7] = 1, PSNR, fitted PSNR, SSIM, number of seam pixels, and
    their squared error and fitted squared error.

    Args:
        color: the render, at least as large as the photograph.
        photo: u8[H,W,3 or 4].
        seam: which pixels are at a seam.
    A photograph whose mask leaves nothing adds nothing.
    """
    target = photograph.colors_of(photo)
    mask = photograph.mask_of(photo)
    if mask is not None and not mask.any():
        return np.zeros(NUM_SUMS)
    color = np.clip(color[: photo.shape[0], : photo.shape[1]], 0, 1)
    fitted = np.clip(metrics.color_correct(color, target, mask), 0, 1).astype(np.float32)
    if mask is not None:
        seam = seam & mask
    errors = [
        np.square(image - target, dtype=np.float64).mean(axis=-1)[seam].sum()
        for image in (color, fitted)
    ]
    psnrs = [float(metrics.psnr(image, target, mask)) for image in (color, fitted)]
    return np.array([1.0, *psnrs, float(_ssim(color, target, mask)), seam.sum(), *errors])


def scores_from_sums(sums: np.ndarray) -> Scores:
    """The means of added `score_view`s. PSNR and SSIM are means over views; the seam's is of all
    its pixels together.
    """
    num_views, psnr, fitted, ssim, num_pixels, *errors = sums.tolist()
    if not num_views:
        return Scores(psnr=None, psnr_fitted=None, ssim=None, psnr_seam=None, psnr_seam_fitted=None)
    seams = [None, None]
    if num_pixels:
        seams = [float(-10 * np.log10(max(error / num_pixels, 1e-10))) for error in errors]
    return Scores(psnr / num_views, fitted / num_views, ssim / num_views, *seams)


@functools.lru_cache(maxsize=16)
def _compile(
    layout: Layout,
    exchange: Exchange,
    size: tuple[int, int],
    options: RasterOptions,
    is_apart: bool,
):
    def together(states, requests):
        outputs = render_views(
            [state.surfels() for state in states], requests, exchange, size, options
        )
        return [{"color": out.color, "alpha": out.alpha, "depth": out.depth} for out in outputs]

    def apart(states, requests):
        parts = receive_parts(
            [state.surfels() for state in states], requests, exchange, size, options
        )
        return [
            {"alpha": part.alpha, "depth": part.depth / jnp.maximum(part.alpha, _MIN_ALPHA)}
            for part in parts
        ]

    return sharded(apart if is_apart else together, layout)


class CellRenderer:
    """Renders views of a model whose cells lie on several devices; all processes ask for the same
    views together.
    """

    def __init__(self, run: Run, states: list, exchange: Exchange, is_apart: bool = False):
        """
        Args:
            run: of the run.
            states: states of the cells.
            exchange: between all devices.
            is_apart: each block's model by itself, instead of their composite.
        """
        self._run = run
        self._states = states
        self._exchange = exchange
        self._is_apart = is_apart
        one_model = np.zeros(len(run.partitioned.blocks), np.int64)
        self._planner = RequestPlanner(run.partitioned, run.layout, Grouping(exchange, one_model))

    def maps(self, views: dict[int, int | None]) -> dict[int, dict]:
        """Maps of one view of every block (None: no view).

        Returns:
            For each block of this process "alpha", "depth" f32[H,W] and "color" f32[H,W,3]; or,
            apart, [n,H,W] of the models of "cells", n block numbers (None: no model), without
            colour.
        """
        partitioned = self._run.partitioned
        layout = self._run.layout
        size = partitioned.photo_size or partitioned.views.image_size(
            next(view for view in views.values() if view is not None)
        )
        draw = _compile(
            layout,
            self._exchange,
            size,
            RasterOptions.from_settings(self._run.settings.raster),
            self._is_apart,
        )
        maps = layout.get_blocks(
            jax.block_until_ready(draw(self._states, self._planner.requests(views)))
        )
        if self._is_apart:
            for block, own in maps.items():
                own["cells"] = self._planner.cells_received(layout.device_of(block))
        return maps


def render_test_views(run: Run, states: list, exchange: Exchange):
    """Renders all test views of the whole model, sort-last.

    Args:
        run: of the run.
        states: states of the cells.
        exchange: between all devices.
    Yields:
        (view, maps "color" f32[H,W,3], "alpha", "depth" f32[H,W]) of this process's test views.
    """
    renderer = CellRenderer(run, states, exchange)
    for views in views_in_step(run.partitioned, run.partitioned.scene.test_views):
        yield from (
            (views[block], own)
            for block, own in renderer.maps(views).items()
            if views[block] is not None
        )


def score_cells(run: Run, states: list, exchange: Exchange, seams: SeamMasks) -> Scores:
    """Scores of the merged model on all test views; the same in all processes."""
    sums = np.zeros(NUM_SUMS)
    if len(run.partitioned.scene.test_views):
        for view, maps in render_test_views(run, states, exchange):
            sums += score_view(maps["color"], run.images.load(view), seams.mask(view))
    return scores_from_sums(processes.gather(sums).sum(axis=0))
