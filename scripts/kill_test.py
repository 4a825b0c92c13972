"""Disturbs runs at random (kills, SIGTERM, full disks, little memory, a second program on the same
workdir), gives the same commands again, and compares the end with that of an undisturbed run.

python scripts/kill_test.py --workdir=DIR [--kills=20] [--seed=0] [--processes=1,2]
[--faults=kill,term,disk,memory,second] [--programs=train,mesh,evaluate,...] [--minutes=M]
[--patience=TIMES] [--report=FILE.json]

A small town in four blocks and two edges goes through all stages of training, in one process and in
two, then through the other programs. Its blocks are trained by jobs of their own, too (`blocks`),
with which a run goes on (`join`): by one job for two of the blocks, of which the run trains the
others, and by two jobs at a time for a run of two processes; both also in the compact form.

At a random moment of each start a fault strikes; where processes are left, they have to end by
themselves. The end has to be the same bit by bit: the arrays of checkpoints, model, mesh, pictures,
exports, scores, curves (but for the row of means in which SIGTERM stopped a run); and no temporary
file may be left. Exits with 1 if anything differs, ends with a traceback, or a survivor takes
longer than a minute; what failed lies in DIR/failed-<number>, and the others go on.

The undisturbed runs start as users start them. The disturbed ones are forked from this process,
which has imported already what they import, and take what they compile from JAX's cache in
DIR/cache, or that of the environment. A second call uses the cache and the undisturbed runs again:
delete DIR after a change of the code.
"""

import argparse
import collections
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from program_starter import Forked, import_programs  # noqa: E402
from run_ends import Failure, compare, compare_models, saved_steps  # noqa: E402

_MAX_SURVIVAL_S = 60
_MAX_STOP_S = 30  # from SIGTERM to the end
_MAX_RUN_S = 600  # of a program that nothing holds up
_REACH = 0.6  # share of an undisturbed run in which a fault strikes: several on the way to one end
FAULTS = ("kill", "term", "disk", "memory", "second")
TRAIN_FLAGS = [
    "--config=configs/quickstart.py",
    "--config.generated.num_views=16",
    "--config.generated.width=96",
    "--config.generated.height=72",
    "--config.partition.num_blocks=4",
    "--config.partition.num_edges=2",
    "--config.surfels.capacity=2000",
    "--config.density.min_slots=1",  # so that arrays grow on the way
    "--config.surfels.sh_degree=1",
    "--config.train.steps=60",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=10",
    "--config.train.test_every=0",
    "--config.lmc.recovery=0.25",
    "--config.mas.steps=12",
    "--config.mesh.num_devices=2",
]
COMPACT_FLAGS = [*TRAIN_FLAGS, "--config.lmc.compact"]


class Program(NamedTuple):
    """A command of a user."""

    module: str
    flags: list[str]
    after: str = ""  # the program with whose end it begins
    is_of_jobs: bool = False  # its processes do not know of each other
    has_processes: bool = False  # it may have several


_TRAIN = "cosurfgs_jax.train"
PROGRAMS = {
    "train": Program(_TRAIN, TRAIN_FLAGS, has_processes=True),
    "mesh": Program(
        "cosurfgs_jax.extract_mesh", ["--format=obj", "--config.surface.voxel_size=1"], "train"
    ),
    "evaluate": Program("cosurfgs_jax.evaluate", [], "mesh"),
    "render": Program("cosurfgs_jax.render", ["--views=all"], "evaluate"),
    "export": Program("cosurfgs_jax.export", ["--format=ply"], "render"),
    "blocks": Program(_TRAIN, TRAIN_FLAGS, is_of_jobs=True, has_processes=True),
    "join": Program(_TRAIN, TRAIN_FLAGS, "blocks", has_processes=True),
    "compact_blocks": Program(_TRAIN, COMPACT_FLAGS, is_of_jobs=True, has_processes=True),
    "compact_join": Program(_TRAIN, COMPACT_FLAGS, "compact_blocks", has_processes=True),
}


class Bench:
    """Starts the programs."""

    def __init__(self, folder: Path, rng: random.Random, patience: float):
        self.folder = folder
        self.rng = rng
        self.patience = patience
        self.counts: collections.Counter = collections.Counter()
        self.slowest = collections.defaultdict(float)
        self.log = folder / f"output-{os.getpid()}.txt"
        self.wild = folder / f"wild-{os.getpid()}"
        self.running: list = []
        self.stops: set[tuple[str, int]] = set()  # of the present workdir
        self.num_struck = 0  # of the present program
        self.num_ends = 0  # compared
        self.failures: list[str] = []
        self.began = time.monotonic()

    def start(self, program: str, workdir: Path, num_processes: int, limits=(), is_fresh=False):
        """The processes of one program, forked or each in a Python of its own; what they print goes
        to `log`.
        """
        self.log.write_text("")
        self.running = []
        for command in _commands(program, workdir, num_processes):
            if is_fresh:
                with open(self.log, "a", encoding="utf-8") as file:
                    whole = [sys.executable, "-m", *command]
                    self.running.append(subprocess.Popen(whole, stdout=file, stderr=file))
            else:
                self.running.append(Forked(command, self.log, limits))
        return self.running

    def finish(self, program: str, workdir: Path, num_processes: int, is_fresh=False) -> float:
        """Runs a program to its end without a fault; the seconds of processor time it took."""
        began = _used_s()
        codes = self._ends(self.start(program, workdir, num_processes, is_fresh=is_fresh))
        if any(codes):
            raise Failure(f"{program}: exit codes {codes}: {_tail(self.log)}")
        return _used_s() - began

    def disturb(self, program: str, workdir: Path, num_processes: int, fault: str, most: float):
        """Starts a program and lets a fault strike; whether it did before the end."""
        limits = _limits(fault, self.rng)
        running = self.start(program, workdir, num_processes, limits)
        # In processor time: what else the machine does is no matter.
        moment = self.rng.uniform(0, most)
        while any(each.poll() is None for each in running):
            if sum(process.used_s() for process in running) > moment:
                break
            time.sleep(0.02)
        codes = [process.poll() for process in running]
        if codes == [0] * len(codes):
            return False
        if not limits and any(codes):
            raise Failure(f"{program}: ended before {fault}: {codes}: {_tail(self.log)}")
        stage = _stage_of(workdir, program)
        are_alone = num_processes == 1 or PROGRAMS[program].is_of_jobs
        if fault in ("kill", "term"):
            self._signal(fault, are_alone)
        elif fault == "second":
            self._second(program, workdir)
        codes = self._ends(running)
        if fault == "term":
            self.stops |= saved_steps(workdir)
        if fault in ("kill", "disk", "memory") and not any(codes):
            return False
        if fault == "disk" and are_alone and any(code not in (0, 2) for code in codes):
            raise Failure(f"{program}: a full disk: exit codes {codes}: {_tail(self.log)}")
        if "Traceback (most recent call last)" in self.log.read_text():
            raise Failure(f"{program}: a traceback after {fault}: {_tail(self.log)}")
        self.counts[f"{program} {stage} {num_processes} {fault}".replace("  ", " ")] += 1
        self.num_struck += 1
        return True

    def _ends(self, running: list[Forked], limit: float = _MAX_RUN_S) -> list[int]:
        """The exit codes of processes, which end by themselves."""
        deadline = time.monotonic() + self.patience * limit
        try:
            return [process.wait(deadline - time.monotonic()) for process in running]
        except subprocess.TimeoutExpired:
            raise Failure(f"still there after {limit} s: {_tail(self.log)}") from None

    def _signal(self, fault: str, are_alone: bool) -> None:
        """Kills one process or all, or asks all to stop; what is left has to end by itself, and
        jobs of their own as if nothing had happened.
        """
        victims = self.running
        if fault == "kill" and self.rng.random() < 0.5:
            victims = [self.rng.choice(self.running)]
        for victim in victims:
            victim.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        began = time.monotonic()
        limit = _MAX_STOP_S
        if fault == "kill":
            limit = _MAX_RUN_S if are_alone else _MAX_SURVIVAL_S
        expected = (0, 143, -signal.SIGTERM, -signal.SIGKILL)
        codes = self._ends(self.running, limit)
        if are_alone and any(code not in expected for code in codes):
            raise Failure(f"{fault}: exit codes {codes}: {_tail(self.log)}")
        if fault == "term" or not are_alone:  # a job goes on for as long as it takes
            self.slowest[fault] = max(self.slowest[fault], time.monotonic() - began)

    def _second(self, program: str, workdir: Path) -> None:
        """Starts the same program once more: one of the two has to give way, with a sentence."""
        log = self.log.with_suffix(".second.txt")
        log.write_text("")
        second = Forked(_commands(program, workdir, 1)[0], log)
        self.running.append(second)
        codes = self._ends([second, *self.running[:-1]])
        output = log.read_text() + self.log.read_text()
        is_told = re.search("is under way there already|jobs of their own train", output)
        if any(code not in (0, 2) for code in codes) or (2 in codes and not is_told):
            raise Failure(f"{program}: a second one: codes {codes}: {_tail(log)}")

    def report(self) -> dict:
        """What struck, and what failed."""
        return {
            "faults": sum(self.counts.values()) + len(self.failures),
            "ends_compared": self.num_ends,
            "by_kind": dict(sorted(self.counts.items())),
            "slowest_s": {fault: round(value, 1) for fault, value in self.slowest.items()},
            "wall_s": round(time.monotonic() - self.began),
            "processor_s": round(_used_s()),
            "failures": self.failures,
        }

    def wants_more(self, arguments) -> bool:
        """Whether more faults shall strike the present program."""
        return self.num_struck < arguments.kills and time.monotonic() < arguments.deadline

    def set_aside(self, failure: str) -> None:
        """Ends what a failure has left running, and keeps its workdir."""
        for process in self.running:
            process.send_signal(signal.SIGKILL)
            process.wait(_MAX_SURVIVAL_S)
        self.failures.append(failure)
        self.num_struck += 1
        target = self.folder / f"failed-{os.getpid()}-{len(self.failures)}"
        self.wild.rename(target)
        target.with_suffix(".txt").write_text(failure + "\n" + self.log.read_text())
        print(f"{failure}\n{target}", flush=True)


def _used_s() -> float:
    """Seconds of processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _commands(program: str, workdir: Path, num_processes: int) -> list[list[str]]:
    """The command of each process of a program."""
    spec = PROGRAMS[program]
    command = [spec.module, f"--workdir={workdir}", *spec.flags]
    numbers = range(num_processes)
    if spec.is_of_jobs:
        return [[*command, f"--blocks={number}/2"] for number in numbers]
    if num_processes < 2:
        return [command]
    address = f"127.0.0.1:{free_port()}"
    command += [f"--num_processes={num_processes}", f"--coordinator_address={address}"]
    return [[*command, f"--process_id={number}"] for number in numbers]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def use_cache(cache: Path) -> None:
    """JAX's compilation cache for this process and all that it starts; before JAX is imported."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _limits(fault: str, rng: random.Random) -> list[tuple[int, int]]:
    """Limits that a process has from its start."""
    if fault == "disk":
        # Small files fit, and what the program prints, which goes to a file here; others do not.
        return [(resource.RLIMIT_FSIZE, rng.choice([2**14, 2**16, 2**18]))]
    if fault == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return [(resource.RLIMIT_AS, pages * resource.getpagesize() + rng.randrange(3 * 2**30))]
    return []


def _stage_of(workdir: Path, program: str) -> str:
    """The stage that was under way: the one whose folder was made last."""
    if not PROGRAMS[program].has_processes:
        return ""
    found = [*workdir.glob("checkpoints/*/"), *workdir.glob("blocks/*/checkpoints/*/")]
    folders = sorted(found, key=lambda path: path.stat().st_ctime_ns)
    return folders[-1].name if folders else "start"


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1500:]


def begin(bench: Bench, program: str, num_processes: int, workdir: Path) -> None:
    """Makes the workdir that a program finds: what the undisturbed programs before it have left."""
    before = PROGRAMS[program].after
    if before:
        calm, _ = undisturbed(bench, before, num_processes)
    shutil.rmtree(workdir, ignore_errors=True)
    if before:
        shutil.copytree(calm, workdir)


def undisturbed(bench: Bench, program: str, num_processes: int) -> tuple[Path, float]:
    """The workdir after a program without a fault, and the seconds of processor time of one whose
    programs are compiled already; those of an earlier call, if they are still there.
    """
    calm = bench.folder / f"calm-{num_processes}" / program
    note = calm.with_suffix(".txt")
    if not note.exists():
        begin(bench, program, num_processes, calm)
        bench.finish(program, calm, num_processes, is_fresh=True)
        begin(bench, program, num_processes, bench.wild)
        seconds = bench.finish(program, bench.wild, num_processes)
        compare(calm, bench.wild, bench.stops)
        if program == "join":
            together, _ = undisturbed(bench, "train", num_processes)
            compare_models(together, calm)
        note.write_text(str(seconds), encoding="utf-8")
    return calm, float(note.read_text(encoding="utf-8"))


def disturb_until_end(bench: Bench, arguments, program: str, num_processes: int) -> None:
    """Disturbs one workdir until a start comes to its end, or enough faults have struck, and
    compares.
    """
    calm, seconds = undisturbed(bench, program, num_processes)
    begin(bench, program, num_processes, bench.wild)
    bench.stops = set()
    is_open = True
    while is_open and bench.wants_more(arguments):
        fault = bench.rng.choice(arguments.faults)
        is_open = bench.disturb(program, bench.wild, num_processes, fault, _REACH * seconds)
    bench.finish(program, bench.wild, num_processes)
    compare(calm, bench.wild, bench.stops)
    bench.num_ends += 1


def run_one(bench: Bench, arguments, program: str, num_processes: int) -> None:
    """Lets a program's share of faults strike. What failed is set aside, and the others go on."""
    undisturbed(bench, program, num_processes)
    bench.num_struck = 0
    while bench.wants_more(arguments):
        try:
            disturb_until_end(bench, arguments, program, num_processes)
        except Failure as error:
            bench.set_aside(str(error))
    print(f"{program}, {num_processes} process(es): {bench.num_struck} faults", flush=True)


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
    parser.add_argument("--patience", type=float, default=1, help="times the limits of time")
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
    folder = arguments.workdir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    use_cache(folder / "cache")
    import_programs()
    bench = Bench(folder, random.Random(arguments.seed), arguments.patience)
    for num_processes in arguments.processes:
        for program in PROGRAMS:
            is_wanted = num_processes == 1 or PROGRAMS[program].has_processes
            if is_wanted and program in arguments.programs:
                run_one(bench, arguments, program, num_processes)
                if arguments.report:
                    text = json.dumps(bench.report(), indent=1) + "\n"
                    arguments.report.write_text(text, encoding="utf-8")
    shutil.rmtree(bench.wild, ignore_errors=True)
    print(json.dumps(bench.report(), indent=1))
    sys.exit(bool(bench.failures))


if __name__ == "__main__":
    main()
