"""The score "removal": how much the photographs change without a surfel."""

import jax
from jaxtyping import Array, Float

from cosurfgs_jax import raster
from cosurfgs_jax.collab.importance_score import ImportanceScore, PhotographView, rank_as_measured
from cosurfgs_jax.types import Surfels


def removal_effects(
    view: PhotographView, surfels: Surfels, key: jax.Array
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """How much one view changes if a surfel is removed, for each surfel by itself: the sum of D^2
    over pixels and channels (`raster.reference_removal`), and the sum of its blending weights.
    """
    removal = raster.measured_or_estimated(surfels, *view, key)
    return removal.effects, removal.weights


SCORE = ImportanceScore(removal_effects, rank_as_measured)
