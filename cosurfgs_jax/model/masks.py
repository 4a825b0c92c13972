"""Masks of surfels, learned while a block is trained: which of them its pictures can do without.

A surfel has a probability p, the sigmoid of a logit. In every step it is kept with probability p
(m = 1) or masked; m multiplies its opacity, and with it the alpha of each hit. The loss gets the
term weight * (mean p)^2, and the derivative by m is taken for that by p (straight through). In the
end the surfels with p below one half are pruned.

Ways that were considered:

- m as an operand of every kernel, which gives masked surfels their derivative, too (the paper). It
  is exact, but another operand of four backends, and a masked surfel costs as much as a kept one.
- m outside of the kernels, masked surfels not drawn at all, and the derivative at m = 1 alone: that
  by the opacity's logit over (1 - opacity). It ended 0.03 dB and 0.002 SSIM below the chosen way at
  as many surfels (caliterra at a quarter, 54 % pruned); the derivative near m = 0 alone 0.4 dB.
- m = p in every step, deterministic. The opacity makes up for the mask, and nothing is decided.
- Chosen: the second, and a part of the masked surfels is drawn at a tenth of its opacity, where the
  derivative by m is nearly that at 0 and as good as nothing of the surfel is in the picture. No
  kernel changes, and what is masked costs nothing in most steps.

Source: MaskGaussian (Liu et al., CVPR 2025). Ours: masks outside of the kernels as said, and begun
    when density control has ended.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import Surfels

FAINT = 0.1  # m of a masked surfel that is drawn; at 1/255 of alpha nothing is drawn any more
_MAX_FAINT_FRACTION = 0.2  # of all surfels, drawn faintly in a step
_FIRST_LOGIT = 2.2  # p = 0.9: enough are masked to learn from, and the picture holds
_TRAVEL = 12.0  # logits that Adam can move a mask in its whole course
_MAX_LOGIT = 5.3  # of an opacity that is multiplied: above 0.99 the rasterizer cuts alpha


class MaskState(NamedTuple):
    """The masks of N slots; a pytree."""

    logits: Float[Array, " n"]
    optimizer: optax.ScaleByAdamState


class MaskSample(NamedTuple):
    """What is drawn in one step."""

    values: Float[Array, " n"]  # m: 1, FAINT, or 0 for what is not drawn
    weights: Float[Array, " n"]  # of the derivative by m

    @property
    def is_kept(self) -> Bool[Array, " n"]:
        """Surfels that learn in this step."""
        return self.values == 1


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(eps=1e-15)


def init(num_slots: int) -> MaskState:
    """All surfels are kept nine times of ten."""
    logits = jnp.full(num_slots, _FIRST_LOGIT, jnp.float32)
    state: Any = _adam().init(logits)
    return MaskState(logits, state)


def is_kept(masks: MaskState) -> Bool[Array, " n"]:
    """Surfels with p of one half and more."""
    return masks.logits >= 0


def num_kept(masks: MaskState, alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """How many living surfels would be left if pruned now."""
    return (alive & is_kept(masks)).sum(dtype=jnp.int32).astype(jnp.float32)


def sample(masks: MaskState, seed: Int[Array, ""]) -> MaskSample:
    """Draws the masks of a step.

    The mean of a surfel's weights is p where it is kept and 1 - p where it is drawn faintly: those
    that are not drawn at all are made up for.

    Args:
        masks: of N slots.
        seed: of the random numbers.
    """
    kept = jax.nn.sigmoid(masks.logits)
    masked = jax.nn.sigmoid(-masks.logits)
    faint = jnp.minimum(masked, _MAX_FAINT_FRACTION)
    chance = jax.random.uniform(jax.random.key(seed), kept.shape)
    is_kept = chance < kept
    is_faint = ~is_kept & (chance < kept + faint)
    values = jnp.where(is_kept, 1.0, jnp.where(is_faint, FAINT, 0.0))
    weights = jnp.where(is_kept, 1.0, jnp.where(is_faint, masked / faint, 0.0))
    return MaskSample(values, weights)


def masked_logits(
    logit_opacities: Float[Array, " n"], values: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The logit of m times the opacity, where m > 0; at m = 1 bit-identical to the opacity's.

    Its derivative by m at 1 is 1 / (1 - opacity). Opacities count up to 0.995 in it, and where
    m < 1.
    """
    limited = jnp.where(logit_opacities < _MAX_LOGIT, logit_opacities, _MAX_LOGIT)
    base = jnp.where(values == 1, logit_opacities, limited)
    values = jnp.where(values > 0, values, 1.0)
    # m o / (1 - m o) with o = e^x / (1 + e^x)
    return base + jnp.log(values) - jnp.log1p((1 - values) * jnp.exp(limited))


def apply(surfels: Surfels, values: Float[Array, " n"] | None) -> Surfels:
    """The surfels with their opacities times m, without those of m = 0. Differentiable by m; None
    changes nothing.
    """
    if values is None:
        return surfels
    return surfels.replace(
        logit_opacities=masked_logits(surfels.logit_opacities, values),
        alive=surfels.alive & (values > 0),
    )


def penalty(logits: Float[Array, " n"], alive: Bool[Array, " n"]) -> Float[Array, ""]:
    """The square of the mean of p over living surfels."""
    is_alive = alive.astype(jnp.float32)
    mean = (jax.nn.sigmoid(logits) * is_alive).sum() / jnp.maximum(is_alive.sum(), 1.0)
    return mean * mean


def update(
    masks: MaskState,
    gradient: Float[Array, " n"],
    drawn: MaskSample,
    alive: Bool[Array, " n"],
    settings: Settings,
) -> MaskState:
    """One step of Adam on the logits, of all living surfels, those outside of the view too: the
    penalty is on all of them.

    Args:
        masks: of N slots.
        gradient: derivative of the loss of the view by m.
        drawn: the masks that the view was drawn with.
        alive: bool[N].
        settings: the weight of the penalty, and how many steps have masks: the rate is such that
            they can bring a mask to either end.
    """
    num_steps = (settings.mask.stop - settings.mask.start) * settings.train.steps
    probability = jax.nn.sigmoid(masks.logits)
    of_view = gradient * drawn.weights * probability * (1 - probability)
    of_penalty = jax.grad(penalty)(masks.logits, alive)
    # The barriers keep sums of products from being fused for one device otherwise than for several.
    of_view, of_penalty = jax.lax.optimization_barrier((of_view, settings.mask.weight * of_penalty))
    total = jnp.where(alive, of_view + of_penalty, 0.0)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        result: Any = _adam().update(total, masks.optimizer)
    steps, optimizer = result
    return MaskState(masks.logits - (_TRAVEL / max(num_steps, 1.0)) * steps, optimizer)
