"""The stages of local model compression (LMC): blocks after training, and edges after their
distillation.
"""

import dataclasses
import logging
import math

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.stage_spec import StageWork
from cosurfgs_jax.settings import LmcSettings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.partitioned_scene import round_slots
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Stopwatch
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.trainer import Trainer

# In a round, of the surfels in the cell and of those around it: each number is rounded down, in
# float32.
_NUM_KEPT_MORE = 4
_log = logging.getLogger(__name__)


def compress_blocks(work: StageWork) -> loop.StageState:
    """Compresses the blocks in rounds, each with training to recover."""
    if work.saved is None:
        stage = work.models._replace(name=work.name, step=0, num_without_room=0, seconds=0.0)
    elif work.num_steps == 0:
        return work.saved
    else:
        stage = work.saved
    return compress_in_rounds(work.run, stage, work.num_steps, work.store)


def compress_edges(work: StageWork) -> loop.StageState:
    """Compresses the models of the edges once, without training."""
    stopwatch = Stopwatch()
    run = work.run
    programs = compress.compile_compression(
        run.settings, run.layout, run.settings.lmc.edge_prune_ratio
    )
    result = compress.compress(run, work.models, programs)
    _log_compression(result)
    states = loop.drop_free_slots(run.layout, result.states)
    return work.models._replace(states=states, name=work.name, step=0, seconds=stopwatch.seconds)


def compress_in_rounds(
    run: Run, stage: loop.StageState, num_steps: int, checkpoints: Checkpoints
) -> loop.StageState:
    """Compresses blocks by `lmc.prune_ratio` in `lmc.rounds` rounds, each followed by an equal part
    of the training to recover.

    What a round leaves is another model, in which other surfels matter: each round measures anew.
    The arrays shrink in the last one, as every other shape is compiled anew, to what `prune_ratio`
    alone says: a block has the same shape whatever the others have pruned.

    Args:
        run: of the run.
        stage: the blocks before the first round (step 0), or as an earlier call saved them. At the
            step where a round begins it holds the blocks before that round.
        num_steps: of recovery, in all rounds together; 0 = none.
        checkpoints: of this stage.
    Returns:
        The stage at `num_steps`.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
    """
    settings = run.settings.lmc
    num_rounds = rounds_of(settings, num_steps)
    ratio = _ratio_of_round(settings.prune_ratio, num_rounds)
    programs = compress.compile_compression(run.settings, run.layout, ratio)
    schedule = Schedule.without_growth(run.settings, max(num_steps, 1))
    trainer = Trainer(_with_fixed_exposures(run), schedule, settings.start_progress)
    for number in range(num_rounds):
        begin = number * num_steps // num_rounds
        end = (number + 1) * num_steps // num_rounds
        if stage.step >= end > 0:
            continue
        if stage.step == begin:
            stopwatch = Stopwatch(stage.seconds)
            result = compress.compress(run, trainer.settled(stage), programs)
            _log_compression(result)
            states = result.states
            if number == num_rounds - 1:
                num_slots = slots_left(stage.num_slots, num_rounds, settings)
                states = loop.cut_slots(run.layout, states, num_slots)
            stage = stage._replace(states=states, seconds=stopwatch.seconds)
        stage = loop.run_stage(run, stage, end, trainer.advance, checkpoints)
    return stage


def _with_fixed_exposures(run: Run) -> Run:
    """The run, whose exposures stay as the training left them.

    A block that has just been pruned is darker; exposures would make up for that, each block's in
    another way, and blocks that are put together would differ in brightness.
    """
    appearance = dataclasses.replace(run.settings.appearance, learning_rate=0.0)
    return run._replace(settings=dataclasses.replace(run.settings, appearance=appearance))


def rounds_of(settings: LmcSettings, num_steps: int) -> int:
    """Rounds of a compression with so many steps of recovery."""
    return min(settings.rounds, max(num_steps, 1))


def _ratio_of_round(prune_ratio: float, num_rounds: int) -> float:
    return 1 - (1 - prune_ratio) ** (1 / num_rounds)


def slots_left(num_slots: int, num_rounds: int, settings: LmcSettings) -> int:
    """Slots that hold what the rounds leave of full arrays."""
    if settings.importance_share > 0:  # it may leave all of them
        return num_slots
    num_left = num_slots
    for _ in range(num_rounds):
        kept = 1 - _ratio_of_round(settings.prune_ratio, num_rounds)
        num_left = math.ceil(kept * num_left) + _NUM_KEPT_MORE
    return round_slots(num_left)


def _log_compression(result: compress.Compression) -> None:
    for block, before in result.num_before.items():
        after = result.num_after[block]
        _log.info(
            "block %d: %d photographs used; %d of %d surfels pruned, %d kept, %d of them in its "
            "cell",
            block,
            result.num_used[block],
            before - after,
            before,
            after,
            result.num_inside[block],
        )
