"""Blocks that are handed over in the compact form, and files that are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from blocks_case import PHOTOMETRIC, four_blocks, run_context, solid_state

from cosurfgs_jax.collab.adopted_blocks import adopt_stage, bytes_of_blocks
from cosurfgs_jax.collab.block_jobs import unfinished_blocks
from cosurfgs_jax.collab.compact_blocks import leave_compact, read_compact, write_compact
from cosurfgs_jax.collab.stages import STAGES
from cosurfgs_jax.distributed.layout import layout_of_block
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model import compact
from cosurfgs_jax.settings import AppearanceSettings, LmcSettings, TrainSettings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoint_files import size_of
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import BlockModel

DEVICE = STAGES[0]
STEPS = 7


@pytest.fixture(params=[1, 3])
def run(request, tmp_path):
    settings = dataclasses.replace(
        PHOTOMETRIC,
        train=TrainSettings(steps=STEPS),
        appearance=AppearanceSettings(),
        lmc=LmcSettings(enabled=False, compact=True),
    )
    with run_context(four_blocks(), tmp_path, request.param, settings) as context:
        yield context


def _finish_block(run: Run, number: int) -> Run:
    """A block at its last step, as its job leaves it; and the run of the job."""
    alone = run._replace(workdir=run.workdir.block(number), layout=layout_of_block(number))
    state = solid_state(run.partitioned, number, settings=run.settings)
    alive = np.array(state.alive)
    alive[::3] = False
    state = dataclasses.replace(state, alive=alive)
    rows = [alone.layout.put_row(0, lambda _: state)]
    stage = loop.StageState(DEVICE.name, rows, STEPS, number, 2.0)
    with Checkpoints(alone.workdir.checkpoints(DEVICE.name)) as checkpoints:
        loop.save_stage(alone, stage, checkpoints)
    write_compact(alone, DEVICE, stage)
    return alone


def test_compact_models_take_the_place_of_states(run):
    states = {}
    for number in range(4):
        alone = _finish_block(run, number)
        before = size_of(alone.workdir.root)
        leave_compact(alone, [DEVICE])
        assert size_of(alone.workdir.root) < before / 5
        assert not [*alone.workdir.root.rglob("state"), *alone.workdir.root.rglob("training")]
        states[number] = solid_state(run.partitioned, number, settings=run.settings)
    assert not unfinished_blocks(run.settings, run.workdir, run.partitioned)
    sizes = [run.workdir.block(number).compact("device").stat().st_size for number in range(4)]
    assert bytes_of_blocks(run, DEVICE) == sum(sizes)
    stage = adopt_stage(run, DEVICE)
    assert stage[0] == "device" and stage[2:] == (STEPS, 0 + 1 + 2 + 3, 8.0)
    for number, model in run.layout.get_blocks(stage.states).items():
        assert isinstance(model, BlockModel)
        state = states[number]
        alive = np.array(state.alive)
        alive[::3] = False
        assert model.alive.sum() == alive.sum() and model.alive.shape == alive.shape
        exposures = model.appearance, model.num_views, model.length
        jax.tree.map(
            np.testing.assert_array_equal,
            exposures,
            (state.appearance, state.num_views, state.length),
        )
        sizes = np.exp(state.params.log_scales[alive].max())
        expected = np.asarray(state.params.means)[alive]
        got = model.params.means[model.alive]
        nearest = np.abs(got[:, None] - expected[None]).max(axis=-1).min(axis=1)
        assert nearest.max() <= compact.MEAN_STEP * sizes
    with Checkpoints(run.workdir.checkpoints("device"), is_read_only=True) as checkpoints:
        saved = loop.restore_stage(run, "device", checkpoints, Parts(last_step=STEPS))
    jax.tree.map(np.testing.assert_array_equal, saved.states, stage.states)


@pytest.mark.parametrize("run", [1], indirect=True)
def test_a_block_without_its_compact_form_is_not_finished(run):
    for number in range(4):
        _finish_block(run, number)
    run.workdir.block(2).compact("device").unlink()
    assert list(unfinished_blocks(run.settings, run.workdir, run.partitioned)) == [2]


def _with_meta(**changes):
    def change(arrays: dict) -> dict:
        meta = json.loads(arrays["meta"].tobytes()) | changes
        return arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}

    return change


@pytest.mark.parametrize("run", [1], indirect=True)
@pytest.mark.parametrize(
    "change, message",
    [
        (_with_meta(step=6), "end of stage device, got .*step 6"),
        (_with_meta(num_slots=3), "surfels in 3 slots"),
        (_with_meta(num_slots=None), "another content"),
        (_with_meta(num_slots=1e999), "another content"),
        (_with_meta(num_without_room="x"), "another content"),
        (_with_meta(seconds=""), "another content"),
        (lambda arrays: arrays | {"meta": np.frombuffer(b"[" * 10**5, "u1")}, "another content"),
        (_with_meta(blocks=[2]), r"blocks \[1\], got those of \[2\]"),
        (_with_meta(fingerprint="0"), "another dataset"),
        (lambda arrays: arrays | {"meta": arrays["meta"][:-1]}, "another content"),
        (lambda arrays: arrays | {"meta": np.frombuffer(b"[3]", np.uint8)}, "another content"),
        (lambda arrays: arrays | {"num_views": np.zeros(2)}, "another content"),
        (lambda arrays: arrays | {"exposure_0": np.zeros(2)}, "exposures of other shapes"),
        (lambda arrays: arrays | {"sh_rest": arrays["sh_rest"][:, :0]}, "coefficients of colour"),
        (lambda arrays: arrays | {"quats": arrays["quats"][..., 1:]}, "compact form, got"),
        (lambda arrays: {"meta": arrays["meta"]}, "expected an .npz file with means"),
        (None, "compact/device.npz"),
    ],
)
def test_another_file_is_refused_with_its_path(run, change, message):
    alone = _finish_block(run, 1)
    path = alone.workdir.compact("device")
    with np.load(path) as content:
        arrays = dict(content)
    path.unlink()
    if change is not None:
        np.savez_compressed(path, **change(arrays))
    with pytest.raises(InputError, match=message):
        read_compact(alone, DEVICE)


@pytest.mark.parametrize("run", [1], indirect=True)
def test_states_stay_where_the_compact_form_is_damaged(run):
    alone = _finish_block(run, 1)
    path = alone.workdir.compact("device")
    path.write_bytes(path.read_bytes()[:-100])
    before = size_of(alone.workdir.root)
    with pytest.raises(InputError, match="device.npz.*delete"):
        leave_compact(alone, [DEVICE])
    assert size_of(alone.workdir.root) == before
