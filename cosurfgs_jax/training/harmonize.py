"""One brightness for all blocks: what their exposures say of the photographs that they share.

Each block anchors its canonical colours by itself, to the mean of its own photographs. Where some
photographs are brighter than the rest, blocks that have more of them are darker or brighter than
their neighbours, and the merged model has steps at the walls. A photograph that two blocks have is
the same: what their transforms make of one grey tells how much their colours differ."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.errors import required
from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import BlockModel, TrainState

_LARGEST_GAIN = 4.0  # more is no exposure but a failure


def block_gains(
    responses: Float[np.ndarray, "b v 3"], num_views: Int[np.ndarray, " b"]
) -> Float[np.ndarray, "b 3"]:
    """The factor on each block's colours with which blocks agree about the photographs that they
    share.

    Args:
        responses: what each block's transform of a photograph makes of one canonical grey; NaN
            where a block has no such photograph.
        num_views: i64[B], photographs of each block: the mean of log factors, weighted by them, is
            0, so that the place as a whole keeps its brightness.
    Returns:
        Least squares over pairs of blocks of the median log ratio, weighted by how many photographs
        they share; 1 for blocks that share none.
    """
    num_blocks = len(responses)
    logs = np.log(np.clip(responses, 1e-3, None))
    normal = np.zeros((num_blocks, num_blocks))
    right = np.zeros((num_blocks, 3))
    for a in range(num_blocks):
        for b in range(a):
            both = np.isfinite(logs[a]).all(axis=-1) & np.isfinite(logs[b]).all(axis=-1)
            if not both.any():
                continue
            # What answers the same photograph more brightly has darker colours.
            difference = np.median(logs[a, both] - logs[b, both], axis=0)
            weight = both.sum()
            normal[[a, b], [a, b]] += weight
            normal[[a, b], [b, a]] -= weight
            right[a] += weight * difference
            right[b] -= weight * difference
    # Groups of blocks that share nothing have their own free constant: the pseudo-inverse leaves
    # each at its mean.
    gains = np.linalg.pinv(normal, hermitian=True) @ right
    gains -= (num_views[:, None] * gains).sum(axis=0) / num_views.sum()
    return np.clip(np.exp(gains), 1 / _LARGEST_GAIN, _LARGEST_GAIN)


def gray_responses(
    partitioned: PartitionedScene, exposures: dict[int, dict]
) -> Float[np.ndarray, "b v 3"]:
    """What each block's transform of a photograph makes of one canonical grey; NaN where a block
    has no such photograph.

    Args:
        partitioned: of the run.
        exposures: number of a block -> its exposure model; the rows of other blocks are NaN.
    """
    table = np.full((len(partitioned.blocks), partitioned.scene.num_views, 3), np.nan, np.float32)
    for block, exposure in exposures.items():
        shown = partitioned.blocks[block].views
        responses = exposure_model.gray_responses(jax.tree.map(jnp.asarray, exposure))
        table[block, shown] = np.asarray(responses)[: len(shown)]
    return table


def gains_of(
    partitioned: PartitionedScene, responses: Float[np.ndarray, "b v 3"]
) -> Float[np.ndarray, "b 3"]:
    """`block_gains` for the blocks of a place, from their `gray_responses`."""
    return block_gains(responses, np.array([len(block.views) for block in partitioned.blocks]))


def scale_harmonics(sh: Float[Array, "n k 3"], gain: Float[Array, "3"]) -> Float[Array, "n k 3"]:
    """The coefficients of colours that are `gain` times as bright."""
    return (
        (sh * gain[None, None]).at[:, 0].add((0.5 * (gain - 1) / spherical_harmonics.C0)[None])
    )  # colour = harmonics + 0.5


def scale_colors(
    state: TrainState | BlockModel, gain: Float[Array, "3"]
) -> TrainState | BlockModel:
    """The state with canonical colours times `gain` and transforms that undo it: what it shows of
    its photographs is the same.

    Args:
        state: of one block, with an exposure model.
        gain: per channel, positive.
    """
    sh = scale_harmonics(state.params.sh, gain)
    return dataclasses.replace(
        state,
        params=state.params.replace(sh=sh),
        appearance=exposure_model.apply_inverse_gain(
            required(state.appearance, "TrainState.appearance"), gain
        ),
    )


def harmonize_exposure(run: Run, stage: StageState) -> tuple[StageState, Float[np.ndarray, "b 3"]]:
    """Gives blocks that have models and exposures of their own one brightness.

    Args:
        run: of the run; every process calls it.
        stage: of the device stage or its compression, states or models. Its arrays are used up.
    Returns:
        The stage with other colours and exposures, and the factors f64[B,3].
    """
    partitioned = run.partitioned
    layout = run.layout
    num_blocks = len(partitioned.blocks)
    if not run.settings.appearance.enabled or num_blocks == 1:
        return stage, np.ones((num_blocks, 3))
    table = gray_responses(
        partitioned,
        {block: state.appearance for block, state in layout.get_blocks(stage.states).items()},
    )
    gains = gains_of(partitioned, np.fmax.reduce(processes.gather(table), axis=0))
    scale = sharded(scale_colors, layout, donate=(0,))
    rows = [
        scale(
            state,
            layout.put_row(
                row,
                lambda number: (
                    np.ones(3, np.float32) if number is None else gains[number].astype(np.float32)
                ),
            ),
        )
        for row, state in enumerate(stage.states)
    ]
    return stage._replace(states=rows), gains
