"""Surfels are added only where enough photographs look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.frustums import num_showing
from cosurfgs_jax.settings import DensitySettings, Settings
from cosurfgs_jax.training.density_control import onlookers_of
from cosurfgs_jax.training.density_steps import DensifyOrder, densify_step
from cosurfgs_jax.training.first_state import first_state

SPLITTING = Settings(density=DensitySettings(split_scale=1e-9))


@pytest.fixture(scope="module")
def place():
    return town_place()


def _num_shown(place, points: np.ndarray) -> np.ndarray:
    """The definition: each point projected into each photograph."""
    shown = np.zeros(len(points), np.int32)
    for view in place.blocks[0].views:
        camera = place.views.camera_arrays(int(view))
        pixels, z = cameras.project(points, camera.camera_from_world, camera.intrinsics)
        height, width = place.views.image_size(int(view))
        inside = (pixels >= 0) & (pixels <= np.array([width, height]))
        shown += (z > 0) & inside.all(axis=1)
    return shown


def test_they_are_those_whose_pictures_show_a_place(place):
    random = np.random.default_rng(0)
    points = random.uniform(-3, 3, (2000, 3)).astype(np.float32)
    planes = onlookers_of(place, 0, min_views=3).planes
    counted = np.asarray(num_showing(jnp.asarray(points), planes))
    expected = _num_shown(place, points)
    assert len(np.unique(expected)) > 3
    assert np.array_equal(counted, expected)


def test_what_too_few_see_does_not_grow(place):
    block = place.blocks[0]
    num_slots = 3 * block.num_initial
    state = first_state(place, block, SPLITTING, num_slots)
    state = dataclasses.replace(state, stats=jax.tree.map(jnp.ones_like, state.stats))
    alive = np.asarray(state.alive)
    before = np.asarray(state.params.log_scales)
    shown = _num_shown(place, np.asarray(state.params.means))
    needed = int(np.median(shown[alive]))
    is_few = alive & (shown < needed)
    assert 0.1 < is_few.sum() / alive.sum() < 0.9
    onlookers = onlookers_of(place, 0, min_views=3)._replace(needed=np.int32(needed))

    def is_split(onlookers):
        numbers = (jnp.int32(0), jnp.int32(9), jnp.bool_(False), jnp.int32(num_slots))
        order = DensifyOrder(*numbers, onlookers=onlookers)
        after, _ = jax.jit(lambda state: densify_step(state, order, SPLITTING))(state)
        return (np.asarray(after.params.log_scales) != before).any(axis=1)

    assert is_split(None)[alive].all()
    assert np.array_equal(is_split(onlookers)[alive], ~is_few[alive])


def test_of_few_photographs_fewer_are_needed(place):
    block = place.blocks[0]
    for count, needed in ((1, 1), (16, 1), (17, 2), (32, 2), (33, 3), (60, 3)):
        few = place._replace(blocks=[block._replace(views=np.resize(block.views, count))])
        onlookers = onlookers_of(few, 0, min_views=3)
        assert onlookers.needed == needed and onlookers.planes.shape == (count, 5, 4)
    nobody = onlookers_of(place, None, min_views=3)
    assert nobody.planes.shape == (len(block.views), 5, 4)
    assert not num_showing(jnp.zeros((2, 3)), nobody.planes).any()
