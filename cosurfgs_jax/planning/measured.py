"""All trials of a run: what its programs hold, and what they take."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import host_memory
from cosurfgs_jax.collab.lmc_stages import compress_blocks
from cosurfgs_jax.collab.needs import ProgramBytes, Sizes
from cosurfgs_jax.collab.plans import make_plans
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.planning import stand_ins
from cosurfgs_jax.planning.block_trials import BlockTrials, Cost, StepCost, TrialInputs
from cosurfgs_jax.planning.distillation_trials import DistillationCost, DistillationTrials
from cosurfgs_jax.planning.trials import timed
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.course import Course
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.workdir import Workdir


class Times(NamedTuple):
    """What parts of a run take, f64[2] each (see `trials`), besides steps."""

    start: np.ndarray  # all blocks before their first step
    decoding: np.ndarray  # of one photograph
    drawing: Cost  # a view of every block, by its own model
    scoring: Cost  # of a stage of blocks by themselves, a test view of every block
    merged_scoring: Cost  # of a merged model, likewise
    teaching: Cost  # a view of every block, drawn and written


class HostMemory(NamedTuple):
    """Of the process that made the trials, in bytes."""

    base: int  # with the steps compiled, before it had states
    compiling: int  # more, while they were compiled
    a_program: int  # that a compiled program keeps


class Transients:
    """How much more the process has had in memory during a trial than before it."""

    def __init__(self):
        self.found: dict[str, int] = {}  # by moment; the most of several trials

    @contextlib.contextmanager
    def at(self, moment: str) -> Iterator[None]:
        """Around what happens at a moment; nothing is noted where the system keeps no peaks."""
        host_memory.give_back_freed()
        before = host_memory.resident_bytes()
        is_counting = host_memory.reset_peak()
        yield
        if is_counting:
            more = max(0, host_memory.peak_bytes() - before)
            self.found[moment] = max(more, self.found.get(moment, 0))


class Measured(NamedTuple):
    """What trials have found."""

    steps: dict[StepShape, StepCost]
    control: Cost | None
    compression: Cost | None
    distillation: dict[str, DistillationCost]  # by the stage's name
    times: Times | None  # None: nothing was timed
    memory: HostMemory
    transients: dict[str, int]  # of the process, by moment (`peaks`), besides what lies there

    @property
    def programs(self) -> ProgramBytes:
        """What the largest programs hold on a device."""
        return ProgramBytes(
            max(cost.num_bytes for cost in self.steps.values()),
            _bytes_of(self.control),
            _bytes_of(self.compression),
            max((cost.step.num_bytes for cost in self.distillation.values()), default=0),
        )


def _bytes_of(cost: Cost | None) -> int:
    if cost is None:
        return 0
    return cost.num_bytes


class Subject(NamedTuple):
    """What is planned."""

    settings: Settings
    partitioned: PartitionedScene
    layout: Layout
    course: Course  # of the training of blocks
    sizes: Sizes

    @property
    def stages(self) -> list[StageSpec]:
        """Of the run, in order."""
        return stages_of(self.settings, self.partitioned.partition)


def recovery_shape(settings: Settings) -> StepShape:
    """The kind of steps in which compressed blocks recover."""
    return Schedule.without_growth(settings, 1).shape(0)


@contextlib.contextmanager
def _trial_inputs(subject: Subject) -> Iterator[TrialInputs]:
    """What trials work with; their files lie in a folder that is dropped."""
    few = stand_ins.with_few_views(subject.partitioned)
    with (
        tempfile.TemporaryDirectory(prefix="plan-") as folder,
        ImageStore(subject.partitioned.scene, subject.settings.data.host_memory_mb) as images,
        Log(Workdir(Path(folder))) as log,
    ):
        run = Run(
            settings=subject.settings,
            workdir=Workdir(Path(folder)),
            partitioned=few,
            layout=subject.layout,
            images=images,
            stop=StopRequest(),
            log=log,
        )
        yield TrialInputs(run, subject.partitioned, subject.course)


def measure(subject: Subject, is_timed: bool) -> Measured:
    """Compiles the programs of a run, and times them where that is wanted.

    Args:
        subject: what is planned.
        is_timed: else nothing is run, and the times are missing.
    """
    with _trial_inputs(subject) as inputs, _quiet():
        return _Trials(subject, inputs).all(is_timed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the parts of a run say of themselves."""
    logger = logging.getLogger("cosurfgs_jax")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Trials:
    """The trials of one run, in an order that holds little at a time."""

    def __init__(self, subject: Subject, inputs: TrialInputs):
        self._subject = subject
        self._seen = Transients()
        self._blocks = BlockTrials(inputs)
        self._together = DistillationTrials(inputs, subject.sizes.cell_slots)
        self._plans = make_plans(inputs.run._replace(partitioned=inputs.whole))
        self._has_compression = any(spec.run is compress_blocks for spec in subject.stages)
        self._distilling = [
            spec for spec in subject.stages if spec.is_merged and spec.has_checkpoints
        ]

    def all(self, is_timed: bool) -> Measured:
        settings = self._subject.settings
        shapes = list(self._subject.course.shapes)
        if self._has_compression and recovery_shape(settings) not in shapes:
            shapes.append(recovery_shape(settings))
        before = host_memory.resident_bytes()
        host_memory.reset_peak()  # making a town took more
        programs = {shape: self._blocks.compile_step(shape) for shape in shapes}
        peak = host_memory.peak_bytes()
        host_memory.give_back_freed()
        base = host_memory.resident_bytes()
        memory = HostMemory(
            base=base,
            compiling=max(0, peak - base),
            a_program=max(0, base - before) // len(programs),
        )
        steps = {
            shape: StepCost(program.compile_s, None, None, program.num_bytes)
            for shape, program in programs.items()
        }
        found = Measured(
            steps=steps,
            control=None,
            compression=None,
            distillation={},
            times=None,
            memory=memory,
            transients=self._seen.found,
        )
        if not is_timed:
            return self._compile_rest(found)
        first, start_s = timed(self._blocks.first_states)
        full = self._blocks.full_states(first)
        rows = self._blocks.rows(first)
        for shape, program in programs.items():
            steps[shape] = steps[shape]._replace(
                first_s=self._blocks.time_step(program, rows, shape)
            )
        rows = self._blocks.rows(full)
        with self._seen.at("training"):
            for shape, program in programs.items():
                steps[shape] = steps[shape]._replace(
                    full_s=self._blocks.time_step(program, rows, shape)
                )
        return self._time_rest(found._replace(steps=steps), rows, full, start_s)

    def _compile_rest(self, found: Measured) -> Measured:
        """The programs besides steps of training, which are only compiled."""
        if self._subject.course.num_densified:
            found = found._replace(control=self._blocks.control(None))
        if self._has_compression:
            found = found._replace(compression=self._blocks.compression(None))
        distillation = {
            spec.name: self._together.step(spec.grouping(self._plans), None)
            for spec in self._distilling
        }
        return found._replace(distillation=distillation)

    def _time_rest(
        self, measured: Measured, rows: list[Any], full: list[Any], start_s: np.ndarray
    ) -> Measured:
        """The parts besides steps of training."""
        blocks = self._blocks
        control = None
        if self._subject.course.num_densified:
            with self._seen.at("density control"):
                control = blocks.control(rows)
            rows = blocks.rows(full)
        compression = None
        if self._has_compression:
            with self._seen.at("compression"):
                compression = blocks.compression(rows)
        drawing = blocks.drawing(rows)
        teaching = Cost(np.zeros(2), np.zeros(2))
        distillation = {}
        with self._seen.at("scores"):
            scoring = self._together.scoring(self._subject.stages[0], rows, self._plans)
        merged_scoring = scoring
        if self._distilling:
            with self._seen.at("teachers"):
                teaching = self._together.teaching(rows, self._plans)
            ratio = self._subject.settings.lmc.prune_ratio * self._has_compression
            rows = blocks.rows(
                [stand_ins.thinned(state, ratio, number) for number, state in enumerate(full)]
            )
            for spec in self._distilling:
                cells = self._together.cells(rows)
                with self._seen.at("distillation"):
                    distillation[spec.name] = self._together.step(spec.grouping(self._plans), cells)
            merged_scoring = self._together.scoring(
                self._distilling[-1], self._together.cells(rows), self._plans
            )
        times = Times(
            start=start_s,
            decoding=blocks.time_decoding(),
            drawing=drawing,
            scoring=scoring,
            merged_scoring=merged_scoring,
            teaching=teaching,
        )
        return measured._replace(
            control=control, compression=compression, distillation=distillation, times=times
        )
