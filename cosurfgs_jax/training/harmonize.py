"""One brightness for all blocks: what their exposures say of the photographs that they share.

Each block anchors its canonical colours by itself, to the mean of its own photographs. Where some
photographs are brighter than the rest, blocks that have more of them are darker or brighter than
their neighbours, and the merged model has steps at the walls. A photograph that two blocks have is
the same: what their transforms make of one grey tells how much their colours differ."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import csr_array, tril

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
    views: list[Int[np.ndarray, " _"]], responses: list[Float[np.ndarray, "_ 3"]]
) -> Float[np.ndarray, "b 3"]:
    """The factor on each block's colours with which blocks agree about the photographs that they
    share.

    Args:
        views: B arrays, the photographs of each block, ascending: the mean of log factors, weighted
            by how many they are, is 0, so that the place as a whole keeps its brightness.
        responses: B arrays, what each block's transform of these makes of one canonical grey; a
            photograph with NaN does not count.
    Returns:
        Least squares over pairs of blocks of the median log ratio, weighted by how many photographs
        they share; 1 for blocks that share none.
    """
    num_blocks = len(views)
    normal = np.zeros((num_blocks, num_blocks))
    right = np.zeros((num_blocks, 3))
    for a, b, difference, weight in _log_ratios(views, responses):
        normal[[a, b], [a, b]] += weight
        normal[[a, b], [b, a]] -= weight
        right[a] += weight * difference
        right[b] -= weight * difference
    # Groups of blocks that share nothing have their own free constant: the pseudo-inverse leaves
    # each at its mean.
    gains = np.linalg.pinv(normal, hermitian=True) @ right
    num_views = np.array([len(own) for own in views])
    gains -= (num_views[:, None] * gains).sum(axis=0) / num_views.sum()
    return np.clip(np.exp(gains), 1 / _LARGEST_GAIN, _LARGEST_GAIN)


def _log_ratios(
    views: list[Int[np.ndarray, " _"]], responses: list[Float[np.ndarray, "_ 3"]]
) -> Iterator[tuple[int, int, Float[np.ndarray, "3"], int]]:
    """The pairs of blocks a > b that share photographs, in order: how much darker the colours of a
    are than those of b, the median of logarithms, and the number of photographs that tell it.
    """
    logs = []
    kept = []
    for own, values in zip(views, responses, strict=True):
        values = np.log(np.clip(values, 1e-3, None))
        is_known = np.isfinite(values).all(axis=-1)
        logs.append(values[is_known])
        kept.append(own[is_known])
    starts = np.cumsum([0, *map(len, kept)])
    has = csr_array(
        (np.ones(starts[-1], np.int32), np.concatenate(kept), starts),
        (len(kept), 1 + max((int(own.max(initial=-1)) for own in kept), default=-1)),
    )
    pairs = tril(has @ has.T, -1, format="csr").tocoo()
    for a, b in sorted(zip(pairs.row.tolist(), pairs.col.tolist(), strict=True)):
        _, in_a, in_b = np.intersect1d(kept[a], kept[b], assume_unique=True, return_indices=True)
        # What answers the same photograph more brightly has darker colours.
        difference = np.median(logs[a][in_a] - logs[b][in_b], axis=0)
        yield a, b, difference.astype(np.float64), len(in_a)


def gray_responses(exposure: dict, num_views: int) -> Float[np.ndarray, "v 3"]:
    """What a block's transforms of its photographs make of one canonical grey, f32.

    Args:
        exposure: the block's exposure model.
        num_views: of the block.
    """
    responses = exposure_model.gray_responses(jax.tree.map(jnp.asarray, exposure))
    return np.asarray(responses)[:num_views]


def gains_of(partitioned: PartitionedScene, exposures: dict[int, dict]) -> Float[np.ndarray, "b 3"]:
    """`block_gains` for the blocks of a place, from the exposure models of all of them."""
    views = [block.views for block in partitioned.blocks]
    return block_gains(
        views, [gray_responses(exposures[block], len(own)) for block, own in enumerate(views)]
    )


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


def _of_all(run: Run, stage: StageState) -> list[Float[np.ndarray, "_ 3"]]:
    """`gray_responses` of all blocks, from all processes. A row holds the photographs of a block:
    one of all photographs of the place for every block would be most of a process's memory.
    """
    blocks = run.partitioned.blocks
    states = run.layout.get_blocks(stage.states)
    most = processes.max_over_processes([len(states)])
    numbers = np.full(most, -1)
    rows = np.full((most, run.partitioned.max_views, 3), np.nan, np.float32)
    for row, (block, state) in enumerate(states.items()):
        num_views = len(blocks[block].views)
        numbers[row] = block
        rows[row, :num_views] = gray_responses(state.appearance, num_views)
    gathered = processes.gather(rows).reshape(-1, *rows.shape[1:])
    place = {block: row for row, block in enumerate(processes.gather(numbers).ravel().tolist())}
    return [gathered[place[number], : len(block.views)] for number, block in enumerate(blocks)]


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
    gains = block_gains([block.views for block in partitioned.blocks], _of_all(run, stage))
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
