"""Strict defaults for every test: four virtual CPU devices, no silent promotion, warnings are errors, shapes are checked."""

import os
from pathlib import Path

# Read by XLA when its backend starts; with fewer threads, programs with collectives can deadlock on virtual devices.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jaxtyping  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Checks the types and shapes in the signatures of the package at every call; before anything imports it. Not the package's own
# __init__.py: the hook would replace the loader that knows where an editable installation keeps the native library.
_PACKAGE = Path(__file__).parents[1] / "cosurfgs_jax"
jaxtyping.install_import_hook([f"cosurfgs_jax.{path.stem}" for path in _PACKAGE.iterdir() if path.stem != "__init__"],
                              "type_checks.check")
