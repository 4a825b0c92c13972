"""The plain JAX rasterizer on the smallest lists: each surfel of a tile has its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax import Camera, Surfels, rasterize

SIZE = (16, 16)  # one tile


def surfels_of(count: int) -> Surfels:
    """One behind the other before the camera, all translucent."""
    depths = 2.0 + 0.5 * np.arange(count)
    means = np.stack([0.02 * depths, -0.03 * depths, depths], axis=1)
    return Surfels(
        means=jnp.asarray(means, jnp.float32),
        quats=jnp.tile(jnp.array([[1.0, 0.1, -0.2, 0.05]]), (count, 1)),
        log_scales=jnp.full((count, 2), -1.0),
        logit_opacities=jnp.full(count, -0.5),
        sh=jnp.linspace(-0.5, 1.0, count * 3, dtype=jnp.float32).reshape(count, 1, 3),
        alive=jnp.ones(count, bool),
    )


@pytest.mark.parametrize("count", [2])
def test_derivatives_of_the_last_surfel_of_a_list(count):
    camera = Camera(jnp.eye(4), jnp.array([[14.0, 0, 8], [0, 14, 8], [0, 0, 1]]))
    given = surfels_of(count)

    def loss(opacities, backend):
        surfels = given.replace(logit_opacities=opacities)
        out = rasterize(surfels, camera, image_size=SIZE, near=0.1, sh_degree=0, backend=backend)
        return (out.color * jnp.linspace(0, 1, 3)[None, None]).sum()

    gradients = [
        jax.grad(loss)(given.logit_opacities, backend) for backend in ("portable", "reference")
    ]
    assert (np.abs(gradients[1]) > 1e-3).all()
    np.testing.assert_allclose(*gradients, rtol=1e-4)
