"""Blocks that jobs of their own have trained, as the stages of the run that goes on with them."""

import contextlib
import functools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files, locks
from cosurfgs_jax.collab.block_jobs import (
    bind_settings,
    block_stages,
    describe_blocks,
    hold_block,
    is_taking_blocks,
    take_through,
    unfinished_blocks,
)
from cosurfgs_jax.collab.compact_blocks import read_compact
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import layout_of_block
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoint_files import (
    ITEMS,
    MODEL,
    is_model_alone,
    size_of,
)
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import (
    BlockModel,
    Kept,
    TrainState,
    empty_state,
    kept_of,
    meta_of,
    model_of,
)

_log = logging.getLogger(__name__)


def adopts_blocks(run: Run) -> bool:
    """Whether the run takes its blocks from jobs of their own: there are some, and the run has not
    begun with all blocks together. All processes call it, and get the same.
    """
    is_adopting = any(folder.has_begun() for folder in run.workdir.blocks().values())
    first = block_stages(run.settings, run.partitioned)[0]
    is_begun = run.workdir.has_begun(first.name)
    if is_begun and not is_taking_blocks(run.settings, run.workdir, run.partitioned):
        is_adopting = is_adopting and not _unfinished(run)
    return processes.any_process(is_adopting and processes.is_first())


def _unfinished(run: Run) -> Sequence[int]:
    return list(unfinished_blocks(run.settings, run.workdir, run.partitioned))


def finish_blocks(run: Run) -> None:
    """Trains the blocks that are missing, one after the other; for a run that adopts its blocks.

    Raises:
        InputError: some are missing, and the run has several processes.
        Stopped: the run was asked to stop; the state is saved.
    """
    missing = _unfinished(run)
    error = None
    described = describe_blocks(run.settings, run.workdir, run.partitioned)
    if missing and processes.count() > 1:
        numbers = ",".join(map(str, missing))
        error = InputError(
            f"{run.workdir}: expected all blocks to be finished where several processes go on with "
            f"them, got {described}; train the missing ones first, by --blocks={numbers}"
        )
    processes.raise_everywhere(error)
    _log.info(described)
    if not missing or processes.count() > 1:  # another process may still see some missing
        return
    with contextlib.ExitStack() as stack:
        with locks.hold_briefly(run.workdir.lock("blocks")):
            for number in missing:
                stack.enter_context(hold_block(run.workdir.block(number)))
            bind_settings(run.settings, run.workdir, missing)
        take_through(run, missing)


def adopt_stage(run: Run, spec: StageSpec) -> loop.StageState:
    """A finished stage of all blocks, each from its own folder, saved as the run's own. What the
    folders hold stays until the first stage after them has saved
    (`finished_stages.keep_models_alone`).

    Args:
        run: of the run.
        spec: of a stage of blocks.
    Raises:
        InputError: a block is of another dataset, or its checkpoint is damaged.
    """
    layout = run.layout
    adopted: list[_Adopted] = []
    has_training = _has_training(run, spec)

    @functools.cache
    def shape() -> _Adopted:
        """Of all blocks; a process without one looks at another's."""
        if adopted:
            return adopted[0]
        number = run.partitioned.blocks[0].number
        return _Adopted.of(_read_block(run, spec, number, has_training))

    def make(number: int | None) -> TrainState | BlockModel:
        if number is None:
            max_views = run.partitioned.max_views
            empty = empty_state(shape().num_slots, max_views, run.settings, shape().kept)
            return empty if has_training else model_of(empty)
        stage = _read_block(run, spec, number, has_training)
        adopted.append(_Adopted.of(stage))
        _check_slots(run, shape().num_slots, stage, number)
        return layout_of_block(number).get(stage.states[0], 0)

    rows = []
    error = None
    try:
        rows = [layout.put_row(row, make) for row in range(layout.blocks_per_device)]
    except InputError as found:
        error = found
    processes.raise_of_any(error)
    totals = [(each.num_without_room, each.seconds) for each in adopted]
    sums = np.sum([(0, 0.0), *totals], axis=0)  # of one shape in a process without blocks, too
    num_without_room, seconds = processes.gather(sums).sum(axis=0).tolist()
    num_steps = spec.num_steps(run.settings)
    stage = loop.StageState(
        name=spec.name,
        states=rows,
        step=num_steps,
        num_without_room=int(num_without_room),
        seconds=seconds,
    )
    if processes.is_first():
        _copy_test_pictures(run)
    with Checkpoints(run.workdir.checkpoints(spec.name)) as checkpoints:
        loop.save_stage(run, stage, checkpoints)
        checkpoints.wait()
    _log.info("%s: %d blocks taken from their own folders", spec.name, len(layout.blocks))
    return stage


def bytes_of_blocks(run: Run, spec: StageSpec) -> int:
    """What the folders of blocks hand over of a finished stage."""
    if run.settings.lmc.compact:
        paths = [folder.compact(spec.name) for folder in run.workdir.blocks().values()]
        return sum(path.stat().st_size for path in paths if path.exists())
    step = str(spec.num_steps(run.settings))
    folders = [folder.checkpoints(spec.name) / step for folder in run.workdir.blocks().values()]
    items = MODEL if not _has_training(run, spec) else ITEMS
    return sum(size_of(folder / item) for folder in folders for item in items)


def _has_training(run: Run, spec: StageSpec) -> bool:
    """Whether a stage is taken over with what going on with its training needs: the next one begins
    with it, and no block has lost it.
    """
    if run.settings.lmc.compact:
        return False
    specs = stages_of(run.settings, run.partitioned.partition)
    later = specs[[each.name for each in specs].index(spec.name) + 1 :]
    if not later or later[0].is_of_blocks:
        return False
    step = str(spec.num_steps(run.settings))
    folders = [folder.checkpoints(spec.name) / step for folder in run.workdir.blocks().values()]
    has_lost = processes.is_first() and any(is_model_alone(folder) for folder in folders)
    return not processes.any_process(has_lost)


class _Adopted(NamedTuple):
    """What is noted of a block that was read."""

    num_slots: int
    kept: Kept
    num_without_room: int
    seconds: float

    @classmethod
    def of(cls, stage: loop.StageState) -> "_Adopted":
        kept = kept_of(meta_of(stage.states[0]))
        return cls(stage.num_slots, kept, stage.num_without_room, stage.seconds)


def _read_block(run: Run, spec: StageSpec, number: int, has_training: bool) -> loop.StageState:
    """A stage of one block, on this process's first device: states, or models alone."""
    alone = run._replace(workdir=run.workdir.block(number), layout=layout_of_block(number))
    if run.settings.lmc.compact:
        return read_compact(alone, spec)
    folder = alone.workdir.checkpoints(spec.name)
    is_one_of_several = processes.count() > 1
    with Checkpoints(folder, is_read_only=True, is_alone=is_one_of_several) as checkpoints:
        stage = loop.restore_stage(alone, spec.name, checkpoints, Parts(has_training))
    num_steps = spec.num_steps(run.settings)
    if stage is None or stage.step != num_steps:
        got = "none" if stage is None else f"one of step {stage.step}"
        to_delete = [folder / str(num_steps), *_later_stages(alone, spec)]
        raise InputError(
            f"{folder}: expected a whole checkpoint of step {num_steps}, got {got}; delete "
            f"{' and '.join(map(str, to_delete))}, then --blocks={number} trains the rest again"
        )
    return stage


def _later_stages(alone: Run, spec: StageSpec) -> list[Path]:
    """Checkpoints of a block's later stages: with them the block counts as finished."""
    names = [each.name for each in block_stages(alone.settings, alone.partitioned)]
    later = names[names.index(spec.name) + 1 :]
    return [alone.workdir.checkpoints(name) for name in later if alone.workdir.has_begun(name)]


def _check_slots(run: Run, num_slots: int, stage: loop.StageState, number: int) -> None:
    if stage.num_slots != num_slots:
        raise InputError(
            f"{run.workdir.block(number)}: expected {num_slots} slots, as the other blocks have, "
            f"got {stage.num_slots}: another version of cosurfgs_jax trained it; delete the "
            f"folder, then train it again by --blocks={number}"
        )


def _copy_test_pictures(run: Run) -> None:
    """The pictures of the test views before the first step, for the report."""
    for folder in run.workdir.blocks().values():
        for picture in folder.before.glob("*.png"):
            with files.atomic_path(run.workdir.before / picture.name) as path:
                shutil.copyfile(picture, path)
