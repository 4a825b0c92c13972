"""Terms of the loss: what one is, and how a function becomes one.

A step evaluates a list of terms and adds their totals, and it reports what they show under its
names; it knows neither. Shapes that were considered:

- a dict of weights in the settings and one function per name. A fused kernel that gives L1, SSIM,
  transparency and PSNR in one call does not fit: it would run once a name.
- a class per term with `weight`, `needs` and `value`. The same trouble, and a user who wants one
  line of `jnp` has to write a class.
- a value with a total and the numbers to show (chosen). A term may be a group that one native call
  computes, and a function of one line becomes a term by `own_term`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.inputs import LossView
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import Settings


class Phase(NamedTuple):
    """Which of the terms may be on; static."""

    has_geometry: bool  # SV-Reg and MV-Reg have begun
    is_distillation: bool = False  # the view is a composite, and there is a teacher


class TermValue(NamedTuple):
    """What a term gives."""

    total: Float[Array, ""]  # weighted, added to the loss; takes gradient
    shown: dict[str, Float[Array, ""]]  # under the names of the log; NaN = nothing to show


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One part of the loss, or a group that one call computes.

    | field      | what                                                                  |
    |------------|-----------------------------------------------------------------------|
    | `name`     | of the term                                                           |
    | `is_used`  | (settings, phase) -> whether it is computed                           |
    | `evaluate` | (LossView, settings) -> TermValue; traced                             |
    | `maps`     | what the rasterizer draws for it, as in `rasterize`                   |
    """

    name: str
    is_used: Callable[[Settings, Phase], bool]
    evaluate: Callable[[LossView, Settings], TermValue]
    maps: Maps = Maps.COLOR


def weighted_term(
    name: str,
    weight: Callable[[Settings, Phase], float],
    value: Callable[[LossView, Settings], Float[Array, ""]],
    maps: Maps = Maps.COLOR,
) -> LossTerm:
    """A term of one number, which is shown without its weight as loss/NAME.

    Args:
        name: of the term.
        weight: from the settings; 0 = not computed. It may not depend on the phase but by being 0.
        value: of a view.
        maps: see `LossTerm`.
    """

    def evaluate(view: LossView, settings: Settings) -> TermValue:
        phase = Phase(has_geometry=True, is_distillation=view.teacher is not None)
        number = value(view, settings)
        shown = {f"loss/{name}": jax.lax.stop_gradient(number)}
        return TermValue(weight(settings, phase) * number, shown)

    return LossTerm(name, lambda settings, phase: weight(settings, phase) > 0, evaluate, maps)


def own_term(
    name: str,
    function: Callable[[LossView], Float[Array, ""]],
    weight: float = 1.0,
    maps: Maps = Maps.GEOMETRY,
) -> LossTerm:
    """A user's term: in the training of blocks, in the recovery after compression, and in
    distillation.

    Args:
        name: shown as loss/NAME in the log, TensorBoard, history.jsonl and the report.
        function: LossView -> f32[]. Traced by `jax.jit` under `shard_map`; it sees one block and
            exchanges nothing.
        weight: positive.
        maps: what it reads of `LossView.out`: `Maps.COLOR` (colour and alpha, the fastest),
            `Maps.GEOMETRY` (depths and normals too), or `Maps.ALL` (distortion too).
    Returns:
        The term, for `losses` of `train_model`.
    Raises:
        InputError: the weight is not positive, or, in the first step, the result is no scalar.
    """
    if not weight > 0:
        raise InputError(f"loss term {name}: expected a positive weight, got {weight!r}")

    def value(view: LossView, _: Settings) -> Float[Array, ""]:
        number = jnp.asarray(function(view))
        if number.shape:
            raise InputError(
                f"loss term {name}: expected a scalar, got an array of shape {number.shape}; take "
                "a mean over pixels or surfels"
            )
        return number

    return weighted_term(name, lambda *_: weight, value, maps)
