"""One step of training and one of density control: pure functions of the state of one block."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from cosurfgs_jax import photograph
from cosurfgs_jax.losses.geometric import GeometricLosses, SecondView, geometric_losses
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
from cosurfgs_jax.model import density, exposure_model, optim
from cosurfgs_jax.native.ffi import match_varying
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.state import TrainState, with_surfels
from cosurfgs_jax.types import Camera, Surfels


class Batch(NamedTuple):
    """One photograph of one step."""

    camera: Camera
    photo: UInt8[Array, "h w c"]  # RGB, or RGB and 255 where the pixel counts
    view: Int[Array, ""]  # which of the block's exposures is the photograph's
    progress: Float[Array, ""]  # share of all steps done before this one
    sh_degree: Int[Array, ""]  # bands above it do not learn yet
    second: SecondView | None = None  # where MV-Reg is on


class StepReport(NamedTuple):
    """Scalars of one step."""

    loss: Float[Array, ""]
    psnr: Float[Array, ""]  # of the exposed render against the photograph
    num_alive: Int[Array, ""]
    num_invalid: Int[Array, ""]  # living surfels that were skipped because a value is not finite
    geometry: GeometricLosses | None = None  # where SV-Reg or MV-Reg is on


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What a compiled step is specialised to."""

    is_densifying: bool  # the screen gradients are gathered
    has_geometry: bool = False  # SV-Reg and MV-Reg are on


def _second_depth(surfels: Surfels, second: SecondView, settings: Settings) -> Float[Array, "h w"]:
    """The plane depth that the model shows in a second view, without gradient."""
    drawn = rasterize(
        jax.lax.stop_gradient(surfels),
        second.camera,
        image_size=second.photo.shape[:2],
        near=settings.raster.near,
        backend=settings.raster.backend or None,
        maps="geometry",
    )
    return drawn.plane_depth


def _loss(
    params, exposure, probe, state: TrainState, batch: Batch, settings: Settings, shape: StepShape
):
    height, width = batch.photo.shape[:2]
    needs_distortion = settings.loss.distortion_weight > 0
    maps = "all" if needs_distortion else "geometry" if shape.has_geometry else "color"
    surfels = optim.to_surfels(params, state.alive)
    out = rasterize(
        surfels,
        batch.camera,
        image_size=(height, width),
        near=settings.raster.near,
        background=jnp.full((3,), settings.raster.background, jnp.float32),
        backend=settings.raster.backend or None,
        maps=maps,
        gradient_probe=probe,
    )
    transform = None
    if exposure is not None:
        has_begun = batch.progress >= settings.appearance.start
        transform = jnp.where(
            has_begun, exposure_model.transform_of(exposure, batch.view), jnp.eye(3, 4)
        )
    weights = PhotometricWeights(settings.loss.ssim_weight, settings.loss.transparency_weight)
    loss, psnr = photometric_losses(out.color, out.alpha, batch.photo, None, transform, weights)
    if exposure is not None:
        loss += exposure_model.identity_penalty(exposure, settings.appearance, state.num_views)
    if needs_distortion:
        loss += settings.loss.distortion_weight * out.distortion.mean()
    geometry = None
    if shape.has_geometry:
        second_depth = (
            _second_depth(surfels, batch.second, settings) if settings.loss.has_multi_view else None
        )
        mask = photograph.weights_of(batch.photo)
        geometry = geometric_losses(
            out, batch.camera, batch.photo, mask, batch.second, second_depth, settings.loss
        )
        loss += geometry.total
    return loss, (psnr, out.num_invalid, geometry)


def train_step(
    state: TrainState, batch: Batch, settings: Settings, shape: StepShape
) -> tuple[TrainState, StepReport]:
    """Renders one photograph's view, and moves surfels and exposure down the loss.

    Args:
        state: of one block.
        batch: the photograph; its size is static.
        settings, shape: static.
    Returns:
        The new state and what to show.
    """
    probe = None
    if shape.is_densifying:
        # Of this block alone: a probe that all devices shared would get the sum of their gradients,
        # by communication.
        probe, _ = match_varying(jnp.zeros((state.alive.shape[0], 4), jnp.float32), state.alive)
    arguments = (0, 1, 2) if shape.is_densifying else (0, 1)
    grad = jax.value_and_grad(_loss, argnums=arguments, has_aux=True)
    (loss, (psnr, num_invalid, geometry)), gradients = grad(
        state.params, state.appearance, probe, state, batch, settings, shape
    )
    params, optimizer = optim.update(
        state.params,
        gradients[0],
        state.optimizer,
        state.alive,
        settings.optim,
        batch.progress,
        batch.sh_degree,
        state.length,
    )
    exposure = state.appearance
    appearance_optimizer = state.appearance_optimizer
    if exposure is not None:
        exposure, appearance_optimizer = exposure_model.update(
            exposure, gradients[1], appearance_optimizer, batch.view, settings.appearance
        )
    stats = state.stats
    if shape.is_densifying:
        # The sums of absolute values are zero only for surfels that no pixel saw.
        is_visible = (gradients[2][:, 2] + gradients[2][:, 3]) > 0
        stats = density.accumulate(stats, gradients[2], is_visible, batch.photo.shape[:2])
    new = dataclasses.replace(
        state,
        params=params,
        optimizer=optimizer,
        stats=stats,
        appearance=exposure,
        appearance_optimizer=appearance_optimizer,
    )
    return new, StepReport(loss, psnr, state.alive.sum(dtype=jnp.int32), num_invalid, geometry)


class DensifyOrder(NamedTuple):
    """What one round of density control needs besides the state; scalars."""

    block: Int[Array, ""]  # with `step` and the run's seed it makes the random numbers
    step: Int[Array, ""]
    is_after_reset: Bool[Array, ""]
    budget: Int[Array, ""]


def densify_step(
    state: TrainState, order: DensifyOrder, settings: Settings
) -> tuple[TrainState, density.DensityReport]:
    """One round of density control (`density.densify`) on the state."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), 2), order.block)
    *slots, report = density.densify(
        state.params,
        state.optimizer,
        state.alive,
        state.stats,
        jax.random.fold_in(key, order.step),
        settings.density,
        order.is_after_reset,
        order.budget,
        state.length,
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
    """Counts one more photograph for each surfel that some pixel of it sees in the front half of
    its light.

    Args:
        num_views: i32[N], so far.
        state: of one block; its surfels are drawn.
        camera, image_size: of the photograph; the size is static.
        is_active: whether it counts at all: blocks with fewer photographs than others are given
            some to draw for nothing.
        settings: static.
    """
    out = rasterize(
        state.surfels(),
        camera,
        image_size=image_size,
        near=settings.raster.near,
        backend=settings.raster.backend or None,
        maps="color",
        with_contributions=True,
    )
    return num_views + ((out.contributions[:, 3] > 0) & is_active).astype(jnp.int32)


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


def reset_opacity_step(state: TrainState) -> TrainState:
    """Lowers all opacities (`density.reset_opacity`)."""
    params, optimizer = density.reset_opacity(state.params, state.optimizer)
    return dataclasses.replace(state, params=params, optimizer=optimizer)
