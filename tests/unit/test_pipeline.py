"""The order of work of compression in rounds, with stand-ins for what takes time."""

import dataclasses
from types import SimpleNamespace

import pytest

from cosurfgs_jax.collab import lmc_stages
from cosurfgs_jax.collab.compress import Compression
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import LmcSettings, Settings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Run


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
        return Compression([(number * (1 - ratio), marks)], {}, {}, {}, {})

    def compress_blocks(rounds, ratio, num_steps, stage, stop_at=None):
        def run_stage(run, stage, end, advance, checkpoints):
            while stage.step < end:
                number, marks = stage.states[0]
                stage = stage._replace(
                    states=[(number, (*marks, (stage.step, round(number, 6))))], step=stage.step + 1
                )
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
            "drop_free_slots",
            lambda layout, states: done.append(("shrunk", len(done))) or states,
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
    return StageState("lmc_device", [(1000.0, ())], 0, 0, 0.0)


@pytest.mark.parametrize(
    "rounds, num_steps, prunes",
    [(1, 10, [0]), (4, 10, [0, 2, 5, 7]), (4, 3, [0, 1, 2]), (4, 0, [0]), (1, 0, [0])],
)
def test_each_round_prunes_and_then_recovers(course, rounds, num_steps, prunes):
    stage, done = course(rounds, 0.4, num_steps, _begin())
    assert [step for what, step in done if what == "prune"] == prunes
    changes = [what for what, _ in done if what in ("prune", "shrunk")]
    assert changes == ["prune"] * len(prunes) + ["shrunk"], "another shape is compiled anew"
    assert stage.states[0][0] == pytest.approx(600), "all rounds together prune by the ratio"
    assert stage.step == num_steps == len([what for what, _ in done if what == "step"])
    assert done[-1] == ("saved", num_steps)


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


@pytest.mark.parametrize(
    "changes, message",
    [({"rounds": 0}, "lmc.rounds: expected at least 1"), ({"score": "x"}, "lmc.score")],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        LmcSettings(**changes).validate()
