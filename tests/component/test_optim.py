"""Adam over surfels, and the two forms of the parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model import optim
from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams, Surfels


def _surfels(num=50, num_sh=4, seed=0):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    return Surfels(
        means=normal(num, 3),
        quats=normal(num, 4),
        log_scales=normal(num, 2),
        logit_opacities=normal(num),
        sh=normal(num, num_sh, 3),
        alive=jnp.asarray(generator.random(num) < 0.7),
    )


def _step(params, gradient, state, alive, settings=None, progress=0.0):
    settings = settings or OptimSettings()
    return jax.jit(lambda *arguments: optim.update(*arguments, settings, progress))(
        params, gradient, state, alive
    )


@pytest.mark.parametrize("num_sh", [1, 16])
def test_parameters_make_the_same_surfels(num_sh):
    surfels = _surfels(num_sh=num_sh)
    again = Surfels.of(surfels.params, surfels.alive)
    jax.tree.map(np.testing.assert_array_equal, again, surfels)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_update_is_adam(backend):
    settings = OptimSettings(logit_opacities=0.05)  # the tolerances are of steps so long
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    alive = jnp.ones_like(alive)
    generator = np.random.default_rng(1)
    expected = {name: np.asarray(value, np.float64) for name, value in params.by_name().items()}
    first = {name: 0.0 for name in PARAM_NAMES}
    second = {name: 0.0 for name in PARAM_NAMES}
    state = optim.init_optimizer(params)
    step = jax.jit(lambda p, g, s, t: optim.update(p, g, s, alive, settings, t, backend=backend))
    for i in range(5):
        gradient = {
            name: 1e-3 * generator.standard_normal(value.shape)
            for name, value in params.by_name().items()
        }
        params, state = step(
            params,
            SurfelParams(**{name: jnp.float32(value) for name, value in gradient.items()}),
            state,
            jnp.float32(i / 10),
        )
        sh_rates = np.array([settings.sh_dc] + [settings.sh_rest] * 3)[:, None]
        rates = {
            "means": settings.means_start * (settings.means_end / settings.means_start) ** (i / 10),
            "quats": settings.quats,
            "log_scales": settings.log_scales,
            "logit_opacities": settings.logit_opacities,
            "sh": sh_rates,
        }
        for name, slope in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            unbiased = first[name] / (1 - 0.9 ** (i + 1)), second[name] / (1 - 0.999 ** (i + 1))
            expected[name] -= rates[name] * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-15)
    for name in PARAM_NAMES:
        np.testing.assert_allclose(getattr(params, name), expected[name], rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(getattr(state.mu, name), first[name], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(getattr(state.nu, name), second[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("num", [1, 3000])
def test_the_kernel_is_the_definition(num):
    surfels = _surfels(num, num_sh=16)
    params = surfels.params
    alive = surfels.alive
    states = {backend: (params, optim.init_optimizer(params)) for backend in ("cpu", "reference")}
    updates = {
        backend: jax.jit(
            lambda p, s, g, d, b=backend: optim.update(
                p, g, s, alive, OptimSettings(), 0.4, d, 2.0, b
            )
        )
        for backend in states
    }
    for i in range(3):
        gradient = jax.tree.map(lambda leaf, i=i: jnp.sin(40 * leaf + i), params)
        for backend, (own, state) in states.items():
            states[backend] = updates[backend](own, state, gradient, jnp.int32(i))
    (ours, ours_state) = states["cpu"]
    (expected, expected_state) = states["reference"]
    assert ours_state.count == expected_state.count == 3
    for name, start in params.by_name().items():
        np.testing.assert_allclose(
            getattr(ours, name) - start, getattr(expected, name) - start, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            getattr(ours_state.mu, name), getattr(expected_state.mu, name), rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(
            getattr(ours_state.nu, name), getattr(expected_state.nu, name), rtol=1e-5, atol=1e-9
        )
        np.testing.assert_array_equal(getattr(ours, name)[~alive], start[~alive])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_that_wait_and_are_caught_up_go_where_adam_takes_them(backend):
    surfels = _surfels(400, num_sh=4)
    generator = np.random.default_rng(3)
    settings = OptimSettings()
    everything = jnp.ones(400, bool)
    step = jax.jit(
        lambda p, g, s, rows: optim.update(p, g, s, rows, settings, 0.5, backend=backend)
    )
    catch_up = jax.jit(
        lambda p, s, rows, missed: optim.catch_up(
            p, s, rows, missed, optim.Course(settings, 0.5), backend
        )
    )
    dense = lazy = surfels.params
    dense_state = lazy_state = optim.init_optimizer(surfels.params)
    updated = jnp.zeros(400, jnp.int32)
    # Some rows are seen often, some once a hundred steps or never: gaps of every length.
    chances = generator.choice([0.0, 0.01, 0.2, 1.0], 400)
    for _ in range(200):
        seen = jnp.asarray(generator.random(400) < chances)
        gradient = jax.tree.map(
            lambda leaf, seen=seen: (
                jnp.asarray(1e-4 * generator.standard_normal(leaf.shape), jnp.float32)
                * seen.astype(jnp.float32).reshape((-1,) + (1,) * (leaf.ndim - 1))
            ),
            surfels.params,
        )
        dense, dense_state = step(dense, gradient, dense_state, everything)
        lazy, lazy_state = catch_up(lazy, lazy_state, seen, lazy_state.count - updated)
        lazy, lazy_state = step(lazy, gradient, lazy_state, seen)
        updated = jnp.where(seen, lazy_state.count, updated)
    lazy, lazy_state = catch_up(lazy, lazy_state, everything, lazy_state.count - updated)
    assert lazy_state.count == dense_state.count == 200
    for name, start in surfels.params.by_name().items():
        moved = getattr(dense, name) - start
        error = getattr(lazy, name) - getattr(dense, name)
        # Rounding of 200 steps. Left where they were, rows would be off by as much as they moved.
        assert np.abs(error).max() < 3e-5 + 1e-3 * np.abs(moved).max()
    for ours, expected in zip(
        jax.tree.leaves(lazy_state), jax.tree.leaves(dense_state), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_rows_that_are_not_alive_keep_values_and_moments():
    surfels = _surfels(300)
    ones = jax.tree.map(jnp.ones_like, surfels.params)
    state = optim.init_optimizer(surfels.params)._replace(mu=ones, nu=ones)
    for backend in ("cpu", "reference"):
        update = functools.partial(
            optim.update, settings=OptimSettings(), progress=0.0, backend=backend
        )
        new, after = jax.jit(update)(surfels.params, ones, state, surfels.alive)
        for name, start in surfels.params.by_name().items():
            dead = ~surfels.alive
            np.testing.assert_array_equal(getattr(new, name)[dead], start[dead])
            np.testing.assert_array_equal(getattr(after.mu, name)[dead], 1)
            np.testing.assert_array_equal(getattr(after.nu, name)[dead], 1)
            assert (getattr(new, name)[surfels.alive] != start[surfels.alive]).all()


def test_an_unknown_backend_is_refused():
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    with pytest.raises(InputError, match="backend"):
        optim.update(
            params,
            params,
            optim.init_optimizer(params),
            alive,
            OptimSettings(),
            0.0,
            backend="cuda",
        )


def test_means_move_by_extents_of_the_block():
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    gradient = jax.tree.map(jnp.cos, params)
    state = optim.init_optimizer(params)
    step = jax.jit(
        lambda length: optim.update(
            params, gradient, state, alive, OptimSettings(), 0.3, length=length
        )[0]
    )
    one = step(1.0)
    three = step(3.0)
    np.testing.assert_allclose(
        three.means - params.means, 3 * (one.means - params.means), rtol=1e-2, atol=1e-6
    )
    assert (one.means != params.means).any()
    for name in set(PARAM_NAMES) - {"means"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_dead_slots_stand_still():
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    state = optim.init_optimizer(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    moved, state = _step(params, gradient, state, alive)
    # A slot that dies with moments must not drift either.
    died = alive.at[jnp.flatnonzero(alive)[0]].set(False)
    moved_twice, _ = _step(moved, gradient, state, died)
    for name in PARAM_NAMES:
        np.testing.assert_array_equal(getattr(moved, name)[~alive], getattr(params, name)[~alive])
        np.testing.assert_array_equal(getattr(state.mu, name)[~alive], 0)
        np.testing.assert_array_equal(getattr(state.nu, name)[~alive], 0)
        np.testing.assert_array_equal(
            getattr(moved_twice, name)[~died], getattr(moved, name)[~died]
        )
        assert (getattr(moved, name)[alive] != getattr(params, name)[alive]).all()


def test_first_step_has_the_length_of_the_rate_for_tiny_gradients():
    settings = OptimSettings()
    params = _surfels().params
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 1e-9), params)
    moved, _ = _step(params, gradient, optim.init_optimizer(params), jnp.ones(50, bool), settings)
    for name in ("means", "quats", "log_scales", "logit_opacities"):
        rate = getattr(settings, name + "_start" * (name == "means"))
        np.testing.assert_allclose(
            getattr(params, name) - getattr(moved, name), rate, rtol=2e-2, atol=3e-7
        )
    change = params.sh - moved.sh
    np.testing.assert_allclose(change[:, 0], settings.sh_dc, rtol=2e-2, atol=3e-7)
    np.testing.assert_allclose(change[:, 1:], settings.sh_rest, rtol=2e-2, atol=3e-7)


def test_bands_above_the_degree_wait():
    params = _surfels(num_sh=16).params
    gradient = jax.tree.map(jnp.ones_like, params)
    state = optim.init_optimizer(params)
    everywhere = jnp.ones(50, bool)
    step = jax.jit(
        lambda degree: optim.update(
            params, gradient, state, everywhere, OptimSettings(), 0.0, degree
        )
    )
    for degree in range(4):
        moved, moments = step(jnp.int32(degree))
        num = (degree + 1) ** 2
        is_moved = np.asarray(moved.sh != params.sh)
        assert is_moved[:, :num].all() and not is_moved[:, num:].any()
        np.testing.assert_array_equal(moments.mu.sh[:, num:], 0)
        np.testing.assert_array_equal(moments.nu.sh[:, num:], 0)


def test_rate_of_the_means_is_log_linear():
    settings = OptimSettings(means_start=1e-2, means_end=1e-4)
    rates = [
        float(optim.learning_rates(settings, t, num_sh=1)["means"]) for t in (0.0, 0.5, 1.0, 2.0)
    ]
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_updates_can_be_donated():
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    step = jax.jit(
        lambda p, s, g: optim.update(p, g, s, alive, OptimSettings(), 0.0), donate_argnums=(0, 1)
    )
    gradient = jax.tree.map(jnp.ones_like, params)
    state = optim.init_optimizer(params)
    new_params, new_state = step(params, state, gradient)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves((new_params, new_state)))


def without_the_copy_of_logits(text: str) -> str:
    """A compiled program of 50 surfels less its one copy of the logits f32[1,50], which are limited
    behind the kernel.
    """
    (name,) = re.findall(r"(%\S+) = f32\[1,50\]\S* copy\(", text)
    return re.sub(r"(= f32\[1,50\]\S*) copy\(", r"\1 limited(", text).replace(name, "%limited")


@pytest.mark.optimized_if_slow
def test_the_kernel_changes_donated_memory_in_place():
    surfels = _surfels()
    params = surfels.params
    alive = surfels.alive
    arguments = jax.tree.map(
        lambda leaf: leaf[None], (params, optim.init_optimizer(params), params)
    )

    def step(*arguments):  # of one device of a mesh
        params, state, gradient = jax.tree.map(lambda leaf: leaf[0], arguments)
        new = optim.update(params, gradient, state, alive, OptimSettings(), 0.0, backend="cpu")
        return jax.tree.map(lambda leaf: leaf[None], new)

    text = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile().as_text()
    text = without_the_copy_of_logits(text)
    assert "cosurfgs_adam" in text and not re.search(r"f32\[[^]]*50.*copy", text)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opacities_stay_where_they_still_learn(backend):
    surfels = _surfels()
    alive = surfels.alive
    above = optim.MAX_LOGIT + jnp.linspace(-1, 10, len(alive), dtype=jnp.float32)
    params = surfels.params.replace(logit_opacities=above)
    gradient = jax.tree.map(lambda leaf: -jnp.ones_like(leaf), params)  # upwards
    state = optim.init_optimizer(params)
    settings = OptimSettings()
    new, state = optim.update(params, gradient, state, alive, settings, 0.5, backend=backend)
    stepped = above + settings.logit_opacities
    expected = jnp.where(alive, jnp.minimum(stepped, optim.MAX_LOGIT), above)
    np.testing.assert_allclose(new.logit_opacities, expected, rtol=1e-6)
    # The momentum of rows that wait ends there, too; the other rows are not touched.
    rows = alive & (jnp.arange(len(alive)) % 2 == 0)
    state = state._replace(count=state.count + 9)
    missed = jnp.full(len(alive), 9, jnp.int32)
    later, _ = optim.catch_up(new, state, rows, missed, optim.Course(settings, 0.5), backend)
    assert (later.logit_opacities[rows] <= optim.MAX_LOGIT).all()
    moves = rows & (expected < optim.MAX_LOGIT)
    assert moves.any() and (later.logit_opacities > new.logit_opacities)[moves].all()
    np.testing.assert_array_equal(later.logit_opacities[~rows], new.logit_opacities[~rows])
