"""From a draw function, which makes the maps of V views, to the renderer of a backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.outputs import Drawn, RawMaps
from cosurfgs_jax.types import Camera, Surfels


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


def float_operands(
    surfels: Surfels, camera: Camera, background: jax.Array
) -> tuple[Surfels, Camera, jax.Array]:
    """The operands of a draw in float32."""
    alive = jnp.asarray(surfels.alive, bool)
    surfels, camera, background = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32),
        (surfels.replace(alive=None), camera, background),
    )
    return surfels.replace(alive=alive), camera, background


def _to_raw(drawn: Drawn, static: Static) -> RawMaps:
    """The maps that were asked for; a native kernel returns empty arrays for the others."""
    raw = RawMaps(
        color=drawn.color,
        transmittance=drawn.transmittance,
        depth_sum=drawn.depth_sum,
        median_depth=drawn.median_depth,
        normal_sum=drawn.normal_sum,
        plane_sum=drawn.plane_sum,
        distortion=drawn.distortion,
        contributions=drawn.contributions,
        num_invalid=drawn.status[:, 0],
    )
    if not static.has_geometry:
        raw = raw._replace(depth_sum=None, median_depth=None, normal_sum=None, plane_sum=None)
    if not static.has_distortion:
        raw = raw._replace(distortion=None)
    if not static.with_contributions:
        return raw._replace(contributions=None)
    return raw._replace(contributions=jax.lax.stop_gradient(raw.contributions))


def make_renderer(draw: Callable) -> Callable:
    """The renderer of a backend.

    Args:
        draw: (static, surfels, cameras, background, probe) -> `Drawn`; float32, cameras with a
            leading axis V, probe f32[N,4] or empty. Differentiable.
    Returns:
        (static, surfels, camera, background f32[3], probe f32[N,4] or None) -> `RawMaps` with the
        leading axes of the camera; the same definition as `reference.render`. Gradient to the
        surfels, the background and camera_from_world, none to the intrinsics.
    """

    def render_views(
        static: Static,
        surfels: Surfels,
        camera: Camera,
        background: jax.Array,
        probe: jax.Array | None,
    ) -> RawMaps:
        is_single = np.ndim(camera.camera_from_world) == 2
        surfels, camera, background = float_operands(surfels, camera, background)
        if is_single:
            camera = jax.tree.map(lambda x: x[None], camera)
        if probe is None:
            probe = jnp.zeros((0,), jnp.float32)
        operands, tree = jax.tree.flatten((surfels, camera, background, probe))
        if static.orthographic:
            operands = refuse_gradient(operands)
        drawn = draw(static, *jax.tree.unflatten(tree, ffi.match_varying(*operands)))
        raw = _to_raw(drawn, static)
        if is_single:
            raw = jax.tree.map(lambda x: x[0], raw)
        return raw

    return render_views
