"""The native rasterizer as a differentiable JAX function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster.outputs import RawMaps
from cosurfgs_jax.raster.projection import Static
from cosurfgs_jax.types import Camera, Surfels

MAP_LEVELS = {"color": 0, "geometry": 1, "all": 2}

_TARGETS = "cosurfgs_raster"


def _kept_bytes(targets: str, num_surfels: int, image_size) -> int:
    """Memory in which a forward call leaves work for the backward call, which else would project
    and sort again.

    On GPUs that takes 144 bytes per surfel, 8 per tile, and 4 per pair of surfel and tile, so there
    is room for 12 pairs per surfel and 240 per tile; if that is too little the backward call does
    the work again (gpu/pipeline.h). The CPU's call leaves
    nothing: there, memory is dearer than the work.
    """
    if targets == _TARGETS and not ffi.is_cuda():
        return 0
    return 192 * num_surfels + 4 * image_size[0] * image_size[1]


def _forward_call(static: Static, params, cameras, background, kept_bytes=0):
    """Calls the forward target for V cameras; params = means, quats, log_scales, logit_opacities,
    sh, alive.

    Of several views nothing is kept, as it would be as much for each of them.
    """
    num_views = cameras[0].shape[0]
    num_surfels = params[0].shape[0]
    image = (num_views, static.height, static.width)
    f32 = np.float32
    i32 = np.int32
    none = (0,)
    geometry = static.maps >= 1
    everything = static.maps >= 2
    results = [
        ((*image, 3), f32),
        (image, f32),
        (image if geometry else none, f32),
        (image if geometry else none, f32),
        ((*image, 3) if geometry else none, f32),
        (image if geometry else none, f32),
        (image if everything else none, f32),
        (image, i32),
        (image if geometry else none, i32),
        ((num_views, num_surfels, 4) if static.with_contributions else none, f32),
        ((num_views, 2), i32),
        ((kept_bytes if num_views == 1 else 0,), np.uint8),
    ]
    return ffi.call(
        f"{static.targets}_forward",
        results,
        *params,
        *cameras,
        background,
        width=static.width,
        height=static.height,
        near=static.near,
        sh_degree=static.sh_degree,
        maps=static.maps,
        with_contributions=static.with_contributions,
        orthographic=static.orthographic,
    )


@jax.custom_vjp
def refuse_gradient(operands):
    """The same arrays; whoever differentiates through them gets an InputError."""
    return operands


def _refuse(*_):
    raise InputError(
        'rasterize: projection "orthographic" has no gradient, got a derivative to be taken '
        "through it; keep it "
        "out of the loss, or use jax.lax.stop_gradient on its operands"
    )


refuse_gradient.defvjp(_refuse, _refuse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def draw(static: Static, params, cameras, background, probe):
    """The maps of V views from the native kernel.

    Args:
        static: what the program is specialised to.
        params: means, quats, log_scales, logit_opacities, sh, alive.
        cameras: camera_from_world f32[V,4,4], intrinsics f32[V,3,3].
        background: f32[3]. probe: f32[N,4] or empty.
    Returns:
        color, transmittance, depth_sum, median_depth, normal_sum, plane_sum, distortion, what the
        way back needs (2), contributions, status i32[V,2]: surfels that were skipped, pairs of
        surfel and tile. With a leading axis of views; anything where it was not asked for.
    """
    del probe  # exists for its cotangent
    *out, _ = _forward_call(static, params, cameras, background)
    return tuple(out)


def _draw_fwd(static, params, cameras, background, probe):
    *out, kept = _forward_call(static, params, cameras, background, static.kept_bytes)
    transmittance = out[1]
    depth_sum = out[2]
    last = out[7]
    median_index = out[8]
    # JAX 0.11.2 crashes on an array of no element that leaves a shard_map to go into its backward
    # pass
    if not kept.size:
        kept = None
    return tuple(out), (
        params,
        cameras,
        background,
        probe,
        transmittance,
        depth_sum,
        last,
        median_index,
        kept,
    )


def _draw_bwd(static, residuals, cotangents):
    params, cameras, background, probe, transmittance, depth_sum, last, median_index, kept = (
        residuals
    )
    if kept is None:
        kept, _ = ffi.match_varying(jnp.zeros((0,), jnp.uint8), transmittance)
    f32 = np.float32
    results = [(x.shape, f32) for x in params[:5]] + [(cameras[0].shape, f32), (probe.shape, f32)]
    *g_params, g_pose, g_probe = ffi.call(
        f"{static.targets}_backward",
        results,
        *params,
        *cameras,
        background,
        transmittance,
        depth_sum,
        last,
        median_index,
        *cotangents[:7],
        kept,
        width=static.width,
        height=static.height,
        near=static.near,
        sh_degree=static.sh_degree,
        maps=static.maps,
        deterministic=static.deterministic,
    )
    g_background = jnp.einsum("vhw,vhwc->c", transmittance, cotangents[0], precision="highest")
    return (*g_params, None), (g_pose, jnp.zeros_like(cameras[1])), g_background, g_probe


draw.defvjp(_draw_fwd, _draw_bwd)


def render(
    surfels: Surfels,
    camera: Camera,
    background: jax.Array,
    probe: jax.Array | None,
    *,
    image_size,
    near: float,
    sh_degree: int,
    maps: str,
    with_contributions: bool,
    projection: str = "perspective",
    deterministic: bool = True,
    draw: Callable = draw,
    targets: str = _TARGETS,
    kept_bytes: int | None = None,
) -> RawMaps:
    """Draws the views of `camera`; the same definition as `reference.render`.

    Args:
        surfels, background f32[3]: with gradient.
        camera: one view, or V with a leading axis; gradient to camera_from_world, none to the
            intrinsics.
        probe: f32[N,4] or None; see `rasterize`.
        image_size: (H, W).
        near: world length; hits nearer than this are skipped.
        sh_degree: degree used, at most the stored one.
        maps: "color", "geometry" or "all".
        with_contributions: also make the per-surfel sums.
        projection: see `rasterize`; "orthographic" has no gradient.
        deterministic: see `rasterize`.
        draw: what makes the maps: the native kernels, or others that take and give the same.
        targets: how the names of the native targets begin; a test puts an emulation there.
        kept_bytes: memory in which a forward call leaves work for the backward call; None = what
            suits the targets.
    Returns:
        RawMaps with the leading axes of `camera`.
    """
    is_single = np.ndim(camera.camera_from_world) == 2
    floats = (surfels.means, surfels.quats, surfels.log_scales, surfels.logit_opacities, surfels.sh)
    params = (*(jnp.asarray(x, jnp.float32) for x in floats), jnp.asarray(surfels.alive, bool))
    cameras = tuple(
        jnp.asarray(x, jnp.float32) for x in (camera.camera_from_world, camera.intrinsics)
    )
    if is_single:
        cameras = tuple(x[None] for x in cameras)
    if probe is None:
        probe = jnp.zeros((0,), jnp.float32)
    static = Static(
        int(image_size[0]),
        int(image_size[1]),
        float(near),
        int(sh_degree),
        MAP_LEVELS[maps],
        bool(with_contributions),
        projection == "orthographic",
        bool(deterministic),
        targets,
        _kept_bytes(targets, params[0].shape[0], image_size)
        if kept_bytes is None
        else int(kept_bytes),
    )
    operands = (*params, *cameras, jnp.asarray(background, jnp.float32), probe)
    if static.orthographic:
        operands = refuse_gradient(operands)
    *operands, background, probe = ffi.match_varying(*operands)
    out = draw(static, tuple(operands[:6]), tuple(operands[6:]), background, probe)
    color, transmittance, depth, median, normal, plane, distortion, _, _, contributions, status = (
        out
    )
    geometry = static.maps >= 1
    everything = static.maps >= 2
    raw = RawMaps(
        color,
        transmittance,
        depth if geometry else None,
        median if geometry else None,
        normal if geometry else None,
        plane if geometry else None,
        distortion if everything else None,
        jax.lax.stop_gradient(contributions) if with_contributions else None,
        status[:, 0],
    )
    return jax.tree.map(lambda x: x[0], raw) if is_single else raw
