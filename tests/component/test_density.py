"""Density control: what is cloned, split, pruned, and where it goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.model import density, optim, slots
from cosurfgs_jax.model.density_strategy import DensityRound
from cosurfgs_jax.settings import DensitySettings
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams

SETTINGS = DensitySettings()
SMALL = np.log(0.001)
LARGE = np.log(0.05)


def _state(log_scales, alive, num=12, seed=0):
    """Parameters, moments and statistics in which slot i can be told from all others; dead slots
    fill up to `num`.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    alive = np.array(list(alive) + [0] * (num - len(alive)), bool)
    log_scales = np.array(list(log_scales) + [SMALL] * (num - len(log_scales)), np.float32)
    params = SurfelParams(
        means=normal(num, 3),
        quats=normal(num, 4),
        log_scales=jnp.asarray(log_scales[:, None].repeat(2, axis=1)),
        logit_opacities=jnp.abs(normal(num)),
        sh=normal(num, 4, 3),
    )
    opt_state = optim.init_optimizer(params)
    opt_state = opt_state._replace(
        mu=jax.tree.map(lambda x: x + 1, params), nu=jax.tree.map(lambda x: x * x + 1, params)
    )
    return params, opt_state, jnp.asarray(alive), density.init_stats(num)


def _with_gradient(stats, slots, gradient=1e-3, views=1):
    rows = jnp.asarray(slots)
    return stats._replace(
        gradient_sum=stats.gradient_sum.at[rows].set(jnp.asarray(gradient, jnp.float32) * views),
        num_views=stats.num_views + views,
    )


@jax.jit
def densify(params, opt_state, alive, stats, order):
    return density.densify(params, opt_state, alive, stats, order, SETTINGS)


def _round(seed=0, prunes_large=False, **others):
    return DensityRound(jax.random.key(seed), prunes_large, **others)


def _assert_row(tree, expected_tree, row, expected_row):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[row], b[expected_row]), tree, expected_tree
    )


def _assert_clone(params, before, row, parent):
    """A row is the parent's but for its opacity: two of it let through what the parent did."""
    same = params.replace(
        logit_opacities=params.logit_opacities.at[row].set(before.logit_opacities[parent])
    )
    _assert_row(same, before, row, parent)
    passes = 1 - jax.nn.sigmoid(params.logit_opacities[row])
    expected = 1 - jax.nn.sigmoid(before.logit_opacities[parent])
    np.testing.assert_allclose(passes**2, expected, rtol=1e-5)


def test_accumulated_gradients_have_the_unit_of_3dgs():
    stats = density.init_stats(3)
    probe = jnp.array([[3e-3, 4e-3, 6e-3, 8e-3]] * 3)
    visible = jnp.array([True, False, True])
    for _ in range(2):
        stats = density.accumulate(stats, probe, visible, image_size=(200, 200))
    np.testing.assert_allclose(stats.gradient_sum, [1.0, 0, 1.0], rtol=1e-6)  # twice 5e-3 * 100
    np.testing.assert_allclose(stats.absolute_gradient_sum, [2.0, 0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(stats.num_views, [2, 0, 2])
    wide = density.accumulate(density.init_stats(3), probe, visible, image_size=(200, 400))
    np.testing.assert_allclose(wide.gradient_sum[0], np.hypot(3e-3 * 200, 4e-3 * 100), rtol=1e-6)


def test_small_surfels_are_cloned_into_free_slots():
    params, opt_state, alive, stats = _state([], [1, 0, 1, 1])
    stats = _with_gradient(stats, [2, 3])
    new, new_opt, new_alive, new_stats, report = densify(params, opt_state, alive, stats, _round(1))
    np.testing.assert_array_equal(new_alive, [1] * 5 + [0] * 7)
    _assert_row(new, params, 0, 0)
    for slot, source in [(2, 2), (3, 3), (1, 2), (4, 3)]:
        _assert_clone(new, params, slot, source)
    for slot in (0, 2, 3):  # a parent keeps its moments, a clone has none
        _assert_row(new_opt.mu, opt_state.mu, slot, slot)
        _assert_row(new_opt.nu, opt_state.nu, slot, slot)
    for slot in (1, 4):
        assert all((leaf[slot] == 0).all() for leaf in jax.tree.leaves((new_opt.mu, new_opt.nu)))
    assert [int(x) for x in report] == [2, 0, 0, 0, 5]
    assert all((leaf == 0).all() for leaf in new_stats)


def test_large_surfels_are_split_in_their_plane():
    params, opt_state, alive, stats = _state([LARGE] * 400, [1] * 400, num=800)
    stats = _with_gradient(stats, np.arange(400))
    new, new_opt, new_alive, _, report = densify(params, opt_state, alive, stats, _round(1))
    assert new_alive.all() and int(report.num_split) == 400 and int(report.num_cloned) == 0
    np.testing.assert_allclose(new.log_scales, LARGE - np.log(1.6), rtol=1e-6)
    parents = np.tile(np.arange(400), 2)  # the k-th free slot takes the k-th parent
    axes = matrix_from_quat(params.quats)[parents]
    offsets = jnp.einsum("nij,ni->nj", axes, new.means - params.means[parents])
    np.testing.assert_allclose(offsets[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(offsets[:, :2].std(), 0.05, rtol=0.1)
    np.testing.assert_allclose(offsets[:, :2].mean(), 0, atol=0.01)
    # The two children are drawn apart, not mirrored or equal.
    assert abs(np.corrcoef(offsets[:400, 0], offsets[400:, 0])[0, 1]) < 0.2
    for name in ("quats", "logit_opacities", "sh"):
        np.testing.assert_array_equal(getattr(new, name), getattr(params, name)[parents])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves((new_opt.mu, new_opt.nu)))


def test_only_strong_gradients_grow_and_needles_do_not():
    params, opt_state, alive, stats = _state([LARGE] * 4, [1] * 5)
    needle = jnp.array([LARGE, LARGE - 5])
    params = params.replace(log_scales=params.log_scales.at[1].set(needle))
    stats = _with_gradient(stats, [0, 1, 2], [1.9e-4, 1.0, 2.1e-4], views=3)
    stats = stats._replace(
        absolute_gradient_sum=stats.absolute_gradient_sum.at[jnp.array([3, 4])].set(
            jnp.array([3 * 8.1e-4, 3 * 7.9e-4])
        )
    )
    *_, report = densify(params, opt_state, alive, stats, _round())
    assert [int(x) for x in report] == [0, 2, 0, 0, 7]  # slots 2 and 3


def test_pruning():
    params, opt_state, alive, stats = _state([SMALL] * 5 + [np.log(0.2)], [1, 1, 1, 1, 0, 1])
    params = params.replace(logit_opacities=params.logit_opacities.at[1].set(-6.0))
    params = params.replace(means=params.means.at[2, 0].set(jnp.nan))
    mu = opt_state.mu.replace(means=opt_state.mu.means.at[2].set(jnp.nan))
    opt_state = opt_state._replace(mu=mu)
    stats = _with_gradient(stats, [1, 2])  # what is pruned does not grow
    for prunes_large, expected in [(False, [1, 0, 0, 1, 0, 1]), (True, [1, 0, 0, 1, 0, 0])]:
        new, new_opt, new_alive, _, report = densify(
            params, opt_state, alive, stats, _round(prunes_large=prunes_large)
        )
        np.testing.assert_array_equal(new_alive, expected + [0] * 6)
        assert (
            int(report.num_pruned) == int(alive.sum()) - sum(expected)
            and int(report.num_cloned) == 0
        )
        assert all((leaf[1:3] == 0).all() for leaf in jax.tree.leaves((new_opt.mu, new_opt.nu)))


def test_lengths_are_in_extents_of_the_block():
    params, opt_state, alive, stats = _state([LARGE, np.log(0.2)], [1, 1])
    stats = _with_gradient(stats, [0])
    for length, expected in [
        (1.0, [0, 1, 1, 0, 2]),
        (4.0, [0, 1, 0, 0, 3]),
        (10.0, [1, 0, 0, 0, 3]),
    ]:
        *_, report = densify(
            params, opt_state, alive, stats, _round(prunes_large=True, length=length)
        )
        assert [int(x) for x in report] == expected, length


def test_slots_of_the_pruned_are_used_at_once():
    params, opt_state, alive, stats = _state([], [1] * 12)
    params = params.replace(logit_opacities=params.logit_opacities.at[0].set(-9.0))
    new, _, new_alive, _, report = densify(
        params, opt_state, alive, _with_gradient(stats, [2]), _round(0)
    )
    assert new_alive.all() and [int(x) for x in report] == [1, 0, 1, 0, 12]
    _assert_clone(new, params, 0, 2)


def test_the_strongest_take_the_room_there_is():
    params, opt_state, alive, stats = _state([], [1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1])
    stats = _with_gradient(stats, [0, 1, 2, 3, 6], [1e-3, 5e-3, 1e-3, 7e-3, 5e-3])
    new, _, new_alive, _, report = densify(params, opt_state, alive, stats, _round())
    assert new_alive.all() and [int(x) for x in report] == [2, 0, 0, 3, 12]
    _assert_clone(new, params, 5, 1)  # of the two equal ones the first
    _assert_clone(new, params, 7, 3)
    # A budget below the number of slots.
    new, _, new_alive, _, report = densify(
        params, opt_state, alive, stats, _round(0, budget=jnp.int32(11))
    )
    assert [int(x) for x in report] == [1, 0, 0, 4, 11] and not new_alive[7]
    _assert_clone(new, params, 5, 3)
    # No room at all.
    full = jnp.ones(12, bool)
    new, _, _, _, report = densify(params, opt_state, full, stats, _round())
    assert [int(x) for x in report] == [0, 0, 0, 5, 12]
    jax.tree.map(np.testing.assert_array_equal, new, params)


@pytest.mark.parametrize("kind", ["all different", "many equal", "with infinity"])
def test_the_choice_is_that_of_a_stable_sort(kind):
    random = np.random.default_rng(3)
    strength = random.exponential(3, 200).astype(np.float32)
    if kind == "many equal":
        strength = np.round(strength)
    if kind == "with infinity":
        strength[::9] = np.inf
    wanted = (strength > 1) & (random.random(200) < 0.8)
    choose = jax.jit(density._keep_strongest)
    count = int(wanted.sum())
    for room in (0, 1, count // 2, count - 1, count, count + 5):
        best = np.argsort(np.where(wanted, -strength, np.inf), kind="stable")[: min(room, count)]
        kept = np.asarray(choose(wanted, strength, jnp.int32(room)))
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(best))


def test_same_key_same_surfels():
    arguments = _state([LARGE] * 5, [1] * 5)
    arguments = (*arguments[:3], _with_gradient(arguments[3], [0, 1, 2, 3, 4]))
    first, again, other = (densify(*arguments, _round(seed))[0] for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.means != other.means)[:10].all()


def test_opacity_reset():
    params, opt_state, _, _ = _state([], [1] * 4, num=4)
    params = params.replace(logit_opacities=jnp.array([5.0, -9.0, 0.0, -3.0]))
    new, new_opt = density.reset_opacity(params, opt_state)
    expected = [0.01, jax.nn.sigmoid(-9.0), 0.01, 0.01]
    np.testing.assert_allclose(jax.nn.sigmoid(new.logit_opacities), expected, rtol=1e-5)
    assert (new_opt.mu.logit_opacities == 0).all() and (new_opt.nu.logit_opacities == 0).all()
    for name in set(PARAM_NAMES) - {"logit_opacities"}:
        np.testing.assert_array_equal(getattr(new, name), getattr(params, name))
        np.testing.assert_array_equal(getattr(new_opt.mu, name), getattr(opt_state.mu, name))


def test_growing_the_capacity_changes_nothing_that_lives():
    params, opt_state, alive, stats = _state([], [1, 0, 1, 1], num=4)
    new, new_opt, new_alive, new_stats = slots.grow_capacity(params, opt_state, alive, stats, 7)
    np.testing.assert_array_equal(new_alive, [1, 0, 1, 1, 0, 0, 0])
    old_leaves = jax.tree.leaves((params, opt_state, stats))
    new_leaves = jax.tree.leaves((new, new_opt, new_stats))
    for old, grown in zip(old_leaves, new_leaves, strict=True):
        assert grown.shape == ((7, *old.shape[1:]) if old.ndim else ())
        np.testing.assert_array_equal(grown[:4] if old.ndim else grown, old)
    np.testing.assert_array_equal(new.quats[4:], [[1, 0, 0, 0]] * 3)
    assert all((leaf[4:] == 0).all() for leaf in jax.tree.leaves((new_opt.mu, new_opt.nu)))
    with pytest.raises(ValueError, match="at least the 4 slots"):
        slots.grow_capacity(params, opt_state, alive, stats, 3)


def test_compaction_keeps_surfels_and_moments_together():
    params, opt_state, alive, stats = _state([], [0, 1, 1, 0, 0, 1, 0, 1, 1], num=9)
    stats = _with_gradient(stats, np.arange(9), np.linspace(0, 1, 9))
    gradient = jax.tree.map(jnp.cos, params)
    compact = jax.jit(slots.compact)
    new, new_opt, new_alive, new_stats = compact(params, opt_state, alive, stats)
    np.testing.assert_array_equal(new_alive, [1] * 5 + [0] * 4)
    order = np.array([1, 2, 5, 7, 8, 0, 3, 4, 6])
    np.testing.assert_array_equal(new_stats.gradient_sum, stats.gradient_sum[order])
    # Compacting, then a step, is the step, then compacting.
    update = jax.jit(functools.partial(optim.update, settings=optim.OptimSettings(), progress=0.1))
    moved_gradient = jax.tree.map(lambda x: x[order], gradient)
    after = update(new, moved_gradient, new_opt, new_alive)
    expected = compact(*update(params, gradient, opt_state, alive), alive, stats)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), after, expected[:2])


def test_both_surfels_of_a_clone_hide_as_much_as_the_one_before():
    logits = jnp.array([-200.0, -20, -3, 0, 2, 4.6, 8])
    halved = np.asarray(density._halved(logits), np.float64)
    assert np.isfinite(halved).all()
    passed = 1 / (1 + np.exp(np.asarray(logits, np.float64)))
    np.testing.assert_allclose((1 / (1 + np.exp(halved))) ** 2, passed, rtol=1e-5)
    np.testing.assert_allclose(halved[1], -20 - np.log(2), rtol=1e-4)  # half of a faint one
