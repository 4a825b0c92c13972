"""The forecast of a run: time, memory, disk and traffic, and whether the machine has them."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cosurfgs_jax import host_memory
from cosurfgs_jax.collab import needs, peaks
from cosurfgs_jax.collab.importance_scores import score_of
from cosurfgs_jax.collab.needs import ProgramBytes
from cosurfgs_jax.collab.peaks import Held, Peak, Process
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.planning import mesh_needs
from cosurfgs_jax.planning.measured import Measured, Subject, measure
from cosurfgs_jax.planning.mesh_needs import MeshNeeds
from cosurfgs_jax.planning.stage_times import StageTime, stage_times
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.device_cache import shelf_bytes
from cosurfgs_jax.training.partitioned_scene import PartitionedScene


class Machine(NamedTuple):
    """What the machine has, in bytes."""

    host_limit: int
    host_free: int | None  # None: the system does not say
    device_limit: int | None  # None: a CPU, whose memory is the host's
    disk_free: int
    device_kind: str


class Memory(NamedTuple):
    """What a run needs of memory, and what that is made of."""

    device: Peak
    host: Peak
    held: Held
    programs: ProgramBytes


class Forecast(NamedTuple):
    """What a run will need."""

    subject: Subject
    measured: Measured
    memory: Memory
    stages: list[StageTime] | None  # None: nothing was timed
    opening_s: np.ndarray  # f64[2]: imports and dataset
    disk: dict[str, int]  # what -> bytes
    mesh: MeshNeeds
    machine: Machine

    @property
    def total_s(self) -> np.ndarray:
        """f64[2] of the whole run, by the clock and of the processor."""
        return self.opening_s + sum(stage.total_s for stage in self.stages or [])

    @property
    def fits(self) -> bool:
        """Whether the machine has the memory and the disk."""
        return not short_of(self.memory, self.machine) and (
            sum(self.disk.values()) <= self.machine.disk_free
        )


def subject_of(settings: Settings, partitioned: PartitionedScene) -> Subject:
    """What is planned, on the devices that there are."""
    layout = make_layout(partitioned.partition.edge_of_block, settings.mesh.num_devices)
    course = needs.training_course(settings, partitioned)
    sizes = needs.sizes_of(settings, partitioned, layout.num_devices, course)
    return Subject(
        settings=settings, partitioned=partitioned, layout=layout, course=course, sizes=sizes
    )


def machine_here(folder: Path) -> Machine:
    """What this machine has; the disk is that of a folder, or of the nearest that is there."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [item["bytes_limit"] for item in stats if "bytes_limit" in item]
    while not folder.exists():
        folder = folder.parent
    return Machine(
        host_limit=host_memory.limit_bytes(),
        host_free=host_memory.available_memory(),
        device_limit=min(limits, default=None),
        disk_free=shutil.disk_usage(folder).free,
        device_kind=jax.local_devices()[0].device_kind,
    )


def make_forecast(
    settings: Settings,
    partitioned: PartitionedScene,
    *,
    is_timed: bool,
    opening_s: np.ndarray,
    folder: Path,
) -> Forecast:
    """Makes the trials of a run, and what follows from them.

    Args:
        settings: of the run.
        partitioned: its dataset, in blocks.
        is_timed: whether steps are run, not only compiled.
        opening_s: f64[2], what imports and dataset have taken.
        folder: where the run will write.
    Raises:
        InputError: there is no importance score of this name.
    """
    score_of(settings.lmc)  # not after minutes of trials
    subject = subject_of(settings, partitioned)
    measured = measure(subject, is_timed)
    stages = None
    if is_timed:
        stages = stage_times(subject, measured)
    return Forecast(
        subject=subject,
        measured=measured,
        memory=memory_of(subject, measured),
        stages=stages,
        opening_s=opening_s,
        disk=needs.disk_bytes(subject.sizes, settings, partitioned),
        mesh=mesh_needs.estimate(partitioned, settings.surface),
        machine=machine_here(folder),
    )


def memory_of(subject: Subject, measured: Measured) -> Memory:
    """The peaks of a run whose programs were compiled."""
    num_compiled = len(measured.steps)
    more = max(0, needs.num_programs(subject.course) - num_compiled)
    process = Process(
        base=measured.memory.base + more * measured.memory.a_program,
        compiling=measured.memory.compiling,
        transients=measured.transients,
    )
    return _memory(subject, measured.programs, process)


def scaled_memory(subject: Subject, settings: Settings, before: Forecast) -> Memory:
    """The peaks of a run with other settings, whose programs are not compiled: they grow as the
    constants say.

    Args:
        subject: of the other settings. settings: these.
        before: of the run that was measured.
    """
    measured = before.measured
    old = needs.estimated_programs(before.subject.sizes, before.subject.settings)
    new = needs.estimated_programs(subject.sizes, settings)
    programs = ProgramBytes(
        *(
            round(found * after / was) if was else after
            for found, was, after in zip(measured.programs, old, new, strict=True)
        )
    )
    ratio = subject.sizes.num_pixels / before.subject.sizes.num_pixels
    transients = {
        moment: max(round(num_bytes * ratio), measured.memory.compiling)
        for moment, num_bytes in measured.transients.items()
    }
    more = needs.num_programs(subject.course) - len(measured.steps)
    process = Process(
        base=measured.memory.base + max(0, more) * measured.memory.a_program,
        compiling=measured.memory.compiling,
        transients=transients,
    )
    return _memory(subject, programs, process)


def _memory(subject: Subject, programs: ProgramBytes, process: Process) -> Memory:
    settings = subject.settings
    sizes = subject.sizes
    shelf = shelf_bytes(settings.data.device_memory_mb, subject.layout)
    if subject.layout.mesh.devices.flat[0].platform != "cpu":
        process = process._replace(transients=None)
    held = peaks.held_of(settings, subject.partitioned, sizes, shelf_bytes=shelf, process=process)
    return Memory(
        device=peaks.device_peak(sizes, programs, held, settings),
        host=peaks.host_peak(sizes, programs, held, settings),
        held=held,
        programs=programs,
    )


def short_of(memory: Memory, machine: Machine) -> list[str]:
    """Which memory the machine has too little of: "device", "host"."""
    found = []
    if machine.device_limit is not None and memory.device.num_bytes > machine.device_limit:
        found.append("device")
    if memory.host.num_bytes > machine.host_limit:
        found.append("host")
    return found
