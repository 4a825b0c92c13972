"""The rasterizer's parity tests and properties once more, on an NVIDIA GPU. Skipped without one,
with the reason.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/gpu            # scripts/test_gpu.sh; --sanitize for
compute-sanitizer"""

import functools
import inspect
import sys
from pathlib import Path

import jax
import pytest

from cosurfgs_jax.native import ffi

if ffi.why_no_cuda_library():
    pytest.skip(ffi.why_no_cuda_library(), allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "parity"))

import raster_cases as cases  # noqa: E402
import test_orthographic  # noqa: E402
import test_raster_parity  # noqa: E402
import test_raster_properties  # noqa: E402
import test_removal  # noqa: E402


@pytest.fixture
def backend():
    return "cuda"


@pytest.fixture
def any_backend():
    return "cuda"


@pytest.fixture
def targets():
    return "cosurfgs_raster"


@pytest.fixture(autouse=True)
def _full_precision():
    """What is compared with: float32 products of GPUs have 10-bit mantissas by default."""
    with jax.default_matmul_precision("highest"):
        yield


def _on_the_cpu(function):
    """The definition in float64 stays off the GPU, for which XLA would have to compile it anew for
    every case.
    """

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        with jax.default_device(jax.devices("cpu")[0]):
            return function(*arguments, **options)

    return wrapped


for name in ("reference_maps", "reference_gradients", "reference_probe"):
    setattr(cases, name, _on_the_cpu(getattr(cases, name)))
test_removal.by_definition = _on_the_cpu(test_removal.by_definition)

# Every test of these files that takes a backend, but for those of several devices.
for module in (test_raster_parity, test_raster_properties, test_orthographic, test_removal):
    for name, function in inspect.getmembers(module, inspect.isfunction):
        arguments = inspect.signature(function).parameters
        if (
            name.startswith("test_")
            and {"backend", "any_backend", "targets"} & set(arguments)
            and "mesh" not in arguments
        ):
            assert name not in globals(), f"two tests are called {name}"
            globals()[name] = function


def test_sums_in_any_order_are_close():
    """Gradients with `deterministic=False` are the same sums."""
    case = cases.build("random_cloud")
    _, margins = cases.reference_maps(case)
    cotangents = cases.random_cotangents(case, margins > cases.SAFE_MARGIN)
    cases.RENDERERS["cuda_atomic"] = lambda *x, **options: cases.RENDERERS["cuda"](
        *x, **options, deterministic=False
    )
    got, want = (
        cases.kernel_gradients(backend, case, cotangents) for backend in ("cuda_atomic", "cuda")
    )
    test_raster_parity._assert_close_gradients(got, want, "any order")
