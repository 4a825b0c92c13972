"""Kills processes of a run at random, starts them again, and compares the end with that of an
undisturbed run.

python scripts/kill_test.py --workdir=DIR [--kills=20] [--seed=0]

A small town in four blocks, two processes of two virtual devices each. Every time one process is
killed (SIGKILL) at a random moment, the script waits for the other to end by itself, notes how long
that took, and starts both again with the same command. Exits with 1 if the models are not
bit-identical, or a survivor took longer than a minute.
"""

import argparse
import hashlib
import math
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

_MAX_SURVIVAL_S = 60
FLAGS = [
    "--config=configs/quickstart.py",
    "--config.generated.num_views=24",
    "--config.generated.width=160",
    "--config.generated.height=120",
    "--config.partition.num_blocks=4",
    "--config.partition.num_edges=2",
    "--config.mesh.num_devices=4",
    "--config.train.test_every=0",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=20",
    "--config.train.steps=800",
    "--config.mas.steps=60",
]


def start(workdir: Path, log) -> list[subprocess.Popen]:
    """Both processes of the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cosurfgs_jax.train",
                f"--workdir={workdir}",
                *FLAGS,
                "--num_processes=2",
                f"--coordinator_address=127.0.0.1:{port}",
                f"--process_id={i}",
            ],
            stdout=log,
            stderr=log,
        )
        for i in range(2)
    ]


def digest(workdir: Path) -> str:
    """Of the merged model's file."""
    paths = sorted(workdir.glob("point_cloud/iteration_*/point_cloud.ply"))
    if not paths:
        return "none"
    return hashlib.sha256(paths[-1].read_bytes()).hexdigest()[:16]


def run_undisturbed(workdir: Path, log) -> float:
    """Runs to the end; seconds to the first checkpoint."""
    shutil.rmtree(workdir, ignore_errors=True)
    started = time.monotonic()
    pair = start(workdir, log)
    while not any(workdir.glob("checkpoints/device/[0-9]*")) and pair[0].poll() is None:
        time.sleep(0.05)
    to_checkpoint = time.monotonic() - started
    codes = [process.wait() for process in pair]
    print(
        f"undisturbed: exit codes {codes}, {time.monotonic() - started:.0f} s, first checkpoint "
        f"after {to_checkpoint:.0f} s, model {digest(workdir)}",
        flush=True,
    )
    return to_checkpoint


def run_disturbed(
    workdir: Path, log, rng: random.Random, num_kills: int, max_wait: float
) -> tuple[int, float]:
    """Runs to the end, with kills on the way.

    Args:
        workdir: emptied first.
        log: file for the output of the processes.
        rng: of moments and victims.
        num_kills: after which nothing is killed any more.
        max_wait: seconds from a start to a kill.
    Returns:
        The number of kills, and the seconds that the slowest survivor took to end.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    slowest = 0.0
    killed = 0
    while True:
        pair = start(workdir, log)
        victim = rng.randrange(2)
        wait = math.inf
        if killed < num_kills:
            wait = rng.uniform(1.0, max_wait)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and any(process.poll() is None for process in pair):
            time.sleep(0.05)
        if all(process.poll() == 0 for process in pair):
            return killed, slowest
        pair[victim].kill()
        kill_time = time.monotonic()
        code = pair[1 - victim].wait()
        killed += 1
        seconds = time.monotonic() - kill_time
        slowest = max(slowest, seconds)
        print(
            f"kill {killed}: process {victim} after {wait:.1f} s; the other ended "
            f"{seconds:.1f} s later, code {code}",
            flush=True,
        )


def main() -> None:
    """Undisturbed, then disturbed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    calm = arguments.workdir / "calm"
    wild = arguments.workdir / "wild"
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    rng = random.Random(arguments.seed)
    with open(arguments.workdir / "log.txt", "w", encoding="utf-8") as log:
        to_checkpoint = run_undisturbed(calm, log)
        # Late enough that some starts reach a checkpoint, early enough that the run does not end
        # before the last kill.
        num_kills, slowest = run_disturbed(wild, log, rng, arguments.kills, 1.6 * to_checkpoint)
    is_same = digest(calm) == digest(wild)
    result = "bit-identical" if is_same else "ANOTHER MODEL"
    print(
        f"{num_kills} kills: model {digest(wild)}, {result}; slowest end of a survivor "
        f"{slowest:.1f} s"
    )
    is_passed = is_same and slowest < _MAX_SURVIVAL_S and num_kills >= arguments.kills
    sys.exit(not is_passed)


if __name__ == "__main__":
    main()
