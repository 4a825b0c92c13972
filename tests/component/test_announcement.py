"""What `train` says before it begins, and what it refuses."""

import dataclasses
import logging
import re

import numpy as np
import pytest
from blocks_case import PHOTOMETRIC, TOWN
from scenes import town_place

from cosurfgs_jax import host_memory, settings_file
from cosurfgs_jax.collab import pipeline
from cosurfgs_jax.collab.announcement import announce, estimate
from cosurfgs_jax.collab.needs import disk_bytes, sizes_of, training_course
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.planning import FirstEstimate
from cosurfgs_jax.planning.first_estimate import subject_of_run, times_left
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.report.tables import settings_table
from cosurfgs_jax.settings import (
    DensitySettings,
    LmcSettings,
    LossSettings,
    MasSettings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.settings_file import GivenUp
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Pace
from cosurfgs_jax.workdir import Workdir


@pytest.fixture(scope="module")
def place():
    partitioned = town_place(TOWN, num_blocks=2)
    return partitioned, make_layout(partitioned.partition.edge_of_block, 2)


def _announce(workdir, partitioned, layout):
    found = estimate(PHOTOMETRIC, partitioned, layout)
    announce(PHOTOMETRIC, workdir, partitioned, layout, found=found)


def test_stages_memory_and_disk_are_named(place, tmp_path, caplog):
    partitioned, layout = place
    with caplog.at_level(logging.INFO, logger="cosurfgs_jax"):
        _announce(Workdir(tmp_path), partitioned, layout)
    stages, memory = caplog.messages
    assert "device 7000 steps" in stages and "cosurfgs plan" in stages
    assert memory.startswith("memory: about ") and "disk: about " in memory
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(place, tmp_path):
    """A run of two blocks and all stages, before its first step."""
    partitioned, layout = place
    return Run(PHOTOMETRIC, Workdir(tmp_path), partitioned, layout, *[None] * 3)


def test_the_first_steps_say_once_how_long_the_run_takes(run, caplog):
    caplog.set_level(logging.INFO, logger="cosurfgs_jax")
    say = FirstEstimate()
    say(run, "device", Pace(0, 9, 0.1, 5.0))
    assert not caplog.messages
    say(run, "device", Pace(0, 1000, 0.1, 5.0))
    (words,) = caplog.messages
    assert words.startswith("time: about ") and "by the first 1000 steps" in words
    # 6,000 steps of the same kind, a compiled program, scores of test views and checkpoints.
    minutes = float(re.search(r"device ([\d.]+) min", words)[1])
    assert 10 < minutes < 11
    for name in ("lmc_device", "cloud"):
        assert f"{name} " in words
    say(run, "device", Pace(0, 2000, 0.1, 5.0))
    assert len(caplog.messages) == 1
    FirstEstimate()(run, "device", Pace(0, 7000, 0.1, 5.0))  # its last line
    FirstEstimate()(run, "cloud", Pace(0, 50, 0.1, 5.0))
    assert len(caplog.messages) == 1


def test_the_time_of_a_run_grows_with_its_steps_and_what_they_hold(run):
    subject = subject_of_run(run)
    one, two = (times_left(subject, Pace(50, 100, step_s, 0.0)) for step_s in (0.1, 0.2))
    for slow, slower in zip(one, two, strict=True):
        np.testing.assert_allclose(slower.steps_s, 2 * slow.steps_s)
    np.testing.assert_allclose(one[0].steps_s, 690.0)
    # Geometry from a quarter of the steps on, and surfels whose number grows.
    settings = dataclasses.replace(PHOTOMETRIC, loss=LossSettings(), density=DensitySettings())
    subject = subject_of_run(run._replace(settings=settings))
    (first, *_) = times_left(subject, Pace(0, 50, 0.1, 0.0))
    growth = subject.course.num_surfels / subject.course.spans[0].num_surfels
    assert 1.3 * 695 < first.steps_s[0] < (1 + 0.3 * (growth - 1)) * 1.3 * 695 and growth > 2
    # Compiling is no part of a step, and what was compiled for the first steps is there.
    (compiling, *_) = times_left(subject, Pace(0, 50, 0.1, 10.0))
    np.testing.assert_allclose(compiling.steps_s, first.steps_s)
    more = (compiling.total_s - first.total_s)[0] / 10
    num_programs = len(subject.course.programs)
    assert num_programs - 1 < more < num_programs + 7


def test_more_than_the_machine_has_is_a_warning_or_a_refusal(place, tmp_path, monkeypatch, caplog):
    partitioned, layout = place
    sizes = sizes_of(
        PHOTOMETRIC, partitioned, layout.num_devices, training_course(PHOTOMETRIC, partitioned)
    )
    arrays = 2 * sizes.state_bytes
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: arrays)
    _announce(Workdir(tmp_path), partitioned, layout)
    assert "may not suffice" in caplog.text
    monkeypatch.setattr(host_memory, "certain_limit", lambda: None)  # unknown
    _announce(Workdir(tmp_path), partitioned, layout)
    monkeypatch.setattr(host_memory, "certain_limit", lambda: arrays - 1)
    begun = Workdir(tmp_path / "begun")
    (begun.checkpoints("device") / "5").mkdir(parents=True)
    _announce(begun, partitioned, layout)  # it may go on with less
    with pytest.raises(InputError, match="capacity: expected what fits into"):
        _announce(Workdir(tmp_path), partitioned, layout)


def test_a_run_takes_what_is_given_up_and_its_workdir_what_was_asked_for(
    place, tmp_path, monkeypatch
):
    runs = []
    monkeypatch.setattr(
        pipeline, "open_in_all_processes", lambda asked, _: place[0].with_capacity(asked)
    )
    monkeypatch.setattr(pipeline, "run_stages", runs.append)
    monkeypatch.setattr(pipeline, "write_merged", lambda *_: None)
    monkeypatch.setattr(host_memory, "give_back_at_once", lambda: None)
    workdir = Workdir(tmp_path)
    settings = dataclasses.replace(
        PHOTOMETRIC,
        surfels=SurfelSettings(sh_degree=3, capacity=500_000),
        density=DensitySettings(),
        train=TrainSettings(steps=100),
    )
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: 2**50)
    pipeline.train(settings, workdir)
    assert runs[-1].settings == settings and not workdir.given_up.exists()
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: 2**30)
    pipeline.train(settings, workdir)
    used = runs[-1].settings.surfels.capacity
    assert 125_000 <= used < 500_000
    assert max(block.capacity for block in runs[-1].partitioned.blocks) <= used
    for path in (workdir.config, workdir.made_with):
        assert settings_file.load(path) == settings
    rows = settings_file.read_given_up(workdir)
    assert GivenUp("surfels.capacity", 500_000, used) in rows
    assert settings_file.with_given_up(settings, rows) == runs[-1].settings
    text = settings_table(ReportInput(workdir, *[None] * (len(ReportInput._fields) - 1)))
    assert "given up for lack of memory" in text and str(used) in text


def test_the_whole_capacity_is_what_the_blocks_have(place):
    partitioned, _ = place
    most = partitioned.whole_capacity()
    blocks = {}
    for capacity in (most, most // 2):
        surfels = SurfelSettings(sh_degree=1, capacity=capacity)
        settings = dataclasses.replace(PHOTOMETRIC, surfels=surfels)
        blocks[capacity] = partitioned.with_capacity(settings).blocks
    pairs = zip(blocks[most], partitioned.blocks, strict=True)
    fractions = [given.capacity / own.capacity for given, own in pairs]
    assert max(fractions) == pytest.approx(1, abs=1e-3)
    for half, whole in zip(blocks[most // 2], blocks[most], strict=True):
        assert half.capacity == pytest.approx(whole.capacity / 2, abs=1)
        assert half.num_initial == whole.num_initial == len(half.points)


def test_arrays_follow_from_the_degree_of_colours(place):
    partitioned, layout = place
    course = training_course(PHOTOMETRIC, partitioned)
    sizes = {}
    for degree in (0, 3):
        settings = dataclasses.replace(PHOTOMETRIC, surfels=SurfelSettings(sh_degree=degree))
        sizes[degree] = sizes_of(settings, partitioned, layout.num_devices, course)
    # 15 more coefficients of three colours, with two moments, of float32.
    more = sizes[3].state_bytes - sizes[0].state_bytes
    assert more == 15 * 3 * 3 * 4 * course.num_slots
    assert sizes[3].surfel_bytes - sizes[0].surfel_bytes == 15 * 3 * 4


def test_checkpoints_are_as_many_as_are_saved_and_kept(place):
    partitioned, layout = place
    sizes = sizes_of(
        PHOTOMETRIC, partitioned, layout.num_devices, training_course(PHOTOMETRIC, partitioned)
    )
    alone = dataclasses.replace(
        PHOTOMETRIC, lmc=LmcSettings(enabled=False), mas=MasSettings(enabled=False)
    )
    found = {}
    for every in (100, 3500, 7000):
        train = TrainSettings(steps=7000, checkpoint_every=every)
        settings = dataclasses.replace(alone, train=train)
        found[every] = disk_bytes(sizes, settings, partitioned)["checkpoints"]
    # One more than is kept while it is saved.
    assert found == {
        100: 3 * 2 * sizes.state_bytes,
        3500: 2 * 2 * sizes.state_bytes,
        7000: 2 * sizes.state_bytes,
    }
    assert "teachers' maps" in disk_bytes(sizes, PHOTOMETRIC, partitioned)
