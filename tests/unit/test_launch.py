"""Runs as jobs of a cluster: which jobs, which are tried again, and how a process of one ends."""

import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from absl import flags
from test_run_status import STAGES

from cosurfgs_jax import launch, locks, program
from cosurfgs_jax.engines import job_process, ray_cluster
from cosurfgs_jax.engines.jobs import Job, block_jobs, log_file, rest_job
from cosurfgs_jax.engines.tries import MISTAKE, Outcome, run_jobs
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.program import processes
from cosurfgs_jax.run_status import write_plan
from cosurfgs_jax.settings import DataSettings, Settings
from cosurfgs_jax.workdir import BLOCK, TRAINING, Workdir

LOST = Outcome(None, "", "NodeDiedError")
DONE = Outcome(0, "host", "finished")
FAILED = Outcome(1, "host", "RuntimeError")
WRONG = Outcome(MISTAKE, "host", "error: config.x: expected y")


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def _save(folder: Workdir, stage: str, step: int) -> None:
    (folder.checkpoints(stage) / str(step)).mkdir(parents=True)


class FakeCluster:
    """Ends the tries of each job as a table says, the last asked for first."""

    def __init__(self, table: dict[str, list[list[Outcome]]]):
        self._table = table
        self.started: list[tuple[str, int]] = []
        self.released: list[str] = []
        self._outcomes: dict[tuple, Outcome] = {}

    def start(self, job, number):
        self.started.append((job.name, number))
        outcomes = self._table[job.name][number - 1]
        assert len(outcomes) == job.num_processes
        handles = [(job.name, number, process) for process in range(job.num_processes)]
        self._outcomes |= dict(zip(handles, outcomes, strict=True))
        return handles

    def wait(self, handles):
        return handles[-1], self._outcomes[handles[-1]]

    def release(self, job):
        self.released.append(job.name)


def _jobs(**num_processes: int) -> list[Job]:
    return [Job(name, (), number) for name, number in num_processes.items()]


def test_only_what_fails_is_tried_again():
    cluster = FakeCluster({"a": [[DONE]], "b": [[LOST], [FAILED], [DONE]], "c": [[DONE]]})
    assert run_jobs(cluster, _jobs(a=1, b=1, c=1), 2) == {}
    assert sorted(cluster.started) == [("a", 1), ("b", 1), ("b", 2), ("b", 3), ("c", 1)]


@pytest.mark.parametrize("max_retries, num_tries", [(0, 1), (2, 3)])
def test_tries_have_an_end_and_the_others_go_on(max_retries, num_tries):
    cluster = FakeCluster({"a": [[DONE]], "b": [[LOST]] * 5})
    assert run_jobs(cluster, _jobs(a=1, b=1), max_retries) == {"b": LOST}
    assert cluster.started.count(("a", 1)) == 1
    assert max(number for _, number in cluster.started) == num_tries


def test_without_end():
    cluster = FakeCluster({"a": [[LOST]] * 40 + [[DONE]]})
    assert run_jobs(cluster, _jobs(a=1), -1) == {}
    assert len(cluster.started) == 41


def test_a_mistake_is_not_tried_again():
    cluster = FakeCluster({"a": [[WRONG]], "b": [[DONE]]})
    assert run_jobs(cluster, _jobs(a=1, b=1), 3) == {"a": WRONG}
    assert len(cluster.started) == 2


def test_connected_processes_are_tried_again_together():
    """Where one is lost the others only say that they have lost it; a mistake of one is all's."""
    killed = Outcome(-15, "host", "")
    table = [[DONE, LOST], [FAILED, killed], [WRONG, LOST], [DONE, DONE]]
    cluster = FakeCluster({"rest": table})
    assert run_jobs(cluster, _jobs(rest=2), 3) == {}
    assert [number for _, number in cluster.started] == [1, 2, 3, 4]
    assert cluster.released == ["rest"] * 4
    cluster = FakeCluster({"rest": [[FAILED, WRONG]]})
    assert run_jobs(cluster, _jobs(rest=2), 3) == {"rest": WRONG}


def test_blocks_that_are_left_are_jobs(workdir):
    flags = ["--workdir=x"]
    jobs = block_jobs(workdir, flags, num_blocks=4, num_parts=4, is_compact=False)
    assert [job.name for job in jobs] == ["block-0", "block-1", "block-2", "block-3"]
    assert jobs[3].flags == ("--workdir=x", "--blocks=3/4")
    write_plan(workdir, 3, STAGES)  # one was merged with its neighbour
    _save(workdir.block(0), "lmc_device", 6)
    _save(workdir.block(1), "lmc_device", 4)
    jobs = block_jobs(workdir, flags, num_blocks=4, num_parts=4, is_compact=False)
    assert [job.blocks for job in jobs] == [(1,), (2,)]
    jobs = block_jobs(workdir, flags, num_blocks=4, num_parts=2, is_compact=False)
    assert [(job.name, job.blocks) for job in jobs] == [("part-0", (2,)), ("part-1", (1,))]
    jobs = block_jobs(workdir, flags, num_blocks=4, num_parts=4, is_compact=True)
    assert [job.blocks for job in jobs] == [(0,), (1,), (2,)], "nothing was handed over"
    _save(workdir, "device", 40)
    assert block_jobs(workdir, flags, 4, 4, False) == []
    assert jobs[0].held_by(workdir, 0) == [(workdir.block(0), BLOCK)]


def test_the_rest_in_one_process_or_several(workdir):
    alone = rest_job(["--a=b"], 1)
    assert alone.flags_of(0, "") == ("--a=b", "--num_processes=1")
    assert alone.log_name(0) == "rest"
    several = rest_job(["--a=b"], 3)
    assert several.flags_of(2, "node:7") == (
        "--a=b",
        "--coordinator_address=node:7",
        "--num_processes=3",
        "--process_id=2",
    )
    assert several.log_name(2) == "rest-2"
    assert several.held_by(workdir, 0) == [(workdir, TRAINING)]
    assert several.held_by(workdir, 1) == []


def test_one_process_is_alone_whatever_the_cluster_says(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    asked = []
    monkeypatch.setattr(processes, "_connect", lambda *arguments: asked.append(arguments))
    processes.start_devices(1, num_processes=1)
    assert not asked
    processes.start_devices(1)
    assert asked
    with pytest.raises(InputError, match="expected all three or none"):
        processes.start_devices(1, num_processes=2)


def test_the_flags_of_train_are_handed_on(monkeypatch, tmp_path, workdir):
    monkeypatch.chdir(tmp_path)
    settings = Settings(data=DataSettings(path="/data/town", split="every8"))
    arguments = [
        *("--engine=ray", "--address", "auto", "-parts=3", "--max_retries", "-1"),
        *("--config", "mine.py", "--config.data.path=town", "--workdir", "run"),
        *("--config.seed", "5", "--config.background=-1", "--noconfig.lmc.compact"),
    ]
    assert launch.handed_on(arguments, settings, workdir) == [
        f"--config={tmp_path / 'mine.py'}",
        "--config.data.path=town",
        "--config.seed=5",
        "--config.background=-1",
        "--noconfig.lmc.compact",
        f"--workdir={workdir}",
        "--config.data.path=/data/town",
        "--config.data.split=every8",
    ]


def test_without_ray_it_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["launch", f"--workdir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert program.run(launch.main, launch.declare, workdir="create", argv=argv) == 2
    assert 'pip install "cosurfgs_jax[ray]"' in capsys.readouterr().err


def test_a_failed_job_is_named_with_its_logs(monkeypatch, tmp_path, capsys):
    cluster = FakeCluster({"block-0": [[WRONG]], "block-1": [[DONE]]})
    cluster.describe = lambda: "a cluster"
    cluster.close = lambda: None
    monkeypatch.setattr(launch, "RayCluster", lambda *arguments: cluster)
    argv = ["launch", f"--workdir={tmp_path}", "--config.partition.num_blocks=2"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        program.run(launch.main, launch.declare, workdir="create", argv=argv)
    assert ended.value.code == 2 and len(cluster.started) == 2, "the rest is not asked for"
    assert f"block-0: failed, as {tmp_path}/logs/block-0.log says" in capsys.readouterr().err


def _with_parent(name: str, code: str, folder: Path) -> subprocess.Popen:
    """A program of the package that stands for a real one."""
    starter = (
        f"import runpy, sys, types; module = types.ModuleType('x'); runpy_run = runpy.run_module\n"
        f"def run(name, **options):\n"
        f"    assert name == 'cosurfgs_jax.{name}'; exec({code!r}, {{'__name__': '__main__'}})\n"
        "import cosurfgs_jax.program.with_parent as module\n"
        "runpy.run_module = run\n"
        "exec(compile(open(module.__file__).read(), module.__file__, 'exec'))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", starter, name], stdin=subprocess.PIPE, cwd=folder
    )


def test_a_program_ends_with_who_started_it(tmp_path):
    code = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)"
    process = _with_parent("train", code, tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == -15


def test_a_process_of_a_job_waits_for_an_earlier_try(monkeypatch, workdir):
    """It has been lost, and saves; then the log has what the new one prints, and its end."""
    # Where all processes of the worker's group are killed, this one lives on, and saves.
    script = 'ps -o sid= -p $$ > session; echo "train $*"; echo; exit 3'
    workdir.root.mkdir()
    monkeypatch.chdir(workdir.root)
    monkeypatch.setattr(job_process, "_TRAIN", ("/bin/sh", "-c", script, "sh"))
    lock = workdir.block(2).lock(BLOCK.name)
    freed = []

    def hold():
        with locks.hold(lock, "a try"):
            held.set()
            time.sleep(0.5)
            freed.append(True)

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    log = log_file(workdir, "block-2")
    held_by = [(workdir.block(2), BLOCK)]
    code, host, text = job_process.run_process(["--blocks=2/4"], log, 4, held_by)
    thread.join()
    assert freed and code == 3 and host == os.uname().nodename
    assert text == "train --blocks=2/4"
    assert int((workdir.root / "session").read_text()) != os.getsid(0)
    assert log.read_text().startswith(f"--- try 4 on {host}")


def test_the_ray_cluster_ends_tries_as_the_course_expects(monkeypatch, workdir):
    """With a stand-in for Ray: what it raises becomes an outcome."""
    exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra ray")

    class Ray:
        def __init__(self, results):
            self.results = results

        def wait(self, handles, num_returns):
            return handles[:num_returns], handles[num_returns:]

        def get(self, handle):
            result = self.results[handle]
            if isinstance(result, Exception):
                raise result
            return result

    cluster = ray_cluster.RayCluster.__new__(ray_cluster.RayCluster)
    task_error = exceptions.RayTaskError
    cluster._ray = Ray(
        {
            "fine": (0, "host", "finished"),
            "lost": exceptions.NodeDiedError("gone"),
            "wrong": task_error("f", "trace", InputError("x: expected y")).as_instanceof_cause(),
            "bad": task_error("f", "trace", TypeError("z")).as_instanceof_cause(),
        }
    )
    assert cluster.wait(["fine", "lost"]) == ("fine", Outcome(0, "host", "finished"))
    assert cluster.wait(["lost"])[1] == Outcome(None, "", "NodeDiedError")
    assert cluster.wait(["wrong"])[1] == Outcome(MISTAKE, "", "x: expected y")
    with pytest.raises(TypeError):
        cluster.wait(["bad"])


@pytest.mark.parametrize("there, num_gpus", [({}, 0), ({"GPU": 0.5}, 0.5), ({"GPU": 8.0}, 1)])
def test_the_ray_cluster_is_asked_for_what_the_page_says(monkeypatch, workdir, there, num_gpus):
    """docs/machines.md: the defaults of flags, and that prints of jobs are in their logs alone."""
    asked = {}
    ray = types.SimpleNamespace(
        init=lambda **options: asked.update(options),
        cluster_resources=lambda: {"CPU": 16.0} | there,
        nodes=lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}],
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    values = flags.FlagValues()
    launch.declare(values)
    values(["launch"])
    assert (values.parts, values.num_workers, values.max_retries) == (0, 1, 3)
    resources = ray_cluster.Resources(values.num_cpus, values.num_gpus)
    cluster = ray_cluster.RayCluster(workdir, values.address, resources)
    assert asked["address"] is None and asked["log_to_driver"] is False
    described = cluster.describe()
    assert described.startswith("Ray with 2 node(s), 16 CPUs, ")
    assert f"a process takes 1 and {num_gpus:g}" in described


def test_settings_are_checked_before_anything_is_asked_for(tmp_path, capsys):
    argv = ["launch", f"--workdir={tmp_path}", "--config.lmc.prune_ratio=2"]
    assert program.run(launch.main, launch.declare, workdir="create", argv=argv) == 2
    assert "lmc.prune_ratio" in capsys.readouterr().err
