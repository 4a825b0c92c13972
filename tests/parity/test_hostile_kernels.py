"""The CPU kernels of losses, optimiser and removal score without JAX, built with AddressSanitizer
and UndefinedBehaviorSanitizer, on operands of any content (tests/native/hostile_kernels.cc).

`scripts/sanitize.sh` runs all kernels' tests with sanitizers, on every instruction set; this takes
seconds. Only the baseline is built: the sanitizer does not see what vector gathers read.
"""

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "cosurfgs_jax" / "native" / "csrc"
DRIVER = ROOT / "tests" / "native" / "hostile_kernels.cc"
KERNELS = (
    "losses/geometric_kernels.cc",
    "losses/patch_ncc_kernels.cc",
    "losses/photometric_kernels.cc",
    "optim/adam_kernels.cc",
    "raster/project_kernels.cc",
    "raster/removal_kernels.cc",
)
CHECKS = "-fsanitize=address,undefined,float-cast-overflow"
# As in CMakeLists.txt, but -O1: at -O3 an instrumented build takes ten times as long.
FLAGS = (
    "-std=c++17 -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fno-math-errno "
    "-fno-trapping-math -ffp-contract=fast -Wall -Wextra -DCOSURFGS_VARIANT=baseline"
).split()
ROUNDS = 150


def _compiler() -> str:
    """One that has the sanitizers' libraries; the test is skipped where there is none."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no g++")
    probe = [compiler, CHECKS, "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(probe, input="int main() {}", text=True, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    return compiler


def build(folder: Path, native: Path = NATIVE) -> Path:
    """The driver, with the kernels of a folder."""
    compiler = _compiler()
    sources = [DRIVER, *(native / name for name in KERNELS)]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_to(source: Path, target: Path) -> None:
        command = [compiler, CHECKS, *FLAGS, f"-I{native}", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_to, sources, objects))
    program = folder / "hostile_kernels"
    subprocess.run([compiler, CHECKS, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(program), str(ROUNDS)],
        env={**os.environ, "LD_PRELOAD": "", "UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_kernels_read_and_write_their_operands_alone(tmp_path):
    done = run(build(tmp_path))
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout == f"{ROUNDS} rounds\n"
