"""How long a run takes, by its first steps: what `train` says when some of them are timed.

The formulas are those of `plan` (`stage_times`). Instead of trials of all programs there is the
time of the steps that were done, and how many times as long the other parts took in trials.
"""

import logging
from collections.abc import Callable

import numpy as np

from cosurfgs_jax.collab import needs
from cosurfgs_jax.collab.mas_stages import distill_cloud, distill_edges
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.planning.block_trials import Cost, StepCost
from cosurfgs_jax.planning.distillation_trials import DistillationCost
from cosurfgs_jax.planning.measured import HostMemory, Measured, Subject, Times, recovery_shape
from cosurfgs_jax.planning.stage_times import StageTime, stage_times, step_time
from cosurfgs_jax.planning.text import shown_minutes
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.course import Course, Span
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Pace
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape

_MIN_STEPS = 10
# From the trials of `plan` for the town of the quickstart in four blocks, and for caliterra at its
# full size and at a quarter (processor time, one core). Of a step that draws all pixels, without
# geometry, of as many surfels as there may be, where nothing else is said.
_GEOMETRY = 1.45  # 1.3 to 1.6: a step with SV-Reg and MV-Reg, of one without
_ALL_PIXELS = 2.2  # 1.9 and 2.7: a step that draws all pixels, of a dilated one
_GROWTH = 0.2  # 0.12 and 0.24: how much longer a step takes with twice the surfels
_LOOK = 0.75  # 0.6 to 1.0: density control, for each photograph that it looks at
_DRAWING = 0.25  # 0.22 to 0.35
_SCORING = 5.0  # 4.5 to 5.3; 14 where it had hardly begun
_COMPRESSION = 0.3
_TEACHING = 0.7
_DISTILLATION = 1.25  # a step of distillation, and more of it for each other block of its model
_PARTNER = 0.75
# Of compiling a step of training: density control, scores, distillation, the others.
_COMPILE_CONTROL = 2.0
_COMPILE_SCORES = 2.0
_COMPILE_DISTILLATION = 1.2
_COMPILE_OTHER = 0.1
_log = logging.getLogger(__name__)


class FirstEstimate:
    """Says once how many minutes a run has before it, when its first steps are timed."""

    def __init__(self):
        self._is_said = False

    def __call__(self, run: Run, name: str, pace: Pace) -> None:
        """Says it where enough steps of the first stage are timed, and some are left.

        Args:
            run: whose `when_timed` this is.
            name: of the stage that it is in.
            pace: of that stage.
        """
        if self._is_said or pace.step - pace.first < _MIN_STEPS:
            return
        self._is_said = True
        subject = subject_of_run(run)
        first = subject.stages[0]
        is_there_more = name == first.name and pace.step < first.num_steps(run.settings)
        if not (is_there_more and processes.is_first()):
            return
        stages = times_left(subject, pace)
        _log.info(
            "time: about %s for what is left of the run (%s), by the first %d steps and roughly; "
            "`cosurfgs plan` with the same flags measures it",
            shown_minutes(sum(stage.total_s[0] for stage in stages)),
            ", ".join(f"{stage.name} {shown_minutes(stage.total_s[0])}" for stage in stages),
            pace.step - pace.first,
        )


def subject_of_run(run: Run) -> Subject:
    """What a run is, for the formulas of its times."""
    course = needs.training_course(run.settings, run.partitioned)
    sizes = needs.sizes_of(run.settings, run.partitioned, run.layout.num_devices, course)
    return Subject(run.settings, run.partitioned, run.layout, course=course, sizes=sizes)


def times_left(subject: Subject, pace: Pace) -> list[StageTime]:
    """The times of what is left of a run; the second of each pair is that of the clock, too.

    Args:
        subject: the run.
        pace: of its first stage, of which some steps are left.
    """
    course = subject.course
    shapes = list(dict.fromkeys([*course.shapes, recovery_shape(subject.settings)]))
    growth = course.num_surfels / max(1, course.spans[0].num_surfels)
    relative = _steps_of(shapes, growth, 1.0, compile_s=0.0)
    whole = _cost_of(1 + _GROWTH * (growth - 1), StepShape(False))
    control = whole * _control_of(subject.settings)
    done = _between(subject, pace.first, pace.step)
    weight = control * done.num_densified
    for span in done.spans:
        each = step_time(relative[span.shape], course, span.num_surfels)[0]
        weight += span.num_steps * each
    unit = pace.step_s * (pace.step - pace.first) / weight
    num_compiled = len(done.programs) + _COMPILE_CONTROL * bool(done.num_densified)
    compile_s = pace.compile_s / num_compiled

    def cost_of(part: float, compiling: float = _COMPILE_OTHER) -> Cost:
        return Cost(np.full(2, compiling * compile_s), np.full(2, part * whole * unit))

    measured = Measured(
        steps=_steps_of(shapes, growth, unit, compile_s=compile_s),
        control=cost_of(_control_of(subject.settings), _COMPILE_CONTROL),
        compression=cost_of(_COMPRESSION),
        distillation=_distillation(subject, cost_of),
        times=Times(
            start=np.zeros(2),
            decoding=np.zeros(2),
            drawing=cost_of(_DRAWING),
            scoring=cost_of(_SCORING, _COMPILE_SCORES),
            merged_scoring=cost_of(_SCORING, _COMPILE_SCORES),
            teaching=cost_of(_TEACHING),
        ),
        memory=HostMemory(0, 0, 0),
        transients={},
    )
    left = _between(subject, pace.step, subject.stages[0].num_steps(subject.settings))
    return stage_times(subject._replace(course=left), measured)


def _between(subject: Subject, first: int, last: int) -> Course:
    """The course of the first stage with its steps between two of them alone: the spans before and
    behind have none.
    """
    spans: list[Span] = []
    begin = 0
    for span in subject.course.spans:
        end = begin + span.num_steps
        spans.append(span._replace(num_steps=max(0, min(end, last) - max(begin, first))))
        begin = end
    dilation = subject.partitioned.dilation(subject.settings)
    schedule = Schedule.from_settings(subject.settings, dilation)
    return Course(spans, sum(map(schedule.densifies_after, range(first + 1, last + 1))))


def _steps_of(
    shapes: list[StepShape], growth: float, unit: float, *, compile_s: float
) -> dict[StepShape, StepCost]:
    """What steps cost.

    Args:
        shapes: kinds of steps.
        growth: how many times the first surfels there may be.
        unit: of a step that draws all pixels, without geometry, of the first surfels.
        compile_s: seconds of compiling one.
    """
    full = unit * (1 + _GROWTH * (growth - 1))
    return {
        shape: StepCost(
            compile_s=np.full(2, compile_s),
            first_s=np.full(2, _cost_of(unit, shape)),
            full_s=np.full(2, _cost_of(full, shape)),
            num_bytes=0,
        )
        for shape in shapes
    }


def _cost_of(plain: float, shape: StepShape) -> float:
    """What a step costs where one without geometry that draws all pixels costs `plain`."""
    if shape.has_geometry:
        plain *= _GEOMETRY
    if shape.dilation > 1:
        plain /= _ALL_PIXELS
    return plain


def _control_of(settings: Settings) -> float:
    """A round of density control, as a multiple of a step."""
    if strategy_of(settings.density).look is None:
        return 1.0
    return _LOOK * settings.density.error_views


def _distillation(
    subject: Subject, cost_of: Callable[[float, float], Cost]
) -> dict[str, DistillationCost]:
    """What a step of each distillation costs: each block draws parts for the others of its
    model.
    """
    num_blocks = subject.sizes.num_blocks
    edges = subject.partitioned.partition.edge_of_block
    blocks_of: dict[Callable, int] = {
        distill_edges: int(np.bincount(edges).max()),
        distill_cloud: num_blocks,
    }
    found = {}
    for spec in subject.stages:
        if spec.run in blocks_of:
            partners = min(blocks_of[spec.run] - 1, subject.settings.mas.max_partners)
            step = cost_of(_DISTILLATION + _PARTNER * partners, _COMPILE_DISTILLATION)
            found[spec.name] = DistillationCost(step, 0)
    return found
