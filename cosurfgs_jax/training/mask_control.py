"""Masks in the course of a stage: when they begin, and what becomes of the surfels that they leave
out.

The arrays of the stage that is given are used up.
"""

from cosurfgs_jax.training.density_control import DensityControl
from cosurfgs_jax.training.loop import StageState, count_alive, drop_free_slots
from cosurfgs_jax.training.run_log import Progress


def begin_masks(control: DensityControl, stage: StageState) -> StageState:
    """The stage with masks, if its next step is to learn some and it has none yet."""
    if not control.schedule.is_masked(stage.step) or stage.states[0].masks is not None:
        return stage
    return stage._replace(states=[control.steps.begin_masks(state) for state in stage.states])


def prune_masked(control: DensityControl, stage: StageState, progress: Progress) -> StageState:
    """Prunes what is masked more often than not, and shrinks the arrays, after the last step that
    has masks. The surfels must be up to date.
    """
    if not control.schedule.prunes_masked_after(stage.step):
        return stage
    before = sum(count_alive(control.layout, stage.states).values())
    states = [control.steps.prune_masked(state) for state in stage.states]
    pruned = stage._replace(states=drop_free_slots(control.layout, states))
    left = sum(count_alive(control.layout, pruned.states).values())
    progress.message(f"step {stage.step}: masks leave {left:,d} of {before:,d} surfels")
    return pruned
