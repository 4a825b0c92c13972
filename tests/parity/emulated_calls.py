"""The CUDA rasterizer's custom calls on the host: fixtures for the tests that run them, and helpers that these share.

`tests/native/emulated_handlers.cc` has the text of the real calls, puts loops where a GPU has threads, and stands in for what XLA
offers on GPUs, with XLA's limits.
"""

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest
import raster_cases as cases

from cosurfgs_jax.raster import ops

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "cosurfgs_jax" / "raster" / "native"
RENDERERS = {"emulation": {}, "emulation_atomic": {"deterministic": False}, "emulation_alone": {"kept_bytes": 0}}


class Emulation(ctypes.Structure):
    """The knobs and counters of emulated_handlers.cc."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "is_reversed", "band_pairs", "max_alignment", "address_offset", "failing_allocation", "failing_launch",
        "allocations", "launches", "largest_alignment", "refused_bytes")]


def build(path: Path, source: Path = SOURCE) -> ctypes.CDLL | None:
    """Compiles the emulation of the kernels in a folder and makes its targets known; None where there is no compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if not compiler:
        return None
    native = ROOT / "tests" / "native"
    subprocess.run([compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread",
                    "-DCOSURFGS_CUDA_CONTENT=\"machine code of 8.0\"", "-I", native / "cuda_stub", "-I", source,
                    "-isystem", Path(jaxlib.__file__).parent / "include", native / "emulated_handlers.cc", "-o", path],
                   check=True)
    library = ctypes.CDLL(str(path))
    for target, symbol in (("forward", "EmulatedRasterForward"), ("backward", "EmulatedRasterBackward")):
        jax.ffi.register_ffi_target(f"emulated_raster_{target}", jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    return library


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The emulation, compiled once a process."""
    library = build(tmp_path_factory.mktemp("emulation") / "libemulated.so")
    if not library:
        pytest.skip("no C++ compiler; apt-get install g++")
    return library


@pytest.fixture
def emulation(library, monkeypatch):
    """Adds the emulation to the renderers. Sets its knobs, all others as they were, and returns them with the counters."""
    for name, options in RENDERERS.items():
        monkeypatch.setitem(cases.RENDERERS, name, functools.partial(ops.render, targets="emulated_raster", **options))
    knobs = Emulation.in_dll(library, "emulation")
    untouched = {name: getattr(knobs, name) for name, _ in Emulation._fields_}

    def configure(**wanted):
        for name, value in {**untouched, **wanted}.items():
            setattr(knobs, name, value)
        return knobs

    yield configure
    configure()


def cotangents_where_safe(case):
    """Random cotangents at pixels where no decision hangs on rounding."""
    _, margins = cases.reference_maps(case)
    return cases.random_cotangents(case, margins > cases.SAFE_MARGIN)


def assert_same(got, want):
    """The same bits in all leaves."""
    jax.tree.map(np.testing.assert_array_equal, got, want)
