"""The test that leaves surfels out of a step before anything of them is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.raster.culling import may_be_seen
from cosurfgs_jax.types import Camera, Surfels

SIZE = (48, 64)
NEAR = 0.1


def _surfels(num: int, seed: int) -> Surfels:
    """All around the camera, many of them larger than the view, some behind it."""
    generator = np.random.default_rng(seed)
    return Surfels(
        means=jnp.asarray(generator.uniform(-4, 4, (num, 3)), jnp.float32),
        quats=jnp.asarray(generator.normal(size=(num, 4)), jnp.float32),
        log_scales=jnp.asarray(generator.uniform(-5, 0.5, (num, 2)), jnp.float32),
        logit_opacities=jnp.asarray(generator.uniform(-4, 8, num), jnp.float32),
        sh=jnp.asarray(generator.normal(size=(num, 1, 3)), jnp.float32),
        alive=jnp.asarray(generator.random(num) < 0.9),
    )


CAMERA = Camera(
    jnp.eye(4, dtype=jnp.float32).at[:3, 3].set(jnp.asarray([0.2, -0.1, 0.3])),
    jnp.asarray([[55.0, 0, 29], [0, 60.0, 27], [0, 0, 1]], jnp.float32),
)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_out_changes_no_map_and_has_no_gradient(seed):
    surfels = _surfels(3000, seed)
    seen = may_be_seen(surfels, CAMERA, SIZE, NEAR)
    assert 0.05 < seen.mean() < 0.7
    assert not (seen & ~surfels.alive).any()

    def draw(surfels):
        return rasterize(surfels, CAMERA, image_size=SIZE, near=NEAR)

    def loss(surfels):
        out = draw(surfels)
        return (out.color.sum() + out.depth.sum() + out.normal.sum()) / 1000

    few = surfels.replace(alive=seen)
    whole = draw(surfels)
    for name in ("color", "alpha", "depth", "plane_depth", "normal", "distortion"):
        np.testing.assert_array_equal(getattr(draw(few), name), getattr(whole, name))
    gradients = jax.grad(loss, allow_int=True)(surfels)
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert not np.any(np.asarray(getattr(gradients, name))[~np.asarray(seen)])


def test_broken_surfels_are_left_to_the_rasterizer_to_count():
    surfels = _surfels(100, 0)
    surfels = surfels.replace(means=surfels.means.at[3].set(jnp.nan), alive=jnp.ones(100, bool))
    assert may_be_seen(surfels, CAMERA, SIZE, NEAR)[3]


def test_a_hundred_wide_place_is_mostly_left_out():
    surfels = _surfels(2000, 1)
    surfels = surfels.replace(
        means=surfels.means * jnp.asarray([[25.0, 25.0, 1.0]]), log_scales=surfels.log_scales - 2
    )
    assert may_be_seen(surfels, CAMERA, SIZE, NEAR).mean() < 0.05
