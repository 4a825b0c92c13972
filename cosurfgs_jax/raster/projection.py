"""The projection of surfels, in plain JAX: shared by the backends that are not native.

Everything is relative to the projected centre of the surfel, as in
native/csrc/raster/surfel_math.h, whose notes derive it: seven numbers instead of the nine of
reference.py, and no cancellation between large pixel coordinates. JAX takes the derivative."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.geometry import cameras, rotations, spherical_harmonics
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.reference import (
    MAX_LENGTH,
    MAX_VALUE,
    MIN_ALPHA,
    MIN_QUAT_SQUARED,
)
from cosurfgs_jax.types import DRAWN_NAMES, Camera, Surfels

# Columns of `Projected.features`.
CENTER = 0
A = 2
B = 5
C = 8
TO_Z = 9
OPACITY = 12
COLOR = 13
NORMAL = 16
PLANE = 19
NUM_FEATURES = 20

_BOX_MARGIN = 0.01  # pixels, for rounding in the bounds
_CUTOFF_MARGIN = 1e-3  # the exact test is on alpha


class Projected(NamedTuple):
    """N surfels in one view; rows of those that are not drawn hold harmless numbers."""

    # centre px[2], a[3], b[3], c, camera z of (u, v, 1) [3], opacity, color[3], normal[3], plane
    features: Float[Array, "n f"]
    depth: Float[Array, " n"]  # camera z of the centre
    box: Int[Array, "n 4"]  # pixels that it may cover: x0, x1, y0, y1, inclusive, in the image
    is_drawn: Bool[Array, " n"]
    num_invalid: Int[Array, ""]


def _sum(x, axis=-1):
    return x.sum(axis=axis)


def _is_valid(surfels: Surfels) -> Bool[Array, " n"]:
    fields = [getattr(surfels, name) for name in DRAWN_NAMES]
    is_finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in fields]
    means = surfels.means
    log_scales = surfels.log_scales
    quats = surfels.quats
    has_sane_lengths = (
        jnp.concatenate([jnp.abs(means), jnp.exp(log_scales)], axis=1).max(axis=1) <= MAX_LENGTH
    )
    color_squared = _sum(surfels.sh * surfels.sh, axis=(1, 2))
    has_sane_values = (jnp.abs(surfels.logit_opacities) <= MAX_VALUE) & (
        color_squared <= MAX_VALUE**2
    )
    squared = _sum(quats * quats)
    is_turned = jnp.isfinite(squared) & (squared >= MIN_QUAT_SQUARED)
    return jnp.stack(is_finite).all(axis=0) & has_sane_lengths & has_sane_values & is_turned


def _keep(mask, values, otherwise: float):
    return jnp.where(
        mask.reshape(mask.shape + (1,) * (values.ndim - 1)),
        values,
        jnp.asarray(otherwise, values.dtype),
    )


def _bounds(ray, numerators, center, opacity, static: Static):
    """Pixel boxes i32[N,4] of everything with alpha >= MIN_ALPHA, and whether there is a pixel in
    them.

    A disc that is not wholly in front of the camera has no such box: it gets one that covers the
    image."""
    cutoff = 2 * jnp.log(jnp.maximum(opacity, MIN_ALPHA) / MIN_ALPHA) + _CUTOFF_MARGIN
    z = ray[:, 2]
    denominator = cutoff * (ray[:, 0] ** 2 + ray[:, 1] ** 2) - z * z
    is_whole = denominator < -1e-3 * z * z
    inverse = 1 / jnp.where(is_whole, denominator, -1.0)
    low_pass = jnp.sqrt(cutoff / static.low_pass) + _BOX_MARGIN
    box = []
    for axis, size in ((0, static.width), (1, static.height)):
        n = numerators[axis]
        middle = cutoff * (n[0] * ray[:, 0] + n[1] * ray[:, 1]) * inverse
        squared = middle * middle - cutoff * (n[0] ** 2 + n[1] ** 2) * inverse
        half = jnp.sqrt(jnp.maximum(squared, 0.0)) * 1.0001 + _BOX_MARGIN
        low = jnp.where(is_whole, jnp.minimum(middle - half, -low_pass), -1e9) + center[:, axis]
        high = jnp.where(is_whole, jnp.maximum(middle + half, low_pass), 1e9) + center[:, axis]
        # Clipped as floats: what lies far outside has no integer. What is not a number covers the
        # image.
        low = jnp.where(jnp.isnan(low), -1.0, low)
        high = jnp.where(jnp.isnan(high), 1e9, high)
        box += [
            jnp.clip(jnp.ceil(low - 0.5), 0, size).astype(jnp.int32),
            jnp.clip(jnp.floor(high - 0.5), -1, size - 1).astype(jnp.int32),
        ]
    return jnp.stack(box, axis=-1), (box[0] <= box[1]) & (box[2] <= box[3])


def _in_camera(vectors, rotation):
    # Not a matrix product: those are rounded to bfloat16 on some devices.
    return sum(vectors[:, i : i + 1] * rotation[:, i][None, :] for i in range(3))


def _without_unused(surfels: Surfels, is_used) -> Surfels:
    """Harmless numbers in place of dead and broken surfels, before anything that could make their
    derivative infinite.
    """
    harmless = dict.fromkeys(DRAWN_NAMES, 0.0) | {"quats": 1.0}
    return surfels.replace(
        **{name: _keep(is_used, getattr(surfels, name), value) for name, value in harmless.items()}
    )


def _ray_transform(u, v, center_camera, ray, intrinsics):
    """Centres in pixels [N,2], the numerators of the pixel coordinates, and the columns A, B, C of
    the features (native/csrc/raster/surfel_math.h).
    """
    fx = intrinsics[0, 0]
    fy = intrinsics[1, 1]
    ex = -fx * center_camera[:, 0] / ray[:, 2]
    ey = -fy * center_camera[:, 1] / ray[:, 2]
    n0 = (fx * u[:, 0] + ex * ray[:, 0], fx * v[:, 0] + ex * ray[:, 1])
    n1 = (fy * u[:, 1] + ey * ray[:, 0], fy * v[:, 1] + ey * ray[:, 1])
    center = jnp.stack([intrinsics[0, 2] - ex, intrinsics[1, 2] - ey], axis=-1)
    a = [n1[1] * ray[:, 2], -n1[0] * ray[:, 2], n1[0] * ray[:, 1] - n1[1] * ray[:, 0]]
    b = [-n0[1] * ray[:, 2], n0[0] * ray[:, 2], n0[1] * ray[:, 0] - n0[0] * ray[:, 1]]
    c = n0[0] * n1[1] - n0[1] * n1[0]
    return center, (n0, n1), [*a, *b, c]


def _color_and_normal(surfels: Surfels, camera: Camera, normal, is_drawn, static: Static):
    """RGB [N,3], and the normals [N,3] turned towards the camera."""
    offset = surfels.means - cameras.camera_center(camera.camera_from_world)[None, :]
    offset = _keep(is_drawn, offset, 1.0)
    direction = offset / jnp.sqrt(_sum(offset * offset))[:, None]
    facing = _sum(normal * offset)
    if static.orthographic:
        axis = camera.camera_from_world[2, :3]
        direction = jnp.broadcast_to(axis[None, :], offset.shape)
        facing = _sum(normal * direction)
    one = jnp.ones_like(facing)
    normal = normal * jnp.where(facing > 0, -one, one)[:, None]
    shade = spherical_harmonics.evaluate(static.sh_degree, surfels.sh, direction) + 0.5
    return jnp.where(shade > 0, shade, jnp.zeros_like(shade)), normal


def project(surfels: Surfels, camera: Camera, static: Static) -> Projected:
    """Projects surfels into one view.

    Args:
        surfels: all fields but `alive` take gradient.
        camera: one. The pose takes gradient, as twelve free numbers; the intrinsics take none.
        static: image size, near plane, degree, projection.
    Returns:
        Projected; only `features` carries gradient.
    Source: ray transform of 2DGS (Huang et al. 2024), in the form of
        native/csrc/raster/surfel_math.h.
    """
    num_coefficients = spherical_harmonics.num_coefficients(static.sh_degree)
    surfels = surfels.replace(sh=surfels.sh[:, :num_coefficients])
    is_valid = _is_valid(surfels)
    num_invalid = (surfels.alive & ~is_valid).sum(dtype=jnp.int32)
    is_used = surfels.alive & is_valid
    surfels = _without_unused(surfels, is_used)
    rotation = camera.camera_from_world[:3, :3]
    translation = camera.camera_from_world[:3, 3]

    opacity = jax.nn.sigmoid(surfels.logit_opacities)
    center_camera = _in_camera(surfels.means, rotation) + translation[None, :]
    depth = center_camera[:, 2]
    is_drawn = is_used & (depth > static.near) & (opacity >= MIN_ALPHA)
    ahead = jnp.asarray([0.0, 0.0, 1.0], surfels.means.dtype)
    center_camera = jnp.where(is_drawn[:, None], center_camera, ahead[None, :])

    axes = rotations.matrix_from_quat(surfels.quats)
    scales = jnp.exp(surfels.log_scales)
    u, v = (_in_camera(axes[:, :, i], rotation) * scales[:, i : i + 1] for i in range(2))
    # (u, v, 1) . ray divides pixels: camera z, or 1 where rays are parallel.
    ray = [u[:, 2], v[:, 2], center_camera[:, 2]]
    if static.orthographic:
        ray = [jnp.zeros_like(depth), jnp.zeros_like(depth), jnp.ones_like(depth)]
    ray = jnp.stack(ray, axis=-1)
    intrinsics = jax.lax.stop_gradient(camera.intrinsics)
    center, numerators, transform = _ray_transform(u, v, center_camera, ray, intrinsics)
    color, normal = _color_and_normal(surfels, camera, axes[:, :, 2], is_drawn, static)
    plane = -_sum(_in_camera(normal, rotation) * center_camera)

    columns = [
        center[:, 0],
        center[:, 1],
        *transform,
        u[:, 2],
        v[:, 2],
        center_camera[:, 2],
        opacity,
        *(color[:, i] for i in range(3)),
        *(normal[:, i] for i in range(3)),
        plane,
    ]
    still = jax.lax.stop_gradient
    box, is_inside = _bounds(*still((ray, numerators, center, opacity)), static)
    return Projected(
        features=jnp.stack(columns, axis=-1),
        depth=still(depth),
        box=box,
        is_drawn=is_drawn & is_inside,
        num_invalid=num_invalid,
    )
