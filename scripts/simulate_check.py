"""Measures the profile that scripts/simulate_city.py takes, on this machine's CPU, and compares
what it foretells with real runs of the generated town in 4, 8 and 16 blocks.

python scripts/simulate_check.py --workdir=DIR [--blocks=4,8,16] [--report=FILE.json]

The profile (DIR/profile.json) is that of `planning`'s trials on the town of four blocks. They have
one size of photographs: what does not grow with the surfels is taken to grow with the pixels. A run
trains its blocks one after the other on one device (`train --blocks`), then distils them on one
virtual device for each (`train`); all of it on the cores that this process may use. Times are of
the processor. The simulation knows of a run what its settings and its partition say.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_STEPS = 100
_MAS_STEPS = 20
_SIZE = (108, 144)  # (H, W) of photographs
_CAPACITY_A_BLOCK = 4000
_POLL_S = 0.2


def settings_of(num_blocks: int, num_edges: int = 1):
    """Of a town that grows with the blocks."""
    from cosurfgs_jax.settings import (
        GeneratedSettings,
        MasSettings,
        MeshSettings,
        PartitionSettings,
        Settings,
        SurfelSettings,
        TrainSettings,
    )

    height, width = _SIZE
    return Settings(
        generated=GeneratedSettings(
            num_views=14 * num_blocks, width=width, height=height, size_m=50.0 * num_blocks**0.5
        ),
        surfels=SurfelSettings(sh_degree=1, capacity=_CAPACITY_A_BLOCK * num_blocks),
        partition=PartitionSettings(num_blocks=num_blocks, num_edges=num_edges),
        mesh=MeshSettings(num_devices=num_blocks),
        mas=MasSettings(steps=_MAS_STEPS),
        train=TrainSettings(steps=_STEPS, checkpoint_every=100, log_every=50, test_every=0),
    )


def flags_of(settings) -> list[str]:
    """The settings as flags of `train`."""
    from cosurfgs_jax import settings_file
    from cosurfgs_jax.settings import Settings

    default = {name: value for name, _, value in settings_file.leaves(Settings())}
    given = {name: value for name, _, value in settings_file.leaves(settings)}
    return [f"--config.{name}={value}" for name, value in given.items() if value != default[name]]


def trials() -> dict:
    """What the trials of the town of four blocks find, per block; in a process of its own."""
    import tempfile

    from cosurfgs_jax import host_memory, program

    host_memory.keep_freed()
    settings = settings_of(4, num_edges=2)
    program.start_devices(settings.mesh.num_devices)
    from cosurfgs_jax.planning import forecast, timed
    from cosurfgs_jax.planning.measured import measure
    from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
    from cosurfgs_jax.workdir import Workdir

    imported = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        place = Workdir(Path(folder))
        open_partitioned_scene(settings, place)  # makes the town
        partitioned, opening = timed(lambda: open_partitioned_scene(settings, place))
        subject = forecast.subject_of(settings, partitioned)
        found = measure(subject, True)
    course = subject.course
    num = subject.sizes.num_blocks
    times = found.times

    def one(cost) -> list[float]:
        return [float(cost.compile_s[1]), float(cost.run_s[1]) / num]

    return {
        "num_pixels": subject.sizes.num_pixels,
        "first": course.spans[0].num_surfels / num,
        "full": course.num_surfels / num,
        "num_slots": course.num_slots,
        "cell_slots": subject.sizes.cell_slots,
        "steps": [
            {
                "kind": "geometric" if shape.has_geometry else "photometric",
                "compile_s": float(cost.compile_s[1]),
                "first_s": float(cost.first_s[1]) / num,
                "full_s": float(cost.full_s[1]) / num,
            }
            for shape, cost in found.steps.items()
        ],
        "control": one(found.control),
        "compression": one(found.compression),
        "distillation": {name: one(cost.step) for name, cost in found.distillation.items()},
        "drawing": one(times.drawing),
        "scoring": one(times.scoring),
        "merged_scoring": one(times.merged_scoring),
        "teaching": one(times.teaching),
        "start_s": float(times.start[1]) / num,
        "decode_s": float(times.decoding[1]),
        "open_s": imported + float(opening[1]),
        "host": found.memory._asdict() | {"transients": found.transients},
    }


def profile_from(found: dict) -> dict:
    """Coefficients from the trials, none below zero."""
    num_pixels = found["num_pixels"]
    profile: dict = {"name": "this machine's CPU, one core"}
    for kind in ("photometric", "geometric"):
        steps = [step for step in found["steps"] if step["kind"] == kind]
        first = np.mean([step["first_s"] for step in steps])
        full = np.mean([step["full_s"] for step in steps])
        a_surfel = max(0.0, (full - first) / max(1, found["full"] - found["first"]))
        a_pixel = max(0.0, full - a_surfel * found["full"]) / num_pixels
        profile[kind] = [0.0, float(a_surfel), float(a_pixel)]
    # A step of the edges has one partner, of the cloud three.
    edge, cloud = (found["distillation"][name][1] for name in ("edge", "cloud"))
    partner = max(0.0, (cloud - edge) / 2)
    profile["partner"] = [0.0, 0.0, partner / num_pixels]
    profile["distillation"] = [0.0, 0.0, (edge - partner) / num_pixels]
    _, a_surfel, a_pixel = profile["photometric"]
    picture = a_surfel * found["full"] + a_pixel * num_pixels
    for name in ("compression", "drawing", "scoring", "teaching"):
        profile[name] = found[name][1] / picture
    all_cells = found["merged_scoring"][1] / picture
    profile["scoring_partner"] = max(0.0, all_cells - profile["scoring"]) / 3
    profile["control_s"] = found["control"][1] / found["num_slots"]
    profile["start_s"] = found["start_s"] / found["first"]
    profile["decode_s"] = found["decode_s"] / num_pixels
    profile["open_s"] = found["open_s"]
    names = ("control", "compression", "drawing", "teaching")
    profile["compile_s"] = {name: found[name][0] for name in names} | {
        "step": float(np.mean([step["compile_s"] for step in found["steps"]])),
        "distillation": found["distillation"]["cloud"][0],
        "scoring": found["merged_scoring"][0],
    }
    profile["host"] = found["host"] | {"num_pixels": num_pixels}
    return profile


def case_of(settings, workdir: Path):
    """What the simulation is told of a run: counts of its partition."""
    import simulate_city

    from cosurfgs_jax.collab.needs import cell_fractions
    from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
    from cosurfgs_jax.workdir import Workdir

    partitioned = open_partitioned_scene(settings, Workdir(workdir))
    blocks = partitioned.blocks
    height, width = (int(size) for size in partitioned.scene.views.image_sizes.max(axis=0))
    return simulate_city.Case(
        name=f"{len(blocks)} blocks",
        num_photos=partitioned.scene.num_views,
        num_surfels=0,
        num_points=len(partitioned.scene.cloud),
        num_blocks=len(blocks),
        blocks_per_host=len(blocks),
        photo_size=(height, width),
        views_per_block=round(np.mean([len(block.views) for block in blocks])),
        capacity=round(np.mean([block.capacity for block in blocks])),
        num_initial=round(np.mean([block.num_initial for block in blocks])),
        fraction=float(cell_fractions(partitioned).mean()),
    )


class Watched:
    """A program that runs: its processor time, its memory, and the disk of its workdir."""

    def __init__(self, flags: list[str], workdir: Path):
        self.disk = 0
        command = [sys.executable, "-m", "cosurfgs_jax.train", f"--workdir={workdir}", *flags]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        ended = 0
        while not ended:
            time.sleep(_POLL_S)
            self.disk = max(self.disk, _size_of(workdir))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        self.seconds = usage.ru_utime + usage.ru_stime
        self.memory = usage.ru_maxrss * 1024


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def compared(num_blocks: int, profile: dict, folder: Path) -> dict:
    """A real run and a simulated one: (simulated, real) of each figure."""
    import simulate_city

    settings = settings_of(num_blocks)
    workdir = folder / f"blocks-{num_blocks}"
    case = case_of(settings, workdir)
    flags = flags_of(settings)
    alone = Watched([*flags, "--blocks=0/1"], workdir)
    rest = Watched(flags, workdir)
    machine = simulate_city.Machine(profile, num_shared=case.num_blocks)
    partners = min(case.num_blocks - 1, settings.mas.max_partners)
    course = simulate_city.course_of(case, settings, machine, partners)
    return {
        "blocks_s": (course.block_s, alone.seconds),
        "rest_s": (course.distill_s + course.score_s, rest.seconds),
        "all_s": (
            course.block_s + course.distill_s + course.score_s,
            alone.seconds + rest.seconds,
        ),
        "memory": (course.host_bytes, max(alone.memory, rest.memory)),
        "disk": (course.disk_bytes, max(alone.disk, rest.disk)),
        "case": case._asdict(),
    }


def main() -> int:
    """Flags -> profile, runs, table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--blocks", default="4,8,16")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trial:
        print(json.dumps(trials()))
        return 0
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    target = arguments.workdir / "profile.json"
    if not target.exists():
        command = [sys.executable, __file__, "--workdir=.", "--trial"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(result.stdout.splitlines()[-1])
        target.with_name("trials.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        target.write_text(json.dumps(profile_from(found), indent=1), encoding="utf-8")
    profile = json.loads(target.read_text(encoding="utf-8"))
    rows = []
    print("| blocks | figure | simulated | real | error |\n|--|--|--|--|--|")
    for num_blocks in map(int, arguments.blocks.split(",")):
        row = compared(num_blocks, profile, arguments.workdir)
        rows.append(row)
        for name, value in row.items():
            if name != "case":
                simulated, real = value
                print(
                    f"| {num_blocks} | {name} | {simulated:.4g} | {real:.4g} | "
                    f"{simulated / real - 1:+.0%} |",
                    flush=True,
                )
    if arguments.report:
        arguments.report.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
