"""The peaks of a run's memory: of a device and of the process, at each of the moments at which one
may be reached.
"""

from typing import NamedTuple

from cosurfgs_jax.collab.needs import ProgramBytes, Sizes
from cosurfgs_jax.data.images import decoding_bytes
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import PartitionedScene

# Of the states, in host memory at once when the merged model is written: 1.7 for caliterra.
_MERGED_COPIES = 2


class Peak(NamedTuple):
    """The most memory, and when."""

    num_bytes: int
    moment: str


class Held(NamedTuple):
    """What lies in memory all along."""

    device_photos: int  # photographs on a device
    host_photos: int  # decoded photographs in the process
    decoding: int  # what threads hold that decode
    base: int  # of the process: Python, libraries, compiled programs
    compiling: int  # that a compiler takes for a while
    # Where the devices' memory is the host's, as on a CPU: by how much the process grew in a trial
    # of a moment. Those that are missing are as if a program were compiled. None: the devices have
    # memory of their own.
    transients: dict[str, int] | None


class Process(NamedTuple):
    """The process that a run is one of: see `Held`."""

    base: int
    compiling: int
    transients: dict[str, int] | None


def held_of(
    settings: Settings,
    partitioned: PartitionedScene,
    sizes: Sizes,
    shelf_bytes: int,
    process: Process,
) -> Held:
    """What a run has in memory all along.

    Args:
        settings, partitioned, sizes: of the run.
        shelf_bytes: for photographs on a device, see `device_cache.shelf_bytes`.
        process: that it is one of.
    """
    one = sizes.num_pixels * sizes.num_channels
    on_device = 4 * one  # those of this step and of the next, each with a second one
    kept = sizes.blocks_per_device * sizes.block_photo_bytes
    if kept <= shelf_bytes:
        on_device = kept
    budget = settings.data.host_memory_mb * 2**20
    return Held(
        device_photos=on_device,
        host_photos=min(budget, sizes.photo_bytes),
        decoding=decoding_bytes(partitioned.scene, budget),
        base=process.base,
        compiling=process.compiling,
        transients=process.transients,
    )


def _states(sizes: Sizes, settings: Settings, num: int) -> dict[str, int]:
    """Bytes of the states of `num` blocks that lie on devices together, by moment."""
    full = num * sizes.state_bytes
    moments = {"training": full, "density control": full}
    if sizes.before_bytes:
        # Old and new arrays of all, and those of the block that is just being moved.
        moved = sizes.before_bytes + sizes.state_bytes
        moments["growth"] = num * moved + moved
    if sizes.compressed_bytes:
        moments["compression"] = full
    if sizes.cell_slots:
        teachers = full
        if sizes.compressed_bytes and settings.mas.whole_teachers:
            teachers += num * sizes.compressed_bytes
        moments["teachers"] = teachers
        moments["distillation"] = num * sizes.cell_bytes
    return moments


def _of_programs(programs: ProgramBytes) -> dict[str, int]:
    return {
        "training": programs.training,
        "density control": programs.control,
        "compression": programs.compression,
        "teachers": programs.compression,
        "distillation": programs.distillation,
    }


def device_peak(sizes: Sizes, programs: ProgramBytes, held: Held, settings: Settings) -> Peak:
    """The most that a device holds at once."""
    rows = sizes.blocks_per_device
    moments = _states(sizes, settings, rows)
    if rows > 1:  # the rows are joined to be saved
        moments["saving"] = 2 * rows * sizes.state_bytes
    extra = _of_programs(programs)
    totals = {
        moment: num_bytes + extra.get(moment, 0) + held.device_photos
        for moment, num_bytes in moments.items()
    }
    return _largest(totals)


def host_peak(sizes: Sizes, programs: ProgramBytes, held: Held, settings: Settings) -> Peak:
    """The most that the process has in memory at once.

    Args:
        sizes, programs, held, settings: of the run, all of its devices in this process.
    """
    full = sizes.num_blocks * sizes.state_bytes
    merged = sizes.num_blocks * (sizes.cell_bytes or sizes.state_bytes)
    # Copies of the host: what is saved, while training goes on; what is written at the end.
    totals = {"saving": full, "writing the model": _MERGED_COPIES * merged}
    if held.transients is not None:
        # A trial is shorter than what is between two lines of the log, after which pages go back:
        # once more what programs take fits what real runs have grown by (docs/plan.md).
        extra = {
            moment: sizes.num_devices * (num_bytes + held.device_photos)
            for moment, num_bytes in _of_programs(programs).items()
        }
        moments = _states(sizes, settings, sizes.num_blocks)
        moments["scores"] = full + sizes.num_blocks * sizes.cell_bytes
        for moment, num_bytes in moments.items():
            grown = held.transients.get(moment, held.compiling)
            totals[moment] = num_bytes + extra.get(moment, 0) + grown
        totals["saving"] += extra["training"] + full * min(2, sizes.blocks_per_device)
    common = held.base + held.host_photos + held.decoding
    return _largest({moment: common + num_bytes for moment, num_bytes in totals.items()})


def _largest(totals: dict[str, int]) -> Peak:
    moment = max(totals, key=totals.__getitem__)
    return Peak(totals[moment], moment)
