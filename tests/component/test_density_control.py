"""Density control of a stage: what is done after which step, with stand-ins for the compiled steps;
and strategies by name.
"""

import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model import density, error_growth
from cosurfgs_jax.model.density_strategies import STRATEGIES, strategy_of
from cosurfgs_jax.model.density_strategy import DensityReport, DensityStrategy
from cosurfgs_jax.settings import DensitySettings, Settings
from cosurfgs_jax.training.density_control import DensityControl, control_density
from cosurfgs_jax.training.density_steps import (
    EVERYWHERE,
    DensifyOrder,
    densify_step,
    reset_opacity_step,
)
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.partitioned_scene import Block
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.state import init_state
from cosurfgs_jax.types import Surfels

LAYOUT = make_layout(np.zeros(1, np.int64), num_devices=1)


def _surfels(num: int) -> Surfels:
    return Surfels(
        means=jnp.zeros((num, 3)),
        quats=jnp.ones((num, 4)),
        log_scales=jnp.full((num, 2), -3.0),
        logit_opacities=jnp.ones(num),
        sh=jnp.zeros((num, 1, 3)),
        alive=jnp.ones(num, bool),
    )


def _progress() -> Progress:
    return Progress("device", 3000, stream=io.StringIO())


def _messages(progress: Progress) -> list[str]:
    return progress._stream.getvalue().splitlines()


def _deliver(row: int, step: int) -> str:
    return f"{row}, {step}"


@pytest.fixture
def control():
    """A block of 8 to 40 surfels whose compiled steps only note that they ran."""
    settings = Settings()
    settings.train.steps = 3000
    settings.density.opacity_reset_every = 0.1
    done = []

    def densify(state, order):
        done.append("densify")
        report = DensityReport(*LAYOUT.put(lambda _: (np.int32(3),) * 5))
        return state, report

    def reset(state):
        done.append("reset")
        return state

    def look(state, delivery):
        done.append(f"look at {delivery}")
        return state

    block = Block(0, np.arange(4), capacity=40, points=np.arange(8), num_initial=8, length=1.0)
    control = DensityControl(
        SimpleNamespace(
            blocks=[block], partition=SimpleNamespace(expanded=lambda number: EVERYWHERE)
        ),
        LAYOUT,
        settings,
        Schedule.from_settings(settings),
        SimpleNamespace(densify=densify, reset_opacity=reset, look=look),
    )
    return control, done


def _stage(step: int, num_slots: int = 8) -> StageState:
    state = LAYOUT.put(lambda _: init_state(_surfels(num_slots), 4, Settings()))
    return StageState("device", [state], step, 0, 0.0)


def test_what_is_due_is_done_and_the_stage_that_was_given_stays(control):
    control, done = control
    schedule = control.schedule
    due = next(step for step in range(1, 3000) if schedule.densifies_after(step))
    assert (
        control_density(control, idle := _stage(due - 1), _progress(), _deliver) is idle
        and not done
    )
    progress = _progress()
    before = _stage(1000)
    after = control_density(control, before, progress, _deliver)
    assert schedule.densifies_after(1000) == ("densify" in done)
    assert (before.num_slots, before.num_without_room) == (8, 0)
    assert after.step == before.step and after.name == before.name
    resets = [step for step in range(1, 3000) if schedule.resets_after(step)]
    done.clear()
    control_density(control, _stage(resets[0]), _progress(), _deliver)
    assert done[-1] == "reset"


def test_arrays_grow_before_they_are_densified_and_a_full_model_is_told_once(control):
    control, done = control
    last = max(step for step in range(1, 3000) if control.schedule.densifies_after(step))
    progress = _progress()
    stage = control_density(control, _stage(last), progress, _deliver)
    assert stage.num_slots == 40 and stage.num_without_room == 3
    assert done == [f"look at 0, {last + number}" for number in range(8)] + ["densify"]
    room, full = _messages(progress)
    assert "surfels a block instead of 8" in room and "the model is full" in full
    again = _progress()
    stage = control_density(control, stage, again, _deliver)
    assert stage.num_without_room == 6 and not _messages(again)


def test_strategies_by_name_and_others_are_refused():
    assert strategy_of(DensitySettings()) is error_growth.STRATEGY
    assert strategy_of(DensitySettings(strategy="adaptive")) is density.STRATEGY
    with pytest.raises(
        InputError, match="density.strategy: expected adaptive or error, got 'luck'"
    ):
        strategy_of(DensitySettings(strategy="luck"))


def test_a_strategy_of_another_kind_runs_through_state_and_steps(monkeypatch):
    def init_stats(num_slots):
        return {"seen": jnp.zeros(num_slots)}

    def drop_all(params, opt_state, alive, stats, order, settings):
        zero = jnp.int32(0)
        report = DensityReport(zero, zero, alive.sum(dtype=jnp.int32), zero, zero)
        return params, opt_state, jnp.zeros_like(alive), stats, report

    def reset(params, opt_state):
        return params.replace(logit_opacities=params.logit_opacities - 7), opt_state

    other = DensityStrategy(init_stats, lambda stats, *_: stats, drop_all, reset)
    monkeypatch.setitem(STRATEGIES, "other", other)
    settings = Settings(density=DensitySettings(strategy="other"))
    state = init_state(_surfels(5), 2, settings)
    assert list(state.stats) == ["seen"] and state.stats["seen"].shape == (5,)
    order = DensifyOrder(jnp.int32(0), jnp.int32(9), jnp.bool_(False), jnp.int32(5))
    dropped, report = jax.jit(lambda state: densify_step(state, order, settings))(state)
    assert not dropped.alive.any() and report.num_pruned == 5
    lowered = reset_opacity_step(state, settings)
    np.testing.assert_array_equal(lowered.params.logit_opacities, np.full(5, -6.0))
