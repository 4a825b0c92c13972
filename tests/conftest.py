"""Strict defaults for every test: four virtual CPU devices, no silent promotion, warnings are
errors, shapes are checked.
"""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile

# Read by XLA when its backend starts; with fewer threads, programs with collectives can deadlock on
# virtual devices.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jaxtyping  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that tests start compile the same steps again and again: a cache halves their processor
# time. Set after JAX was imported, so that only they use it: a program that comes out of a cache
# has no text for tests to read.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="cosurfgs-compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }

# Checks the types and shapes in the signatures of the package at every call; before anything
# imports it. A GPU machine may have an interpreter of its own without the checker.
if importlib.util.find_spec("beartype"):
    jaxtyping.install_import_hook("cosurfgs_jax", "type_checks.check")
else:
    print(
        "beartype is not installed: types and shapes are not checked in this run", file=sys.stderr
    )
