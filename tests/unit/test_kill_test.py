"""The parts of scripts/kill_test.py that decide whether two workdirs have the same end."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "scripts" / "kill_test.py"
_SPEC = importlib.util.spec_from_file_location("kill_test", _PATH)
kill_test = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kill_test)


@pytest.fixture
def pair(tmp_path):
    """Two workdirs that differ in what depends on time alone."""
    calm = tmp_path / "calm"
    (calm / "mesh").mkdir(parents=True)
    (calm / "mesh" / "mesh.ply").write_bytes(b"triangles")
    stages = [{"name": "device", "psnr_test": 20.5, "seconds": 3.0}]
    (calm / "metrics.json").write_text(json.dumps({"stages": stages}))
    (calm / "timings.json").write_text('{"mesh": 1}')
    step = calm / "checkpoints" / "device" / "20"
    (step / "state").mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    (step / "state" / "data").write_bytes(b"numbers")
    wild = tmp_path / "wild"
    shutil.copytree(calm, wild)
    stages[0]["seconds"] = 4.0
    (wild / "metrics.json").write_text(json.dumps({"stages": stages}))
    (wild / "timings.json").write_text('{"mesh": 2}')
    (wild / "checkpoints" / "device" / "20" / "state" / "data").write_bytes(b"other seconds")
    return calm, wild


def test_times_make_no_difference(pair):
    kill_test.compare(*pair)


def _spoil_score(wild):
    content = json.loads((wild / "metrics.json").read_text())
    content["stages"][0]["psnr_test"] = 20.500001
    (wild / "metrics.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil_score, "metrics.json"),
        (lambda wild: (wild / "mesh" / "mesh.ply").write_bytes(b"triangleS"), "mesh.ply"),
        (lambda wild: (wild / "mesh" / "mesh.ply").unlink(), "mesh.ply"),
        (lambda wild: (wild / "more").write_text(""), "more"),
        (lambda wild: shutil.rmtree(wild / "checkpoints"), "checkpoints/device/20"),
        (lambda wild: (wild / ".unfinished-x.ply").write_text(""), "left behind.*unfinished-x"),
        (lambda wild: (wild / ".scratch" / "mesh").mkdir(parents=True), "left behind.*scratch"),
        (
            lambda wild: (wild / "checkpoints" / "device" / "40.orbax-checkpoint-tmp").mkdir(),
            "left behind.*orbax",
        ),
    ],
)
def test_what_differs_or_is_left_is_found(pair, spoil, words):
    calm, wild = pair
    spoil(wild)
    with pytest.raises(kill_test.Failure, match=words):
        kill_test.compare(calm, wild)
