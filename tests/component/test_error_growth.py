"""Growth by error: the sums over pixels against their definition, and which surfels grow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.model import density, error_growth, optim
from cosurfgs_jax.model.density_strategy import DensityRound, Look
from cosurfgs_jax.raster import RasterOptions, render
from cosurfgs_jax.settings import DensitySettings
from cosurfgs_jax.types import Camera, Surfels

SIZE = (20, 28)
NUM = 6


def _surfels(seed: int = 0) -> Surfels:
    """Overlapping surfels before the camera, in colours that depend on the direction; one is black
    (its colour is cut at zero), and the last one dead.
    """
    random = np.random.default_rng(seed)
    sh = random.normal(0, 0.5, (NUM, 4, 3))
    sh[1] = [[-9.0] * 3] + [[0.0] * 3] * 3
    return Surfels(
        means=jnp.asarray(random.uniform(-0.6, 0.6, (NUM, 3)) + [0, 0, 3], jnp.float32),
        quats=jnp.asarray(random.normal(size=(NUM, 4)), jnp.float32),
        log_scales=jnp.full((NUM, 2), -1.2),
        logit_opacities=jnp.asarray(random.uniform(-1, 2, NUM), jnp.float32),
        sh=jnp.asarray(sh, jnp.float32),
        alive=jnp.arange(NUM) < NUM - 1,
    )


def _camera() -> Camera:
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = [0.1, -0.05, 0.2]
    focal = [[24, 0, 14], [0, 24, 10], [0, 0, 1]]
    return Camera(jnp.asarray(pose), jnp.asarray(focal, jnp.float32))


def _look(backend: str, photo) -> Look:
    camera = _camera()
    options = RasterOptions(near=0.1, backend=backend)

    def draw(surfels):
        return render(surfels, camera, SIZE, options)

    return Look(_surfels(), draw, camera, photo, lambda picture: picture)


@functools.cache
def _weights() -> np.ndarray:
    """Blending weights f32[N,H,W] by the definition: one surfel in white, all others black."""
    draw = jax.jit(_look("reference", None).draw)
    surfels = _surfels()
    white = [jnp.full((NUM, 1, 3), -0.5 / C0).at[number].set(0.5 / C0) for number in range(NUM)]
    return np.stack([draw(surfels.replace(sh=sh)).color[..., 0] for sh in white])


@pytest.mark.parametrize("backend", ["cpu", "portable"])
def test_weighted_sums_are_those_of_the_definition(backend):
    values = np.random.default_rng(1).uniform(-1, 1, (*SIZE, 3)).astype(np.float32)

    @jax.jit
    def measure():
        look = _look(backend, None)
        shown = []

        def values_of(picture):
            shown.append(picture)
            return jnp.asarray(values)

        sums = error_growth.weighted_sums(look, values_of)
        return sums, shown[0], look.draw(look.surfels).color

    sums, shown, picture = measure()
    expected = np.einsum("nhw,hwc->nc", _weights(), values)
    assert np.abs(expected[:-1]).max(axis=1).min() > 0.05, "all but the dead one are seen"
    np.testing.assert_allclose(sums, expected, atol=2e-4)
    np.testing.assert_allclose(shown, picture, atol=1e-5)


def _photo(color, counts) -> jax.Array:
    photo = np.round(255 * np.clip(color, 0, 1)).astype(np.uint8)
    if counts is None:
        return jnp.asarray(photo)
    return jnp.asarray(np.concatenate([photo, 255 * counts[..., None].astype(np.uint8)], axis=-1))


@jax.jit
def _looked(photo):
    """Two looks at a photograph of another exposure: statistics after each, and the picture."""
    look = _look("cpu", photo)._replace(apply_exposure=lambda picture: 0.5 * picture + 0.1)
    once = error_growth.look_at(error_growth.init_stats(NUM), look)
    return once, error_growth.look_at(once, look), look.draw(look.surfels).color


def test_errors_are_squared_exposed_and_of_pixels_that_count():
    left = np.broadcast_to(np.arange(SIZE[1]) < SIZE[1] // 2, SIZE)
    wrong = np.where(left, 0.4, 0.1)
    shown = 0.5 * np.asarray(_looked(jnp.zeros((*SIZE, 4), jnp.uint8))[2]) + 0.1
    for counts in (np.ones(SIZE, bool), ~left, None):
        photo = _photo(shown + wrong[..., None], counts)
        square = np.square(shown - np.asarray(photo)[..., :3] / 255).mean(axis=-1)
        if counts is not None:
            square = square * counts
        once, twice, _ = _looked(photo)
        errors = np.einsum("nhw,hw->n", _weights(), square)
        np.testing.assert_allclose(once.error_sum, errors, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(twice.error_sum, 2 * once.error_sum)


def _grow(budget: int | None):
    """A round in which the gradients are the same for all but two: twice, and none."""
    surfels = _surfels()
    gradients = density.DensityStats(
        jnp.array([1.0, 1, 1, 2, 1, 0]), jnp.zeros(NUM), jnp.ones(NUM, jnp.int32)
    )
    stats = error_growth.ErrorStats(gradients, jnp.array([5.0, 9.0, 0.0, 6.0, 7.0, 8.0]))
    return error_growth.densify(
        surfels.params,
        optim.init_optimizer(surfels.params),
        surfels.alive,
        stats,
        order=DensityRound(jax.random.key(0), prunes_large=False, budget=budget),
        settings=DensitySettings(split_scale=1.0),
    )


def test_what_has_errors_and_gradients_grows_the_largest_products_first():
    params, _, alive, rest, report = _grow(budget=6)
    assert int(report.num_cloned) == 1 and int(report.num_without_room) == 3
    np.testing.assert_array_equal(params.means[-1], _surfels().means[3])
    assert alive.all() and not any(leaf.any() for leaf in jax.tree.leaves(rest))
    *_, report = _grow(budget=5)
    assert int(report.num_cloned) == 0 and int(report.num_without_room) == 4
