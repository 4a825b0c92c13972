"""What removing each surfel changes in a picture: the definition, in plain jax.numpy and N*H*W
memory. See `reference`.

A pixel's colour is linear in the alpha of each hit. Without a hit it changes by D = T a (b - c),
with the transmittance T before it, its alpha a and colour c, and the colour b behind it. A pixel
stops before the hit that would leave less than 1e-4 of the light; without one of its hits it would
go on, so b begins with the colour of the hit that stopped it. What lies behind that one changes D
by less than 0.01 of the contrast, as at most 1e-4 / (1 - a) of the light gets there."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosurfgs_jax.raster import reference
from cosurfgs_jax.raster.options import PROJECTIONS, Static
from cosurfgs_jax.types import Camera, Surfels


def removal_effects(
    static: Static, surfels: Surfels, camera: Camera, background: Float[Array, "3"]
) -> Float[Array, "n 2"]:
    """Sums over the pixels of one view, for each surfel by itself.

    Args:
        static: of the view.
        surfels, camera, background: those of `reference.render`; of one float type.
    Returns:
        [N,2]: the sum of the blending weights, and the sum of D^2 over pixels and channels. No
        gradient.
    """
    image_size = (static.height, static.width)
    projection = PROJECTIONS[int(static.orthographic)]
    projected, _ = reference.project(
        surfels, camera, near=static.near, sh_degree=static.sh_degree, projection=projection
    )
    order = reference.order_of_depth(projected)
    projected = jax.tree.map(lambda leaf: leaf[order], projected)
    dtype = surfels.means.dtype
    x, y = jnp.meshgrid(
        jnp.arange(static.width, dtype=dtype) + 0.5, jnp.arange(static.height, dtype=dtype) + 0.5
    )
    nothing = jnp.broadcast_to(background[None, None, :], (*image_size, 3))
    no_shift = jnp.zeros(2, dtype)

    def meet(state, surfel):
        transmittance, is_stopped, behind = state
        hits = reference.intersect(
            surfel, x, y, shift=no_shift, near=static.near, low_pass=static.low_pass
        )
        after = transmittance * (1 - hits.alpha)
        is_candidate = hits.is_hit & ~is_stopped
        stops = is_candidate & (after < reference.MIN_TRANSMITTANCE)
        alpha = jnp.where(is_candidate & ~stops, hits.alpha, 0.0)
        last = nothing + hits.alpha[..., None] * (surfel.color[None, None, :] - nothing)
        behind = jnp.where(stops[..., None], last, behind)
        state = (transmittance * (1 - alpha), is_stopped | stops, behind)
        return state, (alpha, alpha * transmittance)

    def remove(behind, hit):
        color, alpha, weight = hit
        difference = color[None, None, :] - behind
        change = jnp.square(weight[..., None] * difference)
        sums = jnp.stack([weight.sum(), change.sum()])
        return behind + alpha[..., None] * difference, sums

    state = (jnp.ones_like(x), jnp.zeros(image_size, bool), nothing)
    (_, _, behind), (alpha, weight) = jax.lax.scan(meet, state, projected)
    _, sums = jax.lax.scan(remove, behind, (projected.color, alpha, weight), reverse=True)
    return jnp.zeros_like(sums).at[order].set(sums)
