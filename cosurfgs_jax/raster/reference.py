"""The rasterizer's definition in plain jax.numpy: slow on purpose, differentiable by JAX itself,
float32 or float64.

Surfels are blended one by one in depth order (`lax.scan`), vectorised over pixels; every surfel
visits every pixel. The other backends are verified against this file, value and gradient, so it has
no tiles, no bounds and no hand-written derivative. Masked-out values are replaced *before* the
operation that could make them NaN or infinite, since a later `where` would still multiply the
infinite derivative by zero."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.geometry import cameras, rotations, spherical_harmonics
from cosurfgs_jax.raster.options import LOW_PASS
from cosurfgs_jax.raster.outputs import NUM_FLOAT_MAPS, RawMaps
from cosurfgs_jax.types import DRAWN_NAMES, Camera, Surfels, drawn

MIN_ALPHA = 1 / 255
MAX_ALPHA = 0.99
MIN_TRANSMITTANCE = 1e-4
# World length, a billion scenes: what is larger or farther is as bad as infinite, since its squares
# leave float32.
MAX_LENGTH = 1e9
MAX_VALUE = 1e6  # of a logit, and of the length of a colour's coefficients; likewise
MIN_QUAT_SQUARED = 1e-24  # below, the derivative of a quaternion's direction leaves float32


class _Projected(NamedTuple):
    """Per surfel, in the order of the arguments; harmless numbers where it is not drawn."""

    pixel_from_disc: Float[Array, "n 3 3"]  # (u, v, 1) to homogeneous pixels
    # (u, v, 1) to camera z; in perspective the third row of pixel_from_disc
    z_from_disc: Float[Array, "n 3"]
    center_px: Float[Array, "n 2"]
    opacity: Float[Array, " n"]
    color: Float[Array, "n 3"]
    normal_world: Float[Array, "n 3"]  # towards the camera
    plane_distance: Float[Array, " n"]
    depth: Float[Array, " n"]  # camera z of the centre
    is_drawn: Bool[Array, " n"]


class _Hits(NamedTuple):
    """One surfel at every pixel."""

    alpha: Float[Array, "h w"]  # 0 where it is not hit
    z: Float[Array, "h w"]  # 0 where it is not hit
    is_hit: Bool[Array, "h w"]
    margin: Float[Array, "h w"]  # relative distance to the nearest decision that jumps


class _State(NamedTuple):
    """What is blended so far."""

    transmittance: Float[Array, "h w"]
    is_stopped: Bool[Array, "h w"]
    color: Float[Array, "h w 3"]
    depth_sum: Float[Array, "h w"]
    median_depth: Float[Array, "h w"]
    normal_sum: Float[Array, "h w 3"]
    plane_sum: Float[Array, "h w"]
    distortion: Float[Array, "h w"]
    margin: Float[Array, "h w"]


def _is_valid(surfels: Surfels) -> Bool[Array, " n"]:
    """All fields are finite, no value is absurd and the quaternion has a direction."""
    fields = [getattr(surfels, name) for name in DRAWN_NAMES]
    is_finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in fields]
    lengths = jnp.concatenate([jnp.abs(surfels.means), jnp.exp(surfels.log_scales)], axis=1)
    has_sane_lengths = lengths.max(axis=1) <= MAX_LENGTH
    has_sane_values = jnp.abs(surfels.logit_opacities) <= MAX_VALUE
    has_sane_values &= (surfels.sh * surfels.sh).sum(axis=(1, 2)) <= MAX_VALUE**2
    squared = (surfels.quats * surfels.quats).sum(axis=-1)
    has_sane_values &= jnp.isfinite(squared) & (squared >= MIN_QUAT_SQUARED)
    return jnp.stack(is_finite).all(axis=0) & has_sane_lengths & has_sane_values


def _keep(mask, values, otherwise: float):
    """`values` where the surfel's mask holds, else a constant, with a gradient of zero."""
    return jnp.where(
        mask.reshape(mask.shape + (1,) * (values.ndim - 1)),
        values,
        jnp.asarray(otherwise, values.dtype),
    )


def project(surfels: Surfels, camera: Camera, near, sh_degree: int, projection: str):
    """Projects surfels.

    Returns:
        `_Projected`, and the number of living surfels with a field that is not finite.
    """
    sh = surfels.sh[:, : spherical_harmonics.num_coefficients(sh_degree)]
    is_valid = _is_valid(surfels.replace(sh=sh))
    num_invalid = (surfels.alive & ~is_valid).sum().astype(jnp.int32)
    means = _keep(is_valid, surfels.means, 0.0)
    log_scales = _keep(is_valid, surfels.log_scales, 0.0)
    sh = _keep(is_valid, sh, 0.0)
    quats = _keep(is_valid, surfels.quats, 1.0)
    logit_opacities = _keep(is_valid, surfels.logit_opacities, 0.0)

    camera_from_world = camera.camera_from_world
    rotation = camera_from_world[:3, :3]
    translation = camera_from_world[:3, 3]
    opacity = jax.nn.sigmoid(logit_opacities)
    mean_camera = means @ rotation.T + translation[None, :]
    depth = mean_camera[:, 2]
    is_drawn = surfels.alive & is_valid & (depth > near) & (opacity >= MIN_ALPHA)
    mean_camera = jnp.where(
        is_drawn[:, None], mean_camera, jnp.asarray([0.0, 0.0, 1.0], means.dtype)[None, :]
    )

    axes_world = rotations.matrix_from_quat(quats)
    axes_camera = jnp.einsum("ij,njk->nik", rotation, axes_world)
    tangents = axes_camera[:, :, :2] * jnp.exp(log_scales)[:, None, :]
    camera_from_disc = jnp.concatenate([tangents, mean_camera[:, :, None]], axis=2)
    is_parallel = projection == "orthographic"
    undivided = camera_from_disc
    if is_parallel:
        undivided = camera_from_disc.at[:, 2].set(jnp.asarray([0, 0, 1], means.dtype))
    pixel_from_disc = jnp.einsum("ij,njk->nik", camera.intrinsics, undivided)
    center_px = pixel_from_disc[:, :2, 2] / pixel_from_disc[:, 2:, 2]

    towards = (axes_camera[:, :, 2] * mean_camera).sum(axis=-1)
    along_ray = towards
    if is_parallel:
        along_ray = axes_camera[:, 2, 2]
    flip = jnp.where(along_ray > 0, -jnp.ones_like(towards), jnp.ones_like(towards))
    offset = _keep(is_drawn, means - cameras.camera_center(camera_from_world)[None, :], 1.0)
    direction = offset / jnp.sqrt((offset * offset).sum(axis=-1, keepdims=True))
    if is_parallel:
        direction = jnp.broadcast_to(rotation[2][None, :], offset.shape)
    shade = spherical_harmonics.evaluate(sh_degree, sh, direction) + 0.5
    color = jnp.where(shade > 0, shade, jnp.zeros_like(shade))
    projected = _Projected(
        pixel_from_disc,
        camera_from_disc[:, 2],
        center_px,
        opacity,
        color,
        axes_world[:, :, 2] * flip[:, None],
        -flip * towards,
        mean_camera[:, 2],
        is_drawn,
    )
    return projected, num_invalid


def order_of_depth(projected: _Projected) -> Int[Array, " n"]:
    """Which surfel comes first: depths are compared in float32, and ties keep the order of the
    arrays, as in the kernels.
    """
    depth = jax.lax.stop_gradient(projected.depth).astype(jnp.float32)
    return jnp.argsort(jnp.where(projected.is_drawn, depth, jnp.inf), stable=True)


def intersect(surfel: _Projected, x, y, shift, near, low_pass) -> _Hits:
    """Alpha and camera z of one surfel at pixel positions x, y [H,W], its image moved by shift [2]
    or [H,W,2].
    """
    x = x - shift[..., 0]
    y = y - shift[..., 1]
    m = surfel.pixel_from_disc
    to_z = surfel.z_from_disc
    k = [x * m[2, i] - m[0, i] for i in range(3)]
    l = [y * m[2, i] - m[1, i] for i in range(3)]  # noqa: E741  (the letter of the paper)
    p = [k[1] * l[2] - k[2] * l[1], k[2] * l[0] - k[0] * l[2], k[0] * l[1] - k[1] * l[0]]

    dx = x - surfel.center_px[0]
    dy = y - surfel.center_px[1]
    sigma_screen = low_pass * (dx * dx + dy * dy)
    is_crossed = p[2] != 0
    divisor = jnp.where(is_crossed, p[2], jnp.ones_like(x))
    sigma_disc = (p[0] / divisor) ** 2 + (p[1] / divisor) ** 2
    use_disc = is_crossed & jnp.isfinite(sigma_disc) & (sigma_disc <= sigma_screen)

    divisor = jnp.where(use_disc, p[2], jnp.ones_like(x))
    u, v = (jnp.where(use_disc, p[i], jnp.zeros_like(x)) / divisor for i in range(2))
    sigma = jnp.where(use_disc, u * u + v * v, sigma_screen)
    z = u * to_z[0] + v * to_z[1] + to_z[2]
    raw = surfel.opacity * jnp.exp(-sigma / 2)
    alpha = jnp.where(raw < MAX_ALPHA, raw, jnp.full_like(raw, MAX_ALPHA))
    is_visible = surfel.is_drawn & (alpha >= MIN_ALPHA)
    is_hit = is_visible & (z >= near)

    # Changing sides of sigma_disc = sigma_screen keeps alpha and moves z: it counts by how far z
    # jumps.
    far_from_switch = jnp.abs(sigma_disc - sigma_screen) / jnp.maximum(
        sigma_screen, jnp.ones_like(x)
    )
    margin = jnp.minimum(
        jnp.where(is_visible, jnp.abs(z / near - 1), jnp.full_like(x, jnp.inf)),
        jnp.where(is_visible & is_crossed, far_from_switch, jnp.full_like(x, jnp.inf)),
    )
    margin = jnp.minimum(
        margin, jnp.where(surfel.is_drawn, jnp.abs(raw / MIN_ALPHA - 1), jnp.full_like(x, jnp.inf))
    )
    zero = jnp.zeros_like(x)
    return _Hits(
        jnp.where(is_hit, alpha, zero),
        jnp.where(is_hit, z, zero),
        is_hit,
        jax.lax.stop_gradient(margin),
    )


def _blend(state: _State, surfel: _Projected, hits: _Hits):
    """Blends one surfel; returns the new state and the surfel's contributions [4]."""
    after = state.transmittance * (1 - hits.alpha)
    is_candidate = hits.is_hit & ~state.is_stopped
    is_stopped = state.is_stopped | (is_candidate & (after < MIN_TRANSMITTANCE))
    is_blended = is_candidate & ~is_stopped
    is_front = is_blended & (state.transmittance > 0.5)
    zero = jnp.zeros_like(after)
    weight = jnp.where(is_blended, hits.alpha * state.transmittance, zero)
    plane = surfel.plane_distance
    normal = surfel.normal_world[None, None, :]
    color = surfel.color[None, None, :]
    infinite = jnp.full_like(after, jnp.inf)
    margin = jnp.minimum(
        jnp.where(state.is_stopped, infinite, hits.margin),
        jnp.where(
            is_candidate,
            jnp.minimum(
                jnp.abs(after / MIN_TRANSMITTANCE - 1), jnp.abs(state.transmittance * 2 - 1)
            ),
            infinite,
        ),
    )
    new = _State(
        transmittance=jnp.where(is_blended, after, state.transmittance),
        is_stopped=is_stopped,
        color=state.color + weight[..., None] * color,
        depth_sum=state.depth_sum + weight * hits.z,
        median_depth=jnp.where(is_front, hits.z, state.median_depth),
        normal_sum=state.normal_sum + weight[..., None] * normal,
        plane_sum=state.plane_sum + weight * plane,
        distortion=state.distortion
        + 2 * weight * (hits.z * (1 - state.transmittance) - state.depth_sum),
        margin=jnp.minimum(state.margin, jax.lax.stop_gradient(margin)),
    )
    counts = [
        weight.sum(),
        weight.max(),
        is_blended.sum().astype(after.dtype),
        is_front.sum().astype(after.dtype),
    ]
    return new, jax.lax.stop_gradient(jnp.stack(counts))


def _render(
    surfels: Surfels,
    camera: Camera,
    background,
    *,
    image_size,
    near,
    sh_degree: int,
    screen_shift=None,
    projection: str = "perspective",
    low_pass: float = LOW_PASS,
):
    means = surfels.means
    projected, num_invalid = project(surfels, camera, near, sh_degree, projection)
    order = order_of_depth(projected)
    if screen_shift is None:
        screen_shift = jnp.zeros((means.shape[0], 2), means.dtype)
    height, width = image_size
    x = jnp.broadcast_to((jnp.arange(width, dtype=means.dtype) + 0.5)[None, :], image_size)
    y = jnp.broadcast_to((jnp.arange(height, dtype=means.dtype) + 0.5)[:, None], image_size)

    # Recomputing the hits in the backward pass keeps its memory at one state per surfel.
    @jax.checkpoint
    def step(state, surfel_and_shift):
        surfel, shift = surfel_and_shift
        return _blend(state, surfel, intersect(surfel, x, y, shift, near, low_pass))

    zero = jnp.zeros(image_size, means.dtype)
    zero3 = jnp.zeros((*image_size, 3), means.dtype)
    state = _State(
        zero + 1, jnp.zeros(image_size, bool), zero3, zero, zero, zero3, zero, zero, zero + jnp.inf
    )
    state, counts = jax.lax.scan(
        step, state, jax.tree.map(lambda leaf: leaf[order], (projected, screen_shift))
    )
    contributions = jnp.zeros((means.shape[0], 4), means.dtype).at[order].set(counts)
    color = state.color + state.transmittance[..., None] * background[None, None, :]
    return RawMaps(
        color=color,
        transmittance=state.transmittance,
        depth_sum=state.depth_sum,
        median_depth=state.median_depth,
        normal_sum=state.normal_sum,
        plane_sum=state.plane_sum,
        distortion=state.distortion,
        contributions=contributions,
        num_invalid=num_invalid,
    ), state.margin


def render(
    surfels: Surfels,
    camera: Camera,
    background: Float[Array, "3"],
    *,
    image_size: tuple[int, int],
    near: float | Float[Array, ""],
    sh_degree: int,
    screen_shift: Float[Array, "n 2"] | Float[Array, "n h w 2"] | None = None,
    projection: str = "perspective",
    low_pass: float = LOW_PASS,
) -> RawMaps:
    """Renders all raw maps of one view.

    Args:
        surfels: all of one float dtype. All fields but `alive` take gradient.
        camera: one view. The pose takes gradient, as twelve free numbers (the camera's centre is
            -rotation.T @ translation), and so do the intrinsics.
        background, image_size: [3], takes gradient; (H, W) in pixels.
        near: hits and centres with less camera z are not drawn; world length. Takes no gradient.
        sh_degree: 0 to 3, bands above are ignored.
        screen_shift: moves the image of each surfel, as (x, y) in pixels: [N,2], or [N,H,W,2] for
            every pixel; None = no shift. Takes gradient: at zero, the surfel's screen gradient.
        projection: "perspective", or "orthographic": rays are parallel to the camera's z axis,
            the direction of view for colours and normals; fx and fy are pixels per world length.
        low_pass: of the screen-space filter: sigma per squared pixel of distance.
    Returns:
        Every map; `contributions` and `num_invalid` carry no gradient.
    Source: Huang et al. 2024 (2DGS); plane distance of PGSR (Chen et al. 2024). Differs from 2DGS:
        the low-pass filter is centred at the projected centre, depth of low-pass hits is that of
        the centre, and a median and a plane distance are blended.
    """
    maps, _ = _render(
        surfels,
        camera,
        background,
        image_size=image_size,
        near=near,
        sh_degree=sh_degree,
        screen_shift=screen_shift,
        projection=projection,
        low_pass=low_pass,
    )
    return maps


def decision_margins(
    surfels: Surfels, camera: Camera, background: Float[Array, "3"], **options
) -> Float[Array, "h w"]:
    """How far each pixel is from a decision that rounding could turn.

    Args:
        Those of `render`. No gradient.
    Returns:
        [H,W], the smallest relative distance, over the surfels met before the stop, to: the alpha
        threshold, the near plane, the stop at T(1-alpha) = 1e-4, the median's T = 0.5, and the
        switch between disc and low-pass filter. Infinite where nothing is near any of them.
    """
    _, margin = _render(surfels, camera, background, **options)
    return margin


def screen_gradients(
    cotangents: RawMaps,
    surfels: Surfels,
    camera: Camera,
    background: Float[Array, "3"],
    *,
    image_size: tuple[int, int],
    **options,
) -> Float[Array, "n 4"]:
    """The definition of the gradient probe, in N*H*W memory.

    Args:
        cotangents: derivative of a loss with respect to each map (zeros for the integer ones).
        The others are those of `render`.
    Returns:
        [N,4], loss per pixel of shift: sum over pixels of the derivative with respect to a shift of
        the surfel's image along x and along y, then the sums of the absolute values of the same
        per-pixel terms.
    """

    def loss(shift):
        maps = render(
            surfels, camera, background, image_size=image_size, screen_shift=shift, **options
        )
        pairs = zip(maps[:NUM_FLOAT_MAPS], cotangents[:NUM_FLOAT_MAPS], strict=True)
        return sum((drawn(a) * drawn(b)).sum() for a, b in pairs)

    means = surfels.means
    per_pixel = jax.grad(loss)(jnp.zeros((means.shape[0], *image_size, 2), means.dtype))
    return jnp.concatenate(
        [per_pixel.sum(axis=(1, 2)), jnp.abs(per_pixel).sum(axis=(1, 2))], axis=-1
    )
