"""What a density strategy is: when and where surfels are added and dropped in training.

A strategy decides; `slots` moves the arrays, and the cadence (`training.schedule`), the budget and
the trimming by views are the same for all.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Int


class DensityReport(NamedTuple):
    """What one densification did; i32 scalars."""

    num_cloned: Int[Array, ""]
    num_split: Int[Array, ""]
    num_pruned: Int[Array, ""]
    num_without_room: Int[
        Array, ""
    ]  # wanted to be cloned or split, but slots or budget are used up
    num_alive: Int[Array, ""]


class DensityStrategy(NamedTuple):
    """Pure functions of one block's arrays, traced under `jax.jit` and `shard_map`.

    | field        | what                                                                      |
    |--------------|---------------------------------------------------------------------------|
    | `init_stats` | number of slots -> statistics: a pytree of arrays with the slots in front |
    | `accumulate` | (statistics, probe gradient f32[N,4], is visible bool[N], image size) ->  |
    |              | statistics; after each step while density control runs                    |
    | `densify`    | (params, opt_state, alive, statistics, key, settings, prunes_large,       |
    |              | budget, length) -> (params, opt_state, alive, statistics, DensityReport)  |
    | `reset`      | (params, opt_state) -> the same, with opacities lowered                   |

    `density.STRATEGY` has the shapes and units of the arguments.
    """

    init_stats: Callable
    accumulate: Callable
    densify: Callable
    reset: Callable
