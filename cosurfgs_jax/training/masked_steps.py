"""What masks change in the steps of one block: pure functions of its state."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.errors import required
from cosurfgs_jax.model import masks, slots
from cosurfgs_jax.model.masks import MaskSample, MaskState
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.state import TrainState, with_surfels
from cosurfgs_jax.types import SurfelParams


def begin_masks(state: TrainState) -> TrainState:
    """The state with masks that are to be learned."""
    return dataclasses.replace(state, masks=masks.init(state.alive.shape[0]))


def masking_of(state: TrainState, seed: Int[Array, ""] | None) -> MaskSample | None:
    """The masks of a step; None while none are learned."""
    if state.masks is None:
        return None
    return masks.sample(state.masks, required(seed, "Batch.mask_seed"))


def who_learns(
    state: TrainState,
    gradient: SurfelParams,
    seen: Bool[Array, " n"],
    masking: MaskSample | None,
) -> tuple[Bool[Array, " n"], SurfelParams]:
    """The surfels that the optimiser updates, and their gradient: what is masked is treated as if
    it were outside of the view.

    Args:
        state: of the block.
        gradient: of the loss.
        seen: bool[N], what the step drew.
        masking: the masks that it drew with.
    """
    if masking is None:
        return seen, gradient
    if state.updated is not None:
        return seen & masking.is_kept, gradient
    kept = masking.is_kept.astype(jnp.float32)
    return state.alive, jax.tree.map(lambda leaf: leaf * slots.per_slot(kept, leaf), gradient)


def learned(
    state: TrainState,
    gradient: Float[Array, " n"] | None,
    masking: MaskSample | None,
    settings: Settings,
) -> MaskState | None:
    """The masks after a step; None while none are learned."""
    if state.masks is None:
        return None
    by_mask = required(gradient, "gradient by the masks")
    return masks.update(
        state.masks, by_mask, required(masking, "masking"), state.alive, settings=settings
    )


def prune_masked_step(state: TrainState) -> TrainState:
    """The state without the surfels that are masked more often than not, and without masks; the
    others are in front.
    """
    kept = state.alive & masks.is_kept(required(state.masks, "TrainState.masks"))
    return with_surfels(state, *slots.compact(state.params, state.optimizer, kept, state.stats))
