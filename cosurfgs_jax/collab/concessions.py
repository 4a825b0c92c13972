"""What a run gives up where its memory would not suffice: settings that it changes before its first
step (docs/plan.md). `config.json` has what was asked for, so that the same command is the same
run; `given_up.json` has what is used instead, and every later call goes on with that.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files, host_memory, settings_file
from cosurfgs_jax.collab.announcement import Estimate, estimate
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.settings_file import GivenUp
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.workdir import Workdir

_ERROR = 0.15  # of the estimate, see docs/plan.md
_AIM = 1 / (1 + _ERROR)  # of what there is, where something is given up
_WORTH_IT = 0.98  # of a peak, that a change leaves: else it is not made
_MIN_HOST_MB = 64
_EIGHTHS = range(7, 1, -1)  # of the surfels, down to a quarter
_log = logging.getLogger(__name__)


class Needed(NamedTuple):
    """A run with some settings, and what it needs."""

    settings: Settings
    partitioned: PartitionedScene
    found: Estimate
    times: float  # as much as there is, in the process that is shortest of it


class _Way(NamedTuple):
    """A setting that may be changed."""

    name: str
    values: Callable[[Needed], Sequence[Any]]  # to try, the mildest first
    words: str  # what is given up


def _fewer_photos(now: Needed) -> list[int]:
    values = []
    kept = -(-now.found.sizes.photo_bytes // 2**20)
    while kept > _MIN_HOST_MB:  # as often in all processes, whatever each of them was given
        kept = max(_MIN_HOST_MB, kept // 2)
        values.append(min(kept, now.settings.data.host_memory_mb))
    return values


def _no_shelf(now: Needed) -> list[int]:
    return [0] if now.settings.data.device_memory_mb else []


def _all_slots(now: Needed) -> list[float]:
    if len(now.found.course.slot_sizes) == 1:
        return []
    fullest = max(now.partitioned.blocks, key=lambda block: block.capacity)
    return [float(math.ceil(fullest.capacity / max(fullest.num_initial, 1)))]


def _no_memory(now: Needed) -> list[bool]:
    loss = now.settings.loss
    return [False] if loss.has_multi_view and loss.remember_depth else []


def _fewer_surfels(now: Needed) -> list[int]:
    most = now.settings.surfels.capacity or now.partitioned.whole_capacity()
    return [most * eighths // 8 for eighths in _EIGHTHS]


# Each in the order of what they cost. These change no bit of a model (`FREE_TO_CHANGE`):
_FREE = (
    _Way(
        "data.host_memory_mb",
        _fewer_photos,
        "fewer photographs stay in memory, the others are read again",
    ),
    _Way("data.device_memory_mb", _no_shelf, "photographs go to the devices at each step"),
)
# These cost time:
_SLOWER = (
    _Way(
        "density.growth_factor",
        _all_slots,
        "arrays have all their slots from the first step on, which takes longer, and never grow",
    ),
    _Way(
        "loss.remember_depth",
        _no_memory,
        "MV-Reg draws the neighbour of a view at each step, which takes a third longer",
    ),
)
_SURFELS = _Way("surfels.capacity", _fewer_surfels, "fewer surfels, less detail")


def make_do(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, layout: Layout
) -> tuple[Needed, list[GivenUp]]:
    """The settings that a run uses, with a line for each that is not what was asked for. All
    processes call it, and all get the same, but for `data.host_memory_mb`.

    What shapes the model is decided before the first saved step, and stays as it is noted. The
    rest is decided at every call. Surfels are given up where the run is surely short of memory,
    which an estimate says only beyond its error.

    Args:
        settings, workdir, partitioned, layout: of the run as it was asked for.
    Returns:
        Settings, the place with them and what it needs; and what shapes the model, to be noted
        (`note`).
    Raises:
        InputError: what was noted is damaged, or processes see another one.
    """
    begun = processes.any_process(processes.is_first() and workdir.has_begun())
    given_up = []
    asked = now = _needed(settings, partitioned, layout)
    if begun:
        given_up = _noted(workdir)
    if given_up:
        settings = settings_file.with_given_up(settings, given_up)
        if any(row.name == _SURFELS.name for row in given_up):
            partitioned = partitioned.with_capacity(settings)
        now = _needed(settings, partitioned, layout)
    if not settings.train.make_do:
        return now, given_up
    # By what was asked for: a later call, too, fits only with freed memory given back.
    if asked.times > 1:
        if asked.found.host.num_bytes > asked.found.host_limit:
            host_memory.give_back_at_once()
            _log.warning("memory: freed memory goes back to the system at once: steps take longer")
        rows = [None]
        while rows:  # what one of them brings may be seen after another one alone
            now, rows = _give_up(now, _FREE, layout)
        ways = _SLOWER
        if now.times > 1 + _ERROR:
            ways = (*_SLOWER, _SURFELS)
        if not begun:
            now, given_up = _give_up(now, ways, layout)
    return now, given_up


def _noted(workdir: Workdir) -> list[GivenUp]:
    """What the run has given up when it began, with a line for each."""
    rows = settings_file.read_given_up(workdir)
    processes.check_equal(str(workdir.given_up), repr(rows), "start them again in a minute")
    for row in rows:
        _log.info(
            "config.%s=%s instead of %s, as the run began for lack of memory",
            row.name,
            row.used,
            row.asked,
        )
    return rows


def note(given_up: Sequence[GivenUp], workdir: Workdir) -> None:
    """Writes what a run gives up into its workdir, in place of what an earlier try has noted."""
    if given_up:
        rows = [row._asdict() for row in given_up]
        files.write_json(workdir.given_up, {"settings": rows})
    else:
        workdir.given_up.unlink(missing_ok=True)


def _needed(settings: Settings, partitioned: PartitionedScene, layout: Layout) -> Needed:
    found = estimate(settings, partitioned, layout)
    times = processes.gather(np.array(found.times)).max()
    return Needed(settings, partitioned, found, float(times))


def _give_up(now: Needed, ways: Sequence[_Way], layout: Layout) -> tuple[Needed, list[GivenUp]]:
    """The run with so many of some changes that it fits, and these."""
    rows = []
    for way in ways:
        if now.times <= _AIM:
            break
        best, row = _lowered(now, way, layout)
        if row is not None:
            _say(now, best, way, row)
            now = best
            rows.append(row)
    return now, rows


def _lowered(now: Needed, way: _Way, layout: Layout) -> tuple[Needed, GivenUp | None]:
    """The run with the mildest value of a setting that makes it fit, else with the one that lowers
    its peak most; None where that is not worth it.
    """
    best = now
    row = None
    counts = [block.num_initial for block in now.partitioned.blocks]
    asked = settings_file.value_of(now.settings, way.name)
    for value in way.values(now):
        tried = GivenUp(way.name, asked, value)
        settings = settings_file.with_given_up(now.settings, [tried])
        partitioned = now.partitioned
        if way is _SURFELS:
            partitioned = partitioned.with_capacity(settings)
            if [block.num_initial for block in partitioned.blocks] != counts:
                break  # fewer than the points that blocks begin with
        after = _needed(settings, partitioned, layout)
        if after.times < best.times:
            best = after
            row = tried
        if best.times <= _AIM:
            break
    if best.times > max(_AIM, _WORTH_IT * now.times):
        return now, None
    return best, row


def _say(before: Needed, after: Needed, way: _Way, row: GivenUp) -> None:
    if row.used == row.asked:  # in another process it changes
        return
    _log.warning(
        "memory: config.%s=%s instead of %s: %s. It needs about %s with the old value, %s with the "
        "new one; more memory, or --config.train.make_do=false, keeps the old one",
        row.name,
        row.used,
        row.asked,
        way.words,
        before.found.words,
        after.found.words,
    )
