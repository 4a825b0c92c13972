"""What the blocks' own models show of views, drawn by the devices that train them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from cosurfgs_jax import metrics, photograph
from cosurfgs_jax.distributed.layout import Layout, sharded
from cosurfgs_jax.raster import RasterOptions, render
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.types import Camera


def render_blocks(
    run: Run, rows: Sequence[Any], views: dict[int, int | None]
) -> dict[int, np.ndarray]:
    """What each block's own model shows from one view each: f32[H,W,3] for every local block that
    has a view.
    """
    partitioned = run.partitioned
    layout = run.layout
    size = partitioned.photo_size or partitioned.views.image_size(
        next(view for view in views.values() if view is not None)
    )
    draw = _compile_drawing(layout, size, RasterOptions.from_settings(run.settings.raster))
    colors = []
    for row, state in enumerate(rows):

        def camera(number: int | None) -> Camera:
            view = None
            if number is not None:
                view = views[number]
            return partitioned.views.camera_arrays(view or 0)

        colors.append(jax.block_until_ready(draw(state, layout.put_row(row, camera))))
    return {
        block: color
        for block, color in layout.get_blocks(colors).items()
        if views[block] is not None
    }


@functools.lru_cache(maxsize=8)
def _compile_drawing(layout: Layout, size: tuple[int, int], options: RasterOptions):
    def draw(state, camera):
        return render(state.surfels(), camera, size, options).color

    return sharded(draw, layout)


def views_in_step(
    partitioned: PartitionedScene, views: Int[np.ndarray, " n"], max_views: int | None = None
):
    """Views, one of each block at a time: {block: view or None}. A view belongs to the block in
    whose cell it stands.

    Args:
        partitioned: with its blocks.
        views: numbers.
        max_views: of each block, spread evenly over its own; None = all.
    """
    owned = [
        views[partitioned.partition.home[views] == block.number] for block in partitioned.blocks
    ]
    if max_views is not None:
        owned = [
            own[np.linspace(0, len(own) - 1, min(len(own), max_views)).round().astype(int)]
            for own in owned
        ]
    for index in range(max(map(len, owned))):
        yield {
            number: int(views[index]) if index < len(views) else None
            for number, views in enumerate(owned)
        }


def log_test_views(run: Run, stage: StageState) -> None:
    """Logs for each block the mean PSNR of its own model on the test views that stand
    in its cell.
    """
    partitioned = run.partitioned
    scores = {}
    for views in views_in_step(partitioned, partitioned.scene.test_views):
        for block, color in render_blocks(run, stage.states, views).items():
            photo = run.images.load(views[block])
            mask = photograph.mask_of(photo)
            if mask is not None and not mask.any():
                continue
            color = np.clip(color[: photo.shape[0], : photo.shape[1]], 0, 1)
            scores.setdefault(block, []).append(
                float(metrics.psnr(color, photograph.colors_of(photo), mask))
            )
    for block, values in scores.items():
        run.log.row(stage.name, stage.step, block, **{"psnr/test": float(np.mean(values))})
