"""The order of work of compression in rounds, with stand-ins for what takes time."""

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from cosurfgs_jax.collab import lmc_stages
from cosurfgs_jax.collab.compress import Compression
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import LmcSettings, Settings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Run


class _Model(NamedTuple):
    """The number of its surfels, and marks."""

    number: float
    marks: tuple

    @property
    def alive(self):
        """Of 10,000 slots, on one device."""
        return np.zeros((1, 10_000))


@pytest.fixture
def course(monkeypatch):
    """(rounds, ratio, steps, first stage, step to stop at) -> what compress_in_rounds makes, and
    what was done in which order.

    A model is the number of its surfels; training adds a mark for each step, so that models of
    another course differ."""
    done = []

    def compress(run, stage, ratio):
        done.append(("prune", stage.step))
        number, marks = stage.states[0]
        return Compression([_Model(number * (1 - ratio), marks)], {}, {}, {}, {})

    def compress_blocks(rounds, ratio, num_steps, stage, stop_at=None):
        def run_stage(run, stage, end, advance, checkpoints):
            while stage.step < end:
                number, marks = stage.states[0]
                marks = (*marks, (stage.step, round(number, 6)))
                stage = stage._replace(states=[_Model(number, marks)], step=stage.step + 1)
                done.append(("step", stage.step))
                if stage.step == stop_at:
                    raise KeyboardInterrupt(stage)
            done.append(("saved", stage.step))
            return stage

        monkeypatch.setattr(lmc_stages.loop, "run_stage", run_stage)
        trainer = SimpleNamespace(advance=None, settled=lambda stage: stage)
        monkeypatch.setattr(lmc_stages, "Trainer", lambda *_: trainer)
        monkeypatch.setattr(lmc_stages.compress, "compress", compress)
        monkeypatch.setattr(
            lmc_stages.compress, "compile_compression", lambda settings, layout, ratio: ratio
        )
        monkeypatch.setattr(
            lmc_stages.loop,
            "cut_slots",
            lambda layout, states, num_slots: done.append(("shrunk", num_slots)) or states,
        )
        settings = dataclasses.replace(
            Settings(), lmc=LmcSettings(rounds=rounds, prune_ratio=ratio)
        )
        run = Run(settings, *[None] * (len(Run._fields) - 1))
        return lmc_stages.compress_in_rounds(
            run, stage, num_steps, object.__new__(Checkpoints)
        ), done

    return compress_blocks


def _begin() -> StageState:
    return StageState("lmc_device", [_Model(1000.0, ())], 0, 0, 0.0)


@pytest.mark.parametrize(
    "rounds, num_steps, prunes",
    [(1, 10, [0]), (4, 10, [0, 2, 5, 7]), (4, 3, [0, 1, 2]), (4, 0, [0]), (1, 0, [0])],
)
def test_each_round_prunes_and_then_recovers(course, rounds, num_steps, prunes):
    stage, done = course(rounds, 0.4, num_steps, _begin())
    assert [step for what, step in done if what == "prune"] == prunes
    changes = [what for what, _ in done if what in ("prune", "shrunk")]
    assert changes == ["prune"] * len(prunes) + ["shrunk"], "another shape is compiled anew"
    assert dict(done)["shrunk"] == 6144, "the least that holds 6,000 and is a multiple of 1,024"
    assert stage.states[0][0] == pytest.approx(600), "all rounds together prune by the ratio"
    assert stage.step == num_steps == len([what for what, _ in done if what == "step"])
    assert done[-1] == ("saved", num_steps)


@pytest.mark.parametrize("num_rounds", [1, 3, 8])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.95, 1.0])
def test_the_slots_hold_whatever_the_rounds_leave(num_rounds, ratio):
    """However many surfels are in the cell and around it; numbers that a float32 rounds, too."""
    settings = LmcSettings(prune_ratio=ratio)
    of_round = np.float32(lmc_stages._ratio_of_round(ratio, num_rounds))
    for num_slots in (1, 7, 3000, 4_999_999):
        num_left = lmc_stages.slots_left(num_slots, num_rounds, settings)
        assert num_left < (1 - ratio) * num_slots + 1024 + 4 * num_rounds + 1
        for num_inside in {0, 1, num_slots // 3, num_slots}:
            kept = [num_inside, num_slots - num_inside]
            for _ in range(num_rounds):
                kept = [num - int(np.floor(of_round * np.float32(num))) for num in kept]
            assert sum(kept) <= num_left


def test_a_share_of_importance_may_leave_all_surfels():
    settings = LmcSettings(prune_ratio=0.9, importance_share=0.5)
    assert lmc_stages.slots_left(5000, 1, settings) == 5000


@pytest.mark.parametrize("stop_at", range(1, 11))
def test_a_stopped_compression_goes_on_to_the_same_model(course, stop_at):
    """It is saved after the step at which it stops; where a round begins, that is before the round
    prunes.
    """
    whole, _ = course(4, 0.4, 10, _begin())
    try:
        stopped, _ = course(4, 0.4, 10, _begin(), stop_at)
    except KeyboardInterrupt as stop:
        stopped = stop.args[0]
    resumed, _ = course(4, 0.4, 10, stopped)
    assert resumed._replace(seconds=0.0) == whole._replace(seconds=0.0)


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="lmc.rounds: expected at least 1"):
        LmcSettings(rounds=0).validate()
