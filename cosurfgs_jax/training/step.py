"""One step of training: pure functions of the state of one block."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from cosurfgs_jax.errors import required
from cosurfgs_jax.geometry.lattice import Lattice, whole
from cosurfgs_jax.losses.inputs import LossView, SecondView, Source
from cosurfgs_jax.losses.term import LossTerm, Phase
from cosurfgs_jax.model import exposure_model, masks, optim
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.model.masks import MaskSample
from cosurfgs_jax.native.ffi import match_varying
from cosurfgs_jax.raster import Maps, RasterOptions, render
from cosurfgs_jax.raster.culling import may_be_seen
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import depth_memory, masked_steps
from cosurfgs_jax.training.loss_terms import maps_of, total_loss, used_terms
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.types import Camera, SurfelParams, Surfels, drawn, image_size_of


class Batch(NamedTuple):
    """One photograph of one step."""

    camera: Camera
    photo: UInt8[Array, "h w c"]  # RGB, or RGB and 255 where the pixel counts
    exposure_index: Int[Array, ""]  # which of the block's exposures is the photograph's
    progress: Float[Array, ""]  # fraction of all steps done before this one
    sh_degree: Int[Array, ""]  # bands above it do not learn yet
    second: SecondView | None = None  # where MV-Reg is on
    origin: Int[Array, "2"] | None = None  # of the pixels that a dilated step draws
    mask_seed: Int[Array, ""] | None = None  # of the step's masks, where they are learned


class Recalled(NamedTuple):
    """What the second view of a step showed when it was drawn last."""

    depth: Float[Array, "h w"]  # plane depth, 0 = invalid
    origin: Int[Array, "2"]  # of its pixels in the photograph


class StepReport(NamedTuple):
    """Scalars of one step."""

    loss: Float[Array, ""]
    num_alive: Int[Array, ""]
    num_invalid: Int[Array, ""]  # living surfels that were skipped because a value is not finite
    shown: dict[str, Float[Array, ""]]  # what the terms of the loss show, by names of the log


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What a compiled step is specialised to."""

    is_densifying: bool  # the screen gradients are gathered
    has_geometry: bool = False  # SV-Reg and MV-Reg are on
    dilation: int = 1  # every so many-th pixel of every so many-th row is drawn


class _Static(NamedTuple):
    settings: Settings
    terms: tuple[LossTerm, ...]
    shape: StepShape


def _second_depth(surfels: Surfels, second: SecondView, settings: Settings) -> Float[Array, "h w"]:
    """The plane depth that the model shows in a second view, without gradient."""
    out = render(
        jax.lax.stop_gradient(surfels),
        second.camera,
        image_size_of(second.photo),
        RasterOptions.from_settings(settings.raster),
        maps=Maps.GEOMETRY,
    )
    return drawn(out.plane_depth)


def _drawn_lattice(batch: Batch, shape: StepShape) -> Lattice:
    """Which pixels of the photograph the step draws."""
    if shape.dilation == 1:
        return whole()
    return Lattice(shape.dilation, required(batch.origin, "Batch.origin"))


def transform_of_batch(
    exposure: exposure_model.ExposureParams | None, batch: Batch, settings: Settings
) -> Float[Array, "3 4"] | None:
    """From the model's colours to those of the batch's photograph; None without exposures."""
    if exposure is None:
        return None
    has_begun = batch.progress >= settings.appearance.start
    return jnp.where(
        has_begun, exposure_model.transform_of(exposure, batch.exposure_index), jnp.eye(3, 4)
    )


class _Learned(NamedTuple):
    """What a loss is differentiated by."""

    params: SurfelParams
    exposure: exposure_model.ExposureParams | None
    probe: Float[Array, "n 4"] | None
    mask: Float[Array, " n"] | None


class _Inputs(NamedTuple):
    """What a loss is computed from besides what it is differentiated by."""

    state: TrainState
    batch: Batch
    seen: Bool[Array, " n"]  # surfels that take part
    recalled: Recalled | None


def _loss(learned: _Learned, inputs: _Inputs, static: _Static):
    params, exposure, probe, mask = learned
    state, batch, seen, recalled = inputs
    settings = static.settings
    surfels = Surfels.of(params, seen)
    lattice = _drawn_lattice(batch, static.shape)
    source = Source(batch.camera, batch.photo, lattice)
    camera = lattice.camera(batch.camera)
    photo = lattice.of(batch.photo)
    out = render(
        masks.apply(surfels, mask),
        camera,
        image_size_of(photo),
        RasterOptions.from_settings(settings.raster).dilated(lattice.stride),
        maps=maps_of(static.terms),
        probe=probe,
    )
    transform = transform_of_batch(exposure, batch, settings)
    second_depth = None
    second_lattice = whole()
    if static.shape.has_geometry and settings.loss.has_multi_view:
        second = required(batch.second, "Batch.second")
        if state.depths is None:
            everything = masks.apply(Surfels.of(params, state.alive), mask)
            second_depth = _second_depth(everything, second, settings)
        else:
            second_depth, origin = required(recalled, "recalled")
            second_lattice = Lattice(depth_memory.STRIDE, origin)
    view = LossView(
        out=out,
        surfels=surfels,
        camera=camera,
        photo=photo,
        transform=transform,
        exposure=exposure,
        num_views=state.num_views,
        second=batch.second,
        second_depth=second_depth,
        second_lattice=second_lattice,
        source=source,
    )
    loss, shown = total_loss(view, static.terms, settings)
    return loss, (out.num_invalid, shown, out.plane_depth)


def _caught_up(state: TrainState, rows, progress, settings: Settings):
    updated = required(state.updated, "TrainState.updated")
    missed = jnp.asarray(state.optimizer.count) - updated
    return optim.catch_up(
        state.params,
        state.optimizer,
        rows=rows,
        missed=missed,
        course=optim.Course(settings.optim, progress, state.length),
    )


def settle_step(state: TrainState, progress: Float[Array, ""], settings: Settings) -> TrainState:
    """The state with all surfels where the optimiser has taken them, those outside of the last
    views too. Whoever looks at the whole model, or gives it other slots, asks for it first.
    """
    if state.updated is None:
        return state
    params, optimizer = _caught_up(state, state.alive, progress, settings)
    updated = jnp.broadcast_to(optimizer.count, state.alive.shape)
    return dataclasses.replace(state, params=params, optimizer=optimizer, updated=updated)


def _look(
    state: TrainState, batch: Batch, masking: MaskSample | None, settings: Settings
) -> tuple[TrainState, Bool[Array, " n"]]:
    """The state with the surfels up to date that take part in a step, and which these are."""
    seen = state.alive
    if state.updated is not None:
        seen = may_be_seen(
            state.surfels(), batch.camera, image_size_of(batch.photo), settings.raster.near
        )
    if masking is not None:
        seen &= masking.values > 0
    if state.updated is None:
        return state, seen
    params, optimizer = _caught_up(state, seen, batch.progress, settings)
    updated = jnp.where(seen, optimizer.count, state.updated)
    return (
        dataclasses.replace(state, params=params, optimizer=optimizer, updated=updated),
        seen,
    )


def recall_step(state: TrainState, batch: Batch) -> Recalled:
    """What the batch's second view showed. A program of its own: in one program with the write of
    this view's depth XLA would copy the whole memory twice.
    """
    second = required(batch.second, "Batch.second")
    depth, lattice = depth_memory.recall(
        required(state.depths, "TrainState.depths"), second.index, image_size_of(second.photo)
    )
    return Recalled(depth, lattice.origin)


def train_step(
    state: TrainState,
    batch: Batch,
    settings: Settings,
    shape: StepShape,
    own_terms: tuple[LossTerm, ...] = (),
    recalled: Recalled | None = None,
) -> tuple[TrainState, StepReport]:
    """Renders one photograph's view, and moves surfels and exposure down the loss.

    Args:
        state: of one block.
        batch: the photograph; its size is static.
        settings, shape, own_terms: static; a user's terms of the loss.
        recalled: what `recall_step` gives, where a program of its own read it; None = read here.
    Returns:
        The new state and what to show.
    """
    probe = None
    if shape.is_densifying:
        # Of this block alone: a probe that all devices shared would get the sum of their gradients,
        # by communication.
        probe, _ = match_varying(jnp.zeros((state.alive.shape[0], 4), jnp.float32), state.alive)
    masking = masked_steps.masking_of(state, batch.mask_seed)
    state, seen = _look(state, batch, masking, settings)
    depths = state.depths
    if recalled is None and depths is not None and shape.has_geometry:
        recalled = recall_step(state, batch)
    grad = jax.value_and_grad(_loss, has_aux=True)
    terms = used_terms(settings, Phase(shape.has_geometry), own_terms)
    static = _Static(settings, terms, shape)
    inputs = _Inputs(state, batch, seen, recalled)
    mask = masking and masking.values  # None where there are no masks
    learned = _Learned(state.params, state.appearance, probe, mask)
    (loss, (num_invalid, shown, plane_depth)), gradients = grad(learned, inputs, static)
    rows, gradient = masked_steps.who_learns(state, gradients.params, seen, masking)
    params, optimizer = optim.update(
        state.params,
        gradient,
        state.optimizer,
        rows,
        settings=settings.optim,
        progress=batch.progress,
        sh_degree=batch.sh_degree,
        length=state.length,
    )
    updated = state.updated
    if updated is not None:
        updated = jnp.where(rows, optimizer.count, updated)
    exposure = state.appearance
    appearance_optimizer = state.appearance_optimizer
    if exposure is not None:
        exposure, appearance_optimizer = exposure_model.update(
            exposure,
            gradients.exposure,
            required(appearance_optimizer, "TrainState.appearance_optimizer"),
            batch.exposure_index,
            settings.appearance,
        )
    lattice = _drawn_lattice(batch, shape)
    if depths is not None and shape.has_geometry:
        depths = depth_memory.remember(depths, batch.exposure_index, drawn(plane_depth), lattice)
    stats = state.stats
    if shape.is_densifying:
        # The sums of absolute values are zero only for surfels that no pixel saw.
        is_visible = (gradients.probe[:, 2] + gradients.probe[:, 3]) > 0
        strategy = strategy_of(settings.density)
        drawn_size = lattice.size(image_size_of(batch.photo))
        stats = strategy.accumulate(stats, gradients.probe, is_visible, drawn_size)
    new_masks = masked_steps.learned(state, gradients.mask, masking, settings)
    if new_masks is not None:
        shown |= {"surfels/kept": masks.num_kept(new_masks, state.alive)}
    new = dataclasses.replace(
        state,
        params=params,
        optimizer=optimizer,
        stats=stats,
        appearance=exposure,
        appearance_optimizer=appearance_optimizer,
        depths=depths,
        updated=updated,
        masks=new_masks,
    )
    return new, StepReport(loss, state.alive.sum(dtype=jnp.int32), num_invalid, shown)
