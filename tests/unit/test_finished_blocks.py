"""Finished blocks of jobs of their own: what a killed job has left, and a run that goes on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from blocks_case import TOWN, four_blocks, run_context
from scenes import town_folder

from cosurfgs_jax import locks
from cosurfgs_jax.collab import adopted_blocks, block_jobs, compact_blocks
from cosurfgs_jax.collab.block_choice import BlockChoice
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings, TrainSettings
from cosurfgs_jax.training import checkpoint_files
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.workdir import BLOCK, Workdir

STEPS = 20


@pytest.fixture
def settings():
    return Settings(
        data=DataSettings(path=str(town_folder(TOWN))),
        train=TrainSettings(steps=STEPS),
        partition=PartitionSettings(num_blocks=4, num_edges=2, min_views=1, min_points=1),
    )


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def _last_step(workdir: Workdir, settings: Settings, stage: str) -> Path:
    steps = {"device": STEPS, "lmc_device": round(settings.lmc.recovery * STEPS)}
    return workdir.checkpoints(stage) / str(steps[stage])


def _save_items(folder: Path, *items: str) -> None:
    """A checkpoint of empty items, whole by its checksums."""
    for item in items:
        (folder / item).mkdir(parents=True)
        (folder / item / "metadata").write_text(json.dumps({"format": 3}))
    checkpoint_files.write_checksums(folder)


def test_a_run_that_has_taken_one_stage_goes_on_with_the_blocks(settings, workdir):
    """The next stage of a block was damaged, and is made again by a job or by the run."""
    for number in range(4):
        _last_step(workdir.block(number), settings, "device").mkdir(parents=True)
        if number != 3:
            _last_step(workdir.block(number), settings, "lmc_device").mkdir(parents=True)
    taken = _last_step(workdir, settings, "device")
    _save_items(taken, "state", "meta")
    with run_context(four_blocks(), workdir.root, 4, settings) as run:
        _check_that_it_goes_on(run, taken)


def test_the_pace_of_one_block_is_not_that_of_the_run(settings, workdir, monkeypatch):
    """A run that trains what is missing says nothing of its time by the steps of one block."""
    told = []
    for number in range(3):
        for stage in ("device", "lmc_device"):
            _last_step(workdir.block(number), settings, stage).mkdir(parents=True)
    monkeypatch.setattr(
        block_jobs, "_take_one_through", lambda alone, specs: told.append(alone.when_timed)
    )
    for name in ("leave_compact", "keep_models_alone", "check_photographs"):
        monkeypatch.setattr(block_jobs, name, lambda *_: None)
    with run_context(four_blocks(), workdir.root, 4, settings) as run:
        adopted_blocks.finish_blocks(run._replace(when_timed=lambda *_: None))
    assert told == [None]


def _check_that_it_goes_on(run: Run, taken: Path) -> None:
    assert adopted_blocks.adopts_blocks(run) and list(adopted_blocks._unfinished(run)) == [3]
    block_jobs._check_not_together(run.settings, run.workdir, run.partitioned)
    (run.workdir.checkpoints("lmc_device") / "1").mkdir(parents=True)
    assert not adopted_blocks.adopts_blocks(run), "it has gone on without the blocks"
    shutil.rmtree(run.workdir.checkpoints("lmc_device"))
    (taken / "training").mkdir()
    assert not adopted_blocks.adopts_blocks(run), "it has trained them together"
    with pytest.raises(InputError, match="of all blocks together"):
        block_jobs._check_not_together(run.settings, run.workdir, run.partitioned)


@pytest.mark.parametrize("is_compact", [False, True])
def test_the_same_job_deletes_what_a_killed_one_left(settings, workdir, monkeypatch, is_compact):
    """It was killed when it had saved the last step, while it deleted what nobody needs any more;
    the block is finished all the same.
    """
    lmc = dataclasses.replace(settings.lmc, compact=is_compact)
    settings = dataclasses.replace(settings, lmc=lmc)
    folder = workdir.block(2)
    stages = ["device", "lmc_device"]
    for stage in stages:
        _save_items(_last_step(folder, settings, stage), "state", "training", "meta")
        (folder.checkpoints(stage) / "7.orbax-checkpoint-tmp-superseded").mkdir()
        folder.compact(stage).parent.mkdir(exist_ok=True)
        folder.compact(stage).touch()
    (folder.scratch(BLOCK.name) / "1@elsewhere").mkdir(parents=True)
    read = []
    with locks.hold(folder.lock(BLOCK.name), "a job that is in its next block"):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    assert folder.scratch(BLOCK.name).exists()
    monkeypatch.setattr(compact_blocks, "read_compact", lambda _, spec: read.append(spec.name))
    monkeypatch.setattr(block_jobs, "run_one_stage", None)  # nothing is trained
    block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    left = {
        stage: sorted(path.name for path in folder.checkpoints(stage).glob("*/*"))
        for stage in stages
    }
    expected = {
        "device": ["checksums.json", "meta", "state"],
        "lmc_device": ["checksums.json", "meta", "state", "training"],
    }
    if is_compact:
        expected = dict.fromkeys(stages, ["checksums.json", "meta"])
        assert read == stages, "nothing is deleted before its compact form was read"
    assert left == expected
    assert not list(folder.root.rglob("*superseded")) and not folder.scratch(BLOCK.name).exists()
    times = [path.stat().st_mtime_ns for path in sorted(folder.root.rglob("*"))]
    block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    assert times == [path.stat().st_mtime_ns for path in sorted(folder.root.rglob("*"))]
