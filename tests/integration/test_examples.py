"""The examples run as their text says, and show what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fast_compiling import QUICK_ENVIRONMENT

from cosurfgs_jax import Surfels, write_surfels_ply

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = os.environ | QUICK_ENVIRONMENT  # compiling is most of their time
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _rows(out: str) -> list[list[float]]:
    """The table of numbers at the end of the example."""
    lines = [line for line in out.partition("step  loss")[2].splitlines()[1:] if line]
    return [[float(text) for text in line.split()] for line in lines]


def test_a_disturbed_pose_is_recovered():
    (_, loss, angle, distance), *_, (_, last_loss, last_angle, last_distance) = _rows(
        _run("render_and_differentiate")
    )
    assert last_loss < 1e-3 * loss
    assert angle > 1.5 and last_angle < 0.05
    assert distance > 0.03 and last_distance < 0.003


def test_surfels_of_a_file_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    means = rng.uniform(-5, 5, (300, 3)).astype(np.float32) * np.float32([1, 1, 0.1])
    surfels = Surfels(
        means=means,
        quats=np.tile(np.float32([1, 0, 0, 0]), (300, 1)),
        log_scales=np.full((300, 2), -1.0, np.float32),
        logit_opacities=np.full(300, 2.0, np.float32),
        sh=rng.normal(size=(300, 4, 3)).astype(np.float32) * np.float32(0.3),
        alive=np.ones(300, bool),
    )
    path = tmp_path / "point_cloud.ply"
    write_surfels_ply(path, surfels)
    out = _run("render_and_differentiate", f"--ply={path}", "--steps=5")
    assert out.startswith("300 surfels") and len(_rows(out)) == 6


def test_a_town_is_trained_with_a_term_of_ones_own(tmp_path):
    out = _run("own_loss", "--steps=20", f"--workdir={tmp_path}")
    assert "surfels after 20 steps" in out and "mesh: " in out
    assert float(re.search(r"PSNR ([\d.]+) dB", out)[1]) > 8
    assert '"loss/elongation"' in (tmp_path / "history.jsonl").read_text()


def test_a_reader_is_registered():
    out = _run("register_reader")
    assert out.startswith("vase: 12 views, 500 points")
    assert "testing: ['000.png', '008.png']" in out
    assert "stands at [ 4. -0.  2.]" in out


def test_each_example_is_tested_and_says_how_it_is_run():
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'_run("{path.stem}"' in tests, path.name
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_uses_public_names_alone(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(r"cosurfgs_jax\.\w+ import|import cosurfgs_jax\.", text)
