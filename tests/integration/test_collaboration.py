"""Blocks on devices as a user runs them: any number of devices and processes, stopped and resumed,
and with wrong input.
"""

import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from collaboration_runs import (
    LAST,
    MAS_STEPS,
    RECOVERY,
    STARTER,
    STEPS,
    TOWN,
    assert_same_stage,
    run,
    start,
)
from program_starter import Started
from scenes import town_folder

from cosurfgs_jax.settings import DataSettings, LmcSettings, PartitionSettings, Settings
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.workdir import Workdir


@pytest.fixture(scope="module", autouse=True)
def _starter_ends():
    yield
    STARTER.close()


def _start_pair(workdir: Path, datasets: list[Path], extra: list[list[str]]) -> list[Started]:
    """Two processes of one run, of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            datasets[i],
            "--config.mesh.num_devices=4",
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            *extra[i],
        )
        for i in range(2)
    ]


def _finish_pair(processes: list[Started]) -> None:
    for process in processes:
        code, text = process.finish(timeout=400)
        assert code == 0, text


def _wait_for(path: Path, process: Started) -> None:
    """Until a running program has written something."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.printed()
        time.sleep(0.02)


def _stages(workdir: Path) -> list[dict]:
    return json.loads((workdir / "metrics.json").read_text())["stages"]


def _psnr(workdir: Path) -> float:
    return _stages(workdir)[-1]["psnr_test"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("town") / "town"
    shutil.copytree(town_folder(TOWN), folder)
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """Four devices, undisturbed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    result = run(workdir, dataset, "--config.mesh.num_devices=4")
    assert result.returncode == 0, result.stderr
    return workdir


def test_every_stage_is_there(trained):
    stages = _stages(trained)
    assert [stage["name"] for stage in stages] == [
        "device",
        "lmc_device",
        "edge",
        "lmc_edge",
        "cloud",
    ]
    assert [stage["steps"] for stage in stages] == [STEPS, RECOVERY, MAS_STEPS, 0, MAS_STEPS]
    for stage in stages:
        assert (
            len(stage["num_surfels"]) == 4 and stage["psnr_test"] > 10 and stage["psnr_seam"] > 10
        )
        assert (
            stage["depth_step_seam"] > 0
            and stage["depth_step_excess"] >= 0
            and stage["depth_error_seam"] > 0
        )
        assert (stage["depth_disagreement_seam"] is not None) == ("device" in stage["name"])
        assert stage["peak_bytes_per_device"] > 0
    # Each round rounds down what it prunes, within the cell and around it.
    num_more = sum(stages[1]["num_surfels"]) - 0.6 * sum(stages[0]["num_surfels"])
    assert -1e-6 <= num_more < 4 * 2 * LmcSettings().rounds
    assert stages[2]["bytes_sent_per_step"] > 0 and stages[0]["bytes_sent_per_step"] == 0
    assert all(
        stage["bytes_sent"] == stage["steps"] * stage["bytes_sent_per_step"] for stage in stages
    )
    ratio = stages[-1]["bytes_model"] / stages[0]["bytes_model"]
    assert ratio == stages[-1]["num_surfels_merged"] / stages[0]["num_surfels_merged"] < 0.7
    assert (trained / "point_cloud" / f"iteration_{LAST}" / "point_cloud.ply").exists()
    assert json.loads((trained / "partition.json").read_text())["partition"]["edge_of_block"] == [
        0,
        0,
        1,
        1,
    ]
    assert not any((trained / "teachers").rglob("*.npz"))
    saved = [(path.parent.name, path.name) for path in (trained / "checkpoints").glob("*/*")]
    steps = {stage["name"]: str(stage["steps"]) for stage in stages if stage["name"] != "lmc_edge"}
    assert dict(saved) == steps and len(saved) == len(steps), "the last step of each stage"
    assert not any((trained / "checkpoints").rglob("training")), "what finished stages do not need"


def test_one_device_trains_the_same_blocks(dataset, trained, tmp_path):
    """Without the stages after them, which component tests compare."""
    flags = ("--config.mesh.num_devices=1", "--noconfig.lmc.enabled", "--noconfig.mas.enabled")
    result = run(tmp_path / "run", dataset, *flags)
    assert result.returncode == 0, result.stderr
    assert_same_stage(tmp_path / "run", trained)


def _datasets_of_two(dataset: Path, folder: Path) -> list[Path]:
    """Copies of the dataset for two processes, each with the photographs of its own blocks."""
    partitioned = open_partitioned_scene(
        Settings(
            data=DataSettings(path=str(dataset)),
            partition=PartitionSettings(num_blocks=4, num_edges=2),
        ),
        Workdir(folder),
    )
    folders = []
    for process in range(2):
        blocks = (2 * process, 2 * process + 1)
        wanted = {int(view) for block in blocks for view in partitioned.blocks[block].views}
        wanted |= {
            int(view)
            for view in partitioned.scene.test_views
            if partitioned.partition.home[view] in blocks
        }
        assert len(wanted) < partitioned.scene.num_views
        folders.append(folder / f"own{process}")
        shutil.copytree(dataset, folders[-1])
        for view, name in enumerate(partitioned.scene.image_names):
            if view not in wanted:
                (folders[-1] / "images" / name).unlink()
    return folders


def test_neither_processes_nor_devices_matter(dataset, trained, tmp_path):
    """Two processes with photographs of their own, stopped on four devices, and resumed on two, on
    those to the end of all stages.
    """
    workdir = tmp_path / "run"
    folders = _datasets_of_two(dataset, tmp_path)
    pair = _start_pair(workdir, folders, [[], []])
    _wait_for(workdir / "checkpoints" / "device" / "20", pair[0])
    for process in pair:
        process.send_signal(signal.SIGTERM)
    for process in pair:
        code, text = process.finish(timeout=120)
        assert code == 143 and "the same command goes on" in text, text
    resumed = _start_pair(workdir, folders, [["--config.mesh.num_devices=2"]] * 2)
    _finish_pair(resumed)
    assert all("going on from step" in process.printed() for process in resumed)
    assert_same_stage(workdir, trained)
    assert _psnr(workdir) == pytest.approx(_psnr(trained), abs=0.05)


def _times_of_others(block: Path) -> list[int]:
    """When the files of a block were written, but for its checkpoints."""
    paths = [path for path in sorted(block.rglob("*")) if path.is_file()]
    return [path.stat().st_mtime_ns for path in paths if "checkpoints" not in path.parts]


def test_blocks_trained_by_jobs_of_their_own_end_in_the_same_bits(dataset, trained, tmp_path):
    """Each alone, one of them killed, and one left half-way to the run of all; on other numbers of
    devices than the run that trained them together.
    """
    workdir = tmp_path / "run"
    blocks = [workdir / "blocks" / str(number) for number in range(4)]

    def kill_in(number: int, flag: str) -> None:
        killed = start(workdir, dataset, flag)
        _wait_for(blocks[number] / "checkpoints" / "device" / "20", killed)
        killed.send_signal(signal.SIGKILL)
        assert killed.finish(timeout=60)[0] == -signal.SIGKILL

    kill_in(2, "--blocks=2")
    kill_in(3, "--blocks=1,3")
    texts = []
    for flag in ("--blocks=0/4", "--blocks=2"):
        result = run(workdir, dataset, flag)
        assert result.returncode == 0, result.stderr
        texts.append(result.stderr)
    halfway = "2 (device, step 20 of 40), 3 (device, step 20 of 40)"
    assert f"blocks finished: 1; missing: 0 (not begun), {halfway}" in texts[0]
    assert f"blocks finished: 0, 1; missing: {halfway}" in texts[0]
    assert "device: going on from step 20" in texts[1] and "block 0" not in texts[1]
    assert "blocks finished: 0, 1, 2; missing: 3 (device, step 20 of 40)" in texts[1]
    assert {path.name for path in blocks[0].iterdir()} >= {"config.json", "history.jsonl", "before"}
    assert not (workdir / "checkpoints" / "device").exists()
    with_moments = {path.parents[1].name for path in blocks[0].glob("checkpoints/*/*/training")}
    assert with_moments == {"lmc_device"}, "only what the next stage begins with"
    times = _times_of_others(blocks[0])
    result = run(workdir, dataset, "--config.mesh.num_devices=4")
    assert result.returncode == 0, result.stderr
    assert "blocks finished: 0, 1, 2; missing: 3 (device, step 20 of 40)" in result.stderr
    assert "device: going on from step 20" in result.stderr
    assert _times_of_others(blocks[0]) == times
    assert not [
        *blocks[0].glob("checkpoints/*/*/state"),
        *workdir.rglob("checkpoints/*/*/training"),
    ]
    assert_same_stage(workdir, trained)
    assert_same_stage(workdir, trained, "lmc_device", RECOVERY)
    model = Path("point_cloud", f"iteration_{LAST}", "point_cloud.ply")
    assert (workdir / model).read_bytes() == (trained / model).read_bytes()
    names = {path.name for path in (trained / "before").iterdir()}
    assert names == {path.name for path in (workdir / "before").iterdir()}
    rows = [stage["num_surfels"] for stage in _stages(workdir)]
    assert rows == [stage["num_surfels"] for stage in _stages(trained)]
    expect = "blocks finished: 0, 1, 2, 3; missing: none"
    assert expect in run(workdir, dataset, "--blocks=3").stderr
    _expect_sentence(
        run(workdir, dataset, "--blocks=3", "--config.optim.quats=0.5"), "config.optim.quats", "0.5"
    )


def test_processes_that_disagree_end_at_once(dataset, tmp_path):
    pair = _start_pair(tmp_path / "run", [dataset, dataset], [[], ["--config.optim.quats=0.5"]])
    for process in pair:
        code, text = process.finish(timeout=120)
        assert code == 2 and "config.optim.quats" in text and "process 1" in text, text


def test_a_dead_process_ends_the_others_with_a_sentence(dataset, tmp_path):
    workdir = tmp_path / "run"
    pair = _start_pair(workdir, [dataset, dataset], [["--config.train.steps=4000"]] * 2)
    _wait_for(workdir / "checkpoints" / "device" / "20", pair[0])
    pair[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, text = pair[0].finish(timeout=60)
    assert time.monotonic() - killed < 60
    assert code not in (0, 2) and ("another process" in text or "another task died" in text), text
    assert pair[1].finish(timeout=60)[0] == -signal.SIGKILL


def _expect_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_wrong_input_is_one_sentence_and_exit_code_2(dataset, trained, tmp_path):
    workdir = tmp_path / "run"
    _expect_sentence(
        run(workdir, dataset, "--config.mesh.num_devices=99"), "config.mesh.num_devices", "99"
    )
    _expect_sentence(
        run(workdir, dataset, "--config.partition.num_edges=9"), "config.partition.num_edges", "9"
    )
    _expect_sentence(
        run(workdir, dataset, "--config.partition.num_blocks=18"),
        "config.partition.num_blocks",
        "17",
        "18",
    )
    _expect_sentence(run(workdir, dataset, "--num_processes=2"), "--coordinator_address")
    _expect_sentence(
        run(trained, dataset, "--config.partition.num_blocks=2"),
        "config.partition.num_blocks",
        "4",
        "2",
    )
    assert not (workdir / "config.json").exists()
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    table = json.loads((other / "partition.json").read_text())
    (other / "partition.json").write_text(json.dumps(table | {"fingerprint": "0" * 16}))
    _expect_sentence(run(other, dataset), "partition.json", "another")
