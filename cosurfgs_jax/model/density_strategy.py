"""What a density strategy is: when and where surfels are added and dropped in training.

A strategy decides; `slots` moves the arrays, and the cadence (`training.schedule`), the budget and
the trimming by views are the same for all.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8

from cosurfgs_jax.types import Camera, RenderOutput, Surfels


class DensityReport(NamedTuple):
    """What one densification did; i32 scalars."""

    num_cloned: Int[Array, ""]
    num_split: Int[Array, ""]
    num_pruned: Int[Array, ""]
    num_without_room: Int[
        Array, ""
    ]  # wanted to be cloned or split, but slots or budget are used up
    num_alive: Int[Array, ""]


class DensityRound(NamedTuple):
    """What one round of density control needs besides the surfels and the settings."""

    key: Array  # of `jax.random`; the same key gives the same surfels
    prunes_large: Bool[Array, ""] | bool  # whether surfels are pruned for their size, too
    # How many surfels may live afterwards; None = as many as there are slots.
    budget: Int[Array, ""] | int | None = None
    length: Float[Array, ""] | float = 1.0  # extent of the block in world lengths


class Look(NamedTuple):
    """A photograph, and the model as it is before a round of density control. No gradient."""

    surfels: Surfels  # of the block; those outside of the view are dead
    draw: Callable[[Surfels], RenderOutput]  # draws surfels as the photograph shows them
    camera: Camera  # of the pixels drawn
    photo: UInt8[Array, "h w c"]  # likewise; 255 in a fourth channel where the pixel counts
    # from the model's colours f32[H,W,3] to those of the photograph, by its exposure
    apply_exposure: Callable[[Float[Array, "h w 3"]], Float[Array, "h w 3"]]


class DensityStrategy(NamedTuple):
    """Pure functions of one block's arrays, traced under `jax.jit` and `shard_map`.

    | field        | what                                                                      |
    |--------------|---------------------------------------------------------------------------|
    | `init_stats` | number of slots -> statistics: a pytree of arrays with the slots in front |
    | `accumulate` | (statistics, probe gradient f32[N,4], is visible bool[N], image size) ->  |
    |              | statistics; after each step while density control runs                    |
    | `densify`    | (params, opt_state, alive, statistics, `DensityRound`, settings)          |
    |              | -> (params, opt_state, alive, statistics, `DensityReport`)                |
    | `reset`      | (params, opt_state) -> the same, with opacities lowered                   |
    | `look`       | (statistics, `Look`) -> statistics; of `density.error_views` photographs  |
    |              | before each round. None = it looks at none                                |

    `density.STRATEGY` has the shapes and units of the arguments.
    """

    init_stats: Callable
    accumulate: Callable
    densify: Callable
    reset: Callable
    look: Callable | None = None
