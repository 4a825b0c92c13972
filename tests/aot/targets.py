"""Devices that are not here, to compile programs for, and what makes the package believe that it
computes on them.

The compilers come as packages that nothing else needs; where they are missing, the tests say so and
are skipped."""

import importlib.util
import os

import jax
import pytest
from jax.experimental import topologies

from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import backends

# Facts of the device, in the words of XLA's description of targets.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800  device_memory_size: 151397597184  memory_bandwidth: 4800000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


def h200_devices(count: int) -> list[jax.Device]:
    """So many H200, or a skip where JAX's CUDA packages are not installed."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        pytest.skip(
            "JAX's compiler for NVIDIA GPUs is not installed: jax-cuda13-plugin and "
            "jax-cuda13-pjrt (docs/cuda.md)"
        )
    return topologies.get_topology_desc(
        platform="cuda", target_config=_H200, topology=f"1x1x{count}"
    ).devices


def tpu_devices(kind: str) -> list[jax.Device]:
    """Four TPUs of a kind ("v5e", "v6e"), or a skip where libtpu is not installed."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("the compiler for TPUs is not installed: libtpu (docs/cuda.md)")
    # Without it the library asks the network which machine this is, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(f"{kind}:2x2", "tpu").devices


def as_on_gpus(monkeypatch) -> None:
    """The package takes what it would take where JAX computes on NVIDIA GPUs; its calls are known
    to the compiler.
    """
    try:
        ffi.load_cuda_library()
    except (OSError, AttributeError) as error:
        pytest.skip(f"the CUDA library was not built: {error}")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ffi, "is_cuda", lambda: True)
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "")


def as_on_tpus(monkeypatch) -> None:
    """The package takes what it would take on TPUs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(backends, "why_not", lambda name: "")
