"""The stages of model aggregation (MAS): blocks distilled into edges, and edges into the cloud."""

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.aggregate import Aggregation
from cosurfgs_jax.collab.composite import RequestPlanner
from cosurfgs_jax.collab.exchange import Grouping
from cosurfgs_jax.collab.plans import has_edges
from cosurfgs_jax.collab.stage_spec import StageWork
from cosurfgs_jax.collab.teachers import Teachers
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training import harmonize, loop
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Stopwatch
from cosurfgs_jax.types import SurfelParams, Surfels

_log = logging.getLogger(__name__)


def distill_edges(work: StageWork) -> loop.StageState:
    """Distils the blocks of each edge into one model."""
    return _distill(work, _blocks_teach(work), work.groupings.edge)


def distill_cloud(work: StageWork) -> loop.StageState:
    """Distils all edges, or all blocks where there are no edges, into one model."""
    teachers = _blocks_teach(work)
    if has_edges(work.run.partitioned.partition):
        # Both distillations have as many steps.
        teachers = TeacherModels(work.groupings.whole_edge, "edge", work.num_steps)
    return _distill(work, teachers, work.groupings.cloud)


class TeacherModels(NamedTuple):
    """The frozen models of a stage."""

    grouping: Grouping  # the blocks that are one of them
    unpruned: str  # the stage that has them as they were before compression
    num_steps: int  # of that stage


def _blocks_teach(work: StageWork) -> TeacherModels:
    return TeacherModels(work.groupings.alone, "device", work.run.settings.train.steps)


class FrozenModel(NamedTuple):
    """What is drawn of a state; its moments and statistics need not be on a device."""

    params: SurfelParams
    alive: Bool[Array, " n"]

    def surfels(self) -> Surfels:
        """The model."""
        return Surfels.of(self.params, self.alive)


def _distill(work: StageWork, teacher_models: TeacherModels, students: Grouping) -> loop.StageState:
    run = work.run
    stage = work.saved
    teachers = Teachers(run, work.name)
    if stage is None:
        stage = _start(work, teachers, teacher_models, students)
    if stage.step < work.num_steps:
        teachers.check()
    aggregation = Aggregation(run, students, teachers, work.num_steps)
    stage = loop.run_stage(
        run, stage, work.num_steps, aggregation.advance, work.store, view_of=aggregation.view_of
    )
    teachers.drop()
    return stage


def _start(
    work: StageWork, teachers: Teachers, teacher_models: TeacherModels, students: Grouping
) -> loop.StageState:
    """Renders the teachers' maps, and saves the students before their first step: from there on the
    models of the stages before are not needed.
    """
    run = work.run
    before = work.models
    stopwatch = Stopwatch()
    is_harmonized = (
        teacher_models.grouping is not work.groupings.alone
    )  # by an earlier distillation
    if not is_harmonized:
        before, gains = harmonize.harmonize_exposure(run, before)
        _log_gains(gains)
    frozen = before
    if run.settings.lmc.enabled and run.settings.mas.whole_teachers:
        frozen = _unpruned(run, teacher_models)
        if not is_harmonized:
            frozen, _ = harmonize.harmonize_exposure(run, frozen)
        frozen = frozen._replace(
            states=[FrozenModel(state.params, state.alive) for state in frozen.states]
        )
    planner = RequestPlanner(run.partitioned, run.layout, students)
    partners = {block: planner.partners(block) for block in run.layout.local_blocks}
    teachers.render(frozen.states, teacher_models.grouping, partners)
    cells = compress.crop_to_cells(run.partitioned.partition, run.layout, before.states)
    stage = loop.StageState(
        name=work.name, states=cells, step=0, num_without_room=0, seconds=stopwatch.seconds
    )
    loop.save_stage(run, stage, work.store)
    work.store.wait()
    return stage


def _unpruned(run: Run, models: TeacherModels) -> loop.StageState:
    """The models as a stage before compression left them; they have not left their devices."""
    folder = run.workdir.checkpoints(models.unpruned)
    with Checkpoints(folder, is_read_only=True) as checkpoints:
        stage = loop.restore_stage(run, models.unpruned, checkpoints, Parts(training=False))
    if stage is None or stage.step < models.num_steps:
        got = "no checkpoint" if stage is None else f"step {stage.step} of them"
        raise InputError(
            f"{folder}: expected the models from before compression, which teach "
            f"(config.mas.whole_teachers), at step {models.num_steps}, got {got}; bring it back, "
            "or train in another --workdir"
        )
    return stage


def _log_gains(gains: Float[np.ndarray, "b 3"]) -> None:
    if len(gains) > 1:
        means = gains.mean(axis=1)
        _log.info(
            "brightness of the blocks: made to agree by factors of %.3f to %.3f",
            means.min(),
            means.max(),
        )
