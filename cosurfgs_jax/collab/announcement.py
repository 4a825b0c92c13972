"""The first lines of `train`: what the run will need, by arithmetic alone; and the refusal of one
that certainly cannot fit.
"""

import logging
import shutil
from typing import Any, NamedTuple

import jax

from cosurfgs_jax import host_memory
from cosurfgs_jax.collab import needs, peaks
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.course import Course
from cosurfgs_jax.training.device_cache import shelf_bytes
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.workdir import Workdir

# Measured on CPUs: Python with JAX and an opened dataset, and what a compiled program keeps.
_BASE_BYTES = 400 * 2**20
_PROGRAM_BYTES = 20 * 2**20
_COMPILING_BYTES = 100 * 2**20  # while one is compiled
_log = logging.getLogger(__name__)


def shown_bytes(num_bytes: float) -> str:
    """A size for people: "1.5 GiB", "37 MiB"."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB"


class Estimate(NamedTuple):
    """What a run needs by arithmetic, and what there is."""

    course: Course
    sizes: needs.Sizes
    host: peaks.Peak  # of this process
    device: peaks.Peak
    host_limit: int
    device_limit: int | None  # None: not known, or the host's
    is_device_memory: bool  # the devices' memory is the host's

    @property
    def times(self) -> float:
        """How many times what there is the run needs."""
        found = self.host.num_bytes / max(self.host_limit, 1)
        if self.device_limit is not None:
            found = max(found, self.device.num_bytes / max(self.device_limit, 1))
        return found

    @property
    def words(self) -> str:
        """Both, for people."""
        words = f"{shown_bytes(self.host.num_bytes)} of {shown_bytes(self.host_limit)}"
        if self.device_limit is not None:
            wanted = shown_bytes(self.device.num_bytes)
            words += f", of a device {wanted} of {shown_bytes(self.device_limit)}"
        return words


def estimate(settings: Settings, partitioned: PartitionedScene, layout: Layout) -> Estimate:
    """What a run needs.

    Args:
        settings, partitioned, layout: of the run.
    """
    course = needs.training_course(settings, partitioned)
    sizes = needs.sizes_of(settings, partitioned, layout.num_devices, course)
    own = layout.mesh.devices.flat[layout.local_devices[0]]
    process = peaks.Process(
        base=_BASE_BYTES + _PROGRAM_BYTES * needs.num_programs(course),
        compiling=_COMPILING_BYTES,
        transients=None,
    )
    if own.platform == "cpu":
        process = process._replace(transients={})
    shelf = 0
    if jax.process_count() == 1:
        shelf = shelf_bytes(settings.data.device_memory_mb, layout)
    held = peaks.held_of(settings, partitioned, sizes, shelf_bytes=shelf, process=process)
    programs = needs.estimated_programs(sizes, settings)
    here = sizes._replace(
        num_blocks=max(len(layout.local_blocks), 1), num_devices=len(layout.local_devices)
    )
    return Estimate(
        course=course,
        sizes=sizes,
        host=peaks.host_peak(here, programs, held, settings),
        device=peaks.device_peak(sizes, programs, held, settings),
        host_limit=host_memory.limit_bytes(),
        device_limit=(own.memory_stats() or {}).get("bytes_limit"),
        is_device_memory=own.platform == "cpu",
    )


def announce(
    settings: Settings,
    workdir: Workdir,
    partitioned: PartitionedScene,
    layout: Layout,
    *,
    found: Estimate,
) -> None:
    """Logs what a run will need.

    Args:
        settings, workdir, partitioned, layout: of the run.
        found: its `estimate`.
    Raises:
        InputError: its arrays alone are more than a device, or the machine, has; with the setting
            to change.
    """
    sizes = found.sizes
    device_limit = found.device_limit
    # What goes on has its later stages before it, and what takes over blocks of their own jobs has
    # trained them elsewhere: both hold less.
    if not (workdir.has_begun() or workdir.blocks()):
        _check_everywhere(sizes, len(layout.local_blocks), device_limit, found.is_device_memory)
    stages = stages_of(settings, partitioned.partition)
    disk = sum(needs.disk_bytes(sizes, settings, partitioned).values())
    _log.info(
        "stages: %s; at most %d surfels a block (`cosurfgs plan` with the same flags says how long "
        "they take)",
        ", ".join(f"{spec.name} {spec.num_steps(settings)} steps" for spec in stages),
        max(block.capacity for block in partitioned.blocks),
    )
    free = shutil.disk_usage(workdir.root).free
    _log.info(
        "memory: about %s; disk: about %s of %s", found.words, shown_bytes(disk), shown_bytes(free)
    )
    _warn(found.host.num_bytes, found.host_limit, "process", "data.host_memory_mb")
    if device_limit is not None:
        _warn(found.device.num_bytes, device_limit, "device", "data.device_memory_mb")


def _check_everywhere(sizes: needs.Sizes, *arguments: Any) -> None:
    """`check_certain` in all processes; where one raises, all do."""
    error = None
    try:
        check_certain(sizes, *arguments)
    except InputError as found:
        error = found
    processes.raise_of_any(error)


def _warn(wanted: int, limit: int, whose: str, setting: str) -> None:
    if wanted > limit:
        _log.warning(
            "the memory of the %s may not suffice; `cosurfgs plan` with the same flags says what "
            "to change, such as config.data.downscale, config.surfels.capacity or config.%s",
            whose,
            setting,
        )


def check_certain(
    sizes: needs.Sizes, num_here: int, device_limit: int | None, is_device_memory: bool
) -> None:
    """Raises InputError where the arrays of blocks alone cannot fit.

    Args:
        sizes: of the run.
        num_here: blocks of this process.
        device_limit: bytes of a device; None: unknown, or the host's.
        is_device_memory: the devices' memory is the host's.
    """
    found = []
    most = host_memory.certain_limit()
    if is_device_memory and most is not None:
        found.append((num_here, most, "this machine"))
    if device_limit is not None:
        found.append((sizes.blocks_per_device, device_limit, "a device"))
    for num_blocks, limit, whose in found:
        wanted = num_blocks * sizes.state_bytes
        if wanted > limit:
            slots = int(sizes.num_slots * limit / wanted / 2)
            raise InputError(
                f"config.surfels.capacity: expected what fits into the {shown_bytes(limit)} of "
                f"{whose}, got {num_blocks} block(s) of {sizes.num_slots:,d} surfels, which take "
                f"{shown_bytes(wanted)} with their moments and the depth of their photographs; set "
                f"config.surfels.capacity for about {slots:,d} surfels a block, shrink the "
                "photographs (config.data.downscale), or use more devices"
            )
