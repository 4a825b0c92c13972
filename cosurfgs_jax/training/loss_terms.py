"""The terms of the loss: the one list of them, and their sum. A new one is a file in losses/ and a
weight in settings/training.py, which `term_weight` puts into the list.
"""

import dataclasses
import importlib
from collections.abc import Sequence

from jaxtyping import Array, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses import distillation, geometric, photometric
from cosurfgs_jax.losses.inputs import LossView
from cosurfgs_jax.losses.term import LossTerm, Phase, weighted_term
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import LossSettings, Settings, SettingsGroup, declaration_of


def _identity_weight(settings: Settings, _: Phase) -> float:
    return settings.appearance.identity_weight * settings.appearance.enabled


def _identity_penalty(view: LossView, _: Settings) -> Float[Array, ""]:
    return exposure_model.identity_penalty(view.exposure, view.num_views)


def declared_terms(group: type[SettingsGroup]) -> tuple[LossTerm, ...]:
    """The terms whose weights a group of settings declares by `term_weight`, in that order."""
    modules = [declaration_of(field).term for field in dataclasses.fields(group)]
    return tuple(
        importlib.import_module(f"cosurfgs_jax.losses.{name}").TERM for name in modules if name
    )


TERMS = (  # in the order in which they are added
    photometric.TERM,
    distillation.COLOR_TERM,
    distillation.DEPTH_TERM,
    distillation.NORMAL_TERM,
    weighted_term("exposure_identity", _identity_weight, _identity_penalty),
    *declared_terms(LossSettings),
    geometric.TERM,
)


def check_own_terms(own_terms: Sequence[LossTerm]) -> None:
    """Raises InputError unless a user's terms are such, with names that differ from each other and
    from ours.
    """
    for term in own_terms:
        if not isinstance(term, LossTerm):
            raise InputError(
                "losses: expected terms as own_term(name, function) makes them, got "
                f"{type(term).__name__}"
            )
    names = [term.name for term in (*TERMS, *own_terms)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"losses: expected names that differ, got {name!r} twice (the package's own are "
                f"{', '.join(term.name for term in TERMS)}); give the term another name"
            )


def used_terms(
    settings: Settings, phase: Phase, own_terms: Sequence[LossTerm] = ()
) -> tuple[LossTerm, ...]:
    """The terms of a step, a user's last."""
    return tuple(term for term in (*TERMS, *own_terms) if term.is_used(settings, phase))


def maps_of(terms: Sequence[LossTerm]) -> Maps:
    """What the rasterizer draws for these terms."""
    return max(term.maps for term in terms)


def total_loss(
    view: LossView, terms: Sequence[LossTerm], settings: Settings
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of one view, and the numbers to show under their names in the log.

    Args:
        view: what the terms see.
        terms: from `used_terms`.
        settings: static.
    """
    first, *others = (term.evaluate(view, settings) for term in terms)
    loss = first.total
    shown = dict(first.shown)
    for value in others:
        loss += value.total
        shown |= value.shown
    return loss, shown
