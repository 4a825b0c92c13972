"""Density control of one block: what its strategy looks at, where surfels are added and dropped.

Pure functions of the state of one block, like the step of training (`step`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.errors import required
from cosurfgs_jax.geometry.lattice import Lattice
from cosurfgs_jax.losses.photometric import apply_exposure
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.model.density_strategy import DensityReport, DensityRound, Look
from cosurfgs_jax.model.slots import per_slot
from cosurfgs_jax.native.ffi import match_varying
from cosurfgs_jax.raster import RasterOptions, render
from cosurfgs_jax.raster.culling import may_be_seen
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.state import TrainState, with_surfels
from cosurfgs_jax.training.step import Batch, transform_of_batch
from cosurfgs_jax.types import Camera, Surfels, drawn, image_size_of

LOOK_STRIDE = 2  # pixels from one to the next that a density strategy looks at


def look_step(state: TrainState, batch: Batch, settings: Settings) -> TrainState:
    """The state after its density strategy has looked at one more photograph: at every
    `LOOK_STRIDE`-th pixel of every such row, from the batch's origin.
    """
    lattice = Lattice(LOOK_STRIDE, required(batch.origin, "Batch.origin"))
    camera = lattice.camera(batch.camera)
    photo = lattice.of(batch.photo)
    options = RasterOptions.from_settings(settings.raster).dilated(LOOK_STRIDE)
    seen = may_be_seen(
        state.surfels(), batch.camera, image_size_of(batch.photo), settings.raster.near
    )

    def draw(surfels: Surfels):
        return render(surfels, camera, image_size_of(photo), options)

    transform = transform_of_batch(state.appearance, batch, settings)

    def exposed(picture):
        if transform is None:
            return picture
        return apply_exposure(*match_varying(picture, transform))

    look = required(strategy_of(settings.density).look, "DensityStrategy.look")
    surfels = Surfels.of(state.params, seen)
    stats = look(
        state.stats,
        Look(surfels=surfels, draw=draw, camera=camera, photo=photo, apply_exposure=exposed),
    )
    return dataclasses.replace(state, stats=stats)


EVERYWHERE = np.full(2, -np.inf, np.float32), np.full(2, np.inf, np.float32)


class DensifyOrder(NamedTuple):
    """What one round of density control needs besides the state; scalars."""

    block: Int[Array, ""]  # with `step` and the run's seed it makes the random numbers
    step: Int[Array, ""]
    prunes_large: Bool[Array, ""]
    budget: Int[Array, ""]
    # Corners of the ground, world, within which surfels are added.
    low: Float[Array, "2"] | np.ndarray = EVERYWHERE[0]
    high: Float[Array, "2"] | np.ndarray = EVERYWHERE[1]


def densify_step(
    state: TrainState, order: DensifyOrder, settings: Settings
) -> tuple[TrainState, DensityReport]:
    """One round of density control on the state, by the strategy of the settings. Surfels outside
    of the order's corners have shown nothing, so that none is added there.
    """
    ground = state.params.means[:, :2]
    may_grow = ((ground >= order.low[None]) & (ground < order.high[None])).all(axis=-1)
    stats = jax.tree.map(
        lambda leaf: jnp.where(per_slot(may_grow, leaf), leaf, 0),
        state.stats,
    )
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), 2), order.block)
    slots = (state.params, state.optimizer, state.alive)
    *slots, report = strategy_of(settings.density).densify(
        *slots,
        stats,
        DensityRound(
            jax.random.fold_in(key, order.step), order.prunes_large, order.budget, state.length
        ),
        settings.density,
    )
    return with_surfels(state, *slots), report


def count_front_view(
    num_views: Int[Array, " n"],
    state: TrainState,
    camera: Camera,
    is_active: Bool[Array, ""],
    image_size: tuple[int, int],
    settings: Settings,
) -> Int[Array, " n"]:
    """Counts one more photograph for each surfel that some pixel of it sees while the transmittance
    is above 0.5.

    Args:
        num_views: i32[N], so far.
        state: of one block; its surfels are drawn.
        camera, image_size: of the photograph; the size is static.
        is_active: whether it counts at all: blocks with fewer photographs than others are given
            some to draw for nothing.
        settings: static.
    """
    options = RasterOptions.from_settings(settings.raster)
    out = render(state.surfels(), camera, image_size, options, with_contributions=True)
    return num_views + ((drawn(out.contributions)[:, 3] > 0) & is_active).astype(jnp.int32)


def trim_step(
    state: TrainState, num_views: Int[Array, " n"], is_enough: Bool[Array, ""], settings: Settings
) -> tuple[TrainState, Int[Array, ""]]:
    """Drops what fewer than `trim_min_views` photographs see in front: floaters before one camera,
    and what lies hidden.

    Args:
        state, num_views: of one block.
        is_enough: whether the block has photographs enough to judge by; else nothing is dropped.
    Returns:
        The state, and how many surfels were dropped.
    Source: PGSR (Chen et al. 2024), multi-view trimming.
    """
    is_kept = state.alive & ((num_views >= settings.density.trim_min_views) | ~is_enough)
    return dataclasses.replace(state, alive=is_kept), (state.alive & ~is_kept).sum(dtype=jnp.int32)


def reset_opacity_step(state: TrainState, settings: Settings) -> TrainState:
    """Lowers all opacities, as the density strategy does it."""
    reset = strategy_of(settings.density).reset
    params, optimizer = reset(state.params, state.optimizer)
    return dataclasses.replace(state, params=params, optimizer=optimizer)
