"""Masks of surfels: their derivative against the definition, what is drawn and what learns, and
that they prune, resume, and end in the same bits on any number of devices.
"""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import PHOTOMETRIC, four_blocks, put_states, run_context, solid_state

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model import masks, optim
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import (
    DensitySettings,
    MaskSettings,
    OptimSettings,
    TrainSettings,
)
from cosurfgs_jax.training import loop, masked_steps
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.partitioned_scene import Photographs, round_slots
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import Batch, StepShape, train_step
from cosurfgs_jax.training.trainer import Trainer
from cosurfgs_jax.types import Camera, Surfels

NUM_STEPS = 4
MASKED = dataclasses.replace(
    PHOTOMETRIC,
    mask=MaskSettings(weight=0.01, start=0.0, stop=1.0),
    train=TrainSettings(steps=NUM_STEPS, log_every=100, checkpoint_every=2),
)


def _discs(num: int = 12) -> tuple[Surfels, Camera]:
    """Discs before a camera, in several layers."""
    random = np.random.default_rng(5)
    means = random.uniform([-1, -0.7, 2], [1, 0.7, 4], (num, 3))
    surfels = Surfels(
        means=jnp.asarray(means, jnp.float32),
        quats=jnp.asarray(random.normal(size=(num, 4)), jnp.float32),
        log_scales=jnp.asarray(random.uniform(-1.5, -0.8, (num, 2)), jnp.float32),
        logit_opacities=jnp.asarray(random.uniform(-1, 3, num), jnp.float32),
        sh=jnp.asarray(random.uniform(-0.5, 1.5, (num, 1, 3)), jnp.float32),
        alive=jnp.ones(num, bool),
    )
    intrinsics = jnp.asarray([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
    return surfels, Camera(jnp.eye(4), intrinsics)


def test_how_often_surfels_are_masked_and_how_far_masks_travel():
    """At first one of ten; of those a fifth of all at most is drawn, at a tenth of its opacity; and
    in its whole course a mask can move by twelve.
    """
    begun = masks.init(3)
    np.testing.assert_allclose(jax.nn.sigmoid(begun.logits), 0.9, atol=1e-3)
    half = masks.init(20_000)._replace(logits=jnp.zeros(20_000))
    sample = masks.sample(half, jnp.int32(3))
    values, fractions = np.unique(sample.values, return_counts=True)
    np.testing.assert_allclose(values, [0, 0.1, 1], rtol=1e-6)
    np.testing.assert_allclose(fractions / 20_000, [0.3, 0.2, 0.5], atol=0.015)
    weights = [np.unique(sample.weights[sample.values == value]) for value in values]
    np.testing.assert_allclose(np.concatenate(weights), [0, 2.5, 1], rtol=1e-6)
    settings = dataclasses.replace(
        PHOTOMETRIC,
        mask=MaskSettings(weight=0.0, start=0.5, stop=0.7),
        train=TrainSettings(steps=1000),
    )
    drawn = masks.MaskSample(jnp.ones(3), jnp.ones(3))
    gradient = jnp.array([5.0, -1e-3, 1.0])
    alive = jnp.array([True, True, False])
    moved = masks.update(begun, gradient, drawn, alive, settings).logits - begun.logits
    # The first step of Adam is as long as its rate: 12 in 200 steps.
    np.testing.assert_allclose(moved, [-0.06, 0.06, 0], atol=1e-6)


def test_the_derivative_by_a_mask_is_that_of_an_opacity_multiplied_by_it():
    surfels, camera = _discs()
    signs = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], (24, 32, 3)), jnp.float32)

    def total(surfels, backend):
        draw = rasterize(
            surfels, camera, image_size=(24, 32), sh_degree=0, maps="color", backend=backend
        )
        return (signs * draw.color).sum()

    def definition(values):
        opacities = values * jax.nn.sigmoid(surfels.logit_opacities)
        logits = jnp.log(opacities) - jnp.log1p(-opacities)
        return total(surfels.replace(logit_opacities=logits), "reference")

    def fast(values):
        return total(masks.apply(surfels, values), None)

    def by_logits(logits):
        return total(surfels.replace(logit_opacities=logits), None)

    slope = jax.jit(jax.grad(fast))
    by_definition = jax.jit(jax.grad(definition))
    everything = jnp.ones(12)
    some = everything.at[::3].set(masks.FAINT)
    for values in (everything, some):
        expected = by_definition(values)
        assert jnp.abs(expected).min() > 1e-3
        np.testing.assert_allclose(slope(values), expected, rtol=2e-3, atol=2e-3)
    of_logits = jax.jit(jax.grad(by_logits))(surfels.logit_opacities)
    at_one = of_logits / (1 - jax.nn.sigmoid(surfels.logit_opacities))
    np.testing.assert_allclose(slope(everything), at_one, rtol=1e-4, atol=1e-5)


def test_masks_hold_where_opacities_end():
    logits = jnp.asarray([-300.0, -6.0, 0.0, 5.0, 40.0, 1e5])

    @jax.jit
    def masked(value):
        whole, slope = jax.jvp(
            lambda m: masks.masked_logits(logits, m), (jnp.full(6, value),), (jnp.ones(6),)
        )
        return whole, slope

    values, _ = masked(1.0)
    np.testing.assert_array_equal(values, logits)
    values, _ = masked(masks.FAINT)
    expected = masks.FAINT * np.minimum(1 / (1 + np.exp(-np.float64(logits[1:]))), 0.995)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.float64(values[1:]))), expected, rtol=1e-3)
    for value in (1.0, masks.FAINT, 0.0):
        assert jnp.isfinite(masked(value)[1]).all()


def test_what_is_not_drawn_is_made_up_for_by_what_is():
    probabilities = jnp.asarray([0.02, 0.3, 0.5, 0.9, 0.999])
    state = masks.init(5)._replace(logits=jnp.log(probabilities / (1 - probabilities)))
    draw = jax.jit(jax.vmap(lambda seed: masks.sample(state, seed)))
    values, weights = map(np.asarray, draw(jnp.arange(20_000)))
    is_faint = values == np.float32(masks.FAINT)
    assert ((values == 1) | is_faint | (values == 0)).all()
    np.testing.assert_allclose((values == 1).mean(axis=0), probabilities, atol=0.01)
    assert (is_faint.mean(axis=0) < 0.21).all()
    made_up = np.where(is_faint, weights, 0.0).mean(axis=0)
    np.testing.assert_allclose(made_up, 1 - probabilities, atol=0.025)
    assert (weights[values == 1] == 1).all() and (weights[values == 0] == 0).all()
    assert (draw(jnp.arange(7, 9))[0] == values[7:9]).all()


def test_the_penalty_thins_what_no_view_misses():
    alive = jnp.asarray([True, True, True, False])
    needed = jnp.asarray([0.0, -1e-3, 0.0, 0.0])  # the loss falls with the second one's m
    state = masks.init(4)
    everything = masks.MaskSample(jnp.ones(4), jnp.ones(4))
    settings = dataclasses.replace(MASKED, mask=MaskSettings(weight=1e-4))
    update = jax.jit(functools.partial(masks.update, settings=settings))
    after = update(state, needed, everything, alive)
    assert (after.logits[:2] - state.logits[:2] < 0).tolist() == [True, False]
    assert after.logits[0] == after.logits[2] and after.logits[3] == state.logits[3]
    penalty = jax.jit(jax.value_and_grad(masks.penalty))
    numeric = [penalty(state.logits + step * jnp.eye(4)[0], alive)[0] for step in (0.01, -0.01)]
    _, slope = penalty(state.logits, alive)
    np.testing.assert_allclose(slope[0], (numeric[0] - numeric[1]) / 0.02, rtol=0.02)
    assert slope[3] == 0


def test_a_step_of_masks_follows_the_derivative_by_their_logits():
    """Through the sigmoid, p (1 - p), and as often as the masks stand for others: seen in Adam's
    first moments, a tenth of the first derivative.
    """
    probabilities = np.array([0.2, 0.5, 0.95])
    state = masks.init(3)._replace(logits=jnp.asarray(np.log(probabilities / (1 - probabilities))))
    gradient = np.array([1.0, -2.0, 0.5])
    weights = np.array([1.0, 4.0, 0.0])
    drawn = masks.MaskSample(jnp.ones(3), jnp.asarray(weights, jnp.float32))
    settings = dataclasses.replace(MASKED, mask=MaskSettings(weight=0.0))
    after = masks.update(state, jnp.float32(gradient), drawn, jnp.ones(3, bool), settings)
    moments = next(leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.shape == (3,))
    expected = gradient * weights * probabilities * (1 - probabilities)
    np.testing.assert_allclose(moments / 0.1, expected, rtol=1e-5)


@pytest.mark.parametrize("is_lazy", [True, False])
def test_a_step_draws_and_moves_what_its_masks_say(is_lazy, tmp_path):
    if is_lazy and not optim.can_be_lazy(MASKED.optim):
        pytest.skip("no native kernel: no surfel waits")
    partitioned = four_blocks()
    settings = dataclasses.replace(MASKED, optim=OptimSettings(lazy=is_lazy))
    view = int(partitioned.blocks[0].views[2])
    with run_context(partitioned, tmp_path, 1, settings) as run:
        photo = Photographs(partitioned, run.images).load(0, view)
    batch = Batch(
        partitioned.views.camera_arrays(view),
        photo,
        np.int32(2),
        np.float32(0.5),
        np.int32(1),
        mask_seed=jnp.int32(11),
    )
    state = jax.tree.map(jnp.asarray, solid_state(partitioned, 0, settings=settings))
    assert (state.updated is not None) == is_lazy
    state = masked_steps.begin_masks(state)
    logits = jnp.where(jnp.arange(state.alive.size) % 2 == 0, 0.5, -0.5)
    state = dataclasses.replace(state, masks=state.masks._replace(logits=logits))
    shape = StepShape(is_densifying=False)
    step = jax.jit(lambda state, batch: train_step(state, batch, settings, shape))
    after, report = step(state, batch)
    sample = masks.sample(state.masks, batch.mask_seed)
    assert all(100 < (sample.values == value).sum() for value in (1, 0, jnp.float32(0.1)))
    # The same with all masks at 1, of the surfels as they are drawn.
    plain = dataclasses.replace(
        state,
        masks=state.masks._replace(logits=jnp.full_like(logits, 40.0)),
        alive=state.alive & (sample.values > 0),
        params=masks.apply(state.surfels(), sample.values).params,
    )
    expected, of_plain = step(plain, batch)
    np.testing.assert_allclose(report.loss, of_plain.loss, rtol=1e-5)
    kept = np.asarray(state.alive & sample.is_kept)
    for name, value in after.params.by_name().items():
        before = np.asarray(getattr(state.params, name))
        value = np.asarray(value)
        np.testing.assert_array_equal(value[~kept], before[~kept])
        moved = np.abs(value - before)[kept]
        assert moved.max() > 0, name
        difference = np.abs(value - np.asarray(getattr(expected.params, name)))[kept]
        assert np.quantile(difference, 0.99) < 1e-3 * moved.max(), name
    moved = np.asarray(after.masks.logits != state.masks.logits)
    assert moved[state.alive].all() and not moved[~np.asarray(state.alive)].any()
    num_left = int((state.alive & (after.masks.logits >= 0)).sum())
    assert float(report.shown["surfels/kept"]) == num_left
    if is_lazy:
        caught_up = np.asarray(after.updated)
        assert set(caught_up[np.asarray(sample.values) < 1]) == {0}
        assert 0 < caught_up.sum() < kept.sum()


def test_pruning_keeps_what_is_kept_more_often_than_not():
    state = jax.tree.map(jnp.asarray, solid_state(four_blocks(), 0, settings=MASKED))
    state = masked_steps.begin_masks(state)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=state.alive.size), jnp.float32)
    state = dataclasses.replace(state, masks=state.masks._replace(logits=logits))
    kept = np.flatnonzero(np.asarray(state.alive & (logits >= 0)))
    pruned = jax.jit(masked_steps.prune_masked_step)(state)
    assert pruned.masks is None and int(pruned.alive.sum()) == len(kept)
    assert pruned.alive[: len(kept)].all()
    for name, value in pruned.params.by_name().items():
        np.testing.assert_array_equal(value[: len(kept)], getattr(state.params, name)[kept])


def _stage(run) -> StageState:
    partitioned = run.partitioned
    states = put_states(run, lambda block: solid_state(partitioned, block, settings=run.settings))
    return StageState("device", states, 0, 0, 0.0)


@pytest.mark.optimized_if_slow
def test_a_run_that_goes_on_elsewhere_ends_in_the_same_bits_and_in_smaller_arrays(tmp_path):
    """On two devices, from a checkpoint in the midst of the masks of a run on one."""
    ends = []
    for num_devices in (1, 2):
        with (
            run_context(four_blocks(), tmp_path, num_devices, MASKED) as run,
            Checkpoints(run.workdir.checkpoints("device")) as checkpoints,
        ):
            saved = loop.restore_stage(run, "device", checkpoints)
            assert (saved is None) == (num_devices == 1)
            stage = saved or _stage(run)
            assert (stage.states[0].masks is None) == (num_devices == 1)
            trainer = Trainer(run, Schedule.from_settings(MASKED))
            end = loop.run_stage(run, stage, NUM_STEPS, trainer.advance, checkpoints)
            ends.append(run.layout.get_blocks(end.states))
            if num_devices == 1:
                num_slots = stage.num_slots
        shutil.rmtree(run.workdir.checkpoints("device") / str(NUM_STEPS))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    counts = [int(state.alive.sum()) for state in ends[0].values()]
    first = [block.num_initial for block in run.partitioned.blocks]
    assert all(0.1 * all_ < left < 0.9 * all_ for left, all_ in zip(counts, first, strict=True))
    for state in ends[0].values():
        assert state.masks is None
        assert state.alive.size == round_slots(max(counts)) < num_slots


def test_the_course_of_masks():
    settings = dataclasses.replace(
        MASKED, train=TrainSettings(steps=1000), mask=MaskSettings(weight=0.01)
    )
    course = Schedule.from_settings(settings)
    assert [step for step in range(1001) if course.is_masked(step)] == [*range(500, 700)]
    assert [step for step in range(1001) if course.prunes_masked_after(step)] == [700]
    assert course.looks_at_all_after(700) and not course.looks_at_all_after(500)
    off = dataclasses.replace(settings, mask=MaskSettings(weight=0.0))
    recovery = Schedule.without_growth(settings, 1000)
    for without in (Schedule.from_settings(off), recovery):
        assert not any(without.is_masked(step) for step in range(1001))
        assert not any(without.prunes_masked_after(step) for step in range(1001))


def test_masks_do_not_begin_while_surfels_come_and_go():
    mask = dataclasses.replace(MASKED.mask, start=0.4)
    settings = dataclasses.replace(MASKED, density=DensitySettings(stop=0.5), mask=mask)
    with pytest.raises(InputError, match=r"config\.mask\.start: expected at least density\.stop"):
        settings.validate()
    for changes in ({"weight": 0.0}, {"start": 0.5}):
        dataclasses.replace(settings, mask=dataclasses.replace(settings.mask, **changes)).validate()
    with pytest.raises(InputError, match=r"config\.mask\.start, stop: expected start < stop"):
        MaskSettings(start=0.7, stop=0.7).validate()
