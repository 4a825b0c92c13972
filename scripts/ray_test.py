"""Kills nodes of a Ray cluster at random while `launch` trains on it, and compares the end with
that of a run without Ray.

python scripts/ray_test.py --workdir=DIR [--kills=10] [--nodes=3] [--blocks=8] [--num_workers=1]
[--seed=0] [--report=FILE.json]

The cluster is one of this machine: a head without CPUs, and nodes of one CPU each. A small town in
so many blocks is trained without Ray, with it, and with it while a node at a random moment is

- lost: raylet, workers and what they run get SIGKILL, as where a machine fails;
- orphaned: its raylet alone gets SIGKILL; what runs has to end by itself;
- preempted: its raylet gets SIGTERM, as where a machine is taken away.

Another node comes in its place some seconds later. Runs follow each other until so many nodes were
killed. All have to end, in the same bits: model, scores, curves (but for rows in whose middle a
block was stopped), of each block, too; and no temporary file may be left. Exits with 1 otherwise.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from kill_test import TRAIN_FLAGS, free_port, use_cache  # noqa: E402
from run_ends import Failure, compare, saved_steps  # noqa: E402

KINDS = ("lost", "orphaned", "preempted")
_MAX_RUN_S = 1800
_KILLS_A_RUN = 20  # on average, in what an undisturbed run takes
_NUM_STARTS = 5
_ABSENCE_S = 4  # until another node comes
_POLL_S = 0.1
# A lost node is noticed after a second instead of half a minute.
_WATCHFUL = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}


def flags_of(arguments) -> list[str]:
    """The flags of the run, whoever starts it."""
    return [
        *TRAIN_FLAGS,
        "--config.generated.num_views=24",
        f"--config.partition.num_blocks={arguments.blocks}",
        "--config.partition.num_edges=1",
        "--config.partition.min_views=1",
        "--config.partition.min_points=1",
        "--config.train.steps=40",
        "--config.lmc.rounds=1",
        f"--config.mesh.num_devices={arguments.blocks}",
    ]


def without_ray(arguments, folder: Path) -> float:
    """The same run as jobs started by hand: seconds of processor time."""
    began = _used_s()
    train = [sys.executable, "-m", "cosurfgs_jax.train", f"--workdir={folder}"]
    train += flags_of(arguments)
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        subprocess.run([*train, "--blocks=0/1"], check=True, stderr=log)
    number = arguments.num_workers
    connected = [[]]
    if number > 1:
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        connected = [
            [address, f"--num_processes={number}", f"--process_id={process}"]
            for process in range(number)
        ]
    running = [subprocess.Popen([*train, *flags], stderr=subprocess.DEVNULL) for flags in connected]
    if any(process.wait(_MAX_RUN_S) for process in running):
        raise Failure("the run without Ray failed")
    return _used_s() - began


def _used_s() -> float:
    """Seconds of processor time of all processes that have ended and were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def started(start: Callable[[], Any]) -> Any:
    """What `start` starts, tried again: on a busy machine Ray's half a minute is too short."""
    for _ in range(_NUM_STARTS):
        with contextlib.suppress(Exception):  # Ray raises nothing more specific
            return start()
    raise Failure(f"Ray did not start a node in {_NUM_STARTS} tries")


class Nodes:
    """A Ray cluster of this machine."""

    def __init__(self, num_nodes: int, rng: random.Random):
        from ray.cluster_utils import Cluster

        self._rng = rng
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _WATCHFUL}
        self._cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address = self._cluster.address
        self._nodes = []
        for _ in range(num_nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self._nodes.append(started(lambda: self._cluster.add_node(num_cpus=1)))

    def strike(self, kind: str) -> bool:
        """Something happens to a node; whether a job ran there."""
        node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        below = raylet.children(recursive=True)
        is_busy = any("with_parent" in " ".join(_command_of(process)) for process in below)
        if kind == "preempted":
            raylet.send_signal(signal.SIGTERM)
        else:
            raylet.kill()
        if kind == "lost":
            for process in below:
                _kill(process)
        psutil.wait_procs([raylet], timeout=60)
        self._cluster.remove_node(node, allow_graceful=False)
        return is_busy

    def close(self) -> None:
        """Ends the cluster."""
        self._cluster.shutdown()


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


class Course:
    """One launch."""

    def __init__(self, arguments, nodes: Nodes, folder: Path):
        self.folder = folder
        self._nodes = nodes
        self._stops: set[tuple[str, int]] = set()
        self._output = folder.with_suffix(".txt")
        command = [sys.executable, "-m", "cosurfgs_jax.launch", f"--address={nodes.address}"]
        command += [f"--workdir={folder}", f"--num_workers={arguments.num_workers}"]
        command += ["--max_retries=-1", *flags_of(arguments)]
        with open(self._output, "w", encoding="utf-8") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)

    def wait(self, seconds: float) -> bool:
        """Looks at it for some seconds; whether it still runs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._process.poll() is None:
            self._stops |= saved_steps(self.folder)
            time.sleep(_POLL_S)
        return self._process.poll() is None

    def disturb(self, rng: random.Random, num_kills: int, pause_s: float) -> list[dict]:
        """Lets nodes die until it ends, or so many have; what happened.

        Args:
            rng: of kinds, nodes and moments.
            num_kills: at most.
            pause_s: mean time between two.
        """
        struck = []
        while len(struck) < num_kills and self.wait(rng.uniform(0, 2 * pause_s)):
            kind = rng.choice(KINDS)
            phase = "blocks"
            if (self.folder / "logs" / "rest.log").exists() or list(
                self.folder.glob("logs/rest-*.log")
            ):
                phase = "rest"
            is_busy = self._nodes.strike(kind)
            struck.append({"kind": kind, "phase": phase, "is_busy": is_busy})
            print(f"{self.folder.name}: {struck[-1]}", flush=True)
            self.wait(_ABSENCE_S)
            self._nodes.add()
        return struck

    def finish(self, calm: Path) -> None:
        """Waits for the end and compares it with that of the run without Ray."""
        self.wait(_MAX_RUN_S)
        if self._process.poll() != 0:
            text = self._output.read_text(encoding="utf-8")
            raise Failure(f"launch: exit code {self._process.poll()}: {text[-3000:]}")
        compare(calm, self.folder, self._stops)

    def num_tries(self) -> int:
        """Tries of all processes of all jobs."""
        texts = [path.read_text(encoding="utf-8") for path in self.folder.glob("logs/*.log")]
        return sum(len(re.findall(r"^--- try ", text, re.MULTILINE)) for text in texts)


def calm_run(arguments, nodes: Nodes, calm: Path) -> dict:
    """A run with Ray that nobody disturbs; that of an earlier call, if it is there."""
    note = arguments.workdir / "undisturbed.json"
    if not note.exists():
        row = measured_run(arguments, nodes, calm, "undisturbed", lambda course: [])
        note.write_text(json.dumps(row), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def measured_run(arguments, nodes: Nodes, calm: Path, name: str, disturb) -> dict:
    """A run with Ray, compared with that without; what it took, and what struck it."""
    began = time.monotonic()
    course = Course(arguments, nodes, arguments.workdir / name)
    struck = disturb(course)
    course.finish(calm)
    row = {"wall_s": round(time.monotonic() - began, 1), "tries": course.num_tries()}
    print(f"{name}: {row}, the same bits", flush=True)
    return row | {"struck": struck}


def main() -> int:
    """Runs all, prints and writes the report; the exit code."""
    arguments = parse_arguments()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    use_cache(arguments.workdir / "cache")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    rng = random.Random(arguments.seed)
    calm = arguments.workdir / "without-ray"
    note = calm.with_suffix(".txt")
    if not note.exists():
        note.write_text(f"{without_ray(arguments, calm):.1f}", encoding="utf-8")
    report: dict = {"blocks": arguments.blocks, "nodes": arguments.nodes, "failure": ""}
    report["without_ray_processor_s"] = float(note.read_text(encoding="utf-8"))
    nodes = None
    num_left = arguments.kills
    try:
        nodes = Nodes(arguments.nodes, rng)
        rows = [calm_run(arguments, nodes, calm)]
        report["runs"] = rows
        pause_s = arguments.pause or rows[0]["wall_s"] / _KILLS_A_RUN
        while num_left > 0:

            def disturb(course: Course, most: int = num_left) -> list[dict]:
                return course.disturb(rng, most, pause_s)

            name = f"disturbed-{arguments.seed}-{len(rows)}"
            rows.append(measured_run(arguments, nodes, calm, name, disturb))
            num_left -= len(rows[-1]["struck"])
    except Failure as error:
        report["failure"] = str(error)
        print(error, file=sys.stderr)
    finally:
        if nodes is not None:
            nodes.close()
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(bool(report["failure"]))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="empty")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=1, help="processes after the blocks")
    parser.add_argument("--pause", type=float, default=0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
