"""The course of a stage, all blocks in lockstep: cadence, logging, saving, resuming. No
mathematics.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import host_memory
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import BadLossError
from cosurfgs_jax.model.slots import grow_capacity
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoints import EVERYTHING, Checkpoints, Parts
from cosurfgs_jax.training.partitioned_scene import (
    Block,
    round_slots,
    slots_for,
)
from cosurfgs_jax.training.run import Run, StopAgreement, Stopped, check_config
from cosurfgs_jax.training.run_log import Progress, Stopwatch
from cosurfgs_jax.training.saved_meta import check_meta, made_with
from cosurfgs_jax.training.schedule import ViewOrder
from cosurfgs_jax.training.state import (
    MODEL_FIELDS,
    abstract_state,
    empty_state,
    from_saved,
    kept_of,
    map_slots,
    meta_of,
    model_of,
    to_saved,
    with_surfels,
)
from cosurfgs_jax.training.step import StepReport
from cosurfgs_jax.training.step_reports import RecentReports, mean_numbers, numbers_of


class StageState(NamedTuple):
    """Blocks in the course of a stage: what its checkpoints hold."""

    name: str
    # TrainState [D, ...] of the blocks in each row of the layout; BlockModel where a stage is
    # finished and no other begins with it
    states: list[Any]
    step: int
    num_without_room: int
    seconds: float

    @property
    def num_slots(self) -> int:
        """Slots of every block."""
        return self.states[0].alive.shape[1]


Advance = Callable[[StageState, Progress], tuple[StageState, list[Packed]]]
ViewOf = Callable[[int, int], int]  # (block, finished steps) -> view


def restore_stage(
    run: Run, name: str, checkpoints: Checkpoints, parts: Parts = EVERYTHING
) -> StageState | None:
    """The newest saved state of a stage, on whatever devices there are now; None if there is none.

    Args:
        run, name, checkpoints: of the run and the stage.
        parts: without training the states are `BlockModel`s; so are those of a finished stage that
            has lost it, where `last_step` says so.
    Raises:
        InputError: the checkpoints are of another dataset or partition, or damaged.
    """
    layout = run.layout

    def make_abstract(meta: dict):
        check_meta(run, meta)
        numbers = meta["num_without_room"] + meta["seconds"]
        if not np.isfinite(numbers):
            raise ValueError(f"num_without_room and seconds: {numbers}")
        abstract = layout.abstract_rows(
            abstract_state(
                meta["num_slots"],
                meta["max_views"],
                run.settings,
                kept_of(meta),
            )
        )
        return to_saved(abstract)

    restored = checkpoints.restore_latest(make_abstract, parts)
    if restored is None:
        return None
    meta = restored.meta
    state = from_saved(restored.state)
    if not parts.training:
        state = model_of(state)
    return StageState(
        name=name,
        states=layout.split_rows(state),
        step=restored.step,
        num_without_room=meta["num_without_room"],
        seconds=meta["seconds"],
    )


def save_stage(run: Run, stage: StageState, checkpoints: Checkpoints) -> None:
    """Starts to save a stage as it is now.

    Raises:
        InputError: the workdir is not that of the run any more, or cannot be written.
    """
    check_config(run)
    fields = to_saved(run.layout.join_rows(stage.states))
    checkpoints.save(
        stage.step,
        {name: fields[name] for name in MODEL_FIELDS},
        training={name: fields[name] for name in fields if name not in MODEL_FIELDS},
        meta=meta_of_stage(run, stage),
    )


def meta_of_stage(run: Run, stage: StageState) -> dict[str, Any]:
    """What is saved with a stage's arrays: what their shapes follow from, and what they were made
    with.
    """
    return {
        "num_slots": stage.num_slots,
        "max_views": run.partitioned.max_views,
        **meta_of(stage.states[0]),
        "frame": run.partitioned.frame.to_dict(),
        "num_without_room": stage.num_without_room,
        "seconds": stage.seconds,
        "num_blocks": len(run.layout.blocks),
        **made_with(run),
    }


def run_stage(
    run: Run,
    stage: StageState,
    num_steps: int,
    advance: Advance,
    checkpoints: Checkpoints,
    view_of: ViewOf | None = None,
) -> StageState:
    """Takes a stage to its last step: progress, logging, saving. Saves at the end.

    Args:
        run: of the run.
        stage: where it starts.
        num_steps: where it ends.
        advance: (stage, progress line) -> the stage one step later, which devices may still be
            computing, and the packed `StepReport` of each row.
        checkpoints: of this stage.
        view_of: which view a block's step uses; None: all of its views once per epoch.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
        BadLossError: a loss is not finite; nothing that came after it is saved.
    """
    cadence = run.settings.train
    stopwatch = Stopwatch(stage.seconds)
    recent = RecentReports(run.layout)
    agreement = StopAgreement(run.stop)
    view_of = view_of or _even_order(run)
    run.log.begin(stage.name, stage.step)
    host_memory.give_back_freed()  # what scores, teachers and compilers have left
    with Progress(stage.name, num_steps, stage.step) as progress:
        while stage.step < num_steps:
            began = time.monotonic()
            stage, reports = advance(stage, progress)
            run.stop.step_took(time.monotonic() - began)
            recent.add(reports)
            is_last = stage.step == num_steps
            is_stopping = agreement.is_asked(is_last)
            is_saved = is_last or is_stopping or stage.step % cadence.checkpoint_every == 0
            is_logged = is_last or stage.step % cadence.log_every == 0
            if is_saved or is_logged:
                _check_losses(run, stage, recent.peek(), checkpoints, view_of=view_of)
            if is_logged:
                _write_log(run, stage, recent.take(), progress)
                if run.when_timed is not None:
                    run.when_timed(run, stage.name, progress.pace)
            else:
                progress.update(stage.step)
            if is_stopping:
                run.stop.heard()
            if is_logged or is_saved:
                host_memory.give_back_freed()
            if is_saved:
                stage = stage._replace(seconds=stopwatch.seconds)
                save_stage(run, stage, checkpoints)
            if is_stopping:
                checkpoints.wait()
                raise Stopped
    if num_steps == 0:
        save_stage(run, stage, checkpoints)
    checkpoints.wait()
    return stage


def _even_order(run: Run) -> ViewOf:
    """Which view a block's step uses where all are used once per epoch."""

    def view_of(block: int, step: int) -> int:
        views = run.partitioned.blocks[block].views
        return ViewOrder(views, run.settings.seed, block).view(step)

    return view_of


def _check_losses(
    run: Run,
    stage: StageState,
    steps: Sequence[dict[int, StepReport]],
    checkpoints: Checkpoints,
    view_of: ViewOf,
) -> None:
    """Raises BadLossError at the first of the last steps whose loss is not finite. Before a save,
    so that no checkpoint holds what follows from it.
    """
    for step, reports in enumerate(steps, stage.step - len(steps) + 1):
        for block, report in reports.items():
            if np.isfinite(report.loss):
                continue
            checkpoints.wait()
            folder = run.workdir.checkpoints(stage.name)
            saved = [folder / str(number) for number in checkpoints.steps()]
            good = "there is no checkpoint of this stage yet: the same command begins it anew"
            if saved:
                good = f"the same command goes on from the last good checkpoint {saved[-1]}"
            name = run.partitioned.scene.image_names[view_of(block, step - 1)]
            raise BadLossError(
                f"{stage.name}: the loss of block {block} is {float(report.loss)} at step {step}, "
                f"whose photograph is {name}; {good}. If it stops there again, look at that "
                "photograph, its mask and its pose, or lower the learning rates (config.optim) in "
                "another --workdir"
            )


def _write_log(
    run: Run, stage: StageState, steps: Sequence[dict[int, StepReport]], progress: Progress
) -> None:
    """Writes the line of the last steps: means over them, as what one photograph shows jumps, and
    what the last one counted.
    """
    means = {
        block: mean_numbers([numbers_of(reports[block]) for reports in steps])
        for block in steps[-1]
    }
    for block, report in steps[-1].items():
        if report.num_invalid:
            progress.message(
                f"block {block}: {int(report.num_invalid)} surfels with values that are not finite "
                "are skipped"
            )
        run.log.row(stage.name, stage.step, block, surfels=int(report.num_alive), **means[block])
    if means:
        shown = mean_numbers(list(means.values()))
        numbers = {"loss": shown["loss"]}
        if "psnr/train" in shown:
            numbers["psnr"] = shown["psnr/train"]
        progress.update(
            stage.step,
            **numbers,
            surfels=sum(int(report.num_alive) for report in steps[-1].values()),
        )


def common_slots(blocks: Sequence[Block], counts, settings: Settings) -> int:
    """Slots that hold these numbers of surfels in every block, with room to grow: blocks in
    lockstep have one shape.
    """
    return max(
        slots_for(count, block.capacity, settings.density)
        for block, count in zip(blocks, counts, strict=True)
    )


def resize_states(layout: Layout, states: Sequence[Any], num_slots: int) -> list[Any]:
    """States with more slots; the new ones are empty."""

    def grow(state):
        state = jax.tree.map(jnp.asarray, state)
        return with_surfels(
            state,
            *grow_capacity(state.params, state.optimizer, state.alive, state.stats, num_slots),
        )

    return [layout.put(lambda device, row=row: grow(layout.get(row, device))) for row in states]


def count_alive(layout: Layout, states: Sequence[Any]) -> dict[int, int]:
    """Living surfels of each block of this process; nothing else leaves the devices."""
    alive = layout.get_blocks([state.alive for state in states])
    return {block: int(is_alive.sum()) for block, is_alive in alive.items()}


def drop_free_slots(layout: Layout, states: list) -> list:
    """The same states with as few slots as hold the living surfels of every block, which must be in
    front.
    """
    counts = list(count_alive(layout, states).values())
    return cut_slots(layout, states, round_slots(processes.max_over_processes(counts)))


def cut_slots(layout: Layout, states: list, num_slots: int) -> list:
    """The same states with the first so many of their slots, or all where they have fewer."""

    def cut(device: int, row: int):
        return map_slots(layout.get(states[row], device), lambda leaf: leaf[:num_slots])

    return [layout.put(lambda device, row=row: cut(device, row)) for row in range(len(states))]


def start_stage(run: Run, name: str, make_state, num_slots: int) -> StageState:
    """A stage before its first step.

    Args:
        run, name: of the run and the stage.
        make_state: number of a block -> its TrainState of `num_slots` slots.
        num_slots: of every block.
    """
    layout = run.layout
    settings = run.settings
    empty = empty_state(
        num_slots, run.partitioned.max_views, settings, run.partitioned.kept(settings)
    )
    rows = [
        layout.put_row(row, lambda number: empty if number is None else make_state(number))
        for row in range(layout.blocks_per_device)
    ]
    return StageState(name=name, states=rows, step=0, num_without_room=0, seconds=0.0)
