"""Blocks that were saved one by one, put together as a stage of a run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from blocks_case import PHOTOMETRIC, four_blocks, run_context

from cosurfgs_jax.collab.adopted_blocks import adopt_stage
from cosurfgs_jax.collab.block_jobs import block_stages, unfinished_blocks
from cosurfgs_jax.collab.finished_stages import keep_models_alone, trainable
from cosurfgs_jax.collab.stages import STAGES
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout, layout_of_block
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import LmcSettings, TrainSettings
from cosurfgs_jax.training import checkpoint_files, loop
from cosurfgs_jax.training.checkpoint_files import keep_model_alone
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import empty_state, model_of

DEVICE = STAGES[0]
NUM_SLOTS = 5
STEPS = 7


def _state(run: Run, number: int, num_slots: int = NUM_SLOTS):
    """Arrays that tell blocks apart."""
    partitioned = run.partitioned
    state = empty_state(
        num_slots, partitioned.max_views, run.settings, partitioned.kept(run.settings)
    )
    return jax.tree.map(lambda leaf: (leaf + number + 1).astype(leaf.dtype), state)


def _save_block(
    run: Run, number: int, folder: int, num_slots: int = NUM_SLOTS, step: int = STEPS
) -> None:
    alone = run._replace(workdir=run.workdir.block(folder), layout=layout_of_block(number))
    rows = [alone.layout.put_row(0, lambda block: _state(run, block, num_slots))]
    stage = loop.StageState(DEVICE.name, rows, step, number, 2.0)
    with Checkpoints(alone.workdir.checkpoints(DEVICE.name)) as checkpoints:
        loop.save_stage(alone, stage, checkpoints)


@pytest.fixture(params=[1, 3, 4])
def run(request, tmp_path):
    """On three devices the last one has one row of two without a block."""
    settings = dataclasses.replace(PHOTOMETRIC, train=TrainSettings(steps=STEPS))
    with run_context(four_blocks(), tmp_path, request.param, settings) as context:
        yield context


def _with_lmc(run: Run, is_on: bool) -> Run:
    return run._replace(settings=dataclasses.replace(run.settings, lmc=LmcSettings(enabled=is_on)))


@pytest.mark.parametrize("is_begun_with", [True, False])
def test_blocks_come_from_their_folders_to_their_devices(run, is_begun_with):
    """With what the next stage goes on from, or, where that takes blocks one by one and has done so
    already, their models alone.
    """
    run = _with_lmc(run, not is_begun_with)
    for number in range(4):
        _save_block(run, number, number)
        picture = run.workdir.block(number).before / f"{number:05d}.png"
        picture.parent.mkdir()
        picture.write_text(str(number))
    stage = adopt_stage(run, DEVICE)
    assert stage[0] == "device" and stage[2:] == (STEPS, 0 + 1 + 2 + 3, 8.0)
    got = run.layout.get_blocks(stage.states)
    for number in range(4):
        expected = _state(run, number)
        if not is_begun_with:
            expected = model_of(expected)
        jax.tree.map(np.testing.assert_array_equal, got[number], expected)
        (left,) = run.workdir.block(number).checkpoints("device").iterdir()
        assert (left / "training").is_dir(), "until the first stage after the blocks has saved"
    with Checkpoints(run.workdir.checkpoints("device"), is_read_only=True) as checkpoints:
        saved = loop.restore_stage(run, "device", checkpoints, Parts(last_step=STEPS))
    assert saved is not None and saved[2:] == stage[2:]
    for restored, adopted in zip(saved.states, stage.states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, restored, adopted)
    assert [path.read_text() for path in sorted(run.workdir.before.iterdir())] == list("0123")


@pytest.mark.parametrize("run", [3], indirect=True)
def test_blocks_are_adopted_without_moments_where_one_has_lost_them(run):
    """Such as all of them, when a user deletes what a run had adopted."""
    run = _with_lmc(run, False)
    for number in range(4):
        _save_block(run, number, number)
    keep_model_alone(run.workdir.block(2).checkpoints("device"), STEPS)
    got = run.layout.get_blocks(adopt_stage(run, DEVICE).states)
    for number in range(4):
        expected = model_of(_state(run, number))
        jax.tree.map(np.testing.assert_array_equal, got[number], expected)


@pytest.mark.parametrize("run", [1], indirect=True)
def test_adopted_blocks_are_left_to_the_run_once_it_has_gone_on(run):
    run = _with_lmc(run, False)
    for number in range(4):
        _save_block(run, number, number)
    before = adopt_stage(run, DEVICE)
    folders = [run.workdir.block(number).checkpoints("device") / str(STEPS) for number in range(4)]
    own = run.workdir.checkpoints("device") / str(STEPS)
    train = dataclasses.replace(run.settings.train, keep_moments=True)
    keep_models_alone(
        run._replace(settings=dataclasses.replace(run.settings, train=train)), [DEVICE]
    )
    assert all((folder / "state").is_dir() for folder in folders) and (own / "training").is_dir()
    keep_models_alone(run, [DEVICE])
    assert not (own / "training").exists() and (own / "state").is_dir()
    for folder in folders:
        assert (folder / "meta").is_dir() and not (folder / "state").exists()
    assert not unfinished_blocks(run.settings, run.workdir, run.partitioned)
    with Checkpoints(run.workdir.checkpoints("device"), is_read_only=True) as checkpoints:
        saved = loop.restore_stage(run, "device", checkpoints, Parts(last_step=STEPS))
    models = [model_of(state) for state in before.states]
    jax.tree.map(np.testing.assert_array_equal, saved.states, models)


@pytest.mark.parametrize("run", [3], indirect=True)
def test_models_alone_are_begun_with_by_moments_of_zero(run, caplog):
    rows = [
        run.layout.put_row(row, lambda number: model_of(_state(run, number or 0)))
        for row in range(run.layout.blocks_per_device)
    ]
    stage = loop.StageState("device", rows, STEPS, 0, 0.0)
    begun = trainable(run, stage)
    assert "device: the models of this finished stage are there, but not the moments" in caplog.text
    for number, state in run.layout.get_blocks(begun.states).items():
        jax.tree.map(np.testing.assert_array_equal, model_of(state), model_of(_state(run, number)))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.optimizer))
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, _state(run, number))
    caplog.clear()
    assert trainable(run, begun) is begun and not caplog.text


@pytest.mark.parametrize("run", [1], indirect=True)
def test_a_process_without_blocks_takes_their_shape(run):
    """Such as the last three of eight where ten blocks are two a device."""
    _save_block(run, 0, 0)
    stage = adopt_stage(run._replace(layout=Layout(layout_of_block(0).mesh, (), 1)), DEVICE)
    assert stage[2:] == (STEPS, 0, 0.0) and stage.num_slots == NUM_SLOTS
    assert not np.asarray(stage.states[0].alive).any()


@pytest.mark.parametrize("run", [1], indirect=True)
def test_a_damaged_checkpoint_of_a_finished_block_can_be_made_again(run):
    """What the message says to delete makes the block unfinished."""
    for number in range(4):
        _save_block(run, number, number, step=4 if number == 3 else STEPS)
        for spec in block_stages(run.settings, run.partitioned)[1:]:
            steps = spec.num_steps(run.settings)
            (run.workdir.block(number).checkpoints(spec.name) / str(steps)).mkdir(parents=True)
    with pytest.raises(InputError, match="got one of step 4; delete .*, then --blocks=3") as got:
        adopt_stage(run, DEVICE)
    to_delete = str(got.value).partition("; delete ")[2].partition(", then")[0].split(" and ")
    for folder in to_delete:
        shutil.rmtree(folder, ignore_errors=True)
    assert list(unfinished_blocks(run.settings, run.workdir, run.partitioned)) == [3]


@pytest.mark.parametrize("run", [1], indirect=True)
@pytest.mark.parametrize("changes", [{"seconds": None}, {"num_without_room": "x"}])
def test_a_checkpoint_whose_numbers_are_none_is_damaged(run, changes):
    _save_block(run, 0, 0)
    step = run.workdir.block(0).checkpoints("device") / str(STEPS)
    meta = step / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))
    checkpoint_files.write_checksums(step)
    with pytest.raises(InputError, match="blocks/0/.*its meta data is incomplete: TypeError"):
        adopt_stage(run._replace(layout=Layout(layout_of_block(0).mesh, (), 1)), DEVICE)


@pytest.mark.parametrize("run", [4], indirect=True)
def test_a_block_of_another_version_is_named(run, monkeypatch, caplog):
    for number in range(4):
        with monkeypatch.context() as there:
            if number == 2:
                there.setattr(processes, "versions", lambda: "JAX of another day")
            _save_block(run, number, number)
    adopt_stage(run, DEVICE)
    (line,) = [line for line in caplog.messages if "last bits may differ" in line]
    assert line.startswith("block 2 was trained by JAX of another day, and here is cosurfgs_jax")


@pytest.mark.parametrize("run", [1], indirect=True)
@pytest.mark.parametrize(
    "number, changes, message",
    [
        (2, {}, r"blocks/3: expected checkpoints of the blocks \[3\], got those of \[2\]"),
        (3, {"num_slots": 6}, "blocks/3: expected 5 slots, as the other blocks have, got 6"),
        (3, {"step": 4}, "whole checkpoint of step 7, got one of step 4; .*--blocks=3"),
        (3, None, "whole checkpoint of step 7, got none"),
    ],
)
def test_a_block_that_does_not_fit(run, number, changes, message):
    for other in range(3):
        _save_block(run, other, other)
    if changes is not None:
        _save_block(run, number, 3, **changes)
    with pytest.raises(InputError, match=message):
        adopt_stage(run, DEVICE)
    assert not run.workdir.has_begun("device")
