"""The CUDA bodies of the photometric losses and of Adam, run on the host, against the CPU kernels
and the plain definitions.

The tests of the CPU kernels run once more with the calls going to the real CUDA handlers behind a
stand-in for XLA (tests/support/emulation.py).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_optim
import test_photometric
from emulation import Knobs, library  # noqa: F401 - a fixture
from test_photometric import WEIGHTS, _case, _slopes

from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
from cosurfgs_jax.model import optim
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import PARAM_NAMES

# What there is of these calls under jit, grad, vmap and shard_map, in place, with and without
# masks, dead slots and bands.
test_losses_are_the_definition = (
    test_photometric.test_the_kernel_is_the_definition_in_values_and_gradients
)
test_every_term_alone = test_photometric.test_every_term_of_the_kernel_alone
test_where_no_pixel_counts = (
    test_photometric.test_where_no_pixel_counts_there_is_no_loss_and_no_gradient
)
test_without_an_exposure = test_photometric.test_without_an_exposure_it_is_the_identity
test_the_photograph_itself = (
    test_photometric.test_the_photograph_itself_costs_nothing_and_is_stationary
)
test_losses_under_vmap = test_photometric.test_the_kernel_under_vmap
test_losses_under_shard_map = test_photometric.test_the_kernel_under_shard_map
test_update_is_adam = test_optim.test_update_is_adam
test_adam_is_the_definition = test_optim.test_the_kernel_is_the_definition
test_dead_slots_stand_still = test_optim.test_dead_slots_stand_still
test_first_step = test_optim.test_first_step_has_the_length_of_the_rate_for_tiny_gradients
test_bands_above_the_degree_wait = test_optim.test_bands_above_the_degree_wait
test_updates_can_be_donated = test_optim.test_updates_can_be_donated


class Emulation:
    """Calls of the CPU's targets go to the emulation while it is on."""

    def __init__(self, native, monkeypatch):
        self.knobs = Knobs.of(native)
        self._call = ffi.call
        self.is_on = True
        self.targets = set()
        monkeypatch.setattr(ffi, "call", self.call)

    def call(self, target, *arguments, **options):
        if self.is_on:
            target = target.replace("cosurfgs_", "emulated_")
            self.targets.add(target)
        return self._call(target, *arguments, **options)

    def reverse(self, is_reversed):
        self.knobs.set(is_reversed=is_reversed)


@pytest.fixture(autouse=True)
def emulation(request, library, monkeypatch):  # noqa: F811
    emulation = Emulation(library, monkeypatch)
    untouched = emulation.knobs.numbers()
    emulation.knobs.set(launches=0)
    yield emulation
    # A program that an earlier test has traced launches without a new call.
    is_used = bool(emulation.targets) or emulation.knobs.launches > 0
    emulation.knobs.set(**untouched)
    is_plain = "reference" in request.node.name
    assert is_used != is_plain, "the test did not come here"


def _assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# Besides test_photometric.CASES: one whole tile, one pixel more than that each way, and a border
# inside the second tile.
SIZES = [(8, 64), (9, 65), (16, 69), (3, 200), (30, 1)]


@jax.jit
def _definition_grads(maps, photo, mask):
    def run(render, alpha, transform):
        losses = photometric_losses(render, alpha, photo, mask, transform, WEIGHTS, "reference")
        return losses.total, losses.psnr

    return jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(*maps)


def _definition_of(case):
    """The definition in float64, always with weights (255 counts in full) and a mask: one program
    for each size.
    """
    photo = np.asarray(case.photo)
    size = photo.shape[:2]
    if photo.shape[-1] == 3:
        photo = np.concatenate([photo, np.full((*size, 1), 255, np.uint8)], axis=-1)
    mask = np.ones(size, bool) if case.mask is None else np.asarray(case.mask)
    with jax.enable_x64(True):
        maps = tuple(jnp.asarray(np.asarray(leaf), jnp.float64) for leaf in case[:3])
        return jax.tree.map(np.asarray, _definition_grads(maps, photo, mask))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "has_weights, has_mask", [(False, False), (True, False), (False, True), (True, True)]
)
def test_losses_at_the_borders_of_tiles(emulation, size, has_weights, has_mask):
    case = _case(size, has_weights, has_mask, seed=5)
    got = _slopes(case, "cpu")
    emulation.is_on = False
    kernel = _slopes(case, "cpu")
    definition = _definition_of(case)
    for expected in (kernel, definition):
        for value, want in zip(got[0], expected[0], strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-5)
        for gradient, slope in zip(got[1], expected[1], strict=True):
            np.testing.assert_allclose(gradient, slope, atol=3e-4 * np.abs(slope).max())


def test_values_that_are_no_colours(emulation):
    """Renders far above 1, where the rounding of variances shows, and below 0."""
    case = _case((20, 70), has_weights=True)
    case = case._replace(render=50 * case.render - 10)
    got = _slopes(case, "cpu")
    emulation.is_on = False
    want = _slopes(case, "cpu")
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for gradient, slope in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(gradient, slope, atol=1e-3 * np.abs(slope).max())


@pytest.mark.parametrize("has_weights", [False, True])
def test_losses_do_not_depend_on_the_order_of_threads(emulation, has_weights):
    case = _case((37, 150), has_weights)
    results = []
    for is_reversed in (False, True):
        emulation.reverse(is_reversed)
        results.append(_slopes(case, "cpu"))
    _assert_same(*results)


def test_without_gradient_the_losses_are_the_same(emulation):
    case = _case((20, 30), has_mask=True)
    losses = photometric_losses(
        case.render, case.alpha, case.photo, case.mask, case.transform, WEIGHTS, "cpu"
    )
    _assert_same(tuple(losses), _slopes(case, "cpu")[0])


def test_weights_of_zero(emulation):
    case = _case((20, 30))
    (total, psnr), gradients = _slopes(case, "cpu", PhotometricWeights(0.2, 0.0, 0.0))
    assert total == 0 and np.isfinite(psnr)
    _assert_same(gradients, jax.tree.map(jnp.zeros_like, gradients))


def _training(num, num_sh, seed=0):
    """(params, gradient, state, alive) in the middle of a training: moments everywhere, also of
    what stands still.
    """
    surfels = test_optim._surfels(num, num_sh, seed)
    params = surfels.params
    alive = surfels.alive
    state = optim.init_optimizer(params)
    mu, nu = (
        jax.tree.map(function, params)
        for function in (jnp.sin, lambda leaf: jnp.square(jnp.cos(leaf)))
    )
    return (
        params,
        jax.tree.map(lambda leaf: jnp.sin(40 * leaf), params),
        state._replace(mu=mu, nu=nu),
        alive,
    )


@functools.cache
def _jitted_update(degree, backend, is_emulated):
    return jax.jit(
        lambda *arguments: optim.update(*arguments, OptimSettings(), 0.4, degree, 2.0, backend)
    )


def _update(params, gradient, state, alive, degree=3, backend="cpu"):
    emulation = getattr(ffi.call, "__self__", None)  # there is none on a GPU
    is_emulated = emulation is not None and emulation.is_on  # decides when the call is traced
    return _jitted_update(degree, backend, is_emulated)(params, gradient, state, alive)


def _assert_close_states(start, got, want, rtol, steps=1):
    """rtol: of what the values moved. Each step rounds values and moments once more."""
    (ours, ours_state) = got
    (expected, expected_state) = want
    assert ours_state.count == expected_state.count
    for name, value in start.by_name().items():
        np.testing.assert_allclose(
            getattr(ours, name) - value,
            getattr(expected, name) - value,
            rtol=rtol,
            atol=1e-6 * steps,
        )
        np.testing.assert_allclose(
            getattr(ours_state.mu, name),
            getattr(expected_state.mu, name),
            rtol=1e-6 * steps,
            atol=1e-7,
        )
        np.testing.assert_allclose(
            getattr(ours_state.nu, name),
            getattr(expected_state.nu, name),
            rtol=1e-6 * steps,
            atol=1e-7,
        )


@pytest.mark.parametrize("count", [0, 1, 6, 999, 29_999])
@pytest.mark.parametrize("num, num_sh, degree", [(1, 1, 0), (7, 16, 3), (333, 16, 1), (50, 4, 0)])
def test_adam_with_moments_everywhere(emulation, num, num_sh, degree, count):
    params, gradient, state, alive = _training(num, num_sh)
    arguments = params, gradient, state._replace(count=jnp.int32(count)), alive, degree
    got = _update(*arguments)
    emulation.is_on = False
    _assert_close_states(params, got, _update(*arguments), rtol=1e-5)
    # The definition's bias corrections are differences of float32 powers.
    _assert_close_states(params, got, _update(*arguments, backend="reference"), rtol=1e-4)
    for name in PARAM_NAMES:  # bit-identical
        _assert_same(getattr(got[0], name)[~alive], getattr(params, name)[~alive])
    first_waiting = (degree + 1) ** 2
    _assert_same(got[0].sh[:, first_waiting:], params.sh[:, first_waiting:])


@pytest.mark.parametrize("is_everything_dead", [False, True])
def test_adam_does_not_depend_on_the_order_of_threads(emulation, is_everything_dead):
    params, gradient, state, alive = _training(101, 16)
    alive = alive & (not is_everything_dead)
    results = []
    for is_reversed in (False, True):
        emulation.reverse(is_reversed)
        results.append(_update(params, gradient, state, alive, 2))
    _assert_same(*results)


def test_the_gradient_of_what_stands_still_is_not_read(emulation):
    params, gradient, state, alive = _training(60, 16)
    sh = jnp.where(alive[:, None, None], gradient.sh, jnp.nan).at[:, 4:].set(jnp.nan)
    gradient = gradient.replace(sh=sh)
    (values, state) = _update(params, gradient, state, alive, 1)
    for leaf in (values.sh, state.mu.sh, state.nu.sh):
        assert np.isfinite(leaf).all()
    _assert_same(values.sh[~alive], params.sh[~alive])


@pytest.mark.optimized_if_slow
def test_adam_changes_donated_memory_in_place(emulation):
    params, gradient, state, alive = _training(50, 4)
    arguments = jax.tree.map(lambda leaf: leaf[None], (params, state, gradient))

    def step(*arguments):  # of one device of a mesh
        params, state, gradient = jax.tree.map(lambda leaf: leaf[0], arguments)
        new = optim.update(params, gradient, state, alive, OptimSettings(), 0.0, backend="cpu")
        return jax.tree.map(lambda leaf: leaf[None], new)

    text = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile().as_text()
    text = test_optim.without_the_copy_of_logits(text)
    assert "emulated_adam" in text and not re.search(r"f32\[[^]]*50.*copy", text)


CALL_ERRORS = (
    jax.errors.JaxRuntimeError,
    ValueError,
)  # the latter where JAX waits for the call when it dispatches it


def _photometric():
    return jax.block_until_ready(_slopes(_case((20, 70), has_weights=True), "cpu"))


def _adam():
    return jax.block_until_ready(_update(*_training(30, 4)))


def test_scratch_memory_is_asked_for_as_xla_allows_and_aligned(emulation):
    """The emulation calls it a fault where it is not at a multiple of 256, which XLA refuses to be
    asked for.
    """
    want = _photometric()
    for offset in (0, 16):
        emulation.knobs.set(address_offset=offset)
        _assert_same(_photometric(), want)
        assert emulation.knobs.allocations >= 3 and emulation.knobs.largest_alignment == 16


def test_without_scratch_memory_the_losses_say_how_much_they_wanted(emulation):
    _photometric()
    knobs = emulation.knobs
    for index in range(knobs.allocations):
        knobs.set(failing_allocation=index)
        with pytest.raises(
            CALL_ERRORS,
            match="RESOURCE_EXHAUSTED: photometric_losses: the GPU has no .* bytes left",
        ) as error:
            _photometric()
        assert f"no {knobs.refused_bytes} bytes" in str(
            error.value
        ) and "Out of memory while" in str(error.value)


@pytest.mark.parametrize(
    "call, name, least", [(_photometric, "photometric_losses", 5), (_adam, "adam", 1)]
)
def test_a_failing_launch_ends_the_call(emulation, call, name, least):
    call()
    knobs = emulation.knobs
    launches = knobs.launches
    assert launches >= least
    for index in range(launches):
        knobs.set(failing_launch=index)
        with pytest.raises(
            CALL_ERRORS, match=f"INTERNAL: {name}: CUDA: unspecified launch failure"
        ):
            call()
        assert knobs.launches == index + 1, "something was launched after the error"


def test_adam_asks_for_no_scratch_memory(emulation):
    """A CUDA graph, into which XLA may record it, is run again after scratch memory went back."""
    emulation.knobs.set(failing_allocation=0)
    _adam()
    assert emulation.knobs.allocations == 0
