"""Blocks trained by jobs of their own: each in a folder of its own, without the others.

A block is taken through the stages that exchange nothing (training and its compression) on one
device. Its folder `blocks/<number>` in the workdir is like the workdir of a run: settings,
checkpoints, curves, a lock. What the blocks have in common follows from the dataset and the
settings alone (slots, the size of photographs, the room for exposures), so that a block ends in the
same bits as among the others; `collab.adopted_blocks` puts them together.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from cosurfgs_jax import locks, settings_file
from cosurfgs_jax.collab import concessions
from cosurfgs_jax.collab.block_choice import BlockChoice
from cosurfgs_jax.collab.compact_blocks import leave_compact, write_compact
from cosurfgs_jax.collab.finished_stages import keep_models_alone
from cosurfgs_jax.collab.importance_scores import score_of
from cosurfgs_jax.collab.open_run import check_photographs, open_for_some_blocks
from cosurfgs_jax.collab.stage_course import run_one_stage, stages_left
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.stages import note_plan, stages_of
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import layout_of_block
from cosurfgs_jax.distributed.recording import recording
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.raster import backend_of
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoint_files import (
    META,
    MODEL,
    holds_more,
    is_model_alone,
    is_unfinished,
)
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.loss_terms import check_own_terms
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, bind_partition
from cosurfgs_jax.training.partners import check_neighbors
from cosurfgs_jax.training.run import Run, Stopped, run_config
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.workdir import BLOCK, TRAINING, Workdir

_log = logging.getLogger(__name__)


def train_blocks(
    settings: Settings, workdir: Workdir, choice: BlockChoice, losses: Sequence[LossTerm] = ()
) -> None:
    """Trains some blocks one after the other on one device, goes on where an earlier call stopped,
    or says that they are finished. Jobs of other blocks may run at the same time, anywhere.

    Args:
        settings: validated.
        workdir: of the run that the blocks belong to.
        choice: which blocks.
        losses: as those of `pipeline.train`.
    Raises:
        InputError: the dataset or the choice is not usable, another job trains one of the blocks,
            or has other settings, or all blocks are trained together here.
        SystemExit: after SIGINT or SIGTERM, when the state is saved.
    """
    backend_of(settings.raster)
    check_own_terms(losses)
    strategy_of(settings.density)
    score_of(settings.lmc)
    check_no_masks(settings)
    processes.versions()  # noted before anybody replaces the sources
    with locks.hold_shared(workdir.lock(TRAINING.name), TRAINING.writer):
        partitioned = open_for_some_blocks(settings, workdir)
        numbers = choice.of(partitioned.partition.num_blocks)
        check_neighbors(partitioned, settings.loss)
        unfinished = unfinished_blocks(settings, workdir, partitioned)
        at_work = workdir.blocks_at_work()
        wanted = [
            number
            for number in numbers
            if number in unfinished
            or (number not in at_work and _is_untidy(settings, workdir.block(number), partitioned))
        ]
        _log.info("--blocks=%s: %s", choice.text, describe_blocks(settings, workdir, partitioned))
        if wanted:
            with _held(settings, workdir, partitioned, wanted):
                _train(settings, workdir, partitioned, losses, wanted)
            _log.info(describe_blocks(settings, workdir, partitioned))


def check_no_masks(settings: Settings) -> None:
    """Raises InputError where the shape of a block depends on the others."""
    if settings.mask.weight:
        raise InputError(
            "config.mask.weight: expected 0 where blocks are trained by jobs of their own, got "
            f"{settings.mask.weight}: where masks prune, all blocks take the slots of the fullest "
            "one; train without --blocks, or without masks"
        )


def block_stages(settings: Settings, partitioned: PartitionedScene) -> list[StageSpec]:
    """The stages that a block is taken through by itself."""
    specs = stages_of(settings, partitioned.partition)
    return [spec for spec in specs if spec.is_of_blocks]


def unfinished_blocks(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene
) -> dict[int, str]:
    """Number -> how far it is, of each block that is not through its stages.

    Args:
        settings, workdir, partitioned: of the run.
    """
    specs = block_stages(settings, partitioned)
    last = specs[-1]
    found = {}
    for block in partitioned.blocks:
        folder = workdir.block(block.number)
        spec = stages_left(folder, specs)[0]
        step = folder.newest_step(spec.name)
        is_handed_over = not settings.lmc.compact or folder.compact(last.name).exists()
        if spec is last and step == last.num_steps(settings) and is_handed_over:
            continue
        found[block.number] = "not begun"
        if step is not None:
            found[block.number] = f"{spec.name}, step {step} of {spec.num_steps(settings)}"
    return found


def describe_blocks(settings: Settings, workdir: Workdir, partitioned: PartitionedScene) -> str:
    """Which blocks are finished and which are missing, in a line."""
    unfinished = unfinished_blocks(settings, workdir, partitioned)
    finished = [str(block.number) for block in partitioned.blocks if block.number not in unfinished]
    missing = [f"{number} ({how_far})" for number, how_far in unfinished.items()]
    return (
        f"blocks finished: {', '.join(finished) or 'none'}; missing: {', '.join(missing) or 'none'}"
    )


def _is_untidy(settings: Settings, folder: Workdir, partitioned: PartitionedScene) -> bool:
    """Whether the folder of a finished block holds more than a job leaves there: it was killed
    while it deleted the rest, or before its end.
    """
    specs = block_stages(settings, partitioned)
    if any(is_unfinished(folder.checkpoints(spec.name)) for spec in specs):
        return True
    if folder.scratch(BLOCK.name).exists():  # of a job that was killed in its next block
        return True
    if settings.train.keep_moments:
        return False
    items = MODEL
    finished = specs[:-1]
    if settings.lmc.compact:
        items = (META,)
        finished = specs
    return any(
        holds_more(folder.checkpoints(spec.name), spec.num_steps(settings), items)
        for spec in finished
    )


def is_taking_blocks(settings: Settings, workdir: Workdir, partitioned: PartitionedScene) -> bool:
    """Whether a run has taken its first stage from blocks of their own jobs, and no other one yet:
    it goes on with them, and they may still be trained further.
    """
    first, *later = stages_of(settings, partitioned.partition)
    taken = workdir.checkpoints(first.name) / str(first.num_steps(settings))
    # Trained by the run, it would be whole until the next stage has saved.
    return (
        len(block_stages(settings, partitioned)) > 1
        and is_model_alone(taken)
        and any(folder.has_begun() for folder in workdir.blocks().values())
        and not any(workdir.has_begun(spec.name) for spec in later)
    )


@contextlib.contextmanager
def _held(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, numbers: Sequence[int]
) -> Iterator[None]:
    """Holds the locks of some blocks, with the settings that all jobs must have."""
    with contextlib.ExitStack() as stack:
        with locks.hold_briefly(workdir.lock("blocks")):
            _check_not_together(settings, workdir, partitioned)
            for number in numbers:
                stack.enter_context(hold_block(workdir.block(number)))
            bind_settings(settings, workdir, numbers)
            is_bound = workdir.has_begun() or bool(_others_at_work(workdir, numbers))
            bind_partition(partitioned, workdir, is_bound)
            note_plan(settings, workdir, partitioned.partition)
        yield


def _check_not_together(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene
) -> None:
    if is_taking_blocks(settings, workdir, partitioned):
        return
    for spec in block_stages(settings, partitioned):
        if workdir.has_begun(spec.name):
            raise InputError(
                f"--blocks: expected a run whose blocks are trained by jobs of their own, got "
                f"checkpoints of all blocks together in {workdir.checkpoints(spec.name)}; go on "
                "without --blocks, or use another --workdir"
            )


@contextlib.contextmanager
def hold_block(folder: Workdir) -> Iterator[None]:
    """Holds the lock of a block, and deletes what a killed job was writing there.

    Raises:
        InputError: another process trains the block.
    """
    is_ended = locks.has_last_ended(folder.lock(BLOCK.name))
    with folder.writing(BLOCK):
        folder.clear_unfinished_training(is_ended)
        yield


def check_settings_of_blocks(settings: Settings, workdir: Workdir) -> None:
    """Raises InputError if a block that has saved a step was trained with other settings."""
    for folder in workdir.blocks().values():
        settings_file.check_fits(settings, folder)


def _others_at_work(workdir: Workdir, numbers: Sequence[int]) -> list[Workdir]:
    """The blocks that jobs train now, but for these; for who holds the lock `blocks`."""
    return [
        folder
        for number, folder in workdir.blocks().items()
        if number not in numbers and locks.is_held(folder.lock(BLOCK.name))
    ]


def bind_settings(settings: Settings, workdir: Workdir, numbers: Sequence[int]) -> None:
    """Writes the settings into the folders of some blocks, and into that of the run where they are
    the first; for who holds the lock `blocks`.

    Raises:
        InputError: blocks that have saved a step, or that another job trains now, have others.
    """
    check_settings_of_blocks(settings, workdir)
    are_first = not workdir.has_begun()
    for folder in _others_at_work(workdir, numbers):
        settings_file.check_made_with(settings, folder)
        are_first = False
    folders = [workdir.block(number) for number in numbers]
    if are_first or not workdir.config.exists():
        folders.append(workdir)
        concessions.note([], workdir)  # there may be those of a run that has not saved a step
    for folder in folders:
        settings_file.save(settings, folder.made_with)
        settings_file.save(settings, folder.config)


def _train(
    settings: Settings,
    workdir: Workdir,
    partitioned: PartitionedScene,
    losses: Sequence[LossTerm],
    numbers: Sequence[int],
) -> None:
    """Trains blocks whose locks are held."""
    with (
        StopRequest() as stop,
        ImageStore(partitioned.scene, settings.data.host_memory_mb) as images,
        Log(workdir.block(numbers[0])) as log,
        recording(workdir, "train") as record,
    ):
        run = Run(
            settings=settings,
            workdir=workdir,
            partitioned=partitioned,
            layout=layout_of_block(numbers[0]),
            images=images,
            stop=stop,
            log=log,
            own_terms=tuple(losses),
            record=record,
        )
        try:
            take_through(run, numbers)
        except Stopped:
            _log.info("stopped; the same command goes on from there")
            stop.exit()


def take_through(run: Run, numbers: Sequence[int]) -> None:
    """Takes blocks through their stages, one after the other on this process's first device. Of
    those that are finished, deletes what a killed job did not come to delete.

    Args:
        run: of the run; its folders of these blocks have their settings (`bind_settings`).
        numbers: of the blocks.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
    """
    unfinished = unfinished_blocks(run.settings, run.workdir, run.partitioned)
    for number in numbers:
        if number in unfinished:
            check_photographs(run._replace(layout=layout_of_block(number)))
    for number in numbers:
        folder = run.workdir.block(number)
        note_plan(run.settings, folder, run.partitioned.partition)
        with Log(folder) as log:
            alone = run._replace(
                workdir=folder,
                layout=layout_of_block(number),
                log=log,
                config=run_config(folder),
                when_timed=None,  # the pace of one block by itself is not that of the run
            )
            specs = block_stages(run.settings, run.partitioned)
            if number in unfinished:
                _take_one_through(alone, specs)
            if run.settings.lmc.compact:
                leave_compact(alone, specs)
            else:
                keep_models_alone(alone, specs[:-1])


def _take_one_through(alone: Run, specs: Sequence[StageSpec]) -> None:
    """Takes a block through the stages that are left."""
    (number,) = alone.layout.blocks
    block = alone.partitioned.blocks[number]
    _log.info("block %d: %d photographs, %s", number, len(block.views), alone.workdir)
    stage = None
    for spec in stages_left(alone.workdir, specs):
        stage, _ = run_one_stage(alone, None, spec, stage)
        if alone.settings.lmc.compact:
            write_compact(alone, spec, stage)
