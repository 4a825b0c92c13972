"""Kills processes of a run at random, starts them again, and compares the end with that of an
undisturbed run.

python scripts/kill_test.py --workdir=DIR [--kills=20] [--seed=0]

A small town in four blocks, two processes of two virtual devices each. Every time one process is
killed (SIGKILL) at a random moment, the script waits for the other to end by itself, notes how long
that took, and starts both again with the same command. Exits with 1 if the models differ by a bit,
or a survivor took longer than a minute."""

import argparse
import hashlib
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

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
    return hashlib.sha256(paths[-1].read_bytes()).hexdigest()[:16] if paths else "none"


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
    chance = random.Random(arguments.seed)
    slowest = 0.0
    num_kills = 0
    with open(arguments.workdir / "log.txt", "w", encoding="utf-8") as log:
        shutil.rmtree(calm, ignore_errors=True)
        started = time.monotonic()
        pair = start(calm, log)
        while not any(calm.glob("checkpoints/device/[0-9]*")) and pair[0].poll() is None:
            time.sleep(0.05)
        begin = time.monotonic() - started
        codes = [process.wait() for process in pair]
        length = time.monotonic() - started
        # Late enough that some tries get somewhere, early enough that the run is not over before
        # the last kill.
        latest = 1.6 * begin
        print(
            f"undisturbed: exit codes {codes}, {length:.0f} s, first checkpoint after {begin:.0f} "
            f"s, model {digest(calm)}",
            flush=True,
        )
        shutil.rmtree(wild, ignore_errors=True)
        while True:
            pair = start(wild, log)
            victim = chance.randrange(2)
            wait = chance.uniform(1.0, latest) if num_kills < arguments.kills else 1e9
            ended = time.monotonic() + wait
            while time.monotonic() < ended and any(process.poll() is None for process in pair):
                time.sleep(0.05)
            if all(process.poll() == 0 for process in pair):
                break
            pair[victim].kill()
            killed = time.monotonic()
            code = pair[1 - victim].wait()
            num_kills += 1
            took = time.monotonic() - killed
            slowest = max(slowest, took)
            print(
                f"kill {num_kills}: process {victim} after {wait:.1f} s; the other ended "
                f"{took:.1f} s later, code {code}",
                flush=True,
            )
    same = digest(calm) == digest(wild)
    print(
        f"{num_kills} kills: model {digest(wild)}, {'the same bits' if same else 'ANOTHER MODEL'}; "
        "slowest end of a survivor "
        f"{slowest:.1f} s"
    )
    sys.exit(0 if same and slowest < 60 and num_kills >= arguments.kills else 1)


if __name__ == "__main__":
    main()
