"""Slots of surfels: arrays of fixed size, of which some are in use. Moments and statistics
move with their surfels; a new surfel starts with zero moments.

Optimiser states are `optax.ScaleByAdamState`s whose moments have the form of the parameters.
Statistics are a pytree of arrays with an axis of N slots in front.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from cosurfgs_jax.types import SurfelParams, blank_params


def per_slot(values: Array, like: Array) -> Array:
    """A number of each slot [N], to be multiplied or masked with an array [N,...]."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def zero_moments(state: optax.ScaleByAdamState, mask: Bool[Array, " n"]) -> optax.ScaleByAdamState:
    """The moments with zeros in some slots."""

    def zero(moment):
        return jnp.where(per_slot(mask, moment), jnp.zeros_like(moment), moment)

    return state._replace(mu=jax.tree.map(zero, state.mu), nu=jax.tree.map(zero, state.nu))


def fill_free_slots(
    is_parent: Bool[Array, " n"], alive: Bool[Array, " n"]
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Which slot each slot takes its surfel from (the k-th free one from the k-th parent), and
    which are filled.
    """
    num_slots = alive.shape[0]
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    parent_rank = jnp.cumsum(is_parent, dtype=jnp.int32) - 1
    free_rank = jnp.cumsum(~alive, dtype=jnp.int32) - 1
    parents = (
        jnp.zeros(num_slots, jnp.int32)
        .at[jnp.where(is_parent, parent_rank, num_slots)]
        .set(slots, mode="drop")
    )
    is_filled = ~alive & (free_rank <= parent_rank[-1])
    return jnp.where(is_filled, parents[jnp.maximum(free_rank, 0)], slots), is_filled


def _map_slots(function, params, opt_state, alive, stats):
    """Applies a function to every array of slots."""
    opt_state = opt_state._replace(
        mu=jax.tree.map(function, opt_state.mu), nu=jax.tree.map(function, opt_state.nu)
    )
    return jax.tree.map(function, params), opt_state, function(alive), jax.tree.map(function, stats)


def grow_capacity(
    params: SurfelParams,
    opt_state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    stats: Any,
    new_capacity: int,
) -> tuple[SurfelParams, optax.ScaleByAdamState, Bool[Array, " m"], Any]:
    """Appends dead slots. Changes shapes, so what is jitted over these arrays compiles again.

    Args:
        params, opt_state, alive, stats: of N slots.
        new_capacity: number of slots afterwards, at least N.
    Returns:
        The same with `new_capacity` slots. New ones are `blank_params`, their moments and
        statistics zero.
    """
    added = new_capacity - alive.shape[0]
    if added < 0:
        raise ValueError(
            f"new_capacity: expected at least the {alive.shape[0]} slots there are, got "
            f"{new_capacity}"
        )

    def pad(values):
        return jnp.concatenate([values, jnp.zeros((added, *values.shape[1:]), values.dtype)])

    _, opt_state, alive, stats = _map_slots(pad, params, opt_state, alive, stats)
    blank = blank_params(added, params.sh.shape[1])
    grown = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), params, blank)
    return grown, opt_state, alive, stats


def living_first(alive: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Which slot each slot takes its surfel from where the living ones move to the front, in their
    order; dead ones follow.
    """
    num_slots = alive.shape[0]
    front = jnp.cumsum(alive, dtype=jnp.int32)
    # Two prefix sums and a scatter: 15 ms for a million slots, where a stable argsort takes 240.
    target = jnp.where(alive, front - 1, front[-1] + jnp.cumsum(~alive, dtype=jnp.int32) - 1)
    return (
        jnp.zeros(num_slots, jnp.int32)
        .at[target]
        .set(jnp.arange(num_slots, dtype=jnp.int32), unique_indices=True)
    )


def compact(
    params: SurfelParams,
    opt_state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    stats: Any,
) -> tuple[SurfelParams, optax.ScaleByAdamState, Bool[Array, " n"], Any]:
    """Moves the living surfels to the front (`living_first`). Moments and statistics move along."""
    source = living_first(alive)
    return _map_slots(lambda values: values[source], params, opt_state, alive, stats)
