"""One step of training, its schedule, and what its compiled program holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import TINY, town_scene

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.settings import DensitySettings, LossSettings, Settings, SurfelSettings, TrainSettings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.schedule import Schedule, ViewOrder
from cosurfgs_jax.training.state import abstract_state
from cosurfgs_jax.training.step import Batch, StepShape, compile_steps
from cosurfgs_jax.training.views import WorldViews


@pytest.fixture(scope="module")
def place():
    scene = town_scene(TINY)
    frame = SceneFrame.from_scene(scene)
    return loop.Place(scene, frame, WorldViews(scene, frame))


def _settings(**parts) -> Settings:
    return Settings(**{"surfels": SurfelSettings(sh_degree=1), **parts})


def _batch(place, view: int = 1) -> Batch:
    with ImageStore(place.scene, 64) as images:
        photo = jnp.asarray(images.load(view))
    return Batch(place.views.camera(view), photo, jnp.asarray(view, jnp.int32), jnp.float32(0.0), jnp.int32(1))


def test_steps_lower_the_loss_and_are_equal_to_the_bit(place):
    settings, batch = _settings(), _batch(place)
    steps = compile_steps(settings)
    ends = []
    for _ in range(2):
        state, losses = loop.first_state(place, settings, 4096), []
        for _ in range(15):
            state, report = steps.train(state, batch, shape=StepShape(is_densifying=True))
            losses.append(float(report.loss))
        ends.append(state)
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_step_reuses_the_memory_of_its_state(place):
    settings, batch = _settings(), _batch(place)
    state = loop.first_state(place, settings, 4096)
    compiled = compile_steps(settings).train.lower(state, batch, shape=StepShape(is_densifying=True)).compile()
    memory = compiled.memory_analysis()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * state_bytes  # donated: no second state
    # Gradients of the surfels and a few images; not a copy of the optimiser as well.
    surfel_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert memory.temp_size_in_bytes < 3 * surfel_bytes + 100 * batch.photo.nbytes


def test_bands_above_the_degree_do_not_learn(place):
    settings = _settings()
    state = loop.first_state(place, settings, 4096)
    before = np.asarray(state.params["sh"])
    batch = _batch(place)._replace(sh_degree=jnp.int32(0))
    state, _ = compile_steps(settings).train(state, batch, shape=StepShape(is_densifying=False))
    after = np.asarray(state.params["sh"])
    assert (after[:, 1:] == before[:, 1:]).all() and (after[:, 0] != before[:, 0]).any()


def test_masked_pixels_do_not_count(place):
    # Without SSIM, whose windows at the mask's edge see the photograph behind it.
    settings, batch = _settings(loss=LossSettings(ssim_weight=0.0)), _batch(place)
    height, width = batch.photo.shape[:2]
    keep = np.zeros((height, width, 1), np.uint8)
    keep[: height // 2] = 255
    photo = np.asarray(batch.photo)
    states = []
    for below in (0, 255):
        altered = photo.copy()
        altered[height // 2:] = below
        masked = batch._replace(photo=jnp.asarray(np.concatenate([altered, keep], axis=-1)))
        state = loop.first_state(place, settings, 4096)
        states.append(compile_steps(settings).train(state, masked, shape=StepShape(is_densifying=False)))
    (one, report), (two, _) = states
    assert np.isfinite(report.loss)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_the_abstract_state_has_the_shapes_of_the_real_one(place):
    settings = _settings()
    state = loop.first_state(place, settings, 4096)
    abstract = abstract_state(state.alive.shape[0], place.scene.num_views, settings)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_densification_keeps_to_its_budget(place):
    settings = _settings(density=DensitySettings(gradient_threshold=1e-12, absolute_gradient_threshold=1e-12))
    steps, state = compile_steps(settings), loop.first_state(place, settings, 4096)
    num_before = int(state.alive.sum())
    state, _ = steps.train(state, _batch(place), shape=StepShape(is_densifying=True))
    state, report = steps.densify(state, jax.random.key(0), False, num_before + 7)
    assert int(report.num_alive) == num_before + 7 == int(state.alive.sum())
    assert int(report.num_without_room) > 0


def test_trimming_drops_what_too_few_photographs_see(place):
    settings = _settings(density=DensitySettings(trim_min_views=4))
    steps, state = compile_steps(settings), loop.first_state(place, settings, 4096)
    counts = jnp.zeros(state.alive.shape, jnp.int32)
    for view in range(place.scene.num_views):
        counts = steps.count_front_view(counts, state, place.views.camera(view), image_size=place.views.image_size(view))
    seen, alive = np.asarray(counts), np.asarray(state.alive)
    assert seen[alive].max() > 4 and (seen[alive] < 4).any() and (seen[~alive] == 0).all()
    trimmed, num_dropped = steps.trim(state, counts)
    np.testing.assert_array_equal(np.asarray(trimmed.alive), alive & (seen >= 4))
    assert int(num_dropped) == (alive & (seen < 4)).sum()


def test_the_exposure_model_waits(place):
    settings = _settings()
    steps, batch = compile_steps(settings), _batch(place)
    state = loop.first_state(place, settings, 4096)
    before = jax.tree.map(np.asarray, state.appearance)
    state, _ = steps.train(state, batch._replace(progress=jnp.float32(0.02)), shape=StepShape(is_densifying=False))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.appearance))
    state, _ = steps.train(state, batch._replace(progress=jnp.float32(0.04)), shape=StepShape(is_densifying=False))
    assert any((a != np.asarray(b)).any() for a, b in
               zip(jax.tree.leaves(before), jax.tree.leaves(state.appearance), strict=True))


def test_the_schedule_scales_with_the_number_of_steps():
    trimming = DensitySettings(trim_min_views=2)
    short, long = (Schedule.from_settings(_settings(train=TrainSettings(steps=n), density=trimming)) for n in (7000, 30000))
    never = Schedule.from_settings(_settings())
    assert not any(never.trims_after(step) for step in range(7001))
    assert long.density_every == 100 and long.density_start == pytest.approx(500, abs=2) and long.density_stop == 15000
    assert long.reset_every == 3000 and long.sh_every == 1000
    assert short.density_stop == 3500
    assert [short.sh_degree_at(step) for step in (0, short.sh_every - 1, short.sh_every, 6999)] == [0, 0, 1, 1]
    assert not long.shape(15000).is_densifying and long.shape(14999).is_densifying
    resets = [step for step in range(1, 30001) if long.resets_after(step)]
    assert resets == [3000, 6000, 9000, 12000]
    trims = [step for step in range(1, 30001) if long.trims_after(step)]
    assert trims[0] >= 500 and trims[-1] <= 15000 and len(trims) > 5
    assert all(min(step - reset for reset in resets if reset <= step) >= 1500 for step in trims if step >= 3000)
    assert not long.is_after_reset(3000) and long.is_after_reset(3001)
    budgets = [long.budget(step, 1000, 5000) for step in (500, 8000, 12500, 15000)]
    assert budgets[0] == 1000 and budgets[-2:] == [5000, 5000] and 3000 < budgets[1] < 4500


def test_every_photograph_is_used_once_per_epoch():
    views = np.array([1, 2, 3, 5, 8])
    order = ViewOrder(views, seed=3)
    used = [order.view(step) for step in range(15)]
    for epoch in range(3):
        assert sorted(used[5 * epoch: 5 * epoch + 5]) == views.tolist()
    assert used[:5] != used[5:10]
    assert [ViewOrder(views, seed=3).view(step) for step in (12, 4)] == [used[12], used[4]]
