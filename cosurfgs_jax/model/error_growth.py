"""Density control by error: surfels grow where photographs show that the model is wrong.

Before each round some photographs are looked at. A pixel's squared error counts for the surfels
that draw it, by their blending weights. Screen gradients, pruning, cloning and splitting are those
of `density`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from cosurfgs_jax import photograph
from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.model import density
from cosurfgs_jax.model.density_strategy import DensityReport, DensityRound, DensityStrategy, Look
from cosurfgs_jax.settings import DensitySettings
from cosurfgs_jax.types import Camera, SurfelParams, Surfels

# Above the cut of colours at 0, so that all of them have a derivative.
_MIN_COLOR = 1e-6


class ErrorStats(NamedTuple):
    """What was seen of each surfel since the last densification, the errors by the photographs that
    were looked at right before this one.
    """

    gradients: density.DensityStats  # since the last round
    error_sum: Float[Array, " n"]  # of squared errors of pixels times the surfel's weight there


def init_stats(num_slots: int) -> ErrorStats:
    """Nothing seen yet."""
    return ErrorStats(density.init_stats(num_slots), jnp.zeros(num_slots))


def accumulate(
    stats: ErrorStats,
    probe_gradient: Float[Array, "n 4"],
    is_visible: Bool[Array, " n"],
    image_size: tuple[int, int],
) -> ErrorStats:
    """Adds the screen gradients of one view, see `density.accumulate`."""
    gradients = density.accumulate(stats.gradients, probe_gradient, is_visible, image_size)
    return stats._replace(gradients=gradients)


def _seen_colors(surfels: Surfels, camera: Camera) -> Float[Array, "n 3"]:
    """The colours that a camera sees, cut at zero like those of the rasterizer."""
    pose = camera.camera_from_world
    directions = surfels.means + (pose[:3, 3] @ pose[:3, :3])[None]
    length = jnp.linalg.norm(directions, axis=-1, keepdims=True)
    degree = spherical_harmonics.degree_of(surfels.sh.shape[1])
    colors = spherical_harmonics.evaluate(degree, surfels.sh, directions / length)
    return jnp.maximum(colors + 0.5, _MIN_COLOR)


def weighted_sums(
    look: Look, values_of: Callable[[Float[Array, "h w 3"]], Float[Array, "h w 3"]]
) -> Float[Array, "n 3"]:
    """Sums of three values of each pixel, weighted by each surfel's blending weight there.

    A pixel's colour is the sum of weights times colours of surfels. So the derivative by the
    surfels' colours, with the values as cotangent of the picture, is the sums: one forward and one
    backward pass of any backend.

    Args:
        look: the photograph.
        values_of: (picture f32[H,W,3] that the model shows) -> the values.
    Returns:
        The sums f32[N,3], zero for surfels that are not drawn.
    """
    colors = _seen_colors(look.surfels, look.camera)
    flat = ((colors - 0.5) / spherical_harmonics.C0)[:, None]  # of degree 0

    def draw(sh):
        return look.draw(look.surfels.replace(sh=sh)).color

    picture, pull_back = jax.vjp(draw, flat)
    (gradient,) = pull_back(values_of(picture))
    return gradient[:, 0] / spherical_harmonics.C0


def look_at(stats: ErrorStats, look: Look) -> ErrorStats:
    """Adds what one photograph shows.

    Args:
        stats: so far.
        look: the photograph, and what draws the model as it shows it.
    """
    target = photograph.colors_of(look.photo)
    counts = photograph.weights_of(look.photo)

    def squares(picture):
        square = jnp.square(look.apply_exposure(picture) - target)
        return square if counts is None else square * counts[..., None]

    return stats._replace(error_sum=stats.error_sum + weighted_sums(look, squares).mean(axis=-1))


def densify(
    params: SurfelParams,
    opt_state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    stats: ErrorStats,
    order: DensityRound,
    settings: DensitySettings,
) -> tuple[SurfelParams, optax.ScaleByAdamState, Bool[Array, " n"], ErrorStats, DensityReport]:
    """Prunes, then clones small and splits large surfels. First go those of the largest product of
    screen gradient and summed squared error: much is wrong there, and its pixels pull the surfel
    apart.

    Args, Returns: those of `density.densify`; the thresholds of the gradients set none here, all
        the budget is used.
    Source: **ours**, after the errors of Bulo et al. 2024 ("Revising Densification in Gaussian
        Splatting"), summed over pixels by blending weight.
    """
    pull = density.gradient_strength(stats.gradients, settings)
    strength = pull * stats.error_sum
    demand = density.Demand(strength > 0, strength)
    params, opt_state, alive, report = density.prune_and_grow(
        params, opt_state, alive, demand=demand, order=order, settings=settings
    )
    return params, opt_state, alive, jax.tree.map(jnp.zeros_like, stats), report


STRATEGY = DensityStrategy(
    init_stats=init_stats,
    accumulate=accumulate,
    densify=densify,
    reset=density.reset_opacity,
    look=look_at,
)
