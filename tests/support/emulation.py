"""The CUDA library's custom calls on the host: compiled once for all workers, for the tests that
run them.

`tests/native/emulated_handlers.cc` has the text of the real calls, puts loops where a GPU has
threads, and stands in for what XLA offers on GPUs, with XLA's limits.
"""

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jaxlib
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "cosurfgs_jax" / "native" / "csrc"
TARGETS = {
    "emulated_raster_forward": "EmulatedRasterForward",
    "emulated_raster_backward": "EmulatedRasterBackward",
    "emulated_raster_removal": "EmulatedRasterRemoval",
    "emulated_photometric_losses": "EmulatedPhotometricLosses",
    "emulated_adam": "EmulatedAdam",
}


class Knobs(ctypes.Structure):
    """The knobs and counters of emulated_handlers.cc."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "is_reversed",
            "band_pairs",
            "max_alignment",
            "address_offset",
            "failing_allocation",
            "failing_launch",
            "allocations",
            "launches",
            "largest_alignment",
            "refused_bytes",
        )
    ]

    @classmethod
    def of(cls, library: ctypes.CDLL) -> "Knobs":
        """Those of an emulation, in its memory."""
        return cls.in_dll(library, "emulation")

    def numbers(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name, _ in self._fields_}

    def set(self, **wanted: int) -> None:
        """Sets some of them."""
        for name, value in wanted.items():
            setattr(self, name, value)


def build(path: Path, source: Path = SOURCE) -> ctypes.CDLL | None:
    """Compiles the emulation of the kernels in a folder and makes its targets known; None where
    there is no compiler.
    """
    return load(path) if compile_to(path, source) else None


def compile_to(path: Path, source: Path = SOURCE) -> bool:
    """Compiles the emulation; False where there is no compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if not compiler:
        return False
    native = ROOT / "tests" / "native"
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-O1",  # compiles in two thirds of the time; the tests run as long as with -O2
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-pthread",
            '-DCOSURFGS_CUDA_CONTENT="machine code of 8.0"',
            "-I",
            native / "cuda_stub",
            "-I",
            source,
            "-isystem",
            Path(jaxlib.__file__).parent / "include",
            native / "emulated_handlers.cc",
            "-o",
            path,
        ],
        check=True,
    )
    return True


def load(path: Path) -> ctypes.CDLL:
    """Makes the targets of a compiled emulation known."""
    library = ctypes.CDLL(str(path))
    for target, symbol in TARGETS.items():
        jax.ffi.register_ffi_target(
            target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    return library


@functools.cache
def _built() -> ctypes.CDLL | None:
    """Compiled by the first worker that asks, in the folder that conftest.py makes for all."""
    path = Path(os.environ["COSURFGS_TESTS_SHARED"], "libemulated.so")
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            if not compile_to(unfinished):
                return None
            unfinished.rename(path)
    return load(path)


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The emulation, loaded once a process, whichever modules name this fixture."""
    if not _built():
        pytest.skip("no C++ compiler; apt-get install g++")
    return _built()
