"""The training of blocks on their own photographs, all in lockstep."""

from collections.abc import Callable

import numpy as np

from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.training.batches import BlockViews, PackedBatch, Wanted
from cosurfgs_jax.training.block_renders import log_test_views
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_control import DensityControl, control_density, looks_after
from cosurfgs_jax.training.density_steps import LOOK_STRIDE
from cosurfgs_jax.training.dispatch import DispatchLimit, programs_ahead
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.mask_control import begin_masks, prune_masked
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.training.schedule import Schedule, progress_at
from cosurfgs_jax.types import on_host


class Trainer:
    """Trains blocks on their own photographs: the device stage, or the recovery after compression.

    It holds compiled steps and the batches that are on their way; the stage is the caller's.
    """

    def __init__(self, run: Run, schedule: Schedule, first_progress: float = 0.0):
        """
        Args:
            run: of the run.
            schedule: the course of the stage.
            first_progress: where on the course of the learning rates it begins; it ends at 1.
        """
        self._run = run
        self._schedule = schedule
        self._first_progress = first_progress
        self._steps = compile_blocks(run.settings, run.layout, run.own_terms)
        self._density = DensityControl(
            partitioned=run.partitioned,
            layout=run.layout,
            settings=run.settings,
            schedule=schedule,
            steps=self._steps,
        )
        self._pace = DispatchLimit(programs_ahead(run.layout))
        self._views = BlockViews(run)
        self._next: dict[tuple[int, int], PackedBatch] = {}  # by row and step

    def advance(self, stage: StageState, progress: Progress) -> tuple[StageState, list[Packed]]:
        """One step of all blocks, and density control where it is due (`loop.run_stage`)."""
        step = stage.step
        schedule = self._schedule
        stage = begin_masks(self._density, stage)
        shape = schedule.shape(step)
        self._views.prefetch(step + 1, with_second=shape.has_geometry)
        # What is delivered to be looked at uses up what was delivered before.
        is_looking = looks_after(schedule, self._run.settings, step + 1)
        states = []
        reports = []
        for row, state in enumerate(stage.states):
            delivery = self._next.pop((row, step), None) or self._deliver(row, step)
            recalled = None
            if shape.has_geometry and state.depths is not None:
                recalled = self._steps.recall(state, delivery)
            state, report = self._steps.train_packed(state, delivery, recalled, shape=shape)
            if step + 1 < schedule.num_steps and not is_looking:
                # Goes to the device while that computes.
                self._next[row, step + 1] = self._deliver(row, step + 1)
            self._pace.launched(report)
            states.append(state)
            reports.append(report)
        stage = stage._replace(states=states, step=step + 1)
        # When surfels settle must follow from the course alone: it changes the last bits of them.
        if schedule.looks_at_all_after(stage.step):
            stage = self.settled(stage)
        stage = control_density(self._density, stage, progress, self._deliver_look)
        stage = prune_masked(self._density, stage, progress)
        test_every = self._run.settings.train.test_every
        if test_every and stage.step % test_every == 0 and stage.step < schedule.num_steps:
            log_test_views(self._run, self._shown(stage))
        return stage, reports

    def _progress(self, step: int) -> float:
        return progress_at(step, self._schedule.num_steps, self._first_progress)

    def settled(self, stage: StageState) -> StageState:
        """The stage with all surfels up to date. The arrays of the one that is given are used
        up.
        """
        return self._settled_by(self._steps.settle, stage)

    def _shown(self, stage: StageState) -> StageState:
        """A copy of the stage with all surfels up to date."""
        return self._settled_by(self._steps.settled_copy, stage)

    def _settled_by(self, settle: Callable, stage: StageState) -> StageState:
        if stage.states[0].updated is None:
            return stage
        layout = self._run.layout
        progress = np.float32(self._progress(stage.step))
        states = [settle(state, layout.put(lambda _: on_host(progress))) for state in stage.states]
        return stage._replace(states=states)

    def _wanted(self, step: int) -> Wanted:
        return Wanted(progress=self._progress(step), sh_degree=self._schedule.sh_degree_at(step))

    def _deliver_look(self, row: int, step: int) -> PackedBatch:
        wanted = self._wanted(step)._replace(dilation=LOOK_STRIDE)
        return self._views.deliver(row, step, wanted)

    def _deliver(self, row: int, step: int) -> PackedBatch:
        shape = self._schedule.shape(step)
        wanted = self._wanted(step)._replace(
            with_second=shape.has_geometry,
            dilation=shape.dilation,
            is_masked=self._schedule.is_masked(step),
        )
        return self._views.deliver(row, step, wanted)
