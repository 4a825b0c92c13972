"""Depth distortion: the hits along a ray lie close together."""

from cosurfgs_jax.losses.inputs import LossView
from cosurfgs_jax.losses.term import Phase, weighted_term
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import drawn


def _weight(settings: Settings, phase: Phase) -> float:
    # A composite has no distortion: it is a sum over pairs of hits, some of which others draw.
    return settings.loss.distortion_weight * (not phase.is_distillation)


def _value(view: LossView, _: Settings):
    return drawn(view.out.distortion).mean()


TERM = weighted_term("distortion", _weight, _value, maps=Maps.ALL)
