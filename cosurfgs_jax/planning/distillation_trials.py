"""Trials of what blocks do together: teachers' maps, distillation, pictures of the merged model."""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.aggregate import Aggregation, compile_packed
from cosurfgs_jax.collab.composite import RequestPlanner
from cosurfgs_jax.collab.exchange import Grouping
from cosurfgs_jax.collab.plans import Plans
from cosurfgs_jax.collab.stage_metrics import StageMetrics
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.teachers import Teachers, blank_maps
from cosurfgs_jax.collab.traffic import collectives
from cosurfgs_jax.losses.inputs import TeacherMaps
from cosurfgs_jax.planning import stand_ins
from cosurfgs_jax.planning.block_trials import Cost, TrialInputs
from cosurfgs_jax.planning.trials import abstract_row, bytes_of, compiled, mean_time, timed
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.partitioned_scene import Photographs
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import abstract_state

_NAME = "trial"  # of the folder of teachers' maps


class _NoTeachers(Teachers):
    """Maps that teach nothing, where none are drawn."""

    def __init__(self, run: Run):
        super().__init__(run, _NAME)
        self._blank = blank_maps(Photographs(run.partitioned, run.images).load(None, 0).shape[:2])

    def used_views(self) -> list[np.ndarray]:
        """All."""
        return [block.views for block in self._run.partitioned.blocks]

    def load(self, block: int, view: int) -> TeacherMaps:
        """The same for all."""
        return self._blank


class DistillationCost(NamedTuple):
    """What a stage of distillation takes."""

    step: Cost
    bytes_moved: int  # that a device gets in the collectives of a step, its own part included


class DistillationTrials:
    """Trials with cells in the slots that compression leaves them."""

    def __init__(self, inputs: TrialInputs, cell_slots: int):
        """
        Args:
            inputs: of the trials.
            cell_slots: of every cell.
        """
        self._inputs = inputs
        self._cell_slots = cell_slots

    def cells(self, rows: list[Any]) -> list[Any]:
        """The cells of blocks' states, on the devices."""
        run = self._inputs.run
        return compress.crop_to_cells(run.partitioned.partition, run.layout, rows)

    def teaching(self, rows: list[Any], plans: Plans) -> Cost:
        """The teachers' maps of one view of every block, with what writes them."""
        run = self._inputs.run
        planner = RequestPlanner(run.partitioned, run.layout, plans.cloud)
        partners = {block: planner.partners(block) for block in run.layout.local_blocks}
        one = [block._replace(views=block.views[:1]) for block in run.partitioned.blocks]
        first = run._replace(partitioned=run.partitioned._replace(blocks=one))

        def draw(run: Run) -> np.ndarray:
            with contextlib.redirect_stderr(io.StringIO()):  # a line of progress
                return timed(lambda: Teachers(run, _NAME).render(rows, plans.alone, partners))[1]

        # The second call draws all but one, and compiles anew as well.
        num_more = run.partitioned.max_views - 2
        one_s = draw(first)
        all_s = draw(run)
        each = np.maximum(all_s - one_s, 0.0) / max(1, num_more)
        return Cost(np.maximum(one_s - each, 0.0), each)

    def step(self, grouping: Grouping, cells: list[Any] | None) -> DistillationCost:
        """A step of distillation.

        Args:
            grouping: of the stage.
            cells: whose arrays are used up; None: it is only compiled. Timed are steps for the maps
                that `teaching` has drawn.
        """
        run = self._inputs.run
        layout = run.layout
        teachers = Teachers(run, _NAME)
        if cells is None:
            teachers = _NoTeachers(run)
        aggregation = Aggregation(run, grouping, teachers, num_steps=1)
        shapes = abstract_state(self._cell_slots, self._inputs.whole.max_views, run.settings)
        states: list[Any] = [abstract_row(layout, shapes)] * layout.blocks_per_device
        if cells is not None:
            states = cells
        delivery = aggregation.deliver(0)
        tables = bytes_of((delivery.own, delivery.seconds)) // layout.num_devices
        held = bytes_of(states) // layout.num_devices + tables
        step = compile_packed(run.settings, layout, grouping.exchange)
        program = compiled(step, states, delivery, held=held)
        run_s = None
        if cells is not None:

            def advance(number: int):
                nonlocal states
                states, reports = program.call(states, aggregation.deliver(number))
                return reports

            epoch = max(len(block.views) for block in run.partitioned.blocks)
            mean_time(advance, epoch)
            run_s = mean_time(lambda number: advance(epoch + number), epoch)
        moved = sum(move.num_bytes for move in collectives(program.text))
        return DistillationCost(Cost(program.compile_s, run_s, program.num_bytes), moved)

    def scoring(self, spec: StageSpec, rows: list[Any], plans: Plans) -> Cost:
        """The scores of a stage: what they take for each test view of every block, and beside that
        as compiling.

        Args:
            spec: of the stage.
            rows: the blocks at its end, or what stands in for them.
            plans: groupings of the run.
        """
        run = self._inputs.run
        stage = loop.StageState(
            name=spec.name, states=rows, step=0, num_without_room=0, seconds=0.0
        )

        def score(num_rounds: int) -> np.ndarray:
            partitioned = stand_ins.with_few_test_views(self._inputs.whole, num_rounds)
            few = run._replace(partitioned=run.partitioned._replace(scene=partitioned.scene))
            return timed(lambda: StageMetrics(few, plans).write(spec, stage))[1]

        first = score(1)
        each = np.maximum(score(2) - score(1), 0.0)
        return Cost(np.maximum(first - each, 0.0), each)
