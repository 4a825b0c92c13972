"""Which settings make a run fit that does not, with what it needs then."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.planning.forecast import Forecast, Memory, scaled_memory, short_of, subject_of
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.workdir import Workdir

_NUM_TRIES = 4  # of one setting, each time by a factor of two
_MIN_HOST_MB = 64
_WORTH_NAMING = 0.95  # of a peak, that is left


class Remedy(NamedTuple):
    """A setting that makes it fit, or as good as it gets."""

    changes: dict[str, int]  # name of a setting -> value
    memory: Memory
    fits: bool


def _lower_capacity(found: Forecast, times: int) -> dict[str, int]:
    most = sum(block.capacity for block in found.subject.partitioned.blocks)
    given = found.subject.settings.surfels.capacity or most
    return {"surfels.capacity": max(1000, given >> times)}


def _more_downscale(found: Forecast, times: int) -> dict[str, int]:
    return {"data.downscale": found.subject.settings.data.downscale << times}


def _less_cache(found: Forecast, times: int) -> dict[str, int]:
    budget = min(
        found.subject.settings.data.host_memory_mb,
        -(-found.memory.held.host_photos // 2**20),
    )
    return {"data.host_memory_mb": max(_MIN_HOST_MB, budget >> times)}


def _no_photographs(found: Forecast, times: int) -> dict[str, int]:
    return {"data.device_memory_mb": 0}


def _more_blocks(found: Forecast, times: int) -> dict[str, int]:
    return {"partition.num_blocks": found.subject.settings.partition.num_blocks << times}


# By what is short; each is (forecast, how often it was doubled or halved) -> changed settings.
_REMEDIES: dict[str, tuple[Callable[[Forecast, int], dict[str, int]], ...]] = {
    "device": (_no_photographs, _more_downscale, _lower_capacity, _more_blocks),
    "host": (_less_cache, _more_downscale, _lower_capacity),
}


def find_remedies(found: Forecast, workdir: Workdir) -> Iterator[Remedy]:
    """For each setting that helps the mildest change that makes the run fit; where none does, the
    strongest that was tried.

    Args:
        found: of a run that does not fit.
        workdir: where a generated dataset lies.
    """
    seen = set()
    for kind in short_of(found.memory, found.machine):
        for change in _REMEDIES[kind]:
            if change in seen:
                continue
            seen.add(change)
            best = None
            for times in range(1, _NUM_TRIES + 1):
                best = _tried(found, change(found, times), workdir) or best
                if best is None or best.fits:
                    break
            if best is not None and (best.fits or _is_less(best.memory, found.memory)):
                yield best


def _is_less(memory: Memory, before: Memory) -> bool:
    """Whether a peak is lower by so much that the change is worth naming."""
    pairs = ((memory.device, before.device), (memory.host, before.host))
    return any(now.num_bytes < _WORTH_NAMING * then.num_bytes for now, then in pairs)


def _tried(found: Forecast, changes: dict[str, int], workdir: Workdir) -> Remedy | None:
    """What a run with changed settings needs; None where the dataset cannot be used with them."""
    settings = settings_file.with_values(found.subject.settings, changes)
    partitioned = found.subject.partitioned
    try:
        settings_file.check(settings)
        if changes.keys() == {"surfels.capacity"}:
            partitioned = partitioned.with_capacity(settings)
        elif not changes.keys() <= {"data.host_memory_mb", "data.device_memory_mb"}:
            partitioned = open_partitioned_scene(settings, workdir, compares_colors=False)
        subject = subject_of(settings, partitioned)
    except InputError:
        return None
    memory = scaled_memory(subject, settings, found)
    return Remedy(changes, memory, not short_of(memory, found.machine))
