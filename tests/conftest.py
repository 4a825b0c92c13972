"""Strict defaults for every test: four virtual CPU devices, no silent promotion, warnings are
errors, shapes are checked.
"""

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from fast_compiling import compile_from_now_on  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Workers, and programs that tests start, compile the same steps again and again: a cache halves
# the processor time of the programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="cosurfgs-compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

# What workers share: the emulation of the CUDA kernels is compiled once.
if "COSURFGS_TESTS_SHARED" not in os.environ:
    shared = os.environ["COSURFGS_TESTS_SHARED"] = tempfile.mkdtemp(prefix="cosurfgs-shared-")
    atexit.register(shutil.rmtree, shared, ignore_errors=True)

# Files that take longest, the longest first: with --no-loadscope-reorder they begin first, and no
# worker is left alone with one at the end.
LONGEST = (
    "test_collaboration",
    "test_programs",
    "test_raster_parity",
    "test_aggregate",
    "test_cuda_training",
    "test_gpu_check",
    "test_compiled_steps",
    "test_geometric_losses",
    "test_raster_properties",
    "test_removal",
    "test_examples",
    "test_gpu_program",
    "test_own_terms",
    "test_reference",
    "test_composite",
    "test_batches",
    "test_photometric",
)


def pytest_collection_modifyitems(items):
    """The longest files first, all others in their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not look through it again."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiling is most of what tests take, and what most of them compare is the same however it is
    done: XLA's optimizer is off, except on a GPU and for tests that are marked.
    """
    marks = ["optimized"] if item.config.option.markexpr else ["optimized", "optimized_if_slow"]
    is_optimized = any(map(item.get_closest_marker, marks))
    compile_from_now_on(is_quick=os.environ["JAX_PLATFORMS"] == "cpu" and not is_optimized)


# Checks the types and shapes in the signatures of the package at every call; before anything
# imports it. A GPU machine may have an interpreter of its own without the checker.
if importlib.util.find_spec("beartype"):
    jaxtyping.install_import_hook("cosurfgs_jax", "type_checks.check")
else:
    print(
        "beartype is not installed: types and shapes are not checked in this run", file=sys.stderr
    )

# What XLA reads when its backend starts, as programs set it.
from cosurfgs_jax.program import set_environment  # noqa: E402

set_environment()
