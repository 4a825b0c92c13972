"""What JAX and XLA read from the process when they start."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

# Package that JAX needs for an accelerator -> device file of its driver.
_ACCELERATORS = (
    ("jax_cuda12_plugin", "/dev/nvidiactl"),
    ("jax_cuda13_plugin", "/dev/nvidiactl"),
    ("libtpu", "/dev/accel0"),
    ("libtpu", "/dev/vfio/0"),
)
_MIN_POOL_THREADS = 32  # of XLA on a CPU
_COLLECTIVE_TIMEOUTS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60",
    "--xla_cpu_collective_call_terminate_timeout_seconds=1800",
)
# Of XLA's two ways to write the loops of fused operations the older one, and a program as one
# module of LLVM: compiling takes less than half of the time, and the steps are no slower
# (docs/performance.md). JAX 0.11 has the newer way alone, and ends at flags that it does not know.
_JAX_WITH_TWO_WAYS = "0.10."
_OLDER_LOOPS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def has_accelerator() -> bool:
    """Whether there is an NVIDIA GPU or a TPU, and what JAX needs for it."""
    return any(
        Path(device).exists() and importlib.util.find_spec(package) is not None
        for package, device in _ACCELERATORS
    )


def set_environment() -> None:
    """Sets what JAX and XLA read when they start, where the user has not."""
    if not has_accelerator():  # else JAX chooses
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # without a warning of missing accelerators
    # GPUs and TPUs would round the factors of a product to 10 or 7 bits: MV-Reg would compare
    # patches half a pixel off.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    # Programs with collectives in flight can deadlock on virtual CPU devices when the pool has
    # fewer threads than waiting shards.
    num_threads = max(_MIN_POOL_THREADS, os.cpu_count() or 1)
    os.environ.setdefault("PJRT_NPROC", str(num_threads))
    # Uneven shards may wait for each other for minutes.
    _add_flags(_COLLECTIVE_TIMEOUTS)
    if importlib.metadata.version("jaxlib").startswith(_JAX_WITH_TWO_WAYS):
        _add_flags(_OLDER_LOOPS)


def _add_flags(flags: Sequence[str]) -> None:
    """Adds flags of XLA, but for those that the user has set."""
    there = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in there}
    new = [flag for flag in flags if flag.partition("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join([*there, *new])
