"""Adaptive density control: surfels are cloned or split where the screen gradient is high, and
faint or large ones are pruned.

N is the number of slots. What finds no free slot is counted, and the caller may then grow the
arrays (`slots.grow_capacity`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.model.density_strategy import DensityReport, DensityRound, DensityStrategy
from cosurfgs_jax.model.slots import fill_free_slots, zero_moments
from cosurfgs_jax.settings import DensitySettings
from cosurfgs_jax.types import SurfelParams

# Of the two scales; splitting thinner surfels multiplies needles and covers nothing.
_NEEDLE_RATIO = 0.01
_SPLIT_SHRINK = 1.6
_RESET_OPACITY = 0.01
_MIN_OPTICAL_DEPTH = 1e-30  # -log(1 - opacity); 0 has no logarithm


class DensityStats(NamedTuple):
    """What was seen of each surfel since the last densification."""

    gradient_sum: Float[
        Array, " n"
    ]  # of the norms of the signed screen gradients, loss per half an image
    absolute_gradient_sum: Float[Array, " n"]  # of the norms of the summed absolute ones
    num_views: Int[Array, " n"]  # in which it was visible


class Demand(NamedTuple):
    """Of which surfels a strategy wants more."""

    wanted: Bool[Array, " n"]  # to clone where they are small, else to split
    strength: Float[Array, " n"]  # which go first where room is short; positive where wanted


def init_stats(num_slots: int) -> DensityStats:
    """Nothing seen yet."""
    return DensityStats(jnp.zeros(num_slots), jnp.zeros(num_slots), jnp.zeros(num_slots, jnp.int32))


def accumulate(
    stats: DensityStats,
    probe_gradient: Float[Array, "n 4"],
    is_visible: Bool[Array, " n"],
    image_size: tuple[int, int],
) -> DensityStats:
    """Adds the screen gradients of one view.

    Args:
        stats: so far.
        probe_gradient: cotangent of the rasterizer's gradient probe: sum over pixels of the
            gradient by the screen position (x, y), and of its absolute value, in loss per pixel.
        is_visible: bool[N], drawn in this view; others are not counted.
        image_size: (H, W).
    Returns:
        The new statistics, in loss per half image width (x) and height (y): the unit of 3DGS and of
        its thresholds.
    """
    height, width = image_size
    scaled = (
        probe_gradient.reshape(-1, 2, 2)
        * jnp.array([width / 2, height / 2], jnp.float32)[None, None]
    )
    # Columns, not a sum over an axis of two, which takes ten times as long. The barrier keeps
    # squares from being fused into multiply-adds, whose last bits are others and which the compiler
    # decides otherwise for one device than for several.
    squares = jax.lax.optimization_barrier(scaled * scaled)
    norms = jnp.sqrt(squares[..., 0] + squares[..., 1])
    weight = is_visible.astype(jnp.float32)
    return DensityStats(
        stats.gradient_sum + weight * norms[:, 0],
        stats.absolute_gradient_sum + weight * norms[:, 1],
        stats.num_views + is_visible.astype(jnp.int32),
    )


def _is_prunable(
    params: SurfelParams, alive, order: DensityRound, settings: DensitySettings
) -> Bool[Array, " n"]:
    is_finite = jnp.ones_like(alive)
    for value in jax.tree.leaves(params):
        is_finite &= jnp.isfinite(value).reshape(alive.shape[0], -1).all(axis=-1)
    is_faint = jax.nn.sigmoid(params.logit_opacities) < settings.prune_opacity
    is_large = jnp.exp(params.log_scales.max(axis=-1)) > settings.prune_scale * order.length
    return alive & (~is_finite | is_faint | (is_large & jnp.asarray(order.prunes_large)))


def _keep_strongest(
    wanted: Bool[Array, " n"], strength: Float[Array, " n"], room: Int[Array, ""]
) -> Bool[Array, " n"]:
    """At most `room` of the wanted: those of greatest strength, ties by index. Their strength is
    positive.
    """
    # Positive floats have the order of their bits. The greatest limit that more than `room` reach
    # is found bit by bit, by 31 counts: on every device much less work than a stable sort.
    keys = jnp.where(
        wanted, jax.lax.bitcast_convert_type(strength.astype(jnp.float32), jnp.int32), 0
    )

    def add_bit(place, limit):
        higher = limit | jax.lax.shift_left(jnp.int32(1), 30 - place)
        return jnp.where((keys >= higher).sum(dtype=jnp.int32) > room, higher, limit)

    limit = jax.lax.fori_loop(0, 31, add_bit, keys[0] * 0)
    is_above = keys > limit
    is_tie = wanted & (keys == limit)
    return is_above | (
        is_tie & (jnp.cumsum(is_tie, dtype=jnp.int32) <= room - is_above.sum(dtype=jnp.int32))
    )


def _halved(logit_opacities: Float[Array, " n"]) -> Float[Array, " n"]:
    """Logits of the opacity o' of which two let through as much light as one of opacity o does:
    (1 - o')^2 = 1 - o.

    Source: Bulo et al. 2024 ("Revising Densification in Gaussian Splatting"), equation of clones.
    """
    # 1 - o = exp(-softplus(x)), and the logit of o' is log(o' / (1 - o')).
    depth = jnp.maximum(jax.nn.softplus(logit_opacities), _MIN_OPTICAL_DEPTH)
    return jnp.log(jnp.expm1(depth / 2))


def gradient_strength(stats: DensityStats, settings: DensitySettings) -> Float[Array, " n"]:
    """Mean norms of the screen gradients over their thresholds, the greater of the two; f32[N]."""
    views = jnp.maximum(stats.num_views, 1).astype(jnp.float32)
    return jnp.maximum(
        stats.gradient_sum / (views * settings.gradient_threshold),
        stats.absolute_gradient_sum / (views * settings.absolute_gradient_threshold),
    )


def densify(
    params: SurfelParams,
    opt_state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    stats: DensityStats,
    order: DensityRound,
    settings: DensitySettings,
) -> tuple[SurfelParams, optax.ScaleByAdamState, Bool[Array, " n"], DensityStats, DensityReport]:
    """Prunes, then clones small and splits large surfels where the screen gradient is high.

    Args:
        params: trainable fields of N slots. opt_state: its Adam moments.
        alive: bool[N].
        stats: since the last call.
        order: of this round.
        settings: thresholds; lengths in extents of the block. Static.
    Returns:
        The new parameters, optimiser state and mask, zero statistics, and what was done. Where room
        is short the surfels of the largest gradients go first.
    Source: Kerbl et al. 2023 (3DGS), section 5.2, with the absolute gradient of AbsGS and PGSR.
        Both surfels of a clone get the opacity with which they hide as much as the one before.
        Ours: pruning comes first, so that its slots can be used, and takes non-finite surfels too;
        one child of a split takes its parent's slot; both children lie in the parent's plane;
        needles are not split.
    """
    strength = gradient_strength(stats, settings)
    demand = Demand(strength > 1, strength)
    params, opt_state, alive, report = prune_and_grow(
        params, opt_state, alive, demand=demand, order=order, settings=settings
    )
    return params, opt_state, alive, jax.tree.map(jnp.zeros_like, stats), report


def prune_and_grow(
    params: SurfelParams,
    opt_state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    *,
    demand: Demand,
    order: DensityRound,
    settings: DensitySettings,
) -> tuple[SurfelParams, optax.ScaleByAdamState, Bool[Array, " n"], DensityReport]:
    """Prunes, then clones or splits the surfels of which a strategy wants more, as `densify` does
    it.

    Args:
        demand: of which surfels there should be more.
        params, opt_state, alive, order, settings: see `densify`.
    Returns:
        The new parameters, optimiser state and mask, and what was done.
    """
    is_pruned = _is_prunable(params, alive, order, settings)
    kept = alive & ~is_pruned
    scales = jnp.exp(params.log_scales)
    is_large = scales.max(axis=-1) > settings.split_scale * order.length
    is_needle = scales.min(axis=-1) < _NEEDLE_RATIO * scales.max(axis=-1)
    wanted = demand.wanted & kept & ~(is_large & is_needle)
    limit = kept.size
    if order.budget is not None:
        limit = jnp.minimum(limit, order.budget)
    grown = _keep_strongest(
        wanted, demand.strength, jnp.maximum(limit - kept.sum(dtype=jnp.int32), 0)
    )

    source, is_filled = fill_free_slots(grown, kept)
    params = jax.tree.map(lambda value: value[source], params)
    is_child = (grown & is_large)[source]  # in both slots of a split
    offsets = jax.random.normal(order.key, params.log_scales.shape) * jnp.exp(params.log_scales)
    plane = matrix_from_quat(params.quats)[..., :2]
    moved = params.means + jnp.einsum("nij,nj->ni", plane, offsets)
    shrink = is_child[:, None].astype(jnp.float32) * jnp.log(_SPLIT_SHRINK)
    params = params.replace(
        means=jnp.where(is_child[:, None], moved, params.means),
        log_scales=params.log_scales - shrink,
        logit_opacities=jnp.where(
            (grown & ~is_large)[source],  # in both slots of a clone
            _halved(params.logit_opacities),
            params.logit_opacities,
        ),
    )

    opt_state = zero_moments(opt_state, is_filled | is_child | is_pruned)
    alive = kept | is_filled

    def count(mask):
        return mask.sum(dtype=jnp.int32)

    report = DensityReport(
        num_cloned=count(grown & ~is_large),
        num_split=count(grown & is_large),
        num_pruned=count(is_pruned),
        num_without_room=count(wanted) - count(grown),
        num_alive=count(alive),
    )
    return params, opt_state, alive, report


def reset_opacity(
    params: SurfelParams, opt_state: optax.ScaleByAdamState
) -> tuple[SurfelParams, optax.ScaleByAdamState]:
    """Lowers all opacities to at most 0.01 and forgets their moments: what is not needed stays
    faint and is pruned.
    """
    ceiling = jnp.log(_RESET_OPACITY / (1 - _RESET_OPACITY))
    params = params.replace(logit_opacities=jnp.minimum(params.logit_opacities, ceiling))

    def forget(moments):
        return moments.replace(logit_opacities=jnp.zeros_like(moments.logit_opacities))

    return params, opt_state._replace(mu=forget(opt_state.mu), nu=forget(opt_state.nu))


STRATEGY = DensityStrategy(init_stats, accumulate, densify, reset_opacity)
