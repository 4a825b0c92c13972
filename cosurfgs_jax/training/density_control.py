"""Density control of the blocks of a stage: functions from a stage to the stage afterwards.

The arrays of the stage that is given are used up.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.batches import PackedBatch, each_view
from cosurfgs_jax.training.compiled_steps import BlockSteps
from cosurfgs_jax.training.density_steps import EVERYWHERE, DensifyOrder
from cosurfgs_jax.training.loop import StageState, common_slots, resize_states
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.types import on_host


class DensityControl(NamedTuple):
    """What density control works with."""

    partitioned: PartitionedScene
    layout: Layout
    settings: Settings
    schedule: Schedule
    steps: BlockSteps

    def budget(self, block: Block, step: int) -> int:
        """How many surfels a block may have after this step."""
        return self.schedule.budget(step, block.num_initial, block.capacity)

    def growing_area(self, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Corners f32[2] of the ground, world, within which a block adds surfels: its expanded
        cell.
        """
        if number is None or self.settings.partition.grows_backdrop:
            return EVERYWHERE
        low, high = self.partitioned.partition.expanded(number)
        return low.astype(np.float32), high.astype(np.float32)


def control_density(
    control: DensityControl,
    stage: StageState,
    progress: Progress,
    deliver: Callable[[int, int], PackedBatch],
) -> StageState:
    """Does what is due after the stage's step, if anything is.

    Args:
        control, stage: the arrays of the stage are used up where something is due.
        progress: for messages.
        deliver: (row, finished steps) -> the pixels that a density strategy looks at. Not kept: a
            trainer that held itself by it would keep the devices' memory beyond the stage.
    """
    step = stage.step
    schedule = control.schedule
    if schedule.densifies_after(step):
        stage = make_room(control, stage, progress)
        stage = look(control, stage, deliver)
        stage = densify(control, stage, progress)
    if schedule.trims_after(step):
        stage = trim(control, stage, progress)
    if schedule.resets_after(step):
        states = [control.steps.reset_opacity(state) for state in stage.states]
        stage = stage._replace(states=states)
    return stage


def make_room(control: DensityControl, stage: StageState, progress: Progress) -> StageState:
    """Grows the arrays of all blocks when the budget of one outgrows them."""
    num_slots = stage.num_slots
    blocks = control.partitioned.blocks
    budgets = [control.budget(block, stage.step) for block in blocks]
    if max(budgets) <= num_slots:
        return stage
    new = common_slots(blocks, budgets, control.settings)
    progress.message(
        f"step {stage.step}: room for {new:,d} surfels a block instead of {num_slots:,d}"
    )
    return stage._replace(states=resize_states(control.layout, stage.states, new))


def looks_after(schedule: Schedule, settings: Settings, step: int) -> bool:
    """Whether the density strategy looks at photographs after this many steps."""
    return schedule.densifies_after(step) and strategy_of(settings.density).look is not None


def look(
    control: DensityControl, stage: StageState, deliver: Callable[[int, int], PackedBatch]
) -> StageState:
    """Shows the density strategy the photographs of the next steps, if it wants to see some; see
    `control_density`.
    """
    if not looks_after(control.schedule, control.settings, stage.step):
        return stage
    states = []
    for row, state in enumerate(stage.states):
        for step in range(stage.step, stage.step + control.settings.density.error_views):
            state = control.steps.look(state, deliver(row, step))
            jax.block_until_ready(state.alive)  # one photograph at a time on the devices
        states.append(state)
    return stage._replace(states=states)


def densify(control: DensityControl, stage: StageState, progress: Progress) -> StageState:
    """One round of the density strategy in all blocks."""
    blocks = control.partitioned.blocks
    layout = control.layout
    step = stage.step
    prunes_large = control.schedule.prunes_large(step)

    def order(number: int | None) -> DensifyOrder:
        budget = 0 if number is None else control.budget(blocks[number], step)
        low, high = control.growing_area(number)
        return DensifyOrder(
            block=on_host(np.int32(number or 0)),
            step=on_host(np.int32(step)),
            prunes_large=on_host(np.bool_(prunes_large)),
            budget=on_host(np.int32(budget)),
            low=on_host(low),
            high=on_host(high),
        )

    states = []
    reports = []
    for row, state in enumerate(stage.states):
        state, report = control.steps.densify(state, layout.put_row(row, order))
        states.append(state)
        reports.append(report)
    num_without_room = sum(
        int(report.num_without_room)
        for number, report in layout.get_blocks(reports).items()
        if control.budget(blocks[number], step) == blocks[number].capacity
    )
    if num_without_room and not stage.num_without_room:
        progress.message(
            "the model is full: config.surfels.capacity sets how many surfels there may be; "
            "from now on only the most wanted ones are added"
        )
    return stage._replace(states=states, num_without_room=stage.num_without_room + num_without_room)


def trim(control: DensityControl, stage: StageState, progress: Progress) -> StageState:
    """Drops what too few photographs see in front. Where there are too few to judge by, nothing is
    dropped.
    """
    partitioned = control.partitioned
    layout = control.layout
    min_views = control.settings.density.trim_min_views

    def is_enough(number: int | None) -> np.bool_:
        has_block = number is not None
        return np.bool_(has_block and len(partitioned.blocks[number].views) > min_views)

    def no_views(_: int) -> np.ndarray:
        return np.zeros(stage.num_slots, np.int32)

    states = []
    dropped = []
    for row, state in enumerate(stage.states):
        num_views = layout.put(no_views)
        for camera, is_active, size in each_view(partitioned, layout, row):
            num_views = control.steps.count_front_view(
                num_views, state, camera, is_active, image_size=size
            )
        state, num_dropped = control.steps.trim(state, num_views, layout.put_row(row, is_enough))
        states.append(state)
        dropped.append(num_dropped)
    total = sum(map(int, layout.get_blocks(dropped).values()))
    progress.message(
        f"step {stage.step}: dropped {total:,d} surfels that fewer than {min_views} "
        "photographs see in front"
    )
    return stage._replace(states=states)
