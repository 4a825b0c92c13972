"""The stages that are left of a run, or of a block by itself, one after the other."""

import contextlib
import logging
from collections.abc import Sequence

from cosurfgs_jax.collab.finished_stages import keep_models_alone, trainable
from cosurfgs_jax.collab.plans import Plans
from cosurfgs_jax.collab.stage_spec import StageSpec, StageWork
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.run import Run, check_config
from cosurfgs_jax.workdir import Workdir

_log = logging.getLogger(__name__)


def stages_left(workdir: Workdir, specs: Sequence[StageSpec]) -> Sequence[StageSpec]:
    """The stages from the newest one that has saved something: it has saved the result of the one
    before that it began with.
    """
    begun = [position for position, spec in enumerate(specs) if workdir.has_begun(spec.name)]
    return specs[max(begun, default=0) :]


def stages_before(run: Run, spec: StageSpec) -> Sequence[StageSpec]:
    """The stages of a run that come before one of them."""
    specs = stages_of(run.settings, run.partitioned.partition)
    return specs[: [each.name for each in specs].index(spec.name)]


def run_one_stage(
    run: Run, plans: Plans | None, spec: StageSpec, before: loop.StageState | None
) -> tuple[loop.StageState, bool]:
    """A stage at its last step, and whether anything was done to get there.

    Args:
        run: of the run, or of a block by itself.
        plans: its groupings; None for a block by itself.
        spec: of the stage.
        before: result of the stage before; None for the first, and where this one has saved a step.
            Models alone are given moments of zero.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
    """
    check_config(run)  # a workdir that is gone is not made anew
    num_steps = spec.num_steps(run.settings)
    if before is not None:
        before = trainable(run, before)
    work = StageWork(
        run=run,
        plans=plans,
        name=spec.name,
        num_steps=num_steps,
        before=before,
        saved=None,
        checkpoints=None,
    )
    if not spec.has_checkpoints:
        _log.info("%s: %s", spec.name, spec.about)
        with _noted(run, plans, spec.name):
            return spec.run(work), True
    finished = stages_before(run, spec)
    with Checkpoints(
        run.workdir.checkpoints(spec.name),
        when_first_saved=lambda: keep_models_alone(run, finished),
    ) as checkpoints:
        saved = loop.restore_stage(run, spec.name, checkpoints, Parts(last_step=num_steps))
        if saved is not None:
            keep_models_alone(run, finished)  # an earlier call was killed before it did
        if saved is None or saved.step < num_steps:
            _log.info("%s: %s", spec.name, spec.about)
        if saved is not None and saved.step:
            _log.info("%s: going on from step %d", spec.name, saved.step)
        work = work._replace(saved=saved, checkpoints=checkpoints)
        if saved is not None and saved.step >= num_steps:
            return spec.run(work), False
        with _noted(run, plans, spec.name, saved):
            return spec.run(work), True


def _noted(
    run: Run, plans: Plans | None, name: str, saved: loop.StageState | None = None
) -> contextlib.AbstractContextManager[None]:
    """Notes in runs.json when a stage is worked on."""
    if run.record is None:
        return contextlib.nullcontext()
    step = 0 if saved is None else saved.step
    block = run.layout.blocks[0] if plans is None else None
    return run.record.stage(name, step, block)
