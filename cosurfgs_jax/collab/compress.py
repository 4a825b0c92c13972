"""Local model compression (LMC): how much each surfel matters to the photographs that look at the
block, and what is pruned.

Source: CoSurfGS, section LMC, does not give the formula of its importance; ours is in
    collab/removal_score.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.collab.importance import (
    Importance,
    importance_scores,
    init_importance,
    measure_view,
)
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout, sharded
from cosurfgs_jax.model import slots
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.batches import each_view
from cosurfgs_jax.training.loop import StageState, count_alive, drop_free_slots
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import BlockModel, TrainState, map_slots, with_surfels
from cosurfgs_jax.types import blank_params


def top_fraction_mask(
    scores: Float[Array, " n"],
    among: Bool[Array, " n"],
    prune_ratio: float,
    importance_share: float,
) -> Bool[Array, " n"]:
    """The surfels of the highest scores.

    Args:
        scores: f32[N], 0 or more. among: bool[N], which are judged.
        prune_ratio: fraction of them that is dropped, if `importance_share` is 0.
        importance_share: else as few are kept as hold this fraction of the sum of scores.
    Returns:
        bool[N]; ties by index.
    """
    order = jnp.argsort(jnp.where(among, -scores, jnp.inf), stable=True)
    rank = (
        jnp.zeros_like(order)
        .at[order]
        .set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)
    )
    num = among.sum(dtype=jnp.int32)
    if importance_share > 0:
        sums = jnp.cumsum(jnp.where(among, scores, 0.0)[order])
        num_kept = jnp.minimum((sums < importance_share * sums[-1]).sum(dtype=jnp.int32) + 1, num)
        num_kept = jnp.where(sums[-1] > 0, num_kept, num)  # nothing is known of them
    else:
        num_kept = num - jnp.floor(prune_ratio * num.astype(jnp.float32)).astype(jnp.int32)
    return among & (rank < num_kept)


def prune_step(
    state: TrainState,
    importance: Importance,
    is_inside: Bool[Array, " n"],
    settings: Settings,
    prune_ratio: float,
) -> TrainState:
    """Prunes the surfels in the cell and those around it, each by the rule, and moves the rest to
    the front of the arrays.

    Judged together, the surfels around the cell, which used photographs hardly see, would all be
    pruned first, and the cell, which goes into the merged model, would not get smaller. Moments and
    statistics move with their surfels.
    """
    scores = importance_scores(importance, state.params.log_scales, state.alive, settings)
    alive = top_fraction_mask(
        scores, state.alive & is_inside, prune_ratio, settings.lmc.importance_share
    )
    alive |= top_fraction_mask(
        scores, state.alive & ~is_inside, prune_ratio, settings.lmc.importance_share
    )
    return with_surfels(state, *slots.compact(state.params, state.optimizer, alive, state.stats))


def inside_masks(partition: Partition, layout: Layout, states: list) -> list:
    """Living surfels with their centre in their block's cell, bool[D, N] for every row."""

    def mask(device: int, row: int) -> np.ndarray:
        state = layout.get(states[row], device)
        block = layout.block_at(device, row)
        if block is None:
            return np.zeros_like(state.alive)
        return state.alive & (partition.cell_of(state.params.means) == block)

    return [layout.put(lambda device, row=row: mask(device, row)) for row in range(len(states))]


class Compression(NamedTuple):
    """What a compression did, for each block of this process."""

    states: list  # of the blocks in each row of the layout
    num_before: dict[int, int]
    num_after: dict[int, int]
    num_used: dict[int, int]  # photographs
    num_inside: dict[int, int]  # surfels in the cell afterwards


def _measure_row(run: Run, measure, state: TrainState, is_inside, row: int) -> Importance:
    importance = run.layout.put(lambda _: init_importance(state.alive.shape[1]))
    for camera, is_active, size in each_view(run.partitioned, run.layout, row):
        importance = measure(importance, state, is_inside, camera, is_active, image_size=size)
        jax.block_until_ready(importance.num_used)
    return importance


def _choose(layout: Layout, importance: Importance, everything: Importance) -> Importance:
    """The second where a device's block has no used photograph."""

    def pick(device: int) -> Importance:
        own = layout.get(importance, device)
        return own if own.num_used else layout.get(everything, device)

    return layout.put(pick)


class Programs(NamedTuple):
    """What compression runs on the devices, compiled for all its rounds."""

    # (importance, state, is_inside, camera, is_active, image_size=) -> importance
    measure: Callable
    measure_all: Callable  # the same, and photographs that mostly show other blocks count, too
    prune: Callable  # (state, importance, is_inside) -> state


def compile_compression(settings: Settings, layout: Layout, prune_ratio: float) -> Programs:
    """The jitted functions that compress blocks.

    Args:
        settings, layout: of the run.
        prune_ratio: of one round; see `top_fraction_mask`.
    """

    def bind(settings: Settings) -> Callable:
        measure = functools.partial(measure_view, settings=settings)
        return sharded(measure, layout, donate=(0,), static=("image_size",))

    all_used = dataclasses.replace(
        settings, lmc=dataclasses.replace(settings.lmc, camera_switch=False)
    )
    prune = functools.partial(prune_step, settings=settings, prune_ratio=prune_ratio)
    return Programs(bind(settings), bind(all_used), sharded(prune, layout, donate=(0,)))


def compress(run: Run, stage: StageState, programs: Programs) -> Compression:
    """Measures the importance of all surfels of all blocks over their photographs, and prunes. The
    slots stay, with the living surfels in front.

    Args:
        run: of the run.
        stage: the blocks.
        programs: for these blocks.
    """
    layout = run.layout
    partition = run.partitioned.partition
    before = count_alive(layout, stage.states)
    states = []
    used = []
    for row, (state, is_inside) in enumerate(
        zip(stage.states, inside_masks(partition, layout, stage.states), strict=True)
    ):
        importance = _measure_row(run, programs.measure, state, is_inside, row)
        if processes.any_process(
            any(
                layout.block_at(device, row) is not None
                and not layout.get(importance.num_used, device)
                for device in layout.local_devices
            )
        ):
            # Small cells under wide photographs: none of them looks mostly at the cell, so all of
            # them count.
            everything = _measure_row(run, programs.measure_all, state, is_inside, row)
            importance = _choose(layout, importance, everything)
        used.append(importance.num_used + 0)  # kept: prune takes the importance's memory
        states.append(programs.prune(state, importance, is_inside))
    inside = layout.get_blocks(inside_masks(partition, layout, states))
    return Compression(
        states=states,
        num_before=before,
        num_after=count_alive(layout, states),
        num_used={block: int(number) for block, number in layout.get_blocks(used).items()},
        num_inside={block: int(mask.sum()) for block, mask in inside.items()},
    )


def crop_to_cells(partition: Partition, layout: Layout, states: list) -> list:
    """Each block's surfels in its own cell only, in front, in as few slots as hold them: the cells
    of the merged model. Their steps draw second views, and update all surfels.

    Args:
        partition, layout: of the run.
        states: of the blocks, `TrainState` or `BlockModel`; the result is of the same.
    """

    def crop(state, is_inside: Bool[Array, " n"]):
        source = slots.living_first(is_inside)
        cell = dataclasses.replace(state, alive=is_inside)
        cell = map_slots(cell, lambda values: values[source])
        # What belongs to other cells would stay in checkpoints; zeros cost nothing there.
        blank = blank_params(len(is_inside), cell.params.sh.shape[1])
        params = jax.tree.map(
            lambda own, empty: jnp.where(slots.per_slot(cell.alive, own), own, empty),
            cell.params,
            blank,
        )
        cell = dataclasses.replace(cell, params=params)
        if isinstance(cell, BlockModel):
            return cell
        optimizer = slots.zero_moments(cell.optimizer, ~cell.alive)
        return dataclasses.replace(cell, optimizer=optimizer, depths=None, updated=None)

    cut = sharded(crop, layout)
    masks = inside_masks(partition, layout, states)
    cells = [cut(state, mask) for state, mask in zip(states, masks, strict=True)]
    return drop_free_slots(layout, cells)
