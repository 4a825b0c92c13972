"""Drawing surfels: `rasterize`, the differentiable surfel rasterizer."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import native, portable, reference
from cosurfgs_jax.raster.outputs import RawMaps, finish
from cosurfgs_jax.settings import BACKENDS
from cosurfgs_jax.types import Camera, RenderOutput, Surfels

_log = logging.getLogger(__name__)

# Of processor time, measured: docs/performance.md.
PORTABLE_COST = "about 5 times the work of the native CPU kernel, and on one core"
PROJECTIONS = ("perspective", "orthographic")


def available_backends() -> dict[str, str]:
    """Every backend with "" if it can be used here, else the reason why not."""
    why_not = ffi.why_no_cpu_library()
    if not why_not and jax.default_backend() != "cpu":
        why_not = (
            f"JAX computes on {jax.default_backend()} here, and this kernel is for the CPU; "
            "JAX_PLATFORMS=cpu makes it so"
        )
    device = jax.default_backend()
    no_tpu = (
        "" if device == "tpu" else f"JAX computes on {device} here, and this kernel is for TPUs"
    )
    return {
        "cpu": why_not,
        "cuda": ffi.why_no_cuda_library(),
        "tpu": no_tpu,
        "portable": "",
        "reference": "",
    }


def _draw_function(backend: str) -> Callable:
    if backend == "tpu":
        # Here, as Pallas takes half a second to import.
        from cosurfgs_jax.raster import pallas_tpu

        return pallas_tpu.draw
    return {"cpu": native.draw, "cuda": native.draw, "portable": portable.draw}[backend]


def portable_cost() -> str:
    """What the portable rasterizer costs on this platform, in words."""
    return PORTABLE_COST if jax.default_backend() == "cpu" else "slower than a native kernel"


@functools.cache
def _say_portable(why_not: str) -> None:
    _log.warning(
        "Surfels are drawn by the portable rasterizer, in plain JAX, %s: %s",
        portable_cost(),
        why_not,
    )


def native_backend() -> str:
    """The native backend of the platform that JAX computes on, whether or not it can be
    used here.
    """
    return "cuda" if ffi.is_cuda() else "cpu"


def best_backend() -> str:
    """The backend that is used where none is named. On TPUs that is "portable", as "tpu" has never
    run on one.
    """
    return "portable" if available_backends()[native_backend()] else native_backend()


def choose_backend(backend: str | None) -> str:
    """The backend that `rasterize` uses for this name.

    Args:
        backend: one of `BACKENDS`; None or "" = the native one of the platform that JAX computes
            on, or "portable" where that cannot be used; a warning then says why, once.
    Raises:
        InputError: an unknown name, or a backend that cannot be used here, with the reason.
    """
    if backend in (None, ""):
        backend = best_backend()
        if backend == "portable":
            _say_portable(available_backends()[native_backend()])
    if backend not in BACKENDS:
        raise InputError(
            f"rasterize: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    reason = available_backends()[backend]
    if reason:
        raise InputError(f"rasterize: backend {backend!r} is not available: {reason}")
    return backend


def _check(
    surfels: Surfels,
    camera: Camera,
    image_size,
    near: float,
    maps_wanted: str,
    sh_degree: int,
    projection: str,
) -> None:
    num = surfels.means.shape[0]
    expected = {
        "means": (num, 3),
        "quats": (num, 4),
        "log_scales": (num, 2),
        "logit_opacities": (num,),
        "sh": (num, surfels.sh.shape[1], 3) if surfels.sh.ndim == 3 else (num, "K", 3),
        "alive": (num,),
    }
    for name, shape in expected.items():
        got = getattr(surfels, name).shape
        if got != shape:
            raise InputError(f"rasterize: surfels.{name}: expected shape {shape}, got {got}")
    views = camera.camera_from_world.shape[:-2]
    if (
        len(views) > 1
        or camera.camera_from_world.shape[-2:] != (4, 4)
        or camera.intrinsics.shape != (*views, 3, 3)
    ):
        raise InputError(
            "rasterize: camera: expected camera_from_world [4,4] and intrinsics [3,3], or both "
            "with one "
            f"leading axis, got {camera.camera_from_world.shape} and {camera.intrinsics.shape}"
        )
    if maps_wanted not in native.MAP_LEVELS:
        raise InputError(
            f"rasterize: maps: expected one of {', '.join(native.MAP_LEVELS)}, got {maps_wanted!r}"
        )
    if projection not in PROJECTIONS:
        raise InputError(
            f"rasterize: projection: expected one of {', '.join(PROJECTIONS)}, got {projection!r}"
        )
    if not near > 0:
        raise InputError(f"rasterize: near: expected a positive world length, got {near}")
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(
            f"rasterize: image_size: expected (H, W) of at least 1 pixel, got {image_size}"
        )
    if not 0 <= sh_degree <= 3 or (sh_degree + 1) ** 2 > surfels.sh.shape[1]:
        raise InputError(
            f"rasterize: sh_degree: expected 0 to 3 and (sh_degree + 1)^2 <= {surfels.sh.shape[1]} "
            "stored "
            f"coefficients, got {sh_degree}"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _shifts_of_probe(probe, image_size):
    """Zero shifts of every surfel at every pixel; their cotangents become the probe's."""
    return jnp.zeros((probe.shape[0], *image_size, 2), probe.dtype)


_shifts_of_probe.defvjp(
    lambda probe, image_size: (_shifts_of_probe(probe, image_size), None),
    lambda image_size, _, g: (
        jnp.concatenate([g.sum(axis=(1, 2)), jnp.abs(g).sum(axis=(1, 2))], axis=-1),
    ),
)


def _render_reference(
    surfels: Surfels,
    camera: Camera,
    background,
    probe,
    *,
    image_size,
    near,
    sh_degree,
    maps,
    with_contributions,
    projection,
) -> RawMaps:
    if projection == "orthographic":
        surfels, camera, background, probe = native.refuse_gradient(
            (surfels, camera, background, probe)
        )

    def render_view(camera: Camera) -> RawMaps:
        shift = None if probe is None else _shifts_of_probe(probe, tuple(image_size))
        raw = reference.render(
            surfels.means,
            surfels.quats,
            surfels.log_scales,
            surfels.logit_opacities,
            surfels.sh,
            surfels.alive,
            camera.camera_from_world,
            camera.intrinsics,
            background,
            image_size=image_size,
            near=near,
            sh_degree=sh_degree,
            screen_shift=shift,
            projection=projection,
        )
        unwanted = () if maps == "all" else ("distortion",)
        if maps == "color":
            unwanted += ("depth_sum", "median_depth", "normal_sum", "plane_sum")
        if not with_contributions:
            unwanted += ("contributions",)
        return raw._replace(**dict.fromkeys(unwanted))

    return (
        render_view(camera)
        if camera.camera_from_world.ndim == 2
        else jax.lax.map(render_view, camera)
    )


def rasterize(
    surfels: Surfels,
    camera: Camera,
    *,
    image_size: tuple[int, int],
    near: float = 0.01,
    background: Float[Array, "3"] | None = None,
    sh_degree: int | None = None,
    backend: str | None = None,
    maps: str = "all",
    gradient_probe: Float[Array, "n 4"] | None = None,
    with_contributions: bool = False,
    projection: str = "perspective",
    deterministic: bool = True,
) -> RenderOutput:
    """Draws surfels into the maps of one view or of a batch of views.

    Differentiable in every float field of `surfels`, in `camera.camera_from_world` and in
    `background`; works under jit, grad, vmap and shard_map. Two calls with the same input give the
    same bits (but see `deterministic`).

    Args:
        surfels: N surfels; dead ones are not drawn, living ones with a value that is not finite are
            skipped and counted in `num_invalid`.
        camera: one view, or V with a leading axis on both fields.
        image_size: (H, W) in pixels.
        near: world length; hits nearer to the camera plane are skipped.
        background: f[3], RGB behind everything; black if None.
        sh_degree: 0 to 3, degree of the colours that is used; None = all that `surfels.sh` holds.
        backend: "cpu" or "cuda" (native kernels), "portable" (plain JAX, on any device), "tpu"
            (Pallas kernels that have never run on a TPU), "reference" (the definition, slow), or
            None for the native one of the platform that JAX computes on, "portable" where there is
            none.
        maps: "color" (color and alpha only), "geometry" (also depths and normals) or "all" (also
            distortion).
        gradient_probe: any f32[N,4] (zeros, say). Its value is not used; its cotangent is, per
            surfel, the gradient of the loss with respect to a shift of the surfel's image in x and
            y, summed over pixels, and the sums of the absolute values of the pixels' parts, per
            pixel of shift. Density control reads it.
        with_contributions: also fill `RenderOutput.contributions`.
        projection: "perspective", or "orthographic": rays parallel to the camera's z axis, for maps
            and plans. Then fx and fy of the intrinsics are pixels per world length: the point (x,
            y, z) of the camera frame is at the pixel (fx x + cx, fy y + cy); depths still are
            camera z from the camera's origin, and colours are those seen along the z axis. It
            has no gradient: differentiating it is an InputError.
        deterministic: on GPUs, whether gradients are added up in one order, for 88 bytes of memory
            per pair of surfel and tile; False adds them as they come, without that memory, and no
            two runs are the same to the bit. CPUs always have one order.
    Returns:
        RenderOutput, with the leading axis of `camera`.
    Raises:
        InputError: an operand of the wrong shape, an unknown or unavailable backend.
    Source: 2DGS (Huang et al. 2024); plane depth after PGSR (Chen et al. 2024).
    """
    raw = rasterize_sums(
        surfels,
        camera,
        image_size=image_size,
        near=near,
        background=background,
        sh_degree=sh_degree,
        backend=backend,
        maps=maps,
        gradient_probe=gradient_probe,
        with_contributions=with_contributions,
        projection=projection,
        deterministic=deterministic,
    )
    is_native = False if choose_backend(backend) == "reference" else None
    return finish(raw, jax.tree.map(jnp.asarray, camera), projection, is_native)


def rasterize_sums(
    surfels: Surfels,
    camera: Camera,
    *,
    image_size: tuple[int, int],
    near: float = 0.01,
    background: Float[Array, "3"] | None = None,
    sh_degree: int | None = None,
    backend: str | None = None,
    maps: str = "all",
    gradient_probe: Float[Array, "n 4"] | None = None,
    with_contributions: bool = False,
    projection: str = "perspective",
    deterministic: bool = True,
) -> RawMaps:
    """`rasterize` before its sums along rays become maps: what is put together from parts of a
    model (`collab.composite`).

    Args, Raises: those of `rasterize`.
    Returns:
        RawMaps, with the leading axis of `camera`; `maps.finish` makes the maps.
    """
    surfels, camera = jax.tree.map(jnp.asarray, (surfels, camera))
    if sh_degree is None:
        sh_degree = int(round(surfels.sh.shape[1] ** 0.5)) - 1
    _check(surfels, camera, image_size, near, maps, sh_degree, projection)
    background = jnp.asarray(
        [0.0, 0.0, 0.0] if background is None else background, surfels.means.dtype
    )
    if background.shape != (3,):
        raise InputError(f"rasterize: background: expected 3 values, got shape {background.shape}")
    backend = choose_backend(backend)
    if backend == "reference":
        return _render_reference(
            surfels,
            camera,
            background,
            gradient_probe,
            image_size=image_size,
            near=near,
            sh_degree=sh_degree,
            maps=maps,
            with_contributions=with_contributions,
            projection=projection,
        )
    return native.render(
        surfels,
        camera,
        background,
        gradient_probe,
        image_size=image_size,
        near=near,
        sh_degree=sh_degree,
        maps=maps,
        with_contributions=with_contributions,
        projection=projection,
        deterministic=deterministic,
        draw=_draw_function(backend),
    )
