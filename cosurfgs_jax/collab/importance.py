"""How much each surfel of a block matters to its photographs: what compression (LMC) ranks surfels
by.

`config.lmc.score` names the score (`collab/importance_scores.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.collab.importance_score import PhotographView
from cosurfgs_jax.collab.importance_scores import score_of
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.types import Camera, on_host

_SIGNS = 4  # which random numbers of a run these are; others are in training/


class Importance(NamedTuple):
    """What the photographs of a block have shown of its surfels so far."""

    statistic: Float[Array, " n"]  # of the score, summed over used photographs
    num_used: Int[Array, ""]  # photographs that mostly show the block's cell
    num_seen: Int[Array, ""]  # photographs


def init_importance(num_slots: int) -> Importance:
    """Nothing seen yet; NumPy."""
    return Importance(on_host(np.zeros(num_slots, np.float32)), *np.zeros(2, np.int32))


def measure_view(
    importance: Importance,
    state: TrainState,
    is_inside: Bool[Array, " n"],
    camera: Camera,
    is_active: Bool[Array, ""],
    image_size: tuple[int, int],
    settings: Settings,
) -> Importance:
    """Adds one photograph.

    With the camera switch, photographs that mostly show other blocks are left out: they would rank
    high what explains the outside.

    Args:
        importance: so far.
        state: of one block.
        is_inside: bool[N], surfels in the block's cell.
        camera, image_size: of the photograph.
        is_active: whether it is one of the block's at all.
        settings: static.
    """
    options = RasterOptions.from_settings(settings.raster).on_black()
    view = PhotographView(camera, image_size, options)
    key = jax.random.fold_in(jax.random.key(settings.seed), _SIGNS)
    statistic, weights = score_of(settings.lmc).measure(
        view, state.surfels(), jax.random.fold_in(key, importance.num_seen)
    )
    is_used = is_active
    if settings.lmc.camera_switch:
        num_pixels = image_size[0] * image_size[1]
        weight_inside = jnp.where(is_inside, weights, 0.0).sum()
        is_used &= weight_inside >= settings.lmc.min_cell_share * num_pixels
    return Importance(
        importance.statistic + jnp.where(is_used, statistic, 0.0),
        importance.num_used + is_used.astype(jnp.int32),
        importance.num_seen + 1,
    )


def importance_scores(
    importance: Importance,
    log_scales: Float[Array, "n 2"],
    alive: Bool[Array, " n"],
    settings: Settings,
) -> Float[Array, " n"]:
    """The score that the settings name; f32[N], 0 for dead slots."""
    rank = score_of(settings.lmc).rank
    return jnp.where(alive, rank(importance.statistic, log_scales, alive, settings), 0.0)
