"""The photometric losses and Adam on an NVIDIA GPU, against their plain definitions. Skipped
without one, with the reason.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/gpu            # scripts/test_gpu.sh
"""

import functools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.model import optim
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import PARAM_NAMES

if ffi.why_no_cuda_library():
    pytest.skip(ffi.why_no_cuda_library(), allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "component"))

import test_cuda_training as emulated  # noqa: E402
import test_photometric as photometric  # noqa: E402

SIZES = [(1, 1), (4, 7), (37, 53), *emulated.SIZES]


def _assert_close_losses(got, want, atol, max_turned=0):
    """max_turned: numbers of a gradient that may be further off. Where a colour is that of the
    photograph but for rounding, the sign of the difference, and with it the slope of its absolute
    value, is left to rounding."""
    for value, expected in zip(got[0], want[0], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, slope in zip(got[1], want[1], strict=True):
        error = np.abs(np.asarray(gradient) - np.asarray(slope))
        assert np.isfinite(error).all()
        assert (error > atol * np.abs(slope).max()).sum() <= max_turned, np.sort(error.reshape(-1))[
            -max_turned - 3 :
        ]


@pytest.mark.parametrize("has_weights, has_mask", [(False, False), (True, False), (True, True)])
def test_losses_and_gradients(has_weights, has_mask):
    for size in SIZES:
        case = photometric._case(size, has_weights, has_mask, seed=5)
        _assert_close_losses(
            photometric._slopes(case, "cuda"), photometric._definition64(case), 3e-4
        )


@pytest.mark.parametrize("has_weights", [False, True])
def test_losses_of_a_whole_photograph(has_weights):
    """More tiles than run at a time, and the same bits every time."""
    case = photometric._case((1080, 1920), has_weights, seed=6)
    got, again = (photometric._slopes(case, "cuda") for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, got, again)
    _assert_close_losses(got, photometric._slopes(case, "reference"), 1e-3, max_turned=30)


def test_where_no_pixel_counts():
    case = photometric._case((40, 50), has_weights=True)._replace(mask=jnp.zeros((40, 50), bool))
    (total, psnr), gradients = photometric._slopes(case, "cuda")
    assert total == 0 and np.isnan(psnr)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "num, num_sh, degree, count",
    [(1, 1, 0, 0), (7, 16, 3, 6), (333, 16, 1, 999), (50, 4, 0, 29_999), (1_000_000, 16, 2, 300)],
)
def test_adam_with_moments_everywhere(num, num_sh, degree, count):
    params, gradient, state, alive = emulated._training(num, num_sh)
    arguments = params, gradient, state._replace(count=jnp.int32(count)), alive, degree
    got = emulated._update(*arguments, backend="cuda")
    emulated._assert_close_states(
        params, got, emulated._update(*arguments, backend="reference"), rtol=1e-4
    )
    for name in PARAM_NAMES:
        np.testing.assert_array_equal(getattr(got[0], name)[~alive], getattr(params, name)[~alive])
    waiting = (degree + 1) ** 2
    np.testing.assert_array_equal(got[0].sh[:, waiting:], params.sh[:, waiting:])


def test_adam_many_times_in_place():
    """Donated memory, as it lies on a device of a mesh, call after call of one program, which XLA
    may put into a CUDA graph.
    """
    start = emulated._training(10_000, 16)
    params, gradient, state, alive = jax.tree.map(lambda leaf: leaf[None], start)

    def step(backend, params, state):
        own, slope, moments, mask = jax.tree.map(
            lambda leaf: leaf[0], (params, gradient, state, alive)
        )
        new = optim.update(own, slope, moments, mask, OptimSettings(), 0.5, backend=backend)
        return jax.tree.map(lambda leaf: leaf[None], new)

    results = []
    for backend in ("cuda", "reference"):
        now = jax.tree.map(jnp.copy, (params, state))
        compiled = (
            jax.jit(functools.partial(step, backend), donate_argnums=(0, 1)).lower(*now).compile()
        )
        if backend == "cuda":
            assert not re.search(r"f32\[[^]]*10000.*copy", compiled.as_text())
        for _ in range(30):
            now = compiled(*now)
        results.append(jax.tree.map(lambda leaf: leaf[0], now))
    emulated._assert_close_states(start[0], *results, rtol=1e-3, steps=30)
