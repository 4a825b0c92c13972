"""How far a run is, read from its files."""

import json
import os
import socket
import subprocess
import sys

import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.run_status import PlannedStage, status_lines, write_plan
from cosurfgs_jax.workdir import BLOCK, TRAINING, Workdir

STAGES = [
    PlannedStage("device", 40, True, True),
    PlannedStage("lmc_device", 6, True, True),
    PlannedStage("edge", 4, False, True),
    PlannedStage("lmc_edge", 0, False, False),
    PlannedStage("cloud", 4, False, True),
]


@pytest.fixture
def workdir(tmp_path):
    made = Workdir(tmp_path / "run")
    write_plan(made, 3, STAGES)
    return made


def _save(workdir: Workdir, stage: str, step: int, seconds: float = 1.0) -> None:
    folder = workdir.checkpoints(stage) / str(step) / "meta"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(json.dumps({"seconds": seconds}))


def _log(workdir: Workdir, stage: str, step: int, seconds_ago: float) -> None:
    path = workdir.history()
    path.write_text(json.dumps({"stage": stage, "step": 1}) + "\n")
    with path.open("a") as file:
        file.write(json.dumps({"stage": stage, "step": step}) + "\n")
    written_at = path.stat().st_mtime - seconds_ago
    os.utime(path, (written_at, written_at))


def _hold(workdir: Workdir, lock: str, pid: int, host: str) -> None:
    path = workdir.lock(lock)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": pid, "host": host, "since": "2026-01-02 03:04:05"}))


def test_a_run_that_has_not_begun(workdir):
    missing = "device, lmc_device, edge, lmc_edge, cloud, the merged model"
    assert status_lines(workdir) == [
        f"{workdir}: not finished; missing: {missing}",
        *[f"  {name:<12}not begun" for name in ("device", "lmc_device", "edge", "cloud")],
    ]


def test_a_run_on_another_machine(workdir):
    _save(workdir, "device", 20)
    _save(workdir, "device", 40)
    _save(workdir, "lmc_device", 6)
    _save(workdir, "edge", 2, seconds=5.0)
    _log(workdir, "edge", 3, seconds_ago=0)
    _hold(workdir, TRAINING.name, 12, "elsewhere")
    _set_back(workdir, 90.2)
    first, *lines = status_lines(workdir)
    assert first.endswith("missing: edge, lmc_edge, cloud, the merged model")
    assert lines == [
        "  device      step 40 of 40 saved, 0.025 s a step",
        "  lmc_device  step 6 of 6 saved, 0.167 s a step",
        "  edge        step 2 of 4 saved, 2.5 s a step; edge, step 3 logged 90 s ago",
        "  cloud       not begun",
        "    process 12 on elsewhere since 2026-01-02 03:04:05 has not said that it ended; only "
        "that machine knows whether it is still at work; it last wrote 90 s ago",
    ]


def _set_back(workdir: Workdir, seconds: float) -> None:
    for path in workdir.root.rglob("*"):
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


@pytest.mark.parametrize(
    "seconds, words", [(119, "119 s"), (140, "2 min"), (3 * 3600, "3 h"), (3 * 86400, "3 d")]
)
def test_a_job_that_was_killed_on_another_machine_is_not_at_work(workdir, seconds, words):
    """Such as a pod: only the age of its files tells."""
    _save(workdir.block(1), "device", 20)
    _log(workdir.block(1), "device", 30, seconds_ago=5)
    _hold(workdir.block(1), BLOCK.name, 12, "pod-7")
    _set_back(workdir, seconds + 0.2)
    *_, line, _ = status_lines(workdir)
    assert "process 12 on pod-7" in line and line.endswith(f"; it last wrote {words} ago")
    assert " is at work" not in line


def test_a_process_of_this_machine_is_at_work(workdir):
    _hold(workdir, TRAINING.name, os.getppid(), socket.gethostname())
    assert status_lines(workdir)[-1].endswith("03:04:05 is at work")


@pytest.mark.parametrize(
    "seconds, row", [(10**400, "[" * 90_000), ("x", "3"), (None, "{"), ([], "null")]
)
def test_numbers_that_are_none_are_left_out(workdir, seconds, row):
    """Of a checkpoint and of the curves."""
    _save(workdir, "device", 20, seconds)
    workdir.history().write_text(row + "\n")
    assert status_lines(workdir)[1] == "  device      step 20 of 40 saved"


def test_a_stage_without_checkpoints_is_done_where_the_next_has_begun(workdir):
    _save(workdir, "cloud", 0)
    first, device, *_ = status_lines(workdir)
    assert first.endswith("missing: cloud, the merged model") and device.endswith(" done")


def test_blocks_of_jobs_of_their_own(workdir):
    for stage, step in (("device", 40), ("lmc_device", 6)):
        _save(workdir.block(0), stage, step)
    _save(workdir.block(1), "device", 20, seconds=4.0)
    _log(workdir.block(1), "device", 30, seconds_ago=0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    _hold(workdir.block(1), BLOCK.name, gone.pid, socket.gethostname())
    lines = status_lines(workdir)
    assert "device, lmc_device, edge" in lines[0]
    assert lines[5:] == [
        "3 blocks by jobs of their own:",
        "  0           finished",
        "  1           device, step 20 of 40 saved, 0.2 s a step; device, step 30 logged 0 s ago",
        f"    process {gone.pid} on {socket.gethostname()} since 2026-01-02 03:04:05 was killed",
        "  2           not begun",
    ]
    _save(workdir, "device", 40)
    _save(workdir, "lmc_device", 6)
    assert not any("jobs of their own" in line for line in status_lines(workdir))


def test_copied_blocks_say_what_the_run_is_going_to_do(workdir):
    """Folders of blocks were copied without the plan of the run."""
    _save(workdir.block(2), "device", 20)
    workdir.plan.rename(workdir.block(2).plan)
    lines = status_lines(workdir)
    assert "device, lmc_device, edge" in lines[0] and "3 blocks by jobs of their own:" in lines
    assert lines[-1].startswith("  2           device, step 20 of 40 saved")
    workdir.block(2).plan.unlink()
    with pytest.raises(InputError, match="got no plan.json in it or in blocks/<number>; "):
        status_lines(workdir)


def test_a_job_that_saved_nothing_is_no_part_of_a_run_of_all_blocks(workdir):
    workdir.block(0).root.mkdir(parents=True)
    assert not any("jobs of their own" in line for line in status_lines(workdir))
    _hold(workdir.block(0), BLOCK.name, os.getppid(), socket.gethostname())
    assert "3 blocks by jobs of their own:" in status_lines(workdir)
    _save(workdir, "device", 20)
    assert not any("jobs of their own" in line for line in status_lines(workdir))


def test_a_finished_run(workdir):
    for path in (workdir.point_cloud(54), workdir.metrics, workdir.cameras):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (line,) = status_lines(workdir)
    assert line == f"{workdir}: finished, 54 steps; {workdir.point_cloud(54)}"


def _plan(num_blocks=3, **changes) -> str:
    stages = [stage._asdict() | changes for stage in STAGES]
    return json.dumps({"num_blocks": num_blocks, "stages": stages})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"num_blocks": 1, "stages": [{"name": "x"}]}',
        _plan(0),
        _plan(True),
        _plan(1e308),
        _plan(2**63),
        _plan(name=None),
        _plan(name="../x"),
        _plan(steps=-1),
        _plan(steps="1"),
        _plan(is_of_blocks=False),
        _plan(is_saved=None),
        '{"num_blocks": 3, "stages": []}',
    ],
)
def test_a_damaged_plan(workdir, content):
    workdir.plan.write_text(content)
    _save(workdir.block(0), "device", 20)
    with pytest.raises(InputError, match="plan.json: expected "):
        status_lines(workdir)


def test_the_program_reads_only_and_needs_no_jax(workdir, tmp_path):
    _save(workdir, "device", 20)
    _log(workdir, "device", 22, seconds_ago=3)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    code = (
        "import runpy, sys; sys.argv[0] = 'status'\n"
        "try: runpy.run_module('cosurfgs_jax.status', run_name='__main__')\n"
        "finally: assert 'jax' not in sys.modules"
    )

    def run(folder) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, f"--workdir={folder}"]
        return subprocess.run(command, capture_output=True, text=True)

    result = run(workdir)
    assert result.returncode == 0 and "step 20 of 40 saved" in result.stdout, result.stderr
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for folder in (tmp_path / "none", ""):
        result = run(folder)
        assert result.returncode == 2 and "expected the folder of a run" in result.stderr
    assert not (tmp_path / "none").exists()
