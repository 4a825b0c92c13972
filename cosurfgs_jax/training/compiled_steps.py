"""The steps of training under shard_map: every device trains one block, and they exchange nothing.

Each function here is a function of one block (`step`, `density_steps`) for all devices of the mesh
at once. The compiled programs hold no collective; tests read that from their text.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from cosurfgs_jax.distributed.layout import Layout, sharded
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import density_steps, masked_steps, step


class BlockSteps(NamedTuple):
    """The compiled steps of the blocks of a round. Arguments have an axis of D devices in front;
    what is changed is donated.
    """

    train: Callable  # (state, Batch, shape=StepShape) -> (state, StepReport)
    # (state, PackedBatch, Recalled or None, shape=StepShape) -> (state, Packed StepReport): the
    # same with less to send
    train_packed: Callable
    recall: Callable  # (state, PackedBatch) -> Recalled
    settle: Callable  # (state, progress) -> state
    settled_copy: Callable  # the same; nothing is donated
    look: Callable  # (state, PackedBatch) -> state
    densify: Callable  # (state, DensifyOrder) -> (state, DensityReport)
    reset_opacity: Callable  # state -> state
    count_front_view: Callable  # (num_views, state, camera, is_active, image_size=) -> num_views
    trim: Callable  # (state, num_views, is_enough) -> (state, number dropped)
    begin_masks: Callable  # state -> state
    prune_masked: Callable  # state -> state, the living surfels in front


def _train_packed(state, delivery, recalled, settings: Settings, shape: step.StepShape, own_terms):
    state, report = step.train_step(
        state, delivery.open(), settings, shape=shape, own_terms=own_terms, recalled=recalled
    )
    return state, Packed.pack(report)


def _recall(state, delivery):
    return step.recall_step(state, delivery.open())


def _look(state, delivery, settings: Settings):
    return density_steps.look_step(state, delivery.open(), settings)


def compile_blocks(
    settings: Settings, layout: Layout, own_terms: tuple[LossTerm, ...] = ()
) -> BlockSteps:
    """The jitted functions for these settings and a user's terms of the loss on this mesh."""

    def bind(function, **options):
        return sharded(functools.partial(function, settings=settings), layout, **options)

    def bind_training(function):
        bound = functools.partial(function, own_terms=own_terms)
        return bind(bound, donate=(0,), static=("shape",))

    return BlockSteps(
        train=bind_training(step.train_step),
        train_packed=bind_training(_train_packed),
        recall=sharded(_recall, layout),
        settle=bind(step.settle_step, donate=(0,)),
        settled_copy=bind(step.settle_step),
        look=bind(_look, donate=(0,)),
        densify=bind(density_steps.densify_step, donate=(0,)),
        reset_opacity=bind(density_steps.reset_opacity_step, donate=(0,)),
        count_front_view=bind(density_steps.count_front_view, donate=(0,), static=("image_size",)),
        trim=bind(density_steps.trim_step, donate=(0,)),
        begin_masks=sharded(masked_steps.begin_masks, layout, donate=(0,)),
        prune_masked=sharded(masked_steps.prune_masked_step, layout, donate=(0,)),
    )
