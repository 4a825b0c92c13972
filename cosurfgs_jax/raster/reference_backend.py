"""The definition (`reference`) as a backend: batches of views, and the gradient probe."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cosurfgs_jax.raster import reference
from cosurfgs_jax.raster.drawing import refuse_gradient
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.outputs import RawMaps
from cosurfgs_jax.raster.reference_removal import removal_effects
from cosurfgs_jax.types import Camera, Surfels

__all__ = ["removal_effects", "render_views"]


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


def _unwanted(static: Static) -> list[str]:
    names = []
    if not static.has_geometry:
        names += ["depth_sum", "median_depth", "normal_sum", "plane_sum"]
    if not static.has_distortion:
        names += ["distortion"]
    if not static.with_contributions:
        names += ["contributions"]
    return names


def render_views(
    static: Static, surfels: Surfels, camera: Camera, background: jax.Array, probe: jax.Array | None
) -> RawMaps:
    """See `drawing.make_renderer`; in the float type of the surfels."""
    projection = "perspective"
    if static.orthographic:
        projection = "orthographic"
        surfels, camera, background, probe = refuse_gradient((surfels, camera, background, probe))
    image_size = (static.height, static.width)

    def render_view(camera: Camera) -> RawMaps:
        shift = None if probe is None else _shifts_of_probe(probe, image_size)
        raw = reference.render(
            surfels,
            camera,
            background,
            image_size=image_size,
            near=static.near,
            low_pass=static.low_pass,
            sh_degree=static.sh_degree,
            screen_shift=shift,
            projection=projection,
        )
        unwanted: dict[str, Any] = dict.fromkeys(_unwanted(static))
        return raw._replace(**unwanted)

    if camera.camera_from_world.ndim == 2:
        return render_view(camera)
    return jax.lax.map(render_view, camera)
