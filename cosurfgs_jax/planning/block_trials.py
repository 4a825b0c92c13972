"""Trials of what blocks do by themselves: training, density control, compression, test views."""

from typing import Any, NamedTuple

import jax
import numpy as np

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.importance import init_importance
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.planning import stand_ins
from cosurfgs_jax.planning.trials import (
    Program,
    abstract_row,
    bytes_of,
    compiled,
    mean_time,
    sum_times,
    timed,
)
from cosurfgs_jax.training.batches import BlockViews, Wanted, each_view
from cosurfgs_jax.training.block_renders import render_blocks
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.course import Course
from cosurfgs_jax.training.density_steps import LOOK_STRIDE, DensifyOrder
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import abstract_state, empty_state
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.types import on_host

_PROGRESS = 0.5  # of the learning rates in a trial: the exposure model has begun
_NUM_DECODED = 3


class Cost(NamedTuple):
    """What a program takes; times are f64[2], see `trials`."""

    compile_s: np.ndarray
    run_s: np.ndarray | None  # None: it was not timed
    num_bytes: int = 0  # on a device, besides states


class StepCost(NamedTuple):
    """What a kind of training steps takes."""

    compile_s: np.ndarray
    first_s: np.ndarray | None  # of a step of all blocks, with the surfels of the start
    full_s: np.ndarray | None  # with the most that there may be
    num_bytes: int


class TrialInputs(NamedTuple):
    """What trials are made of."""

    run: Run  # its blocks have a few of their photographs
    whole: PartitionedScene
    course: Course  # of the training of blocks


class BlockTrials:
    """Trials at the largest shapes of the training of blocks."""

    def __init__(self, inputs: TrialInputs):
        """
        Args:
            inputs: of the trials.
        """
        run = inputs.run
        self._inputs = inputs
        self._steps = compile_blocks(run.settings, run.layout)
        self._views = BlockViews(run)
        shapes = abstract_state(
            inputs.course.num_slots,
            inputs.whole.max_views,
            run.settings,
            inputs.whole.kept(run.settings),
        )
        self._state_bytes = bytes_of(shapes)
        self._abstract = abstract_row(run.layout, shapes)

    def first_states(self) -> list[Any]:
        """The rows of blocks before their first step, as NumPy arrays by block, in the most slots
        that they may get.
        """
        settings = self._inputs.run.settings
        whole = self._inputs.whole
        num_slots = self._inputs.course.num_slots
        return [
            jax.tree.map(np.asarray, first_state(whole, block, settings, num_slots))
            for block in whole.blocks
        ]

    def full_states(self, first: list[Any]) -> list[Any]:
        """The same with as many surfels as there may be."""
        fractions = self._inputs.course.num_surfels / max(
            1, sum(block.capacity for block in self._inputs.whole.blocks)
        )
        return [
            stand_ins.grown(state, min(len(state.alive), round(block.capacity * fractions)), number)
            for number, (state, block) in enumerate(
                zip(first, self._inputs.whole.blocks, strict=True)
            )
        ]

    def rows(self, states: list[Any]) -> list[Any]:
        """States of blocks on their devices, one row of the layout after the other."""
        run = self._inputs.run
        settings = run.settings
        whole = self._inputs.whole
        num_slots = len(states[0].alive)
        empty = empty_state(num_slots, whole.max_views, settings, whole.kept(settings))
        by_block: dict[int | None, Any] = dict(enumerate(states))
        return [
            run.layout.put_row(row, lambda number: by_block.get(number, empty))
            for row in range(run.layout.blocks_per_device)
        ]

    def _deliver(self, row: int, step: int, shape: StepShape):
        wanted = Wanted(
            progress=_PROGRESS,
            sh_degree=self._inputs.run.settings.surfels.sh_degree,
            with_second=shape.has_geometry,
            dilation=shape.dilation,
        )
        return self._views.deliver(row, step, wanted)

    def compile_step(self, shape: StepShape) -> Program:
        """A training step of one row of blocks."""
        layout = self._inputs.run.layout
        delivery = self._deliver(0, 0, shape)
        recalled = None
        if self._is_recalling(shape):
            one = jax.eval_shape(self._steps.recall, self._abstract, delivery)
            recalled = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), one
            )
            recalled = abstract_row(layout, recalled)
        held = self._state_bytes + bytes_of(delivery.tables) // layout.num_devices
        return compiled(
            self._steps.train_packed, self._abstract, delivery, recalled, shape=shape, held=held
        )

    def _is_recalling(self, shape: StepShape) -> bool:
        return shape.has_geometry and self._abstract.depths is not None

    def time_step(self, program: Program, rows: list[Any], shape: StepShape) -> np.ndarray:
        """f64[2] of one step of all blocks. The arrays of `rows` are replaced by later ones."""
        run = self._inputs.run

        def advance(step: int):
            for row, state in enumerate(rows):
                delivery = self._deliver(row, step, shape)
                recalled = None
                if self._is_recalling(shape):
                    recalled = self._steps.recall(state, delivery)
                rows[row], report = program.call(state, delivery, recalled)
                jax.block_until_ready(report)

        epoch = max(len(block.views) for block in run.partitioned.blocks)
        mean_time(advance, epoch)  # decodes, and remembers the depth of each view
        return mean_time(lambda number: advance(epoch + number), epoch)

    def time_decoding(self) -> np.ndarray:
        """f64[2] of one photograph that is not in memory yet."""
        images = self._inputs.run.images
        is_few = {
            int(view) for block in self._inputs.run.partitioned.blocks for view in block.views
        }
        views = [view for view in self._inputs.whole.scene.train_views if int(view) not in is_few]
        if not views:
            return np.zeros(2)
        picked = [int(view) for view in views[:: max(1, len(views) // _NUM_DECODED)]]
        return mean_time(lambda number: images.load(picked[number]), min(len(picked), _NUM_DECODED))

    def control(self, rows: list[Any] | None) -> Cost:
        """A round of density control of all blocks, with what brings surfels up to date for it."""
        layout = self._inputs.run.layout
        orders = [self._order(row) for row in range(layout.blocks_per_device)]
        progress = layout.put(lambda _: on_host(np.float32(_PROGRESS)))
        densify = compiled(self._steps.densify, self._abstract, orders[0], held=self._state_bytes)
        settle = compiled(self._steps.settle, self._abstract, progress, held=self._state_bytes)
        programs = [densify, settle]
        look = None
        num_looks = self._inputs.run.settings.density.error_views
        if strategy_of(self._inputs.run.settings.density).look is not None:
            delivery = self._deliver_look(0, 0)
            held = self._state_bytes + bytes_of(delivery.tables) // layout.num_devices
            look = compiled(self._steps.look, self._abstract, delivery, held=held)
            programs.append(look)
        run_s = None
        if rows is not None:

            def control_all():
                for row, order in enumerate(orders):
                    state = settle.call(rows[row], progress)
                    if look is not None:
                        for step in range(num_looks):
                            state = look.call(state, self._deliver_look(row, step))
                    rows[row], _ = densify.call(state, order)
                return rows

            _, run_s = timed(control_all)
        return Cost(
            sum_times([program.compile_s for program in programs]),
            run_s,
            max(program.num_bytes for program in programs),
        )

    def _deliver_look(self, row: int, step: int):
        return self._deliver(row, step, StepShape(False, dilation=LOOK_STRIDE))

    def _order(self, row: int) -> Any:
        def make(number: int | None) -> DensifyOrder:
            return DensifyOrder(
                block=on_host(np.int32(number or 0)),
                step=on_host(np.int32(0)),
                prunes_large=on_host(np.bool_(False)),
                budget=on_host(np.int32(self._inputs.course.num_slots)),
            )

        return self._inputs.run.layout.put_row(row, make)

    def compression(self, rows: list[Any] | None) -> Cost:
        """The measurement of importance in one photograph of every block."""
        run = self._inputs.run
        layout = run.layout
        measure = compress.compile_compression(run.settings, layout, 0.0).measure
        camera, is_active, size = next(iter(each_view(run.partitioned, layout, 0)))
        num_slots = self._inputs.course.num_slots
        inside = layout.put(lambda _: np.ones(num_slots, bool))

        def nothing_seen():
            return layout.put(lambda _: init_importance(num_slots))

        view = (inside, camera, is_active)
        program = compiled(
            measure, nothing_seen(), self._abstract, *view, image_size=size, held=self._state_bytes
        )
        run_s = None
        if rows is not None:

            def measure_all(_):
                for state in rows:
                    importance = nothing_seen()
                    jax.block_until_ready(program.call(importance, state, *view))

            run_s = mean_time(measure_all, 4)
        return Cost(program.compile_s, run_s, program.num_bytes)

    def drawing(self, rows: list[Any]) -> Cost:
        """A picture of one view of every block."""
        run = self._inputs.run
        views: dict[int, int | None] = {
            block.number: int(block.views[0]) for block in run.partitioned.blocks
        }
        first = timed(lambda: render_blocks(run, rows, views))[1]
        later = mean_time(lambda _: render_blocks(run, rows, views), 3)
        return Cost(np.maximum(first - later, 0.0), later)
