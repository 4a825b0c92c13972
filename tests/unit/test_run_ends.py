"""The parts of scripts/kill_test.py that decide whether two workdirs have the same end."""

import json
import shutil

import numpy as np
import pytest
import run_ends
import tensorstore


def _save_array(item, name, value):
    """As checkpoints hold it."""
    kvstore = {"driver": "ocdbt", "base": f"file://{item}/", "path": f"{name}/"}
    spec = {"driver": "zarr", "kvstore": kvstore}
    made = tensorstore.open(
        spec, dtype=value.dtype, shape=value.shape, create=True, delete_existing=True
    ).result()
    made.write(value).result()


def _save_compact(workdir, mean, meta):
    path = workdir / "blocks" / "1" / "compact" / "device.npz"
    path.parent.mkdir(exist_ok=True)
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, means=np.array([mean], np.uint8), meta=text)


@pytest.fixture
def pair(tmp_path):
    """Two workdirs that differ in what depends on time alone."""
    calm = tmp_path / "calm"
    (calm / "mesh").mkdir(parents=True)
    (calm / "mesh" / "mesh.ply").write_bytes(b"triangles")
    stages = [{"name": "device", "psnr_test": 20.5, "seconds": 3.0, "bytes_checkpoint": 5}]
    (calm / "metrics.json").write_text(json.dumps({"stages": stages}))
    (calm / "timings.json").write_text('{"mesh": 1}')
    for folder in (calm, calm / "blocks" / "1"):
        step = folder / "checkpoints" / "device" / "20"
        _save_array(step / "state", "params.means", np.arange(3.0))
        (step / "checksums.json").write_text("{}")
        (step / "meta").mkdir()
        (step / "meta" / "metadata").write_text('{"num_slots": 3, "seconds": 1}')
    _save_compact(calm, 1, {"num_slots": 3, "seconds": 1})
    wild = tmp_path / "wild"
    shutil.copytree(calm, wild)
    _save_compact(wild, 1, {"num_slots": 3, "seconds": 1.25})
    stages[0] |= {"seconds": 4.0, "bytes_checkpoint": 6}
    (wild / "metrics.json").write_text(json.dumps({"stages": stages}))
    (wild / "timings.json").write_text('{"mesh": 2}')
    wild_step = wild / "blocks" / "1" / "checkpoints" / "device" / "20"
    (wild_step / "meta" / "metadata").write_text('{"num_slots": 3, "seconds": 2}')
    _save_array(wild_step / "state", "params.means", np.arange(3.0))  # in another file
    return calm, wild


def test_times_make_no_difference(pair):
    run_ends.compare(*pair, set())


def test_the_older_checkpoint_may_be_that_of_a_stop(pair):
    for workdir, step in zip(pair, ("10", "13"), strict=True):
        (workdir / "checkpoints" / "device" / step).mkdir()
        (workdir / "checkpoints" / "device" / step / "checksums.json").write_text("{}")
    run_ends.compare(*pair, set())


def _spoil_score(wild):
    content = json.loads((wild / "metrics.json").read_text())
    content["stages"][0]["psnr_test"] = 20.500001
    (wild / "metrics.json").write_text(json.dumps(content))


def _spoil_array(wild):
    item = wild / "blocks" / "1" / "checkpoints" / "device" / "20" / "state"
    _save_array(item, "params.means", np.array([0.0, 1.0, 2.0000000000000004]))


def _spoil_meta(wild):
    path = wild / "checkpoints" / "device" / "20" / "meta" / "metadata"
    path.write_text('{"num_slots": 4, "seconds": 1}')


def _lose_size(wild):
    content = json.loads((wild / "metrics.json").read_text())
    content["stages"][0]["bytes_checkpoint"] = 0
    (wild / "metrics.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil_score, "metrics.json"),
        (_lose_size, "metrics.json"),
        (lambda wild: (wild / "mesh" / "mesh.ply").write_bytes(b"triangleS"), "mesh.ply"),
        (lambda wild: (wild / "mesh" / "mesh.ply").unlink(), "mesh.ply"),
        (lambda wild: (wild / "more").write_text(""), "more"),
        (lambda wild: shutil.rmtree(wild / "checkpoints"), "checkpoints/device/20"),
        (_spoil_array, "blocks/1/checkpoints/device/20/state"),
        (_spoil_meta, "checkpoints/device/20/meta"),
        (
            lambda wild: _save_compact(wild, 2, {"num_slots": 3}),
            "blocks/1/compact/device.npz",
        ),
        (
            lambda wild: _save_compact(wild, 1, {"num_slots": 4}),
            "blocks/1/compact/device.npz",
        ),
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
    with pytest.raises(run_ends.Failure, match=words):
        run_ends.compare(calm, wild, set())


def test_a_row_of_means_that_a_stop_divides_may_differ(pair):
    rows = [
        {"stage": stage, "step": step, "block": block, "surfels": 7, "loss": 1.0}
        for stage in ("device", "edge")
        for step in (10, 20)
        for block in (0, 1)
    ]
    for workdir in pair:
        (workdir / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[2]["loss"] = 2.0
    (pair[1] / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stops in (set(), {("device", 10), ("device", 20), ("device", 5), ("edge", 15)}):
        with pytest.raises(run_ends.Failure, match="history.jsonl"):
            run_ends.compare(*pair, stops)
    run_ends.compare(*pair, {("device", 15)})
    rows[2]["surfels"] = 8
    (pair[1] / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(run_ends.Failure, match="history.jsonl"):
        run_ends.compare(*pair, {("device", 15)})


def test_saved_steps_are_those_of_whole_checkpoints(pair):
    (pair[0] / "checkpoints" / "device" / "30.orbax-checkpoint-tmp").mkdir()
    assert run_ends.saved_steps(pair[0]) == {("device", 20), ("blocks/1/device", 20)}


def test_a_stop_of_a_block_divides_its_own_curves(pair):
    rows = [{"stage": "device", "step": step, "block": 1, "loss": 1.0} for step in (10, 20)]
    for workdir in pair:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workdir / "blocks" / "1" / "history.jsonl").write_text(text)
        rows[1]["loss"] = 2.0
    with pytest.raises(run_ends.Failure, match="blocks/1/history.jsonl"):
        run_ends.compare(*pair, {("device", 15)})
    run_ends.compare(*pair, {("blocks/1/device", 15)})


def test_models_of_two_runs(pair):
    for workdir in pair:
        (workdir / "point_cloud" / "iteration_20").mkdir(parents=True)
        (workdir / "point_cloud" / "iteration_20" / "point_cloud.ply").write_bytes(b"surfels")
    run_ends.compare_models(*pair)
    (pair[1] / "point_cloud" / "iteration_20" / "point_cloud.ply").write_bytes(b"surfelS")
    with pytest.raises(run_ends.Failure, match="other models"):
        run_ends.compare_models(*pair)
