"""What JAX and XLA read from the process when they start."""

import importlib.util
import os
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
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=1800"
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
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_collective_call" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_COLLECTIVE_TIMEOUTS}".strip()
