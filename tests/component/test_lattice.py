"""Every d-th pixel of an image: what dilated steps draw, and what is remembered of their depth."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.lattice import Lattice, whole
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.raster.options import LOW_PASS
from cosurfgs_jax.settings import Settings, TrainSettings
from cosurfgs_jax.training import depth_memory
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.types import Camera, Surfels

SIZE = (61, 82)
COMPILED = jax.jit(rasterize, static_argnames=("image_size", "near", "backend", "low_pass"))
CAMERA = Camera(
    jnp.eye(4, dtype=jnp.float32),
    jnp.asarray([[70.0, 0, 41.3], [0, 72.0, 29.8], [0, 0, 1]], jnp.float32),
)


def _surfels(num: int = 400) -> Surfels:
    """A wall of small discs; many are smaller than a pixel."""
    generator = np.random.default_rng(0)
    means = generator.uniform([-1.6, -1.2, 2.5], [1.6, 1.2, 3.5], (num, 3))
    return Surfels(
        means=jnp.asarray(means, jnp.float32),
        quats=jnp.asarray(generator.normal([4, 0, 0, 0], 1, (num, 4)), jnp.float32),
        log_scales=jnp.asarray(generator.uniform(-5, -2, (num, 2)), jnp.float32),
        logit_opacities=jnp.asarray(generator.uniform(-1, 4, num), jnp.float32),
        sh=jnp.asarray(generator.uniform(0, 1, (num, 1, 3)), jnp.float32),
        alive=jnp.ones(num, bool),
    )


@pytest.mark.parametrize("backend", ["cpu", "portable", "reference"])
@pytest.mark.parametrize(("stride", "origin"), [(2, (1, 0)), (3, (0, 2))])
def test_a_dilated_draw_is_every_dth_pixel_of_the_whole_one(backend, stride, origin):
    surfels = _surfels()
    lattice = Lattice(stride, jnp.asarray(origin))
    size = lattice.size(SIZE)
    assert size == (SIZE[0] // stride, SIZE[1] // stride)
    draw = functools.partial(COMPILED, near=0.1, backend=backend)
    expected = draw(surfels, CAMERA, image_size=SIZE)
    camera = lattice.camera(CAMERA)
    dilated = draw(surfels, camera, image_size=size, low_pass=LOW_PASS * stride**2)
    for name in ("color", "alpha", "depth", "plane_depth", "normal", "median_depth"):
        error = np.abs(getattr(dilated, name) - lattice.of(getattr(expected, name)))
        # A hit at the threshold of alpha may fall to either side.
        assert np.quantile(error, 0.995) < 2e-4
    narrow = draw(surfels, camera, image_size=size)
    assert np.abs(narrow.color - dilated.color).max() > 0.05  # the filter is not that of its pixels


def test_pixels_of_a_lattice_see_along_their_rays():
    lattice = Lattice(3, jnp.asarray([2, 1]))
    rays = cameras.pixel_rays(CAMERA.intrinsics, SIZE)
    own = cameras.pixel_rays(lattice.intrinsics(CAMERA.intrinsics), lattice.size(SIZE))
    np.testing.assert_allclose(own, lattice.of(rays), atol=1e-6)
    image = jnp.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    pixels = np.floor(np.asarray(lattice.pixels(SIZE))).astype(int)
    np.testing.assert_array_equal(lattice.of(image), image[pixels[..., 1], pixels[..., 0]])


def test_a_lattice_in_a_lattice():
    outer = Lattice(2, jnp.asarray([1, 0]))
    inner = Lattice(3, jnp.asarray([2, 1]))
    image = jnp.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    np.testing.assert_array_equal(outer.finer(inner).of(image), inner.of(outer.of(image)))


def test_what_a_view_showed_is_remembered_at_its_pixels():
    depth = jnp.asarray(np.random.default_rng(0).uniform(1, 2, SIZE), jnp.float32)
    small = (41, 50)
    memory = depth_memory.init(3, depth_memory.memory_size(SIZE))
    nothing, _ = depth_memory.recall(memory, jnp.int32(1), SIZE)
    assert not nothing.any()
    origin = Lattice(2, jnp.asarray([1, 1]))
    memory = depth_memory.remember(memory, jnp.int32(1), origin.of(depth), origin)
    memory = depth_memory.remember(memory, jnp.int32(2), depth[: small[0], : small[1]], whole())
    for view, size, image in ((1, SIZE, depth), (2, small, depth[: small[0], : small[1]])):
        shown, lattice = depth_memory.recall(memory, jnp.int32(view), size)
        np.testing.assert_array_equal(shown, lattice.of(image))
    nothing, _ = depth_memory.recall(memory, jnp.int32(0), SIZE)
    assert not nothing.any()


def _dilation(size: tuple[int, int], capacity: int, **train) -> int:
    place = SimpleNamespace(
        scene=SimpleNamespace(views=SimpleNamespace(image_sizes=np.array([size] * 3))),
        blocks=[SimpleNamespace(capacity=capacity)],
    )
    return PartitionedScene.dilation(place, Settings(train=TrainSettings(**train)))


def test_large_photographs_are_dilated_where_every_surfel_still_gets_pixels():
    assert _dilation((751, 1000), 284_454, steps=3000) == 2
    assert _dilation((751, 1000), 284_454, steps=1000) == 1  # too few steps
    assert _dilation((240, 320), 20_000, steps=1000) == 1
    assert _dilation((240, 320), 100, steps=7000) == 1  # small, however many steps
    assert _dilation((751, 1000), 284_454, steps=1000, dilation=3) == 3  # as the user says


def test_the_last_steps_and_the_recovery_draw_all_pixels():
    settings = Settings(train=TrainSettings(steps=1000, dilation_stop=0.9))
    course = Schedule.from_settings(settings, dilation=2)
    assert [course.shape(step).dilation for step in (0, 500, 899, 900, 999)] == [2, 2, 2, 1, 1]
    assert Schedule.without_growth(settings, 100).shape(0).dilation == 1
    assert Schedule.from_settings(settings).shape(0).dilation == 1
