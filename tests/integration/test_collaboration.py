"""Blocks on devices as a user runs them: any number of devices and processes, stopped and resumed,
and with wrong input.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from program_starter import ProgramStarter, Started
from scenes import town_folder

from cosurfgs_jax.settings import GeneratedSettings, LmcSettings

TOWN = GeneratedSettings(num_views=20, width=96, height=72, size_m=60.0)
STEPS = 40
RECOVERY = 6
MAS_STEPS = 4
FLAGS = [
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=10",
    "--config.surfels.sh_degree=1",
    # Few: blocks shrink once, to the smallest number of slots, and each number compiles anew.
    "--config.surfels.capacity=1700",
    "--config.partition.num_blocks=4",
    "--config.partition.num_edges=2",
    f"--config.mas.steps={MAS_STEPS}",
]
LAST = STEPS + RECOVERY + 2 * MAS_STEPS


def _command(workdir: Path, dataset: Path, *flags: str) -> list[str]:
    return [
        "cosurfgs_jax.train",
        f"--workdir={workdir}",
        f"--config.data.path={dataset}",
        *FLAGS,
        *flags,
    ]


def _environment() -> dict[str, str]:
    """As a user has it: the tests' own devices are not those of the programs."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PJRT_NPROC")
    }


STARTER = ProgramStarter(_environment())


@pytest.fixture(scope="module", autouse=True)
def _starter_ends():
    yield
    STARTER.close()


def _run(workdir: Path, dataset: Path, *flags: str) -> subprocess.CompletedProcess:
    return STARTER.run(*_command(workdir, dataset, *flags), timeout=400)


def _start_pair(workdir: Path, datasets: list[Path], extra: list[list[str]]) -> list[Started]:
    """Two processes of one run, of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        STARTER.start(
            *_command(
                workdir,
                datasets[i],
                "--config.mesh.num_devices=4",
                f"--coordinator_address=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
                *extra[i],
            )
        )
        for i in range(2)
    ]


def _finish_pair(processes: list[Started]) -> None:
    for process in processes:
        code, text = process.finish(timeout=400)
        assert code == 0, text


def _wait_for_checkpoint(workdir: Path, process: Started) -> None:
    """Until the first of the device stage is there."""
    deadline = time.monotonic() + 240
    while not (workdir / "checkpoints" / "device" / "20").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.printed()
        time.sleep(0.02)


def _device_states(workdir: Path) -> dict[str, np.ndarray]:
    """Everything that the last checkpoint of the device stage holds, in the order of blocks."""
    import tensorstore

    folder = workdir / "checkpoints" / "device" / str(STEPS) / "state"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    names = sorted(
        {
            key.decode().rsplit("/.zarray", 1)[0]
            for key in store.list().result()
            if key.endswith(b".zarray")
        }
    )
    base = {"driver": "ocdbt", "base": f"file://{folder}/"}
    arrays = {
        name: tensorstore.open({"driver": "zarr", "kvstore": base | {"path": f"{name}/"}}).result()
        for name in names
    }
    return {name: np.asarray(array.read().result()) for name, array in arrays.items()}


def _assert_same_device_stage(workdir: Path, other: Path) -> None:
    expected = _device_states(other)
    got = _device_states(workdir)
    assert expected.keys() == got.keys() and len(expected) > 20
    for name, value in expected.items():
        assert got[name][:4].tobytes() == value[:4].tobytes(), name


def _psnr(workdir: Path) -> float:
    return json.loads((workdir / "metrics.json").read_text())["stages"][-1]["psnr_test"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("town") / "town"
    shutil.copytree(town_folder(TOWN), folder)
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """Four devices, undisturbed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    result = _run(workdir, dataset, "--config.mesh.num_devices=4")
    assert result.returncode == 0, result.stderr
    return workdir


def test_every_stage_is_there(trained):
    stages = json.loads((trained / "metrics.json").read_text())["stages"]
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


def test_the_number_of_devices_does_not_matter(dataset, trained, tmp_path):
    result = _run(tmp_path / "run", dataset, "--config.mesh.num_devices=2")
    assert result.returncode == 0, result.stderr
    _assert_same_device_stage(tmp_path / "run", trained)
    assert _psnr(tmp_path / "run") == pytest.approx(_psnr(trained), abs=0.05)


def test_one_device_trains_the_same_blocks(dataset, trained, tmp_path):
    """Without the stages after them, which component tests compare."""
    flags = ("--config.mesh.num_devices=1", "--noconfig.lmc.enabled", "--noconfig.mas.enabled")
    result = _run(tmp_path / "run", dataset, *flags)
    assert result.returncode == 0, result.stderr
    _assert_same_device_stage(tmp_path / "run", trained)


def test_two_processes_with_photographs_of_their_own(dataset, trained, tmp_path):
    from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
    from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
    from cosurfgs_jax.workdir import Workdir

    partitioned = open_partitioned_scene(
        Settings(
            data=DataSettings(path=str(dataset)),
            partition=PartitionSettings(num_blocks=4, num_edges=2),
        ),
        Workdir(tmp_path),
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
        folders.append(tmp_path / f"own{process}")
        shutil.copytree(dataset, folders[-1])
        for view, name in enumerate(partitioned.scene.image_names):
            if view not in wanted:
                (folders[-1] / "images" / name).unlink()
    _finish_pair(_start_pair(tmp_path / "run", folders, [[], []]))
    _assert_same_device_stage(tmp_path / "run", trained)
    assert _psnr(tmp_path / "run") == pytest.approx(_psnr(trained), abs=0.05)


def test_stopped_on_four_devices_and_resumed_on_two(dataset, trained, tmp_path):
    workdir = tmp_path / "run"
    process = STARTER.start(*_command(workdir, dataset, "--config.mesh.num_devices=4"))
    _wait_for_checkpoint(workdir, process)
    process.send_signal(signal.SIGTERM)
    code, text = process.finish(timeout=120)
    assert code == 143 and "the same command goes on" in text, text
    result = _run(workdir, dataset, "--config.mesh.num_devices=2")
    assert result.returncode == 0 and "going on from step" in result.stderr, result.stderr
    _assert_same_device_stage(workdir, trained)
    assert _psnr(workdir) == pytest.approx(_psnr(trained), abs=0.05)


def test_processes_that_disagree_end_at_once(dataset, tmp_path):
    pair = _start_pair(tmp_path / "run", [dataset, dataset], [[], ["--config.optim.quats=0.5"]])
    for process in pair:
        code, text = process.finish(timeout=120)
        assert code == 2 and "config.optim.quats" in text and "process 1" in text, text


def test_a_dead_process_ends_the_others_with_a_sentence(dataset, tmp_path):
    workdir = tmp_path / "run"
    pair = _start_pair(workdir, [dataset, dataset], [["--config.train.steps=4000"]] * 2)
    _wait_for_checkpoint(workdir, pair[0])
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
        _run(workdir, dataset, "--config.mesh.num_devices=99"), "config.mesh.num_devices", "99"
    )
    _expect_sentence(
        _run(workdir, dataset, "--config.partition.num_edges=9"), "config.partition.num_edges", "9"
    )
    _expect_sentence(
        _run(workdir, dataset, "--config.partition.num_blocks=18"),
        "config.partition.num_blocks",
        "17",
        "18",
    )
    _expect_sentence(_run(workdir, dataset, "--num_processes=2"), "--coordinator_address")
    _expect_sentence(
        _run(trained, dataset, "--config.partition.num_blocks=2"),
        "config.partition.num_blocks",
        "4",
        "2",
    )
    assert not (workdir / "config.json").exists()
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    table = json.loads((other / "partition.json").read_text())
    (other / "partition.json").write_text(json.dumps(table | {"fingerprint": "0" * 16}))
    _expect_sentence(_run(other, dataset), "partition.json", "another")
