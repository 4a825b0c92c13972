"""How long the stages of a run take: their steps, and what comes before, between and after them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.collab.device_stage import train_blocks
from cosurfgs_jax.collab.lmc_stages import compress_blocks, compress_edges, rounds_of
from cosurfgs_jax.collab.mas_stages import distill_cloud, distill_edges
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.errors import required
from cosurfgs_jax.planning.block_trials import Cost, StepCost
from cosurfgs_jax.planning.measured import Measured, Subject, Times, recovery_shape
from cosurfgs_jax.planning.trials import sum_times
from cosurfgs_jax.training.course import Course, Span

_SAVE_S = 0.25  # of a checkpoint, besides its bytes
_SAVE_BYTES_A_S = 250e6


class StageTime(NamedTuple):
    """What a stage takes, f64[2] each: by the clock, and of the processor."""

    name: str
    num_steps: int
    steps_s: np.ndarray  # its steps alone
    total_s: np.ndarray  # with compiling, pictures, scores and checkpoints


class _Timed(NamedTuple):
    """What the time of a stage follows from."""

    subject: Subject
    measured: Measured
    times: Times
    spec: StageSpec

    @property
    def num_steps(self) -> int:
        return self.spec.num_steps(self.subject.settings)

    @property
    def num_rounds(self) -> int:
        """Of test views: one of every block at a time."""
        partitioned = self.subject.partitioned
        home = partitioned.partition.home[partitioned.scene.test_views]
        return int(np.bincount(home, minlength=1).max())


def stage_times(subject: Subject, measured: Measured) -> list[StageTime]:
    """The times of all stages, in order.

    Args:
        subject: what is planned.
        measured: with times.
    """
    times = required(measured.times, "Measured.times")
    result = []
    for spec in subject.stages:
        timed = _Timed(subject, measured, times, spec)
        steps, rest = _PARTS.get(spec.run, _unknown)(timed)
        scoring = times.scoring
        if spec.is_merged:
            scoring = times.merged_scoring
        rest = rest + _repeated(scoring, timed.num_rounds)
        result.append(StageTime(spec.name, timed.num_steps, steps, steps + rest))
    return result


def _repeated(cost: Cost, count: float) -> np.ndarray:
    return cost.compile_s + count * required(cost.run_s, "Cost.run_s")


def _saves(timed: _Timed, num_bytes: int) -> np.ndarray:
    every = timed.subject.settings.train.checkpoint_every
    count = max(1, -(-timed.num_steps // every))
    return np.full(2, count * (_SAVE_S + num_bytes / _SAVE_BYTES_A_S))


def step_time(cost: StepCost, course: Course, num_surfels: int) -> np.ndarray:
    """f64[2] of a step with so many surfels in all blocks: between what was timed with those of the
    start and with the most.
    """
    first = required(cost.first_s, "StepCost.first_s")
    full = required(cost.full_s, "StepCost.full_s")
    fewest = course.spans[0].num_surfels
    fraction = 1.0
    if course.num_surfels > fewest:
        fraction = min(1.0, max(0.0, (num_surfels - fewest) / (course.num_surfels - fewest)))
    return first + fraction * (full - first)


def _steps(timed: _Timed, spans: list[Span]) -> np.ndarray:
    course = timed.subject.course
    return sum_times(
        [
            span.num_steps * step_time(timed.measured.steps[span.shape], course, span.num_surfels)
            for span in spans
        ]
    )


def _training(timed: _Timed) -> tuple[np.ndarray, np.ndarray]:
    subject, measured, times, _ = timed
    course = subject.course
    settings = subject.settings
    rest = [times.start, _saves(timed, subject.sizes.num_blocks * subject.sizes.state_bytes)]
    rest += [measured.steps[shape].compile_s for _, shape in course.programs]
    num_photos = len(np.unique(np.concatenate([b.views for b in subject.partitioned.blocks])))
    rest.append(num_photos * times.decoding)
    rounds = timed.num_rounds
    if settings.train.test_every:
        rounds += timed.num_rounds * ((timed.num_steps - 1) // settings.train.test_every)
    rest.append(_repeated(times.drawing, rounds))
    if measured.control is not None:
        rest.append(_repeated(measured.control, course.num_densified))
        rest.append((len(course.slot_sizes) - 1) * measured.control.compile_s)
    return _steps(timed, course.spans), sum_times(rest)


def _recovery(timed: _Timed) -> tuple[np.ndarray, np.ndarray]:
    subject, measured, _, _ = timed
    settings = subject.settings
    num_rounds = rounds_of(settings.lmc, timed.num_steps)
    compression = required(measured.compression, "Measured.compression")
    kept = (1 - settings.lmc.prune_ratio) ** (1 / num_rounds)
    shape = recovery_shape(settings)
    sizes = subject.sizes
    spans = [
        Span(
            timed.num_steps // num_rounds,
            sizes.num_slots,
            round(subject.course.num_surfels * kept ** (number + 1)),
            shape,
        )
        for number in range(num_rounds)
    ]
    rest = [
        2 * compression.compile_s,  # and that of pruning
        num_rounds * subject.partitioned.max_views * required(compression.run_s, "run_s"),
        2 * measured.steps[shape].compile_s,  # the arrays shrink in the last round
        _saves(timed, sizes.num_blocks * sizes.compressed_bytes),
    ]
    return _steps(timed, spans), sum_times(rest)


def _edge_compression(timed: _Timed) -> tuple[np.ndarray, np.ndarray]:
    compression = required(timed.measured.compression, "Measured.compression")
    fraction = timed.subject.sizes.cell_slots / timed.subject.sizes.num_slots
    rest = 2 * compression.compile_s + fraction * timed.subject.partitioned.max_views * required(
        compression.run_s, "run_s"
    )
    return np.zeros(2), rest


def _distillation(timed: _Timed) -> tuple[np.ndarray, np.ndarray]:
    subject, measured, times, spec = timed
    step = measured.distillation[spec.name].step
    steps = timed.num_steps * required(step.run_s, "run_s")
    sizes = subject.sizes
    rest = [
        step.compile_s,
        times.teaching.compile_s,
        subject.partitioned.max_views * required(times.teaching.run_s, "run_s"),
        _saves(timed, 2 * sizes.num_blocks * sizes.cell_bytes),
    ]
    return steps, sum_times(rest)


def _unknown(timed: _Timed) -> tuple[np.ndarray, np.ndarray]:
    """A stage of which nothing is known: as many steps as training has at its end."""
    course = timed.subject.course
    span = course.spans[-1]._replace(num_steps=timed.num_steps)
    return _steps(timed, [span]), np.zeros(2)


_PARTS: dict[Callable, Callable[[_Timed], tuple[np.ndarray, np.ndarray]]] = {
    train_blocks: _training,
    compress_blocks: _recovery,
    compress_edges: _edge_compression,
    distill_edges: _distillation,
    distill_cloud: _distillation,
}
