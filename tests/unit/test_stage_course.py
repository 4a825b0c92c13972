"""The course of a run's stages, with stand-ins for what takes time: order, scores, resuming."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from blocks_case import four_blocks, run_context
from stage_cases import ALL, NUM_STEPS, stage_settings

from cosurfgs_jax.collab import pipeline, stage_course, stages
from cosurfgs_jax.collab.stages import STAGES
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Stopped
from cosurfgs_jax.workdir import Workdir


def _write_checkpoint(workdir: Workdir, name: str, step: int) -> None:
    (workdir.checkpoints(name) / str(step)).mkdir(parents=True, exist_ok=True)


def _saved_step(workdir: Workdir, name: str) -> int | None:
    steps = [int(path.name) for path in workdir.checkpoints(name).glob("*")]
    return max(steps, default=None)


@pytest.fixture
def course(monkeypatch, tmp_path):
    """(settings, stage to stop in) -> what was done, in order. A folder for every saved step stands
    for a checkpoint, and a stage that is stopped saves its first step.
    """
    done = []
    workdir = Workdir(tmp_path)

    def stand_in(spec, stop_in):
        def run_stage(work):
            before = None if work.before is None else work.before.name
            first = 0 if work.saved is None else work.saved.step
            if work.num_steps > first or work.saved is None:
                done.append((spec.name, before, first))
            if spec.has_checkpoints:
                assert work.saved is not None or before is not None or spec.name == "device"
                if stop_in == spec.name:
                    _write_checkpoint(workdir, spec.name, 1)
                    raise Stopped
                _write_checkpoint(workdir, spec.name, work.num_steps)
            return StageState(spec.name, [], work.num_steps, 0, 0.0)

        return dataclasses.replace(spec, run=run_stage)

    class Metrics:
        def __init__(self, run, plans):
            pass

        def has(self, name):
            return any(row["name"] == name for row in workdir.read_metrics()["stages"])

        def write(self, spec, stage, handed_over):
            assert stage.name == spec.name and stage.step == spec.num_steps(stage_settings())
            done.append(("score", spec.name))
            workdir.write_stage(spec.name, steps=stage.step, bytes_handed_over=handed_over)

    def restore_stage(run, name, checkpoints, parts):
        assert parts.training and parts.last_step == NUM_STEPS[name]
        step = _saved_step(workdir, name)
        return None if step is None else StageState(name, [], step, 0, 0.0)

    monkeypatch.setattr(pipeline, "StageMetrics", Metrics)
    monkeypatch.setattr(
        stage_course,
        "Checkpoints",
        lambda *_, **__: contextlib.nullcontext(object.__new__(Checkpoints)),
    )
    monkeypatch.setattr(stage_course.loop, "restore_stage", restore_stage)

    def run(settings, stop_in=None):
        done.clear()
        table = tuple(stand_in(spec, stop_in) for spec in STAGES)
        monkeypatch.setattr(stages, "STAGES", table)
        with run_context(four_blocks(), tmp_path, 4, settings) as context:
            pipeline.run_stages(context)
        return list(done)

    return run


def test_each_stage_says_what_it_does_as_it_begins(course, caplog):
    caplog.set_level("INFO", logger="cosurfgs_jax")
    for spec in STAGES:
        assert spec.about[0].islower() and len(spec.about.split()) > 5
    said = [f"{spec.name}: {spec.about}" for spec in STAGES]
    course(stage_settings())
    assert [message for message in caplog.messages if message in said] == said
    caplog.clear()
    course(stage_settings())  # all is done
    assert not set(caplog.messages) & set(said)


def test_stages_run_in_order_and_each_is_scored_once(course):
    names = [None, *ALL]
    expected = []
    for before, name in zip(names, ALL, strict=False):
        expected += [(name, before, 0), ("score", name)]
    assert course(stage_settings()) == expected
    assert course(stage_settings()) == [], "all is done and scored"


@pytest.mark.parametrize("stop_in", [name for name in ALL if name != "lmc_edge"])
def test_a_stopped_run_repeats_nothing_that_is_saved(course, stop_in):
    with pytest.raises(Stopped):
        course(stage_settings(), stop_in)
    done = course(stage_settings())
    number = ALL.index(stop_in)
    assert done[:2] == [(stop_in, None, 1), ("score", stop_in)]
    assert [name for name, *_ in done[2::2]] == ALL[number + 1 :]
    assert [entry for entry in done if entry[0] == "score"] == [
        ("score", name) for name in ALL[number:]
    ]


def test_a_stage_without_checkpoints_is_done_again_until_the_next_has_saved(course, tmp_path):
    workdir = Workdir(tmp_path)
    for name in ALL:
        workdir.write_stage(name)
    for name in ("device", "lmc_device", "edge"):
        _write_checkpoint(workdir, name, NUM_STEPS[name])
    assert course(stage_settings())[:3] == [
        ("lmc_edge", "edge", 0),
        ("score", "lmc_edge"),
        ("cloud", "lmc_edge", 0),
    ]


def test_models_alone_are_left_of_what_the_stages_before_a_save_have_saved(course, monkeypatch):
    """At the first save of a stage, when a saved stage goes on, and of all stages at the end."""
    left = []

    def keep(run, specs):
        left.append([spec.name for spec in specs])

    def saving(*_, when_first_saved, **__):
        when_first_saved()
        return contextlib.nullcontext(object.__new__(Checkpoints))

    monkeypatch.setattr(stage_course, "keep_models_alone", keep)
    monkeypatch.setattr(pipeline, "keep_models_alone", keep)
    monkeypatch.setattr(stage_course, "Checkpoints", saving)
    course(stage_settings())
    assert left == [ALL[:0], ALL[:1], ALL[:2], ALL[:4], ALL]
    left.clear()
    course(stage_settings())
    assert left == [ALL[:4], ALL[:4], ALL], "an earlier call may have been killed before it did"


def test_a_finished_stage_without_scores_is_scored(course, tmp_path):
    course(stage_settings())
    workdir = Workdir(tmp_path)
    kept = [row for row in workdir.read_metrics()["stages"] if row["name"] != "cloud"]
    workdir.merge_metrics(stages=kept)
    assert course(stage_settings()) == [("score", "cloud")]


def test_blocks_of_their_own_jobs_take_the_place_of_their_stages(course, monkeypatch, tmp_path):
    workdir = Workdir(tmp_path)
    done = []

    def adopt_stage(run, spec):
        done.append(spec.name)
        _write_checkpoint(workdir, spec.name, NUM_STEPS[spec.name])
        return StageState(spec.name, [], NUM_STEPS[spec.name], 0, 0.0)

    monkeypatch.setattr(pipeline, "adopts_blocks", lambda run: True)
    monkeypatch.setattr(pipeline, "finish_blocks", lambda run: done.append("missing ones"))
    monkeypatch.setattr(pipeline, "adopt_stage", adopt_stage)
    monkeypatch.setattr(pipeline, "bytes_of_blocks", lambda run, spec: len(spec.name))
    assert course(stage_settings())[:3] == [
        ("score", "device"),
        ("score", "lmc_device"),
        ("edge", "lmc_device", 0),
    ]
    assert done == ["missing ones", "device", "lmc_device"]
    shutil.rmtree(workdir.checkpoints("cloud"))
    shutil.rmtree(workdir.checkpoints("edge"))
    shutil.rmtree(workdir.checkpoints("lmc_device"))
    done.clear()
    assert course(stage_settings())[:2] == [("score", "lmc_device"), ("edge", "lmc_device", 0)]
    assert done == ["missing ones", "lmc_device"], "it was stopped between the two"
    rows = workdir.read_metrics()["stages"]
    assert [row["bytes_handed_over"] for row in rows] == [len("device"), len("lmc_device"), 0, 0, 0]
    for name in ("cloud", "edge"):
        shutil.rmtree(workdir.checkpoints(name))
    workdir.merge_metrics(stages=rows[:1])
    done.clear()
    assert course(stage_settings())[0] == ("score", "lmc_device")
    assert done == ["missing ones"], "it was killed before the scores of what it had taken"
    assert workdir.read_metrics()["stages"][1]["bytes_handed_over"] == len("lmc_device")


def test_the_first_process_says_which_stages_are_left(course, monkeypatch):
    """Another one may see the folder of a run that was just killed as it was a moment ago."""
    course(stage_settings())
    monkeypatch.setattr(pipeline.processes, "gather", lambda _: np.array([len(ALL), 1]))
    monkeypatch.setattr(pipeline.processes, "any_process", lambda flag: flag)
    done = course(stage_settings())
    assert done == [("lmc_edge", "edge", 0), ("score", "lmc_edge")], "all were restored"


def test_the_first_process_says_which_stages_are_adopted(course, monkeypatch):
    course(stage_settings())
    adopted = []

    def adopt_stage(run, spec):
        adopted.append(spec.name)
        return StageState(spec.name, [], NUM_STEPS[spec.name], 0, 0.0)

    monkeypatch.setattr(pipeline.processes, "gather", lambda _: np.array([len(ALL), 1]))
    monkeypatch.setattr(pipeline.processes, "is_first", lambda: False)
    monkeypatch.setattr(pipeline.processes, "any_process", lambda _: not adopted)
    monkeypatch.setattr(pipeline, "finish_blocks", lambda run: None)
    monkeypatch.setattr(pipeline, "adopt_stage", adopt_stage)
    course(stage_settings())
    assert adopted == ["device"]
