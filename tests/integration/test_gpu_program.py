"""The program that checks the CUDA rasterizer without Python and XLA: built over the emulation, it
runs and says so.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "scripts" / "build_gpu_program.sh"


def _run(*command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The emulated program."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler; apt-get install g++")
    path = tmp_path_factory.mktemp("program") / "gpu_program"
    result = _run(BUILD, path, "--emulated")
    assert result.returncode == 0 and not result.stderr, result.stderr
    return path


def test_its_checks_hold(program):
    result = _run(program, "quick")
    lines = result.stdout.splitlines()
    assert lines[0] == "device: emulated on the host" and result.returncode == 0, result.stdout
    num_checks = int(re.fullmatch(r"(\d+) checks, 0 failed", lines[-1])[1])
    assert num_checks == len(lines) - 2 > 50 and all(line.startswith("ok ") for line in lines[1:-1])


def test_it_times_every_kernel(program):
    result = _run(program, "time", "300", "60", "50", "1")
    assert result.returncode == 0, result.stdout
    for name in (
        "ProjectSurfel<3>",
        "BlendTileBlock<2, false>",
        "BlendTileBackwardBlock<2, true, true>",
        "AddRows<Sum, 22>",
        "sort",
        "read-back",
    ):
        assert re.search(rf"^ +{re.escape(name)} +\d+\.\d+$", result.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    "arguments", [(), ("chekc",), ("check", "5"), ("time", "5"), ("time", "5", "0", "7")]
)
def test_wrong_usage(program, arguments):
    result = _run(program, *arguments)
    assert result.returncode == 2 and re.search(
        "usage: .* check|expected SURFELS WIDTH HEIGHT", result.stdout
    )


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        ((), {}, "usage: build_gpu_program.sh OUTPUT"),
        (("out", "--emulate"), {}, "usage"),
        (("out", "--emulated"), {"CXX": "no-such-compiler", "PATH": "/nowhere"}, "no C++ compiler"),
        (
            ("out",),
            {"NVCC": "true", "COSURFGS_CUDA_ARCHITECTURES": "90x"},
            "expected native or a list as 80;90, got 90x",
        ),
    ],
)
def test_its_build_says_what_is_wrong(tmp_path, arguments, environment, message):
    if environment.get("PATH"):
        environment = {**environment, "PATH": str(tmp_path)}
        for name in ("bash", "dirname"):
            (tmp_path / name).symlink_to(shutil.which(name))
    result = _run(BUILD, *arguments, **environment)
    assert result.returncode == 2 and message in result.stderr, result.stderr
