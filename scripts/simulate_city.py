"""What a run takes on a cluster that is not here: hours, memory, disk, traffic and price.

python scripts/simulate_city.py [--cases=Rubble,Matrix,City,1000] [--machine=FILE.json]
[--price=3.0] [--mtbf_hours=2000] [--network_gbps=100] [--out=FILE.json]

The place of a case is cut into equal blocks, each with an equal share of its photographs, points
and surfels. What follows is that of `cosurfgs plan`: course and sizes, memory and disk from them,
and the times of stages (`planning`), given what a step takes. `launch` is what runs it: blocks as
jobs of a device each, in any order, then distillation on one device for each block together.

What a step takes comes from a profile of the machine (`scripts/simulate_check.py` measures one):
seconds = per call + per surfel x surfels of the block + per pixel x pixels that are drawn. Without
--machine it is an H200 by the predictions of docs/cuda.md: NOT measured.

Devices fail at random, each once in --mtbf_hours: an independent job loses what it did since its
last checkpoint and begins again; when one device of distillation fails, all of them do.
"""

import argparse
import heapq
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from city_cases import CASES, Case, place_of

from cosurfgs_jax.collab import needs, peaks
from cosurfgs_jax.collab.needs import ProgramBytes
from cosurfgs_jax.collab.peaks import Process
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.planning.block_trials import Cost, StepCost
from cosurfgs_jax.planning.distillation_trials import DistillationCost
from cosurfgs_jax.planning.measured import HostMemory, Measured, Subject, Times, recovery_shape
from cosurfgs_jax.planning.stage_times import StageTime, stage_times
from cosurfgs_jax.settings import PartitionSettings, Settings, TrainSettings
from cosurfgs_jax.training.partitioned_scene import PartitionedScene

_IMAGE_BYTES = 72  # of a pixel that a partner sends: nine floats, and as many gradients
_NUM_DRAWS = 20  # of the failures of a case
_MAX_HOURS = 1000  # of a run; longer ones fail again before they end
# Of reading a dataset and cutting it into blocks, in the first process, for which all others wait:
# scripts/bench_place.py.
_OPEN_POINT_S = 1.7e-5  # for each point, of five millions
_OPEN_POINT_BYTES = 480
_RESTART_S = 60  # of a job, besides what it compiles


# Rasterizer: docs/cuda.md, "with blending", of four cases within 10 %. Geometric losses: 1.45 times
# the photometric step on a CPU, with remembered depth. Compiling: of the same programs on a CPU.
PREDICTED_H200 = {
    "name": "H200 (predicted)",
    "photometric": [0.00075, 1.35e-9, 1.1e-9],
    "geometric": [0.0011, 1.96e-9, 1.6e-9],
    "distillation": [0.0011, 1.96e-9, 1.6e-9],
    "partner": [0.0005, 0.2e-9, 0.5e-9],
    "compression": 1.0,
    "drawing": 0.5,
    "scoring": 2.0,
    "scoring_partner": 0.5,
    "teaching": 1.0,
    "control_s": 5e-9,
    "start_s": 1e-5,
    "decode_s": 6e-8,
    "compile_s": dict.fromkeys(
        ("step", "control", "compression", "distillation", "drawing", "scoring", "teaching"), 12.0
    ),
    "open_s": 30.0,
    "host": None,
}


class Machine:
    """What parts of a run take on a device, by its profile.

    Args:
        profile: as `PREDICTED_H200`.
        num_shared: blocks that share a device, one after the other: as jobs of one process, each of
            which compiles its own programs, and in distillation, where all have one.
        network_bytes_s: that a device sends.
    """

    def __init__(self, profile: dict, num_shared: int = 1, network_bytes_s: float = math.inf):
        self.profile = profile
        self._num_shared = num_shared
        self._network_bytes_s = network_bytes_s

    def seconds(self, kind: str, num_surfels: float, num_pixels: float) -> float:
        """Of a step of one block."""
        call, a_surfel, a_pixel = self.profile[kind]
        return call + a_surfel * num_surfels + a_pixel * num_pixels

    def measured(
        self, subject: Subject, num_partners: int, *, is_of_jobs: bool = False
    ) -> Measured:
        """What the trials of a run would have found.

        Args:
            subject: what is planned.
            num_partners: in distillation.
            is_of_jobs: whether blocks are trained by jobs of their own.
        """
        sizes = subject.sizes
        course = subject.course
        profile = self.profile
        num_shared = self._num_shared
        num_compiled = num_shared if is_of_jobs else 1
        num_there = len(subject.partitioned.blocks)
        full = course.num_surfels / num_there
        first = course.spans[0].num_surfels / num_there
        compile_s = profile["compile_s"]

        def cost(kind: str, seconds: float) -> Cost:
            return Cost(_both(num_compiled * compile_s[kind]), _both(seconds * num_shared))

        steps = {}
        for shape in {*course.shapes, recovery_shape(subject.settings)}:
            kind = "geometric" if shape.has_geometry else "photometric"
            pixels = sizes.num_pixels / shape.dilation**2
            times = [self.seconds(kind, count, pixels) for count in (first, full)]
            steps[shape] = StepCost(
                _both(num_compiled * compile_s["step"]),
                *(_both(num_shared * time) for time in times),
                0,
            )
        picture = self.seconds("photometric", full, sizes.num_pixels)
        own = self.seconds("distillation", sizes.cell_slots, sizes.num_pixels)
        partner = self.seconds("partner", sizes.cell_slots, sizes.num_pixels)
        moved = num_partners * _IMAGE_BYTES * sizes.num_pixels
        step = cost("distillation", own + num_partners * partner)
        step = step._replace(run_s=step.run_s + moved / self._network_bytes_s)
        num_blocks = subject.partitioned.partition.num_blocks  # all draw what a test view shows
        merged = profile["scoring"] + profile["scoring_partner"] * (num_blocks - 1)
        return Measured(
            steps=steps,
            control=cost("control", profile["control_s"] * course.num_slots),
            compression=cost("compression", profile["compression"] * picture),
            distillation={
                spec.name: DistillationCost(step, moved)
                for spec in subject.stages
                if spec.is_merged
            },
            times=Times(
                start=_both(num_shared * profile["start_s"] * first),
                decoding=_both(profile["decode_s"] * sizes.num_pixels),
                drawing=cost("drawing", profile["drawing"] * picture),
                scoring=cost("scoring", profile["scoring"] * picture),
                merged_scoring=cost("scoring", merged * picture),
                teaching=cost("teaching", profile["teaching"] * picture),
            ),
            memory=HostMemory(0, 0, 0),
            transients={},
        )


def _both(seconds: float) -> np.ndarray:
    return np.full(2, seconds)


def subject_of(settings: Settings, place: PartitionedScene, num_devices: int) -> Subject:
    """What is planned, without the devices."""
    course = needs.training_course(settings, place)
    sizes = needs.sizes_of(settings, place, num_devices, course)
    nowhere: Any = None
    return Subject(settings, place, nowhere, course, sizes)


class Course(NamedTuple):
    """A run without failures, and what it needs."""

    block_s: float  # the job of a block
    distill_s: float  # teachers' maps and steps of the job after them
    score_s: float  # and the scores of the merged model
    stages: dict[str, StageTime]
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    traffic_bytes: int  # of a step of distillation and a device
    num_steps: int  # of distillation


def settings_of(case: Case, steps: int) -> Settings:
    """Of a run in so many steps, as the preset `aerial`."""
    return Settings(
        partition=PartitionSettings(num_blocks=case.num_blocks),
        train=TrainSettings(steps=steps, checkpoint_every=max(1, steps // 5), log_every=100),
    )


def course_of(case: Case, settings: Settings, machine: Machine, partners: int) -> Course:
    """The course of a case."""
    case = case.with_defaults(settings)
    one = subject_of(settings, place_of(case, 1), 1)
    place = place_of(case, case.num_blocks)
    whole = subject_of(settings, place, case.num_blocks)
    host = whole._replace(sizes=whole.sizes._replace(num_blocks=case.blocks_per_host))
    alone = {spec.name for spec in stages_of(settings, place.partition) if spec.is_of_blocks}
    jobs = machine.measured(one, 0, is_of_jobs=True)
    found = {stage.name: stage for stage in stage_times(one, jobs)}
    rest = {stage.name: stage for stage in stage_times(host, machine.measured(host, partners))}
    stages = {name: found[name] if name in alone else rest[name] for name in found}
    opening = machine.profile["open_s"]
    first_opening = opening + case.num_points * _OPEN_POINT_S
    together = whole.sizes._replace(num_blocks=partners + 1, num_devices=partners + 1)
    programs = needs.estimated_programs(together, settings)
    device, process = memory_of(one, host, settings, programs, machine.profile["host"])
    measured = machine.measured(host, partners)
    rest_s = sum(stages[name].total_s[1] for name in stages if name not in alone)
    num_merged = sum(spec.is_merged for spec in host.stages)
    scoring = measured.times.merged_scoring
    num_rounds = -(-len(place.scene.test_views) // case.num_blocks)
    score_s = num_merged * (scoring.compile_s[1] + num_rounds * scoring.run_s[1])
    return Course(
        block_s=first_opening + sum(stages[name].total_s[1] for name in alone),
        distill_s=opening + rest_s - score_s,
        score_s=score_s,
        stages=stages,
        device_bytes=device,
        host_bytes=max(process, case.num_points * _OPEN_POINT_BYTES),
        disk_bytes=sum(needs.disk_bytes(whole.sizes, settings, place).values()),
        traffic_bytes=max(cost.bytes_moved for cost in measured.distillation.values()),
        num_steps=sum(stage.num_steps for name, stage in stages.items() if name not in alone),
    )


def memory_of(
    one: Subject, host: Subject, settings: Settings, programs: ProgramBytes, process: dict | None
) -> tuple[int, int]:
    """The most that a device and a process have in memory.

    Args:
        one: the job of a block.
        host: the job after them, on one host.
        settings: of the run.
        programs: what they hold on a device.
        process: of a CPU, whose memory holds the devices', what trials have found; None: a GPU.
    """
    base = Process(2 * 2**30, 0, None)
    if process is not None:
        ratio = one.sizes.num_pixels / process["num_pixels"]
        transients = {
            moment: max(round(size * ratio), process["compiling"])
            for moment, size in process["transients"].items()
        }
        base = Process(process["base"], process["compiling"], transients)
    devices = []
    hosts = []
    for subject in (one, host):
        sizes = subject.sizes._replace(num_devices=subject.sizes.num_blocks)
        held = peaks.held_of(settings, subject.partitioned, sizes, shelf_bytes=0, process=base)
        devices.append(peaks.device_peak(sizes, programs, held, settings).num_bytes)
        hosts.append(peaks.host_peak(sizes, programs, held, settings).num_bytes)
    return max(devices), max(hosts)


def with_failures(work_s: float, failures_s: float, lost_s: float, rng) -> float:
    """Seconds that a job takes where something fails at random.

    Args:
        work_s: without failures.
        failures_s: mean time between two.
        lost_s: between two checkpoints.
        rng: draws them.
    """
    done = 0.0
    passed = 0.0
    while True:
        until = rng.exponential(failures_s)
        if until >= work_s - done:
            return passed + work_s - done
        passed += until + _RESTART_S
        done += until // lost_s * lost_s


def expected_s(work_s: float, failures_s: float) -> float:
    """Mean seconds of what begins anew at each failure: distillation in fewer steps than lie
    between two checkpoints, or a score over all photographs.
    """
    return (failures_s + _RESTART_S) * math.expm1(work_s / failures_s)


class Bill(NamedTuple):
    """A run with failures: means over draws."""

    hours: float
    block_hours: float  # until the last block is done
    device_hours: float
    num_failures: float
    price: float


def bill_of(case: Case, course: Course, settings: Settings, arguments) -> Bill:
    """What a run costs on one device for each block."""
    mean_s = 3600 * arguments.mtbf_hours
    every = settings.train.checkpoint_every / (1.15 * settings.train.steps)
    together = sum(
        expected_s(work, mean_s / case.num_blocks) for work in (course.distill_s, course.score_s)
    )
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(_NUM_DRAWS):
        free = [0.0] * case.num_blocks
        busy = 0.0
        for _ in range(case.num_blocks):
            work = course.block_s * (1 + arguments.imbalance * rng.uniform(-1, 1))
            taken = with_failures(work, mean_s, every * course.block_s, rng)
            busy += taken
            heapq.heappush(free, heapq.heappop(free) + taken)
        blocks = max(free)
        device = busy + case.num_blocks * together
        rows.append([blocks + together, blocks, device, device / mean_s])
    hours, block_hours, device_hours, failures = np.mean(rows, axis=0) / [3600, 3600, 3600, 1]
    return Bill(hours, block_hours, device_hours, failures, device_hours * arguments.price)


TIMES = (
    "| case | blocks, devices | job of a block | distillation | scores | in all | device hours "
    "| failures | price |\n|--|--|--|--|--|--|--|--|--|"
)
NEEDS = (
    "| case | memory of a device | of a process | disk | sent a step and device | in all steps |\n"
    "|--|--|--|--|--|--|"
)


def times_row(case: Case, course: Course, bill: Bill) -> str:
    """A line of the table of times."""
    minutes = [f"{value / 60:.0f} min" for value in course[:3]]
    ends = [
        f"{bill.hours:.1f} h",
        f"{bill.device_hours:,.0f}",
        f"{bill.num_failures:.2f}",
        f"{bill.price:,.0f}",
    ]
    if bill.hours > _MAX_HOURS:
        ends = ["does not end"] + 3 * ["-"]
    return f"| {' | '.join([case.name, str(case.num_blocks), *minutes, *ends])} |"


def needs_row(case: Case, course: Course) -> str:
    """A line of the table of memory, disk and traffic."""
    sizes = [course.device_bytes, course.host_bytes, course.disk_bytes]
    gib = " | ".join(f"{size / 2**30:,.0f} GiB" for size in sizes)
    traffic = course.traffic_bytes * course.num_steps / 2**30
    return f"| {case.name} | {gib} | {course.traffic_bytes / 2**20:.0f} MiB | {traffic:,.0f} GiB |"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--machine", type=Path, help="profile of scripts/simulate_check.py")
    parser.add_argument("--steps", type=int, default=5000, help="of training of a block")
    parser.add_argument("--price", type=float, default=3.0, help="of a device hour")
    parser.add_argument("--mtbf_hours", type=float, default=2000.0, help="of a device")
    parser.add_argument("--network_gbps", type=float, default=100.0, help="of a device")
    parser.add_argument("--imbalance", type=float, default=0.2, help="of blocks, to each side")
    parser.add_argument("--partners", type=int, default=8, help="in distillation")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> int:
    """Flags -> table."""
    arguments = parse_arguments()
    profile = PREDICTED_H200
    if arguments.machine:
        profile = json.loads(arguments.machine.read_text(encoding="utf-8"))
    machine = Machine(profile, network_bytes_s=arguments.network_gbps * 1e9 / 8)
    rows = []
    times = [profile["name"], "", TIMES]
    others = ["", NEEDS]
    for case in CASES:
        if case.name not in arguments.cases.split(","):
            continue
        settings = settings_of(case, arguments.steps)
        course = course_of(case, settings, machine, min(arguments.partners, case.num_blocks - 1))
        bill = bill_of(case, course, settings, arguments)
        times.append(times_row(case, course, bill))
        others.append(needs_row(case, course))
        figures = {name: getattr(course, name) for name in course._fields if name != "stages"}
        rows.append({"case": case._asdict(), **figures, **bill._asdict()})
    print("\n".join([*times, *others]))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
