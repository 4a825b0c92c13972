"""One surfel at the pixels of a tile, forward and backward: the arithmetic of the backends that are
not native.

Written over arrays of any shape, so that one implementation serves whole groups of tiles
(portable.py: features f32[G,1], pixels f32[G,P]) and one tile in a TPU kernel (pallas_tpu.py:
features are scalars, pixels f32[2,128]). The formulas are those of
native/csrc/raster/blend_kernels.cc."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cosurfgs_jax.raster import projection
from cosurfgs_jax.raster.options import Maps, Static
from cosurfgs_jax.raster.projection import CENTER, COLOR, NORMAL, OPACITY, PLANE, TO_Z, A, B, C
from cosurfgs_jax.raster.reference import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE

# Columns of a gradient row: the features, then the absolute sums of the probe.
ABSOLUTE = projection.NUM_FEATURES
NUM_GRADIENTS = projection.NUM_FEATURES + 2


class Hit(NamedTuple):
    """A surfel at some pixels."""

    dx: Any
    dy: Any
    u: Any
    v: Any
    inverse_pz: Any
    alpha: Any
    is_clamped: Any
    z: Any
    is_disc: Any
    is_hit: Any


class Pixels(NamedTuple):
    """What pixels have gathered; None where the maps do not ask for it."""

    transmittance: Any
    is_open: Any  # 1.0, or 0.0 once the pixel has stopped
    last: Any  # rank of the last blended surfel, -1 = none
    color: tuple  # without background
    depth: Any
    median: Any
    median_rank: Any
    normal: Any  # a tuple; None without geometry
    plane: Any
    distortion: Any


class Replay(NamedTuple):
    """What pixels carry from their last surfel back to the first; None where the maps do not ask
    for it.
    """

    transmittance: Any  # behind the surfels replayed so far
    behind: Any  # sum of w e over those behind, with the background's part
    depth_behind: Any


class Cotangents(NamedTuple):
    """Gradients of the maps at some pixels, and what else of the forward pass the
    backward pass needs.
    """

    color: tuple
    depth: Any
    median: Any
    normal: Any  # a tuple; None without geometry
    plane: Any
    distortion: Any
    last: Any
    median_rank: Any
    final_transmittance: Any
    depth_total: Any


def empty(zero, maps: Maps) -> Pixels:
    """Pixels before the first surfel; `zero` is a float array of their shape."""

    def geometry(value):
        return value if maps >= Maps.GEOMETRY else None

    none = zero.astype(jnp.int32) - 1
    return Pixels(
        transmittance=zero + 1,
        is_open=zero + 1,
        last=none,
        color=(zero,) * 3,
        depth=geometry(zero),
        median=geometry(zero),
        median_rank=geometry(none),
        normal=geometry((zero,) * 3),
        plane=geometry(zero),
        distortion=zero if maps >= Maps.ALL else None,
    )


def intersect(f, x, y, static: Static) -> Hit:
    """A surfel at pixel positions.

    Args:
        f: features by column, each of a shape that broadcasts to the pixels.
        x, y: pixel centres.
        static: near plane and screen-space filter.
    """
    dx = x - f[CENTER]
    dy = y - f[CENTER + 1]
    px = dx * f[A] + dy * f[B]
    py = dx * f[A + 1] + dy * f[B + 1]
    pz = dx * f[A + 2] + (dy * f[B + 2] + f[C])
    inverse_pz = 1 / pz
    u = px * inverse_pz
    v = py * inverse_pz
    sigma_disc = u * u + v * v
    sigma_screen = (dx * dx + dy * dy) * static.low_pass
    is_disc = (
        sigma_disc <= sigma_screen
    )  # false where the ray lies in the disc's plane: no number, or infinity
    raw = f[OPACITY] * jnp.exp(jnp.where(is_disc, sigma_disc, sigma_screen) * -0.5)
    alpha = jnp.minimum(raw, MAX_ALPHA)
    z = jnp.where(is_disc, u * f[TO_Z] + (v * f[TO_Z + 1] + f[TO_Z + 2]), f[TO_Z + 2])
    return Hit(
        dx=dx,
        dy=dy,
        u=u,
        v=v,
        inverse_pz=inverse_pz,
        alpha=alpha,
        is_clamped=raw > MAX_ALPHA,
        z=z,
        is_disc=is_disc,
        is_hit=(alpha >= MIN_ALPHA) & (z >= static.near),
    )


def inline(function: Callable, *arguments):
    """Calls it; the default of `noinline` below."""
    return function(*arguments)


def _visible(f, x, y, is_there, static: Static):
    hit = intersect(f, x, y, static)
    return jnp.where(hit.is_hit & is_there, hit.alpha, 0.0), hit.z if static.has_geometry else None


def _weigh(alpha, before, is_open):
    after = before - before * alpha
    is_candidate = (alpha > 0) & (is_open > 0)
    is_blended = is_candidate & (after >= MIN_TRANSMITTANCE)
    return (
        jnp.where(is_blended, alpha * before, 0.0),
        jnp.where(is_blended, after, before),
        jnp.where(is_candidate & (after < MIN_TRANSMITTANCE), 0.0, is_open),
    )


def blend(state: Pixels, f, x, y, rank, is_there, static: Static, noinline: Callable = inline):
    """Blends one surfel.

    Args:
        state: before it.
        f, x, y: see `intersect`.
        rank: the surfel's place in the order of depth, i32.
        is_there: False where there is no surfel to blend.
        static: near plane, screen-space filter, and which maps are made.
        noinline: calls a function whose results the compiler is not to compute again for each of
            their uses.
    Returns:
        The new state, and the surfel's weight at the pixels.
    """
    alpha, z = noinline(functools.partial(_visible, static=static), f, x, y, is_there)
    before = state.transmittance
    weight, after, is_open = noinline(_weigh, alpha, before, state.is_open)
    is_blended = weight > 0
    new = state._replace(
        transmittance=after,
        is_open=is_open,
        last=jnp.where(is_blended, rank, state.last),
        color=tuple(value + weight * f[COLOR + i] for i, value in enumerate(state.color)),
    )
    if static.has_geometry:
        is_front = is_blended & (before > 0.5)
        new = new._replace(
            depth=state.depth + weight * z,
            median=jnp.where(is_front, z, state.median),
            median_rank=jnp.where(is_front, rank, state.median_rank),
            plane=state.plane + weight * f[PLANE],
            normal=tuple(value + weight * f[NORMAL + i] for i, value in enumerate(state.normal)),
        )
    if static.has_distortion:
        new = new._replace(
            distortion=state.distortion + weight * (z * (1 - before) - state.depth) * 2
        )
    return new, weight


class Gradients(NamedTuple):
    """Derivatives at some pixels through one surfel; all 0 where it is not blended."""

    weight: Any
    log_alpha: Any
    z: Any  # None without geometry
    p: tuple  # by the numerators of u and v and their divisor
    d: tuple  # by dx and dy


def _replayed(f, x, y, rank, is_there, last, static: Static):
    hit = intersect(f, x, y, static)
    is_blended = hit.is_hit & is_there & (rank <= last)
    is_disc = hit.is_disc & is_blended
    u, v, inverse_pz = (jnp.where(is_disc, value, 0.0) for value in (hit.u, hit.v, hit.inverse_pz))
    # The sign says whether alpha is at its largest, where it has no gradient.
    alpha = jnp.where(is_blended, jnp.where(hit.is_clamped, -hit.alpha, hit.alpha), 0.0)
    return (
        alpha,
        jnp.where(is_blended, hit.z, 0.0) if static.has_geometry else None,
        u,
        v,
        inverse_pz,
    )


def _unweigh(state: Replay, g: Cotangents, f, signed_alpha, z, rank, maps: Maps):
    alpha = jnp.abs(signed_alpha)
    inverse = 1 / (1 - alpha)
    before = state.transmittance * inverse
    weight = alpha * before
    # e: what the loss gains per unit of this hit's weight.
    e = sum(g.color[i] * f[COLOR + i] for i in range(3))
    new = state._replace(transmittance=before)
    grad_z = None
    if maps >= Maps.GEOMETRY:
        e += sum(g.normal[i] * f[NORMAL + i] for i in range(3)) + g.plane * f[PLANE] + g.depth * z
        grad_z = weight * g.depth + jnp.where((alpha > 0) & (g.median_rank == rank), g.median, 0.0)
    if maps >= Maps.ALL:
        balance = (1 - before) - (
            state.transmittance - g.final_transmittance
        )  # alpha in front less alpha behind
        depth_front = g.depth_total - state.depth_behind - weight * z
        e += 2 * g.distortion * (z * balance + state.depth_behind - depth_front)
        grad_z += 2 * g.distortion * weight * balance
        new = new._replace(depth_behind=state.depth_behind + weight * z)
    grad_alpha = jnp.where(signed_alpha > 0, before * e - state.behind * inverse, 0.0)
    return new._replace(behind=state.behind + weight * e), weight, grad_alpha * alpha, grad_z


def _gradients(f, x, y, log_alpha, grad_z, u, v, inverse_pz, low_pass):
    grad_sigma = log_alpha * -0.5
    grad_u = grad_sigma * u * 2
    grad_v = grad_sigma * v * 2
    if grad_z is not None:
        grad_u = grad_u + grad_z * f[TO_Z]
        grad_v = grad_v + grad_z * f[TO_Z + 1]
    grad_px = grad_u * inverse_pz
    grad_py = grad_v * inverse_pz
    grad_pz = -(grad_px * u + grad_py * v)
    grad_screen = jnp.where(inverse_pz != 0, 0.0, grad_sigma) * (2 * low_pass)
    grad_dx = (
        grad_px * f[A] + grad_py * f[A + 1] + grad_pz * f[A + 2] + grad_screen * (x - f[CENTER])
    )
    grad_dy = (
        grad_px * f[B] + grad_py * f[B + 1] + grad_pz * f[B + 2] + grad_screen * (y - f[CENTER + 1])
    )
    return (grad_px, grad_py, grad_pz), (grad_dx, grad_dy)


def unblend(
    state: Replay,
    g: Cotangents,
    f,
    x,
    y,
    rank,
    is_there,
    static: Static,
    noinline: Callable = inline,
):
    """The backward pass through one surfel.

    Args:
        state: behind it.
        g: of the pixels.
        f, x, y, rank, is_there, static, noinline: see `blend`.
    Returns:
        The state before it, its gradients, and u and v (0 where the low-pass filter is hit).
    """
    alpha, z, u, v, inverse_pz = noinline(
        functools.partial(_replayed, static=static), f, x, y, rank, is_there, g.last
    )
    new, weight, log_alpha, grad_z = noinline(
        functools.partial(_unweigh, maps=static.maps), state, g, f, alpha, z, rank
    )
    p, d = noinline(
        functools.partial(_gradients, low_pass=static.low_pass),
        f,
        x,
        y,
        log_alpha,
        grad_z,
        u,
        v,
        inverse_pz,
    )
    return new, Gradients(weight=weight, log_alpha=log_alpha, z=grad_z, p=p, d=d), (u, v)


def terms(grads: Gradients, g: Cotangents, f, x, y, u, v) -> list:
    """The gradient row of a surfel, NUM_GRADIENTS terms to be summed over the pixels; None = 0.

    Args:
        grads, u, v: from `unblend`. g, f, x, y: its arguments.
    """
    row = [None] * NUM_GRADIENTS
    dx = x - f[CENTER]
    dy = y - f[CENTER + 1]
    row[CENTER : CENTER + 2] = (-value for value in grads.d)
    row[A : A + 3] = (value * dx for value in grads.p)
    row[B : B + 3] = (value * dy for value in grads.p)
    row[C] = grads.p[2]
    row[OPACITY] = grads.log_alpha  # to be divided by the opacity
    row[COLOR : COLOR + 3] = (grads.weight * value for value in g.color)
    row[ABSOLUTE : ABSOLUTE + 2] = (jnp.abs(value) for value in grads.d)
    if grads.z is not None:
        row[TO_Z : TO_Z + 3] = grads.z * u, grads.z * v, grads.z
        row[NORMAL : NORMAL + 3] = (grads.weight * value for value in g.normal)
        row[PLANE] = grads.weight * g.plane
    return row
