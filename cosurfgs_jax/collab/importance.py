"""How much each surfel of a block matters to its photographs: what compression (LMC) ranks surfels
by.

A score is a function of `Importance` in the table `SCORES`; `config.lmc.score` names it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.raster import RasterOptions, render
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.types import Camera, RenderOutput, Surfels

# Draws of random signs a photograph. One draw of one photograph is off by 1.4 times the effect
# (standard deviation); draws and photographs average that out.
NUM_DRAWS = 2
# Opacities count up to 0.995 here. Above 0.99 the rasterizer cuts a hit's alpha, and a cut alpha
# has no gradient.
_MAX_LOGIT = 5.3
_AREA_PERCENTILE = 90.0
_SIGNS = 4  # which random numbers of a run these are; others are in training/


class Importance(NamedTuple):
    """What the photographs of a block have seen of its surfels so far."""

    weight: Float[Array, " n"]  # sum of blending weights over the pixels of used photographs
    removal: Float[
        Array, " n"
    ]  # estimated sum of squared changes of colour in them without the surfel; see `SCORES`
    num_used: Int[Array, ""]  # photographs that really look at the block's cell
    num_seen: Int[Array, ""]  # photographs


def init_importance(num_slots: int) -> Importance:
    """Nothing seen yet; NumPy."""
    return Importance(*np.zeros((2, num_slots), np.float32), *np.zeros(2, np.int32))


def removal_effects(
    draw: Callable[[Surfels], RenderOutput], surfels: Surfels, key: jax.Array
) -> tuple[Float[Array, " n"], RenderOutput]:
    """By how much one view changes if a surfel is removed, for each surfel by itself.

    A pixel's colour is linear in the alpha of each hit. Without surfel i it changes by D = T a (b -
    c), with the transmittance T before it, its alpha a and colour c, and the colour b behind it;
    and the derivative of the colour with respect to the surfel's opacity logit is -D (1 - o). With
    random signs v as cotangent of the picture, the derivative of sum v C is therefore a sum of +-D
    (1 - o) whose square has the mean (1 - o)^2 sum D^2: pixels and channels with other signs
    cancel.

    Args:
        draw: draws the view.
        surfels: of the model.
        key: of the random signs.
    Returns:
        f32[N], an unbiased estimate of the sum of D^2 over pixels and channels, and what was drawn.
    """
    logits = jnp.minimum(surfels.logit_opacities, _MAX_LOGIT)

    def color(logits):
        out = draw(surfels.replace(logit_opacities=logits))
        return out.color, out

    image, pull_back, out = jax.vjp(color, logits, has_aux=True)
    total = jnp.zeros_like(logits)
    for number in range(NUM_DRAWS):
        signs = jax.random.rademacher(jax.random.fold_in(key, number), image.shape, image.dtype)
        (by_logit,) = pull_back(signs)
        total += jnp.square(by_logit / (1 - jax.nn.sigmoid(logits)))
    return total / NUM_DRAWS, out


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

    With the camera switch, photographs that mostly show other blocks are abandoned: they would
    praise what explains the outside.

    Args:
        importance: so far.
        state: of one block.
        is_inside: bool[N], surfels in the block's cell.
        camera, image_size: of the photograph.
        is_active: whether it is one of the block's at all.
        settings: static.
    """

    def draw(surfels: Surfels) -> RenderOutput:
        options = RasterOptions.from_settings(settings.raster).on_black()
        return render(surfels, camera, image_size, options, with_contributions=True)

    removal = importance.removal
    if settings.lmc.score == "removal":
        key = jax.random.fold_in(jax.random.key(settings.seed), _SIGNS)
        effects, out = removal_effects(
            draw, state.surfels(), jax.random.fold_in(key, importance.num_seen)
        )
    else:
        effects = jnp.zeros_like(removal)
        out = draw(state.surfels())
    weight = out.contributions[:, 0]
    is_used = is_active
    if settings.lmc.camera_switch:
        num_pixels = image_size[0] * image_size[1]
        is_used &= (
            jnp.where(is_inside, weight, 0.0).sum() >= settings.lmc.min_cell_share * num_pixels
        )
    return Importance(
        importance.weight + jnp.where(is_used, weight, 0.0),
        removal + jnp.where(is_used, effects, 0.0),
        importance.num_used + is_used.astype(jnp.int32),
        importance.num_seen + 1,
    )


def removal_score(
    importance: Importance,
    log_scales: Float[Array, "n 2"],
    alive: Bool[Array, " n"],
    settings: Settings,
) -> Float[Array, " n"]:
    """What would be missing: the sum of squared changes of colour if the surfel were removed."""
    del log_scales, settings
    return jnp.where(alive, importance.removal, 0.0)


def weight_score(
    importance: Importance,
    log_scales: Float[Array, "n 2"],
    alive: Bool[Array, " n"],
    settings: Settings,
) -> Float[Array, " n"]:
    """Summed weights times (area / 90th percentile of the areas, at most 1) to the power of
    `lmc.area_exponent`.

    LightGaussian's exponent (Fan et al. 2023) is +0.1; a negative one spares small surfels, which
    carry detail. At -0.3 a model pruned by 40 % kept 0.6 dB more (caliterra) or as much (the
    generated town) as at 0.1, before any recovery."""
    log_area = log_scales.sum(axis=-1)
    limit = jnp.nanpercentile(jnp.where(alive, log_area, jnp.nan), _AREA_PERCENTILE)
    size = jnp.exp(settings.lmc.area_exponent * jnp.minimum(log_area - limit, 0.0))
    return jnp.where(alive, size * importance.weight, 0.0)


# By the name in `config.lmc.score`: (importance, log_scales f32[N,2], alive bool[N], settings) ->
# f32[N], 0 or more, 0 for dead slots. Scores rank surfels of one block; their unit does not matter.
SCORES = {"removal": removal_score, "weight": weight_score}


def importance_scores(
    importance: Importance,
    log_scales: Float[Array, "n 2"],
    alive: Bool[Array, " n"],
    settings: Settings,
) -> Float[Array, " n"]:
    """The score that the settings name; f32[N], 0 for dead slots."""
    return SCORES[settings.lmc.score](importance, log_scales, alive, settings)
