"""The native rasterizer as a differentiable JAX function."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster.drawing import float_operands, make_renderer
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.outputs import NUM_FLOAT_MAPS, Drawn
from cosurfgs_jax.types import DRAWN_NAMES, Camera, Surfels

_TARGETS = "cosurfgs_raster"
# The fields that follow the other operands, in the order of ForEachField in
# native/csrc/raster/surfel_types.h.
_FIELDS = tuple(name for name in DRAWN_NAMES if name != "sh")


def _kept_bytes(targets: str, num_surfels: int, image_size) -> int:
    """Memory in which a forward call leaves work for the backward call, which else would project
    and sort again.

    On GPUs that takes 144 bytes per surfel, 8 per tile, and 4 per pair of surfel and tile, so there
    is room for 12 pairs per surfel and 240 per tile; with more pairs the backward call does the
    work again. The CPU's call leaves nothing: there, memory is dearer than the work.
    """
    if targets == _TARGETS and not ffi.is_cuda():
        return 0
    return 192 * num_surfels + 4 * image_size[0] * image_size[1]


def _results(static: Static, num_views: int, num_surfels: int) -> list[ffi.Result]:
    """Shape and dtype of each result of the forward target, in its order."""
    none: ffi.Result = ((0,), np.float32)
    image = (num_views, static.height, static.width)
    results: dict[str, ffi.Result] = dict(
        color=((*image, 3), np.float32),
        transmittance=(image, np.float32),
        depth_sum=none,
        median_depth=none,
        normal_sum=none,
        plane_sum=none,
        distortion=none,
        last_rank=(image, np.int32),
        median_rank=((0,), np.int32),
        contributions=none,
        status=((num_views, 2), np.int32),
    )
    if static.has_geometry:
        results |= dict(
            depth_sum=(image, np.float32),
            median_depth=(image, np.float32),
            normal_sum=((*image, 3), np.float32),
            plane_sum=(image, np.float32),
            median_rank=(image, np.int32),
        )
    if static.has_distortion:
        results["distortion"] = (image, np.float32)
    if static.with_contributions:
        results["contributions"] = ((num_views, num_surfels, 4), np.float32)
    return [results[name] for name in Drawn._fields]


def _operands(surfels: Surfels, cameras: Camera, background: jax.Array) -> list[jax.Array]:
    """What a picture is made of, in the order of the targets' operands."""
    fields = [getattr(surfels, name) for name in _FIELDS]
    return [surfels.sh, surfels.alive, *jax.tree.leaves(cameras), background, *fields]


def _forward_call(
    static: Static, surfels: Surfels, cameras: Camera, background, kept_bytes: int = 0
) -> tuple[Drawn, jax.Array]:
    """Calls the forward target for V cameras.

    Returns:
        The maps, and what is kept for the backward call: u8[kept_bytes]. Of several views nothing
        is kept, as it would be as much for each of them.
    """
    num_views = cameras.intrinsics.shape[0]
    if num_views != 1:
        kept_bytes = 0
    *drawn, kept = ffi.call(
        f"{static.targets}_forward",
        [*_results(static, num_views, surfels.alive.shape[0]), ((kept_bytes,), np.uint8)],
        *_operands(surfels, cameras, background),
        width=static.width,
        height=static.height,
        near=static.near,
        low_pass=static.low_pass,
        sh_degree=static.sh_degree,
        maps=int(static.maps),
        with_contributions=static.with_contributions,
        orthographic=static.orthographic,
    )
    return Drawn(*drawn), kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def draw(static: Static, surfels: Surfels, cameras: Camera, background, probe) -> Drawn:
    """The maps of V views from the native kernel.

    Args:
        static: what the program is specialised to.
        surfels: N. cameras: V, with a leading axis.
        background: f32[3]. probe: f32[N,4] or empty.
    """
    del probe  # exists for its cotangent
    drawn, _ = _forward_call(static, surfels, cameras, background)
    return drawn


class _Residuals(NamedTuple):
    """What the backward pass needs of the forward pass."""

    surfels: Surfels
    cameras: Camera
    background: jax.Array
    probe: jax.Array
    transmittance: jax.Array
    depth_sum: jax.Array | None
    last_rank: jax.Array
    median_rank: jax.Array | None
    kept: jax.Array | None


def _draw_fwd(static, surfels, cameras, background, probe):
    kept_bytes = static.kept_bytes
    if kept_bytes is None:
        image_size = (static.height, static.width)
        kept_bytes = _kept_bytes(static.targets, surfels.alive.shape[0], image_size)
    drawn, kept = _forward_call(static, surfels, cameras, background, kept_bytes)
    residuals = _Residuals(
        surfels=surfels,
        cameras=cameras,
        background=background,
        probe=probe,
        transmittance=drawn.transmittance,
        depth_sum=drawn.depth_sum,
        last_rank=drawn.last_rank,
        median_rank=drawn.median_rank,
        kept=kept,
    )
    # JAX 0.11.2 crashes on an array of no element that leaves a shard_map to go into its backward
    # pass
    if not kept.size:
        residuals = residuals._replace(kept=None)
    return drawn, residuals


def _draw_bwd(static, residuals, cotangents):
    surfels = residuals.surfels
    cameras = residuals.cameras
    transmittance = residuals.transmittance
    kept = residuals.kept
    if kept is None:
        kept, _ = ffi.match_varying(jnp.zeros((0,), jnp.uint8), transmittance)
    fields = [getattr(surfels, name) for name in _FIELDS]
    with_gradient = [surfels.sh, cameras.camera_from_world, residuals.probe, *fields]
    grad_sh, grad_pose, grad_probe, *grad_fields = ffi.call(
        f"{static.targets}_backward",
        [(x.shape, np.float32) for x in with_gradient],
        surfels.sh,
        surfels.alive,
        *jax.tree.leaves(cameras),
        residuals.background,
        transmittance,
        residuals.depth_sum,
        residuals.last_rank,
        residuals.median_rank,
        *cotangents[:NUM_FLOAT_MAPS],
        kept,
        *fields,
        width=static.width,
        height=static.height,
        near=static.near,
        low_pass=static.low_pass,
        sh_degree=static.sh_degree,
        maps=int(static.maps),
        deterministic=static.deterministic,
    )
    grad_background = jnp.einsum(
        "vhw,vhwc->c", transmittance, cotangents.color, precision="highest"
    )
    grad_cameras = Camera(grad_pose, jnp.zeros_like(cameras.intrinsics))
    zeros = {
        name: jnp.zeros_like(value)
        for name, value in surfels.by_name().items()
        if name not in DRAWN_NAMES
    }
    drawn = dict(zip(_FIELDS, grad_fields, strict=True))
    grad_surfels = surfels.replace(**drawn, **zeros, sh=grad_sh, alive=None)
    return grad_surfels, grad_cameras, grad_background, grad_probe


draw.defvjp(_draw_fwd, _draw_bwd)


render_views = make_renderer(draw)


def removal_effects(
    static: Static, surfels: Surfels, camera: Camera, background: jax.Array
) -> Float[Array, "n 2"]:
    """What removing each surfel changes in one view (see `reference_removal.removal_effects`)."""
    surfels, camera, background = float_operands(surfels, camera, background)
    operands, tree = jax.tree.flatten((surfels, jax.tree.map(lambda x: x[None], camera)))
    *operands, background = ffi.match_varying(*operands, background)
    surfels, cameras = jax.tree.unflatten(tree, operands)
    (effects,) = ffi.call(
        f"{static.targets}_removal",
        [((1, surfels.alive.shape[0], 2), np.float32)],
        *_operands(surfels, cameras, background),
        width=static.width,
        height=static.height,
        near=static.near,
        low_pass=static.low_pass,
        sh_degree=static.sh_degree,
        orthographic=static.orthographic,
    )
    return effects[0]
