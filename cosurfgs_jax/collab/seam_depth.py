"""How well a model's depth fits together at the walls between cells: before distillation, after it, and at every stage between.

All numbers are shares of the depth, medians over the pixels of a test view, and means over views weighted by their pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax import metrics
from cosurfgs_jax.collab.exchange import Exchange
from cosurfgs_jax.collab.score import CellRenderer, SeamMasks
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.raster.maps import MIN_PLANE_ALPHA
from cosurfgs_jax.training import processes
from cosurfgs_jax.training.context import Context
from cosurfgs_jax.training.loop import test_views_in_step
from cosurfgs_jax.types import Camera


class SeamDepth(NamedTuple):
    """None where there is nothing to measure. "Seam" is the band of pixels of `SeamMasks`, "rest" all others.

    | field                     | what                                                                                          |
    |---------------------------|-----------------------------------------------------------------------------------------------|
    | `depth_disagreement_seam` | between the whole local models of two blocks where both were trained, before they are cropped |
    | `depth_step_*`            | jump across a wall beyond the slope (`metrics.depth_steps`); rest: between all other pixels   |
    | `depth_step_excess`       | what of the step is no roughness: sqrt(seam^2 - rest^2), 0 where it is the smaller one        |
    | `depth_error_*`           | against exact depth                                                                           |

    The first is of two models and exists before aggregation only; the step is what it leaves in one model, less than the
    disagreement where discs reach across the wall and smear it. Its excess goes with the disagreement, and is what
    distillation is to take away: compare that between stages. A check between views would not do: a solid step looks the same
    from everywhere (there and back by a neighbour's depth gave 0.024 % at seams and 0.026 % elsewhere before and after).
    """

    depth_disagreement_seam: float | None = None
    depth_step_seam: float | None = None
    depth_step_rest: float | None = None
    depth_error_seam: float | None = None
    depth_error_rest: float | None = None
    depth_step_excess: float | None = None


NUM_SUMS = 5  # of `view_sums`: the fields before the excess


def disagreement(depths: dict[int, Float[np.ndarray, "h w"]], camera: Camera, partition: Partition,
                 seam: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " k"]:
    """How far blocks disagree about the same pixels.

    Args:
        depths: of each block's whole local model in one view, 0 = nothing, world lengths.
        camera: of the view, NumPy arrays.
        partition: of the blocks.
        seam: pixels that are looked at.
    Returns:
        |difference| / mean depth f64[k] for every pixel and pair of blocks whose hits both lie in the expanded cells of both:
        where both were trained.
    """
    pairs = []
    seen = {block: seam & (depth > 0) for block, depth in depths.items() if (seam & (depth > 0)).any()}
    points = {block: unproject(depths[block], camera.intrinsics, camera.camera_from_world) for block in seen}
    for first in seen:
        for second in (block for block in seen if block > first):
            both = seen[first] & seen[second]
            for mine in (first, second):
                for cell in (first, second):
                    both[both] &= partition.is_in_expanded(cell, points[mine][both])
            a, b = (depths[block][both].astype(np.float64) for block in (first, second))
            pairs.append(np.abs(a - b) / (0.5 * (a + b)))
    return np.concatenate(pairs) if pairs else np.zeros(0)


def _sums(values: np.ndarray) -> tuple[float, float]:
    """What adds up over views and processes: the number of finite values, and that times their median."""
    values = values[np.isfinite(values)]
    return (float(len(values)), float(len(values) * np.median(values))) if len(values) else (0.0, 0.0)


def view_sums(depth: Float[np.ndarray, "h w"], camera: Camera, partition: Partition, seam: Bool[np.ndarray, "h w"], *,
              truth: Float[np.ndarray, "h w"] | None = None,
              alone: dict[int, np.ndarray] | None = None) -> Float[np.ndarray, "5 2"]:
    """One view's part of `SeamDepth`: number of pixels, and that times the median, of each field but the excess.

    Args:
        depth: of the model, 0 = nothing, world lengths.
        camera: of the view, NumPy arrays.
        partition: of the blocks.
        seam: which pixels are at a seam.
        truth: exact depth, world lengths, 0 = nothing.
        alone: depth of each block's whole local model.
    """
    cells = partition.cell_of(unproject(depth, camera.intrinsics, camera.camera_from_world))
    steps, is_wall = metrics.depth_steps(depth, cells)
    error = np.full(depth.shape, np.nan)
    if truth is not None:
        both = (truth > 0) & (depth > 0)
        error[both] = np.abs(depth - truth)[both] / truth[both]
    values = [disagreement(alone or {}, camera, partition, seam), steps[is_wall], steps[~is_wall], error[seam], error[~seam]]
    return np.array([_sums(value) for value in values])


def seam_depth_from_sums(sums: Float[np.ndarray, "5 2"]) -> SeamDepth:
    """The means of added `view_sums`."""
    means = SeamDepth(*(float(total / count) if count else None for count, total in sums))
    seam, rest = means.depth_step_seam, means.depth_step_rest
    if seam is None or rest is None:
        return means
    return means._replace(depth_step_excess=float(np.sqrt(max(seam**2 - rest**2, 0))))


def _solid(maps: dict, size: tuple[int, int]) -> np.ndarray:
    """Depth f32[H,W] without padding, 0 where more than half of the light passes."""
    height, width = size
    return np.where(maps["alpha"] >= MIN_PLANE_ALPHA, maps["depth"], 0)[..., :height, :width]


def _true_depth(context: Context, view: int) -> np.ndarray | None:
    """Exact depth in world lengths, where it is known in the size of the image."""
    place = context.place
    path = place.scene.ground_truth and place.scene.ground_truth.depth_path(view)
    if not path:
        return None
    with np.load(path) as content:
        depth = content["depth"]
    return depth / place.frame.depth_to_dataset(1.0) if depth.shape == place.views.image_size(view) else None


def score_seam_depth(context: Context, rows: list, exchange: Exchange, seams: SeamMasks,
                     whole_rows: list | None = None) -> SeamDepth:
    """The depth at the seams of the merged model on all test views; the same in all processes.

    Args:
        context: of the run.
        rows: states of the cells.
        exchange: between all devices.
        seams: of the place.
        whole_rows: states of the whole local models, before they were cropped to their cells; None = they are not there.
    """
    place = context.place
    sums = np.zeros((NUM_SUMS, 2))
    if place.partition.num_blocks == 1 or not len(place.scene.test_views):
        return SeamDepth()
    merged = CellRenderer(context, rows, exchange)
    apart = None if whole_rows is None else CellRenderer(context, whole_rows, exchange, is_apart=True)
    for views in test_views_in_step(place):
        own = merged.maps(views)
        alone = {} if apart is None else apart.maps(views)
        for block, maps in own.items():
            view = views[block]
            if view is None:
                continue
            size = place.views.image_size(view)
            by_block = dict(zip(alone[block]["cells"], _solid(alone[block], size), strict=True)) if alone else {}
            by_block.pop(None, None)  # of devices with fewer cells than others
            sums += view_sums(_solid(maps, size), place.views.camera_arrays(view), place.partition, seams.mask(view),
                              truth=_true_depth(context, view), alone=by_block)
    return seam_depth_from_sums(processes.gather(sums).sum(axis=0))


def tell_seam_depth(depth: SeamDepth) -> str:
    """One line; "" where nothing was measured."""
    parts = []
    for key, name in (("disagreement", "blocks disagree by"), ("step", "step across walls"), ("error", "error")):
        seam, rest = (getattr(depth, f"depth_{key}_{where}", None) for where in ("seam", "rest"))
        if seam is not None:
            parts.append(f"{name} {seam:.3%}" + ("" if rest is None else f" ({rest:.3%} elsewhere)"))
    if depth.depth_step_excess is not None:
        parts.append(f"step beyond roughness {depth.depth_step_excess:.3%}")
    return f"depth at the seams, as a share of it: {', '.join(parts)}" if parts else ""
