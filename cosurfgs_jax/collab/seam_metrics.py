"""Agreement of a model's depth across the walls between cells, at every stage.

All numbers are fractions of the depth, medians over the pixels of a view, and means over views
weighted by their pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax import files, metrics
from cosurfgs_jax.collab.exchange import Exchange
from cosurfgs_jax.collab.stage_scores import CellRenderer, SeamMasks
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.training.block_renders import views_in_step
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.types import Camera, on_host


class SeamDepth(NamedTuple):
    """None where there is nothing to measure. "Seam" is the band of pixels of `SeamMasks`, "rest"
    all others.

    | field                     | what                                                             |
    |---------------------------|------------------------------------------------------------------|
    | `depth_disagreement_seam` | between the whole local models of two blocks where both were     |
    |                           | trained, before they are cropped                                 |
    | `depth_step_*`            | jump across a wall beyond the slope (`metrics.depth_steps`);     |
    |                           | rest: between all other pixels                                   |
    | `depth_step_expected`     | that jump where the same places are in one piece, so that there  |
    |                           | is no wall                                                       |
    | `depth_error_*`           | against exact depth                                              |
    | `depth_step_excess`       | what is due to the wall: sqrt(seam^2 - expected^2), 0 where it   |
    |                           | is the smaller one                                               |

    The first is of two models and exists before aggregation only. The step is what the disagreement
    leaves in one model; it is smaller where discs reach across the wall and smear it. Its excess is
    proportional to the disagreement, and distillation shall remove it: compare it between stages.
    The consistency of depth between views does not show it: a solid step looks the same from
    everywhere (round-trip reprojection by a neighbour's depth gave 0.024 % at seams and 0.026 %
    elsewhere, before and after).

    Pixels that pass from one cell to another are not like others: the edge of a roof jumps over
    ground, and so is likelier to jump over a wall (on the built-in town a model of one block has
    1.08 times the steps there). The expected step is therefore measured at the same pairs of pixels
    in the whole local models of the two blocks, which go on behind the wall. Stages without local
    models take `depth_step_rest`, times expected / rest of the last stage that had them.
    """

    depth_disagreement_seam: float | None = None
    depth_step_seam: float | None = None
    depth_step_rest: float | None = None
    depth_step_expected: float | None = None
    depth_error_seam: float | None = None
    depth_error_rest: float | None = None
    depth_step_excess: float | None = None


NUM_SUMS = 6  # of `view_sums`: the fields before the excess
# Views of each block that are measured. Few views show little of the walls: 8 in all of four blocks
# gave an excess whose standard deviation is half its value. 16 of each block took a tenth of the
# quickstart.
VIEWS_PER_BLOCK = 8


def disagreement(
    depths: dict[int, Float[np.ndarray, "h w"]],
    camera: Camera,
    partition: Partition,
    seam: Bool[np.ndarray, "h w"],
) -> Float[np.ndarray, " k"]:
    """How far blocks disagree about the same pixels.

    Args:
        depths: of each block's whole local model in one view, 0 = nothing, world lengths.
        camera: of the view, NumPy arrays.
        partition: of the blocks.
        seam: pixels that are compared.
    Returns:
        Relative difference |a - b| / mean depth f64[k] for every pixel and pair of blocks whose
        hits both lie in the expanded cells of both: where both were trained.
    """
    pairs = [np.zeros(0)]
    seen = {
        block: seam & (depth > 0) for block, depth in depths.items() if (seam & (depth > 0)).any()
    }
    points = {block: _points_of(depths[block], camera) for block in seen}
    for first in seen:
        for second in (block for block in seen if block > first):
            both = seen[first] & seen[second]
            for mine in (first, second):
                for cell in (first, second):
                    both[both] &= partition.is_in_expanded(cell, points[mine][both])
            a = depths[first][both].astype(np.float64)
            b = depths[second][both].astype(np.float64)
            pairs.append(np.abs(a - b) / (0.5 * (a + b)))
    return np.concatenate(pairs)


def _points_of(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """The points f32[H,W,3], world, that a depth map shows; of a camera of NumPy arrays."""
    return np.asarray(unproject(on_host(depth), camera.intrinsics, camera.camera_from_world))


def _sums(values: np.ndarray) -> tuple[float, float]:
    """The number of finite values, and that times their median: both add up over views."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    return float(len(values)), float(len(values) * np.median(values))


def view_sums(
    depth: Float[np.ndarray, "h w"],
    camera: Camera,
    partition: Partition,
    seam: Bool[np.ndarray, "h w"],
    *,
    truth: Float[np.ndarray, "h w"] | None = None,
    alone: dict[int, np.ndarray] | None = None,
) -> Float[np.ndarray, "6 2"]:
    """One view's part of `SeamDepth`: number of pixels, and that times the median, of each field
    except the excess.

    Args:
        depth: of the model, 0 = nothing, world lengths.
        camera: of the view, NumPy arrays.
        partition: of the blocks.
        seam: which pixels are at a seam.
        truth: exact depth, world lengths, 0 = nothing.
        alone: depth of each block's whole local model.
    """
    alone = alone or {}
    steps = metrics.depth_steps(depth)
    cells = partition.cell_of(_points_of(depth, camera))
    is_wall, is_within = metrics.label_borders(cells)
    following = np.stack([np.roll(cells, -1, axis=axis) for axis in (1, 0)])
    # A third block may have trained here too, but only at corners: the two that meet know the whole
    # wall.
    unbroken = [np.zeros(0)]
    for block, own in alone.items():
        is_own = is_wall & ((cells == block) | (following == block))
        if is_own.any():
            unbroken.append(metrics.depth_steps(_trained(block, own, camera, partition))[is_own])
    error = np.full(depth.shape, np.nan)
    if truth is not None:
        both = (truth > 0) & (depth > 0)
        error[both] = np.abs(depth - truth)[both] / truth[both]
    values = [
        disagreement(alone, camera, partition, seam),
        steps[is_wall],
        steps[is_within],
        np.concatenate(unbroken),
        error[seam],
        error[~seam],
    ]
    return np.array([_sums(value) for value in values])


def _trained(block: int, depth: np.ndarray, camera: Camera, partition: Partition) -> np.ndarray:
    """The depth of a block's whole local model where it was trained, 0 elsewhere."""
    points = _points_of(depth, camera)
    return np.where((depth > 0) & partition.is_in_expanded(block, points), depth, 0)


def seam_depth_from_sums(
    sums: Float[np.ndarray, "6 2"], roughness: float | None = None
) -> SeamDepth:
    """The means of added `view_sums`.

    Args:
        sums: of all views.
        roughness: expected / rest at an earlier stage, for stages without local models.
    """
    means = SeamDepth(*(float(total / count) if count else None for count, total in sums))
    rest = means.depth_step_rest
    if means.depth_step_expected is None and rest is not None and roughness is not None:
        means = means._replace(depth_step_expected=rest * roughness)
    seam = means.depth_step_seam
    expected = means.depth_step_expected
    if seam is None or expected is None:
        return means
    return means._replace(depth_step_excess=float(np.sqrt(max(seam**2 - expected**2, 0))))


def _solid(maps: dict, size: tuple[int, int]) -> np.ndarray:
    """Depth f32[H,W] without padding, 0 where more than half of the light passes."""
    height, width = size
    return np.where(maps["alpha"] >= MIN_PLANE_ALPHA, maps["depth"], 0)[..., :height, :width]


def _true_depth(partitioned: PartitionedScene, view: int) -> np.ndarray | None:
    """Exact depth in world lengths, where it is known in the size of the image."""
    truth = partitioned.scene.ground_truth
    path = None
    if truth is not None:
        path = truth.depth_path(view)
    if not path:
        return None
    depth = files.read_arrays(path, ("depth",))["depth"]
    if depth.shape != partitioned.views.image_size(view):
        return None
    return depth / partitioned.frame.depth_to_dataset(1.0)


def score_seam_depth(
    run: Run,
    states: list,
    exchange: Exchange,
    seams: SeamMasks,
    local_models: list | None = None,
    roughness: float | None = None,
) -> SeamDepth:
    """The depth at the seams of the merged model on photographs for training and for testing; the
    same in all processes.

    Args:
        run: of the run.
        states: states of the cells.
        exchange: between all devices.
        seams: of the place.
        local_models: states of the whole local models, before they are cropped to their cells; None
            = there are none.
        roughness: see `seam_depth_from_sums`.
    """
    partitioned = run.partitioned
    sums = np.zeros((NUM_SUMS, 2))
    if partitioned.partition.num_blocks == 1:
        return SeamDepth()
    merged = CellRenderer(run, states, exchange)
    apart = None
    if local_models is not None:
        apart = CellRenderer(run, local_models, exchange, is_apart=True)
    photographs = np.sort(
        np.concatenate([partitioned.scene.train_views, partitioned.scene.test_views])
    )
    for views in views_in_step(partitioned, photographs, VIEWS_PER_BLOCK):
        own = merged.maps(views)
        alone = {} if apart is None else apart.maps(views)
        for block, maps in own.items():
            view = views[block]
            if view is None:
                continue
            size = partitioned.views.image_size(view)
            by_block = {}
            if alone:
                depths = _solid(alone[block], size)
                by_block = dict(zip(alone[block]["cells"], depths, strict=True))
                by_block.pop(None, None)  # of devices with fewer cells than others
            sums += view_sums(
                _solid(maps, size),
                partitioned.views.camera_arrays(view),
                partitioned.partition,
                seams.mask(view),
                truth=_true_depth(partitioned, view),
                alone=by_block,
            )
    return seam_depth_from_sums(processes.gather(sums).sum(axis=0), roughness)


def wall_roughness(stages: list[dict]) -> float | None:
    """Expected / rest at the last of the stages (of metrics.json) where both were measured; None
    without any.
    """
    for stage in reversed(stages):
        expected = stage.get("depth_step_expected")
        rest = stage.get("depth_step_rest")
        if expected is not None and rest:
            return expected / rest
    return None


def summarize_seam_depth(depth: SeamDepth) -> str:
    """One line; "" where nothing was measured."""
    parts = []
    for key, name in (
        ("disagreement", "blocks disagree by"),
        ("step", "step across walls"),
        ("error", "error"),
    ):
        seam = getattr(depth, f"depth_{key}_seam")
        rest = getattr(depth, f"depth_{key}_rest", None)
        if seam is not None:
            elsewhere = "" if rest is None else f" ({rest:.3%} elsewhere)"
            parts.append(f"{name} {seam:.3%}{elsewhere}")
    if depth.depth_step_excess is not None:
        parts.append(f"{depth.depth_step_excess:.3%} of the step due to the wall")
    if not parts:
        return ""
    return f"depth at the seams, relative: {', '.join(parts)}"
