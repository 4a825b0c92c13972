"""SV-Reg and MV-Reg together, weighted: the native kernel, and the definitions that verify it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cosurfgs_jax import photograph
from cosurfgs_jax.errors import required
from cosurfgs_jax.geometry.lattice import Lattice, whole
from cosurfgs_jax.losses import multi_view
from cosurfgs_jax.losses.inputs import LossView, SecondView, Source
from cosurfgs_jax.losses.single_view import single_view_loss
from cosurfgs_jax.losses.term import LossTerm, Phase, TermValue
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import LossSettings, Settings
from cosurfgs_jax.types import Camera, RenderOutput, drawn

_F32 = np.dtype(np.float32)


class GeometricLosses(NamedTuple):
    """Scalars; only `total` takes gradient."""

    total: Float[Array, ""]  # weighted sum
    single_view: Float[Array, ""]
    geometric: Float[Array, ""]  # of MV-Reg
    photometric: Float[Array, ""]  # of MV-Reg
    # Fraction of the lattice's pixels that MV-Reg can follow to the neighbour and back.
    fraction_seen: Float[Array, ""]


class Second(NamedTuple):
    """The second view of MV-Reg, and what the model shows there."""

    view: SecondView
    depth: Float[Array, "h w"]  # plane depth, 0 = invalid. Takes no gradient
    lattice: Lattice  # the photograph's pixels that have a depth


def _neighbor_gray(photo: UInt8[Array, "h w c"]) -> Float[Array, "h w"]:
    gray = photograph.gray_of(photo)
    mask = photograph.mask_of(photo)
    if mask is None:
        return gray
    return jnp.where(mask, gray, multi_view.MASKED_GRAY)


def _reference(
    out, camera, source: Source, mask, second: Second | None, weights: LossSettings
) -> GeometricLosses:
    gray = photograph.gray_of(source.photo)
    nothing = jnp.zeros((), out.normal.dtype)
    single = nothing
    if weights.has_single_view:
        single = single_view_loss(out, camera, source.lattice.of(gray), mask)
    terms = multi_view.MultiViewLosses(nothing, nothing, nothing)
    if weights.has_multi_view:
        second = required(second, "geometric_losses: second")
        neighbor = multi_view.Neighbor(
            camera=second.view.camera,
            gray=_neighbor_gray(second.view.photo),
            plane_depth=second.depth,
            depth_lattice=second.lattice,
            is_used=second.view.is_used,
        )
        patches = Lattice(weights.patch_stride, second.view.offset)
        terms = multi_view.multi_view_losses(
            out,
            source.camera,
            gray,
            mask,
            neighbor,
            source.lattice,
            patches,
            plane_sigma_px=weights.patch_plane_px,
        )
    total = (
        weights.single_view_weight * single
        + weights.multi_view_geometric_weight * terms.geometric
        + weights.multi_view_photometric_weight * terms.photometric
    )
    return GeometricLosses(total, *jax.lax.stop_gradient((single, *terms)))


class _Static(NamedTuple):
    single_view_weight: float
    geometric_weight: float
    photometric_weight: float
    stride: int
    dilation: int
    plane_sigma: float


def _call(static: _Static, depth, normal, others):
    results = [((5,), _F32), (depth.shape, _F32), (normal.shape, _F32)]
    return ffi.call(
        "cosurfgs_geometric_losses",
        results,
        depth,
        normal,
        *others,
        **static._asdict(),
        radius=multi_view.PATCH_RADIUS,
        noise_variance=float(multi_view.NOISE_STD**2),
        max_reprojection=multi_view.MAX_REPROJECTION_PX,
        max_dissimilarity=multi_view.MAX_DISSIMILARITY,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native(static: _Static, depth, normal, others):
    return _call(static, depth, normal, others)[0]


def _native_forward(static, depth, normal, others):
    # One pass gives the losses and their derivatives: what it reads is the same for both.
    losses, grad_depth, grad_normal = _call(static, depth, normal, others)
    return losses, (grad_depth, grad_normal)


def _native_backward(static, gradients, cotangent):
    del static
    return cotangent[0] * gradients[0], cotangent[0] * gradients[1], None


_native.defvjp(_native_forward, _native_backward)


def geometric_losses(
    out: RenderOutput,
    camera: Camera,
    source: Source,
    mask: Float[Array, "n m"] | None,
    second: Second | None,
    weights: LossSettings,
    backend: str | None = None,
) -> GeometricLosses:
    """SV-Reg (`single_view.single_view_loss`) and MV-Reg (`multi_view.multi_view_losses`) of one
    view.

    Args:
        out: maps [n,m] of the view. Plane depth and normals take gradient.
        camera: that they are drawn with. Takes no gradient.
        source: the whole photograph [H,W], and which of its pixels are drawn; a fourth channel is
            not read here, but says in the second one what does not count.
        mask: [n,m], 0 = ignore the pixel; None = all count.
        second: a photograph from nearby and the depth there; may be None where MV-Reg is off.
        weights: static: weights and stride; a term of weight 0 is not computed.
        backend: "cpu" (native kernel, float32), "reference" (plain JAX), or None: native where it
            can run.
    Raises:
        InputError: an unknown backend, or one that is not there.
    """
    plane_depth = drawn(out.plane_depth)
    normal = drawn(out.normal)
    if not ffi.choose_native(
        "geometric losses", "cosurfgs_geometric_losses", backend, plane_depth, normal
    ):
        return _reference(out, camera, source, mask, second, weights)
    if second is None or not weights.has_multi_view:
        nothing = SecondView(
            camera, jnp.zeros((0, 0, 3), jnp.uint8), jnp.zeros((), bool), jnp.zeros(2, jnp.int32)
        )
        second = Second(nothing, jnp.zeros((0, 0), jnp.float32), whole())
    static = _Static(
        single_view_weight=float(weights.single_view_weight),
        geometric_weight=float(weights.multi_view_geometric_weight),
        photometric_weight=float(weights.multi_view_photometric_weight),
        stride=int(weights.patch_stride),
        dilation=source.lattice.stride,
        plane_sigma=float(weights.patch_plane_px),
    )
    others = jax.lax.stop_gradient(
        (
            out.alpha,
            source.photo,
            jnp.zeros((0, 0), jnp.float32) if mask is None else mask,
            camera.camera_from_world,
            camera.intrinsics,
            source.camera.intrinsics,
            source.lattice.origin,
            second.view.photo,
            second.depth,
            second.view.camera.camera_from_world,
            second.view.camera.intrinsics,
            second.lattice.intrinsics(second.view.camera.intrinsics),
            second.view.is_used,
            second.view.offset,
        )
    )
    depth, normal, *others = ffi.match_varying(plane_depth, normal, *map(jnp.asarray, others))
    return GeometricLosses(*_native(static, depth, normal, tuple(others)))


def _second_of(view: LossView) -> Second | None:
    if view.second is None or view.second_depth is None:
        return None
    return Second(view.second, view.second_depth, view.second_lattice or whole())


def _is_used(settings: Settings, phase: Phase) -> bool:
    is_on = settings.loss.has_single_view or settings.loss.has_multi_view
    return phase.has_geometry and is_on


def _evaluate(view: LossView, settings: Settings) -> TermValue:
    losses = geometric_losses(
        view.out,
        view.camera,
        view.whole,
        view.pixel_weights,
        _second_of(view),
        settings.loss,
    )
    shown = {
        "geometry/single_view": losses.single_view,
        "geometry/multi_view_geometric": losses.geometric,
        "geometry/multi_view_photometric": losses.photometric,
        "seen_in_neighbor": losses.fraction_seen,
    }
    return TermValue(losses.total, shown)


TERM = LossTerm("geometric", _is_used, _evaluate, maps=Maps.GEOMETRY)
