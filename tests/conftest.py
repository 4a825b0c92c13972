"""Strict defaults for every test: four virtual CPU devices, no silent promotion, warnings are errors, shapes are checked."""

import importlib.util
import os
import sys

# Read by XLA when its backend starts; with fewer threads, programs with collectives can deadlock on virtual devices.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jaxtyping  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Checks the types and shapes in the signatures of the package at every call; before anything imports it. A GPU machine may have
# an interpreter of its own without the checker.
if importlib.util.find_spec("beartype"):
    jaxtyping.install_import_hook("cosurfgs_jax", "type_checks.check")
else:
    print("beartype is not installed: types and shapes are not checked in this run", file=sys.stderr)
