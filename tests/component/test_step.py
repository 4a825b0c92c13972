"""One step of training, its schedule, and what its compiled program holds."""

import jax
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.settings import (
    AppearanceSettings,
    DensitySettings,
    LossSettings,
    OptimSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_steps import DensifyOrder
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.partitioned_scene import Photographs
from cosurfgs_jax.training.schedule import Schedule, ViewOrder
from cosurfgs_jax.training.state import abstract_state, empty_state
from cosurfgs_jax.training.step import Batch, StepShape


@pytest.fixture(scope="module")
def partitioned():
    return town_place()


def _settings(**parts) -> Settings:
    return Settings(**{"surfels": SurfelSettings(sh_degree=1), **parts})


LAYOUT = make_layout(np.zeros(1, np.int64), num_devices=1)


def _put(tree):
    """As the one block on the one device."""
    return LAYOUT.put(lambda _: tree)


def _get(tree):
    return LAYOUT.get(tree, 0)


def _first_state(partitioned, settings):
    return _put(first_state(partitioned, partitioned.blocks[0], settings, 4096))


def _batch(partitioned, view: int = 1, **changes) -> Batch:
    with ImageStore(partitioned.scene, 64) as images:
        photo = Photographs(partitioned, images).load(0, view)
    index = np.int32(np.searchsorted(partitioned.blocks[0].views, view))
    batch = Batch(partitioned.views.camera_arrays(view), photo, index, np.float32(0.0), np.int32(1))
    return _put(batch._replace(**changes))


def test_what_is_dark_becomes_solid_as_light_must_not_pass(partitioned):
    changes = []
    for weight in (0.0, 10.0):
        settings = Settings(
            appearance=AppearanceSettings(enabled=False),
            loss=LossSettings(transparency_weight=weight),
        )
        steps = compile_blocks(settings, LAYOUT)
        batch = _batch(partitioned, photo=np.zeros((*partitioned.views.image_size(1), 3), np.uint8))
        state = _first_state(partitioned, settings)
        before = _get(state).params.logit_opacities
        after, _ = steps.train(state, batch, shape=StepShape(is_densifying=False))
        changes.append(_get(after).params.logit_opacities - before)
    moved = (changes[0] != 0) & (changes[1] != 0)
    assert moved.sum() > 50
    assert (
        changes[0][moved] < 0
    ).mean() > 0.9  # a black background does the work of a black surface
    assert (changes[1][moved] > 0).mean() > 0.9


def test_steps_lower_the_loss_and_are_equal_to_the_bit(partitioned):
    settings = _settings()
    batch = _batch(partitioned)
    steps = compile_blocks(settings, LAYOUT)
    ends = []
    for _ in range(2):
        state = _first_state(partitioned, settings)
        losses = []
        for _ in range(15):
            state, report = steps.train(state, batch, shape=StepShape(is_densifying=True))
            losses.append(float(_get(report).loss))
        ends.append(_get(state))
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_bands_above_the_degree_do_not_learn(partitioned):
    settings = _settings()
    state = _first_state(partitioned, settings)
    before = _get(state).params.sh
    batch = _batch(partitioned, sh_degree=np.int32(0))
    state, _ = compile_blocks(settings, LAYOUT).train(
        state, batch, shape=StepShape(is_densifying=False)
    )
    after = _get(state).params.sh
    assert (after[:, 1:] == before[:, 1:]).all() and (after[:, 0] != before[:, 0]).any()


def test_masked_pixels_do_not_count(partitioned):
    # Without SSIM, whose windows at the mask's edge see the photograph behind it.
    settings = _settings(loss=LossSettings(ssim_weight=0.0))
    photo = _get(_batch(partitioned)).photo
    height, width = photo.shape[:2]
    keep = np.zeros((height, width, 1), np.uint8)
    keep[: height // 2] = 255
    states = []
    for below in (0, 255):
        altered = photo.copy()
        altered[height // 2 :] = below
        masked = _batch(partitioned, photo=np.concatenate([altered, keep], axis=-1))
        state = _first_state(partitioned, settings)
        states.append(
            _get(
                compile_blocks(settings, LAYOUT).train(
                    state, masked, shape=StepShape(is_densifying=False)
                )
            )
        )
    (one, report), (two, _) = states
    assert np.isfinite(report.loss)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_a_dilated_step_looks_at_no_pixel_but_its_own(partitioned):
    settings = _settings()
    steps = compile_blocks(settings, LAYOUT)
    shape = StepShape(is_densifying=True, dilation=2)
    with ImageStore(partitioned.scene, 64) as images:
        photo = np.array(Photographs(partitioned, images).load(0, 1))
    noise = np.random.default_rng(0).integers(0, 255, photo.shape).astype(np.uint8)
    other = noise.copy()
    other[0::2, 1::2] = photo[0::2, 1::2]
    ends = []
    for shown in (photo, other, noise):
        batch = _batch(partitioned, photo=shown, origin=np.array([0, 1], np.int32))
        state, report = steps.train(_first_state(partitioned, settings), batch, shape=shape)
        assert np.isfinite(_get(report).loss)
        ends.append(_get(state).params)
    jax.tree.map(np.testing.assert_array_equal, ends[0], ends[1])
    assert (ends[0].means != ends[2].means).any()


def test_surfels_that_wait_end_where_those_that_do_not_end(partitioned):
    ends = []
    for is_lazy in (True, False):
        settings = _settings(optim=OptimSettings(lazy=is_lazy))
        steps = compile_blocks(settings, LAYOUT)
        state = _first_state(partitioned, settings)
        assert (_get(state).updated is not None) == is_lazy
        for step in range(6):
            view = int(partitioned.blocks[0].views[step % 3])
            state, _ = steps.train(
                state, _batch(partitioned, view), shape=StepShape(is_densifying=False)
            )
        state = steps.settle(state, _put(np.float32(0)))
        ends.append(_get(state))
    lazy, dense = ends
    assert (lazy.updated == 6).all()
    start = _get(_first_state(partitioned, settings)).params
    for name, value in dense.params.by_name().items():
        moved = np.abs(value - getattr(start, name)).max()
        assert moved > 0
        # Rounding turns gradients of nothing, whose steps Adam makes as large as any.
        error = np.abs(getattr(lazy.params, name) - value)
        assert np.quantile(error, 0.99) < 1e-3 * moved


def test_the_abstract_state_has_the_shapes_of_the_real_one(partitioned):
    settings = _settings()
    state = first_state(partitioned, partitioned.blocks[0], settings, 4096)
    kept = partitioned.kept(settings)
    assert state.depths is not None and state.updated is not None
    abstract = abstract_state(state.alive.shape[0], partitioned.max_views, settings, kept)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    empty = empty_state(4096, partitioned.max_views, settings, kept)
    assert jax.tree.structure(empty) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(empty), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert not empty.alive.any()


def test_densification_keeps_to_its_budget(partitioned):
    settings = _settings(
        density=DensitySettings(
            strategy="adaptive", gradient_threshold=1e-12, absolute_gradient_threshold=1e-12
        )
    )
    steps = compile_blocks(settings, LAYOUT)
    state = _first_state(partitioned, settings)
    num_before = int(state.alive.sum())
    state, _ = steps.train(state, _batch(partitioned), shape=StepShape(is_densifying=True))
    order = DensifyOrder(np.int32(0), np.int32(20), np.bool_(False), np.int32(num_before + 7))
    state, report = _get(steps.densify(state, _put(order)))
    assert int(report.num_alive) == num_before + 7 == int(state.alive.sum())
    assert int(report.num_without_room) > 0


def test_nothing_is_added_outside_of_the_corners(partitioned):
    density = DensitySettings(  # clones, which stay where their parents are
        strategy="adaptive",
        gradient_threshold=1e-12,
        absolute_gradient_threshold=1e-12,
        split_scale=1e3,
    )
    settings = _settings(density=density)
    steps = compile_blocks(settings, LAYOUT)
    first = _first_state(partitioned, settings)
    x = np.asarray(_get(first).params.means[:, 0])[np.asarray(_get(first).alive)]
    wall = np.float32(np.median(x))
    added = {}
    for name, low in (("half", np.array([wall, -np.inf], np.float32)), ("all", None)):
        state, _ = steps.train(
            _first_state(partitioned, settings),
            _batch(partitioned),
            shape=StepShape(is_densifying=True),
        )
        order = DensifyOrder(np.int32(0), np.int32(20), np.bool_(False), np.int32(4096))
        if low is not None:
            order = order._replace(low=low)
        state, report = _get(steps.densify(state, _put(order)))
        is_left = state.params.means[state.alive, 0] < wall
        added[name] = is_left.sum() - (x < wall).sum(), (~is_left).sum() - (x >= wall).sum()
        assert int(report.num_pruned) == 0
    assert added["half"][0] == 0 and added["half"][1] == added["all"][1] > 0.2 * len(x)
    assert added["all"][0] > 0.2 * len(x)


def test_densification_draws_by_seed_block_and_step(partitioned):
    density = DensitySettings(
        strategy="adaptive",
        gradient_threshold=1e-12,
        absolute_gradient_threshold=1e-12,
        split_scale=1e-6,
    )
    settings = _settings(density=density)
    drawn = []
    steps = compile_blocks(settings, LAYOUT)
    for block, step in ((0, 20), (0, 20), (1, 20), (0, 40)):
        state, _ = steps.train(
            _first_state(partitioned, settings),
            _batch(partitioned),
            shape=StepShape(is_densifying=True),
        )
        order = DensifyOrder(np.int32(block), np.int32(step), np.bool_(False), np.int32(4096))
        state, report = _get(steps.densify(state, _put(order)))
        assert int(report.num_split) > 0
        drawn.append(state.params.means)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (
        (drawn[0] != drawn[2]).any()
        and (drawn[0] != drawn[3]).any()
        and (drawn[2] != drawn[3]).any()
    )


def test_trimming_drops_what_too_few_photographs_see(partitioned):
    settings = _settings(density=DensitySettings(trim_min_views=4))
    steps = compile_blocks(settings, LAYOUT)
    state = _first_state(partitioned, settings)
    counts = _put(np.zeros(4096, np.int32))
    for view in range(partitioned.scene.num_views):
        for is_active in (True, False):  # what only stands in for a photograph is not counted
            counts = steps.count_front_view(
                counts,
                state,
                _put(partitioned.views.camera_arrays(view)),
                _put(np.bool_(is_active)),
                image_size=partitioned.views.image_size(view),
            )
    seen = _get(counts)
    alive = _get(state.alive)
    assert seen.max() <= partitioned.scene.num_views
    assert seen[alive].max() > 4 and (seen[alive] < 4).any() and (seen[~alive] == 0).all()
    # A block with too few photographs to judge by keeps all.
    state, num_dropped = steps.trim(state, counts, _put(np.bool_(False)))
    np.testing.assert_array_equal(_get(state.alive), alive)
    assert int(_get(num_dropped)) == 0
    trimmed, num_dropped = _get(steps.trim(state, counts, _put(np.bool_(True))))
    np.testing.assert_array_equal(trimmed.alive, alive & (seen >= 4))
    assert int(num_dropped) == (alive & (seen < 4)).sum()


def test_the_exposure_model_waits(partitioned):
    settings = _settings()
    steps = compile_blocks(settings, LAYOUT)
    state = _first_state(partitioned, settings)
    before = _get(state.appearance)
    state, _ = steps.train(
        state, _batch(partitioned, progress=np.float32(0.02)), shape=StepShape(is_densifying=False)
    )
    jax.tree.map(np.testing.assert_array_equal, before, _get(state.appearance))
    state, _ = steps.train(
        state, _batch(partitioned, progress=np.float32(0.04)), shape=StepShape(is_densifying=False)
    )
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(before), jax.tree.leaves(_get(state.appearance)), strict=True
        )
    )


def test_the_schedule_scales_with_the_number_of_steps():
    trimming = DensitySettings(trim_min_views=2, opacity_reset_every=0.1)
    short, long = (
        Schedule.from_settings(_settings(train=TrainSettings(steps=n), density=trimming))
        for n in (7000, 30000)
    )
    never = Schedule.from_settings(_settings())
    assert not any(never.trims_after(step) or never.resets_after(step) for step in range(7001))
    unfaded = Schedule.from_settings(_settings(density=DensitySettings(trim_min_views=2)))
    assert [step for step in range(1, 1000) if unfaded.trims_after(step)][:2] == [233, 466]
    assert (
        long.density_every == 300
        and long.density_start == pytest.approx(500, abs=2)
        and long.density_stop == 15000
    )
    assert long.reset_every == 3000 and long.sh_every == 1000
    assert short.density_stop == 3500
    assert [short.sh_degree_at(step) for step in (0, short.sh_every - 1, short.sh_every, 6999)] == [
        0,
        0,
        1,
        1,
    ]
    assert not long.shape(15000).is_densifying and long.shape(14999).is_densifying
    resets = [step for step in range(1, 30001) if long.resets_after(step)]
    assert resets == [3000, 6000, 9000, 12000]
    trims = [step for step in range(1, 30001) if long.trims_after(step)]
    assert trims[0] >= 500 and trims[-1] <= 15000 and len(trims) > 5
    assert all(
        min(step - reset for reset in resets if reset <= step) >= 1500
        for step in trims
        if step >= 3000
    )
    assert not long.prunes_large(3000) and long.prunes_large(3001)
    budgets = [long.budget(step, 1000, 5000) for step in (500, 8000, 12500, 15000)]
    assert budgets[0] == 1000 and budgets[-2:] == [5000, 5000] and 3000 < budgets[1] < 4500


def test_every_photograph_is_used_once_per_epoch():
    views = np.array([1, 2, 3, 5, 8])
    order = ViewOrder(views, seed=3)
    used = [order.view(step) for step in range(15)]
    for epoch in range(3):
        assert sorted(used[5 * epoch : 5 * epoch + 5]) == views.tolist()
    assert used[:5] != used[5:10]
    assert [ViewOrder(views, seed=3).view(step) for step in (12, 4)] == [used[12], used[4]]
    assert ViewOrder(views, seed=3).views(2, 6) == used[2:8]
    others = [
        ViewOrder(views, seed=seed, block=block).views(0, 15) for seed, block in ((3, 1), (4, 0))
    ]
    assert used != others[0] != others[1] != used
    assert ViewOrder(views, seed=3, block=1).views(0, 15) == others[0]


@pytest.mark.optimized_if_slow
def test_a_step_reuses_the_memory_of_its_state(partitioned):
    settings = _settings()
    batch = _batch(partitioned)
    state = _first_state(partitioned, settings)
    compiled = (
        compile_blocks(settings, LAYOUT)
        .train.lower(state, batch, shape=StepShape(is_densifying=True))
        .compile()
    )
    memory = compiled.memory_analysis()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * state_bytes  # donated: no second state
    # Gradients of the surfels and a few images; not a copy of the optimiser as well.
    surfel_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert memory.temp_size_in_bytes < 3 * surfel_bytes + 100 * batch.photo.nbytes
