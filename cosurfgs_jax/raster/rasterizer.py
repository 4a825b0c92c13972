"""`rasterize`, the differentiable surfel rasterizer, and `render`, the same for a run's options."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster.backends import (
    BACKENDS,
    choose_backend,
    load_removal_effects,
    load_renderer,
)
from cosurfgs_jax.raster.options import LOW_PASS, PROJECTIONS, Maps, RasterOptions, Static
from cosurfgs_jax.raster.outputs import RawMaps, finish
from cosurfgs_jax.types import Camera, RenderOutput, Surfels, param_shapes


class Removal(NamedTuple):
    """Sums over the pixels of one view, for each surfel by itself."""

    weights: Float[Array, " n"]  # blending weights
    effects: Float[Array, " n"]  # squared changes of the colours without the surfel


def _check_surfels(surfels: Surfels) -> None:
    num = surfels.means.shape[0]
    num_sh: int | str = "K"
    if surfels.sh.ndim == 3:
        num_sh = surfels.sh.shape[1]
    expected = param_shapes(num, num_sh) | {"alive": (num,)}
    for name, shape in expected.items():
        got = getattr(surfels, name).shape
        if got != shape:
            raise InputError(f"rasterize: surfels.{name}: expected shape {shape}, got {got}")


def _check_camera(camera: Camera) -> None:
    views = camera.camera_from_world.shape[:-2]
    if (
        len(views) > 1
        or camera.camera_from_world.shape[-2:] != (4, 4)
        or camera.intrinsics.shape != (*views, 3, 3)
    ):
        raise InputError(
            "rasterize: camera: expected camera_from_world [4,4] and intrinsics [3,3], or both "
            "with one leading axis, "
            f"got {camera.camera_from_world.shape} and {camera.intrinsics.shape}"
        )


def _maps_from_name(name: str) -> Maps:
    names = [level.name.lower() for level in Maps]
    if name not in names:
        raise InputError(f"rasterize: maps: expected one of {', '.join(names)}, got {name!r}")
    return Maps[name.upper()]


def _check_projection(projection: str) -> None:
    if projection not in PROJECTIONS:
        raise InputError(
            f"rasterize: projection: expected one of {', '.join(PROJECTIONS)}, got {projection!r}"
        )


def _check_view(image_size, near: float) -> None:
    if not near > 0:
        raise InputError(f"rasterize: near: expected a positive world length, got {near}")
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(
            f"rasterize: image_size: expected (H, W) of at least 1 pixel, got {image_size}"
        )


def _check_degree(sh_degree: int, num_stored: int) -> None:
    if not 0 <= sh_degree <= 3 or (sh_degree + 1) ** 2 > num_stored:
        raise InputError(
            "rasterize: sh_degree: expected 0 to 3 and (sh_degree + 1)^2 <= "
            f"{num_stored} stored coefficients, got {sh_degree}"
        )


def _render_sums(
    static: Static,
    surfels: Surfels,
    camera: Camera,
    background,
    probe: jax.Array | None,
    backend: str,
) -> RawMaps:
    background = jnp.asarray(background, surfels.means.dtype)
    if background.shape != (3,):
        raise InputError(f"rasterize: background: expected 3 values, got shape {background.shape}")
    return load_renderer(backend)(static, surfels, camera, background, probe)


def _prepare(
    surfels: Surfels, camera: Camera, image_size, options: RasterOptions, maps: Maps
) -> tuple[Static, Surfels, Camera]:
    surfels, camera = jax.tree.map(jnp.asarray, (surfels, camera))
    _check_surfels(surfels)
    _check_camera(camera)
    _check_view(image_size, options.near)
    static = Static(
        height=int(image_size[0]),
        width=int(image_size[1]),
        near=float(options.near),
        low_pass=float(options.low_pass),
        sh_degree=int(round(surfels.sh.shape[1] ** 0.5)) - 1,
        maps=maps,
        with_contributions=False,
        orthographic=False,
    )
    return static, surfels, camera


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
    low_pass: float = LOW_PASS,
) -> RenderOutput:
    """Draws surfels into the maps of one view or of a batch of views.

    Differentiable in every float field of `surfels`, in `camera.camera_from_world` and in
    `background`; works under jit, grad, vmap and shard_map. Two calls with the same input are
    bit-identical (but see `deterministic`).

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
            y, summed over pixels, and the sums of the absolute values of the per-pixel terms, per
            pixel of shift. Density control reads it.
        with_contributions: also fill `RenderOutput.contributions`.
        projection: "perspective", or "orthographic": rays parallel to the camera's z axis, for maps
            and plans. Then fx and fy of the intrinsics are pixels per world length: the point (x,
            y, z) of the camera frame is at the pixel (fx x + cx, fy y + cy); depths still are
            camera z from the camera's origin, and colours are those seen along the z axis. It
            has no gradient: differentiating it is an InputError.
        deterministic: on GPUs, whether gradients are added up in one order, for 88 bytes of memory
            per pair of surfel and tile; False adds them as they come, without that memory, and no
            two runs are bit-identical. CPUs always have one order.
        low_pass: the screen-space filter: a surfel is drawn at least as wide as a Gaussian whose
            squared distance is `low_pass` times the squared distance in pixels. 2 is a filter of
            sqrt(1/2) pixels; 2 d^2 where the pixels drawn are every d-th of an image.
    Returns:
        RenderOutput, with the leading axis of `camera`.
    Raises:
        InputError: an operand of the wrong shape, an unknown or unavailable backend.
    Source: 2DGS (Huang et al. 2024); plane depth after PGSR (Chen et al. 2024).
    """
    level = _maps_from_name(maps)
    _check_projection(projection)
    options = RasterOptions(near=near, backend=backend or "", low_pass=low_pass)
    static, surfels, camera = _prepare(surfels, camera, image_size, options, level)
    if sh_degree is not None:
        _check_degree(sh_degree, surfels.sh.shape[1])
        static = static._replace(sh_degree=sh_degree)
    static = static._replace(
        with_contributions=bool(with_contributions),
        orthographic=projection == "orthographic",
        deterministic=bool(deterministic),
    )
    behind = np.zeros(3) if background is None else background
    backend = choose_backend(backend)
    raw = _render_sums(static, surfels, camera, behind, gradient_probe, backend)
    is_native = False if BACKENDS[backend].is_definition else None
    return finish(raw, camera, projection, is_native)


def render(
    surfels: Surfels,
    camera: Camera,
    image_size: tuple[int, int],
    options: RasterOptions,
    *,
    maps: Maps = Maps.COLOR,
    probe: Float[Array, "n 4"] | None = None,
    with_contributions: bool = False,
    projection: str = "perspective",
) -> RenderOutput:
    """`rasterize` with the options of a run and all stored bands of colour: what the package itself
    calls.

    Args:
        surfels, camera, image_size, with_contributions, projection: see `rasterize`.
        options: near plane, background and backend.
        maps: which maps are made.
        probe: the gradient probe of `rasterize`.
    Returns:
        RenderOutput, with the leading axis of `camera`.
    Raises:
        InputError: see `rasterize`.
    """
    return rasterize(
        surfels,
        camera,
        image_size=image_size,
        near=options.near,
        low_pass=options.low_pass,
        background=jnp.full((3,), options.background, surfels.means.dtype),
        backend=options.backend,
        maps=maps.name.lower(),
        gradient_probe=probe,
        with_contributions=with_contributions,
        projection=projection,
    )


def render_sums(
    surfels: Surfels,
    camera: Camera,
    image_size: tuple[int, int],
    options: RasterOptions,
    *,
    maps: Maps = Maps.COLOR,
) -> RawMaps:
    """`render` before its sums along rays become maps: what is composited from partial images of a
    model (`collab.composite`).

    Args, Raises: those of `render`.
    Returns:
        RawMaps, with the leading axis of `camera`; `outputs.finish` makes the maps.
    """
    static, surfels, camera = _prepare(surfels, camera, image_size, options, maps)
    background = np.full((3,), options.background)
    backend = choose_backend(options.backend)
    return _render_sums(static, surfels, camera, background, None, backend)


def removal_effects(
    surfels: Surfels, camera: Camera, image_size: tuple[int, int], options: RasterOptions
) -> Removal | None:
    """How much one view changes if a surfel is removed, for each surfel by itself; no gradient.

    Args, Raises: those of `render`; `camera` is one view.
    Returns:
        What `reference_removal.removal_effects` defines, or None where the backend does not know.
    """
    static, surfels, camera = _prepare(surfels, camera, image_size, options, maps=Maps.COLOR)
    if camera.camera_from_world.ndim != 2:
        raise InputError(
            "removal_effects: camera: expected one view, camera_from_world [4,4], got "
            f"{camera.camera_from_world.shape}"
        )
    surfels, camera = jax.lax.stop_gradient((surfels, camera))
    measure = load_removal_effects(choose_backend(options.backend))
    if measure is None:
        return None
    background = jnp.full((3,), options.background, surfels.means.dtype)
    sums = measure(static, surfels, camera, background)
    return Removal(sums[:, 0], sums[:, 1])
