"""Disturbs runs at random (kills, SIGTERM, full disks, little memory, a second program on the same
workdir), gives the same commands again, and compares the end with that of an undisturbed run.

python scripts/kill_test.py --workdir=DIR [--kills=20] [--seed=0] [--processes=1,2]
[--faults=kill,term,disk,memory,second] [--programs=train,mesh,evaluate,render,export]
[--report=FILE.json]

A small town in four blocks and two edges goes through all stages of training, in one process and in
two, then through the other programs. At a random moment of each start a fault strikes; where
processes are left, they have to end by themselves. The end has to be the same bit by bit: model,
mesh, pictures, exports, scores, curves; and no temporary file may be left. JAX's compilation cache
lies in DIR/cache and makes a start cheap; a second call uses it and the undisturbed runs again, so
delete DIR after a change of the code. Exits with 1 if anything differs, ends with a traceback, or a
survivor takes longer than a minute.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_MAX_SURVIVAL_S = 60
_MAX_STOP_S = 30  # from SIGTERM to the end
FAULTS = ("kill", "term", "disk", "memory", "second")
PROGRAMS = ("train", "mesh", "evaluate", "render", "export")
TRAIN_FLAGS = [
    "--config=configs/quickstart.py",
    "--config.generated.num_views=16",
    "--config.generated.width=96",
    "--config.generated.height=72",
    "--config.partition.num_blocks=4",
    "--config.partition.num_edges=2",
    "--config.surfels.capacity=2000",
    "--config.surfels.sh_degree=1",
    "--config.train.steps=120",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=10",
    "--config.train.test_every=0",
    "--config.lmc.recovery=0.25",
    "--config.mas.steps=30",
    "--config.mesh.num_devices=2",
]
MODULES = {
    "train": ("cosurfgs_jax.train", TRAIN_FLAGS),
    "mesh": ("cosurfgs_jax.extract_mesh", ["--format=obj", "--config.surface.voxel_size=1"]),
    "evaluate": ("cosurfgs_jax.evaluate", []),
    "render": ("cosurfgs_jax.render", ["--views=all"]),
    "export": ("cosurfgs_jax.export", ["--format=ply"]),
}
# What depends on time, or on how often a run was begun.
_PASSING = ("tensorboard", ".locks", "timings.json", "report.html")
_PASSING_NUMBERS = ("seconds", "peak_bytes_per_device")
_SCRATCH = (".unfinished-", ".orbax-checkpoint-tmp", "-unfinished-")


class Failure(Exception):
    """Something that the package promises did not hold."""


class Bench:
    """Starts the programs."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder = folder
        self.rng = rng
        self.counts: collections.Counter = collections.Counter()
        self.slowest = collections.defaultdict(float)

    def start(self, program: str, workdir: Path, num_processes: int, fault: str = ""):
        """The processes of one program, and the file of their output."""
        module, flags = MODULES[program]
        command = [sys.executable, "-m", module, f"--workdir={workdir}", *flags]
        extra = [[]]
        if program == "train" and num_processes > 1:
            port = _free_port()
            extra = [
                [
                    f"--num_processes={num_processes}",
                    f"--coordinator_address=127.0.0.1:{port}",
                    f"--process_id={number}",
                ]
                for number in range(num_processes)
            ]
        limits = _limits(fault, self.rng)
        log = self.folder / "output.txt"
        with open(log, "w", encoding="utf-8") as file:
            return log, [
                subprocess.Popen(
                    [*command, *flags_of_process],
                    stdout=file,
                    stderr=file,
                    env=_environment(self.folder / "cache"),
                    preexec_fn=limits,
                )
                for flags_of_process in extra
            ]

    def finish(self, program: str, workdir: Path, num_processes: int) -> float:
        """Runs a program to its end without a fault; the seconds it took."""
        began = time.monotonic()
        log, running = self.start(program, workdir, num_processes)
        codes = [process.wait() for process in running]
        if any(codes):
            raise Failure(f"{program}: exit codes {codes}: {_tail(log)}")
        return time.monotonic() - began

    def disturb(self, program: str, workdir: Path, num_processes: int, fault: str, most: float):
        """Starts a program and lets a fault strike; whether it did before the end."""
        log, running = self.start(program, workdir, num_processes, fault)
        began = time.monotonic()
        moment = began + self.rng.uniform(0, most)
        while time.monotonic() < moment and _are_alive(running):
            time.sleep(0.02)
        if all(process.poll() == 0 for process in running):
            return False
        stage = _stage_of(workdir, program)
        if fault in ("kill", "term"):
            self._signal(running, fault, log)
        elif fault == "second":
            self._second(program, workdir, running)
        codes = [process.wait() for process in running]
        if fault in ("disk", "memory") and not any(codes):
            return False
        if fault == "disk" and codes != [2] * len(codes) and num_processes == 1:
            raise Failure(f"{program}: a full disk: exit codes {codes}: {_tail(log)}")
        if fault != "memory" and "Traceback (most recent call last)" in log.read_text():
            raise Failure(f"{program}: a traceback after {fault}: {_tail(log)}")
        self.counts[f"{program} {stage} {num_processes} {fault}".replace("  ", " ")] += 1
        return True

    def _signal(self, running: list, fault: str, log: Path) -> None:
        """Kills one process, or asks all to stop; the others have to end by themselves."""
        victims = running
        if fault == "kill":
            victims = [self.rng.choice(running)]
        for victim in victims:
            victim.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        began = time.monotonic()
        limit = _MAX_SURVIVAL_S if fault == "kill" else _MAX_STOP_S
        for process in running:
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise Failure(f"{fault}: still there after {limit} s: {_tail(log)}") from None
            if fault == "term" and code not in (0, 143, -signal.SIGTERM) and len(running) == 1:
                raise Failure(f"SIGTERM: exit code {code}: {_tail(log)}")
        self.slowest[fault] = max(self.slowest[fault], time.monotonic() - began)

    def _second(self, program: str, workdir: Path, running: list) -> None:
        """Starts the same program once more: one of the two has to give way, with a sentence."""
        log = self.folder / "second.txt"
        module, flags = MODULES[program]
        command = [sys.executable, "-m", module, f"--workdir={workdir}", *flags]
        with open(log, "w", encoding="utf-8") as file:
            second = subprocess.Popen(
                command, stdout=file, stderr=file, env=_environment(self.folder / "cache")
            )
            code = second.wait()
        first = [process.wait() for process in running]
        told = "is under way there already"
        output = log.read_text() + (self.folder / "output.txt").read_text()
        if code == 2 or any(item == 2 for item in first):
            if told not in output:
                raise Failure(f"{program}: a second one: codes {code}, {first}: {_tail(log)}")
        elif code or any(first):
            raise Failure(f"{program}: a second one: codes {code}, {first}: {_tail(log)}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _environment(cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _limits(fault: str, rng: random.Random):
    """What a child sets for itself before the program starts."""
    if fault == "disk":
        # Small files fit, and what the program prints, which goes to a file here; others do not.
        size = rng.choice([2**14, 2**16, 2**18])
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if fault == "memory":
        size = rng.randrange(2**30, 4 * 2**30)
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))
    return None


def _are_alive(running: list) -> bool:
    return any(process.poll() is None for process in running)


def _stage_of(workdir: Path, program: str) -> str:
    """The stage that was under way: the one whose folder was made last."""
    if program != "train":
        return ""
    folders = sorted(workdir.glob("checkpoints/*"), key=lambda path: path.stat().st_ctime_ns)
    return folders[-1].name if folders else "start"


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1500:]


def _without_passing(value):
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _PASSING_NUMBERS}
        return {key: _without_passing(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_passing(item) for item in value]
    return value


def contents(workdir: Path) -> dict[str, str]:
    """Every file of a workdir by its name, with a digest of what may not depend on disturbances."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if not path.is_file() or name.startswith(_PASSING):
            continue
        if name.startswith("checkpoints"):  # only that they are there: they hold seconds
            found[name.split("/state/")[0].split("/meta/")[0]] = ""
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = json.dumps(_without_passing(json.loads(data)), sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    return {name: value for name, value in found.items() if "_METADATA" not in name}


def compare(calm: Path, wild: Path) -> None:
    """Raises Failure where two workdirs differ, or temporary files are left."""
    left = [str(path) for path in wild.rglob("*") if any(word in path.name for word in _SCRATCH)]
    left += [str(path) for path in wild.glob(".scratch/*")]
    expected = contents(calm)
    got = contents(wild)
    differ = sorted(name for name in expected.keys() | got if expected.get(name) != got.get(name))
    if left or differ:
        raise Failure(f"{wild}: left behind: {left[:5]}; other than undisturbed: {differ[:10]}")


def begin(folder: Path, program: str, num_processes: int, workdir: Path) -> None:
    """Makes the workdir that a program finds: what the undisturbed programs before it have left."""
    shutil.rmtree(workdir, ignore_errors=True)
    position = PROGRAMS.index(program)
    if position:
        shutil.copytree(folder / f"calm-{num_processes}" / PROGRAMS[position - 1], workdir)


def undisturbed(bench: Bench, program: str, num_processes: int) -> tuple[Path, float]:
    """The workdir after a program without a fault, and its seconds; those of an earlier call, if
    they are still there.
    """
    calm = bench.folder / f"calm-{num_processes}" / program
    note = calm.with_suffix(".txt")
    if not note.exists():
        begin(bench.folder, program, num_processes, calm)
        seconds = bench.finish(program, calm, num_processes)
        note.write_text(str(seconds), encoding="utf-8")
    return calm, float(note.read_text(encoding="utf-8"))


def run_one(bench: Bench, arguments, program: str, num_processes: int) -> None:
    """Disturbs one program until its share of faults has struck, and compares the ends."""
    calm, seconds = undisturbed(bench, program, num_processes)
    wild = bench.folder / f"wild-{num_processes}"
    begin(bench.folder, program, num_processes, wild)
    struck = 0
    while struck < arguments.kills and time.monotonic() < arguments.deadline:
        fault = bench.rng.choice(arguments.faults)
        if bench.disturb(program, wild, num_processes, fault, 1.1 * seconds):
            struck += 1
            continue
        # It came to its end before the fault struck.
        bench.finish(program, wild, num_processes)
        compare(calm, wild)
        begin(bench.folder, program, num_processes, wild)
    bench.finish(program, wild, num_processes)
    compare(calm, wild)
    print(f"{program}, {num_processes} process(es): {struck} faults, the same end", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=20, help="faults of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--minutes", type=float, default=1e6, help="then no more faults")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    arguments.faults = arguments.faults.split(",")
    arguments.programs = arguments.programs.split(",")
    arguments.processes = [int(number) for number in arguments.processes.split(",")]
    arguments.deadline = time.monotonic() + 60 * arguments.minutes
    return arguments


def main() -> None:
    """All programs, in one process and in several."""
    arguments = parse_arguments()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.workdir, random.Random(arguments.seed))
    failure = ""
    try:
        for num_processes in arguments.processes:
            for program in PROGRAMS:
                if num_processes > 1 and program != "train":
                    continue  # they have one process
                if program in arguments.programs:
                    run_one(bench, arguments, program, num_processes)
                elif PROGRAMS.index(program) < max(map(PROGRAMS.index, arguments.programs)):
                    undisturbed(bench, program, num_processes)
    except Failure as error:
        failure = str(error)
    result = {
        "faults": sum(bench.counts.values()),
        "by_kind": dict(sorted(bench.counts.items())),
        "slowest_s": {fault: round(value, 1) for fault, value in bench.slowest.items()},
        "failure": failure,
    }
    print(json.dumps(result, indent=1))
    if arguments.report:
        arguments.report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(failure))


if __name__ == "__main__":
    main()
