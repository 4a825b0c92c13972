"""Of a finished stage the model stays, whole, whenever the process is killed."""

import contextlib
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training import checkpoint_files
from cosurfgs_jax.training.checkpoint_files import is_model_alone, keep_model_alone, size_of
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.workdir import Workdir


def fields_of(num: int, seed: int = 0) -> tuple[dict, dict]:
    """A state in two parts."""
    generator = np.random.default_rng(seed)
    means, moments = jnp.asarray(generator.standard_normal((2, num, 3)), jnp.float32)
    alive = jnp.asarray(generator.random(num) < 0.5)
    state = {"surfels": {"means": means, "alive": alive}, "key": jax.random.key(seed)}
    return state, {"moments": {"means": moments}, "off": None}


def assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
            y = jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def biggest_file(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def abstract_fields(meta: dict) -> dict:
    state, training = jax.eval_shape(lambda: fields_of(meta["num"]))
    return state | training


@pytest.fixture
def stage_folder(tmp_path):
    """Steps 5 and 10 of a stage."""
    folder = Workdir(tmp_path).checkpoints("stage")
    with Checkpoints(folder) as checkpoints:
        for step in (5, 10):
            state, training = fields_of(20, step)
            checkpoints.save(step, state, {"num": 20}, training)
    return folder


def test_a_state_in_two_parts_comes_back_whole_or_without_its_training(stage_folder):
    state, training = fields_of(20, 10)
    with Checkpoints(stage_folder) as checkpoints:
        whole = checkpoints.restore_latest(abstract_fields).state
        model = checkpoints.restore_latest(abstract_fields, Parts(training=False)).state
    assert_same(whole, state | training)
    assert_same(model, state)


def test_what_is_not_asked_for_is_not_read(stage_folder):
    os.truncate(biggest_file(stage_folder / "10" / "training"), 10)
    with Checkpoints(stage_folder, is_read_only=True) as checkpoints:
        assert checkpoints.restore_latest(abstract_fields, Parts(training=False)).step == 10
        assert checkpoints.restore_latest(abstract_fields).step == 5


def test_of_a_finished_stage_the_model_stays(stage_folder):
    state, _ = fields_of(20, 10)
    before = size_of(stage_folder)
    assert keep_model_alone(stage_folder, 10) and keep_model_alone(stage_folder, 10)
    assert [path.name for path in stage_folder.iterdir()] == ["10"]
    assert not (stage_folder / "10" / "training").exists()
    assert size_of(stage_folder) < before
    with Checkpoints(stage_folder) as checkpoints:
        for parts in (Parts(training=False), Parts(last_step=10)):
            restored = checkpoints.restore_latest(abstract_fields, parts)
            assert restored.step == 10
            assert_same(restored.state, state)
        with pytest.raises(InputError, match="step 10: .*a model without.*delete it"):
            checkpoints.restore_latest(abstract_fields, Parts(last_step=11))


def test_copies_of_a_finished_stage_keep_their_meta_data(stage_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stage_folder, copy)
    assert keep_model_alone(stage_folder, 10, [copy, tmp_path / "none"])
    assert (copy / "10" / "meta").is_dir() and not (copy / "5").exists()
    assert not (copy / "10" / "state").exists() and not (copy / "10" / "training").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(biggest_file(folder / "10" / "state"), 10),
        lambda folder: biggest_file(folder / "10" / "state").unlink(),
        lambda folder: (folder / "10" / "checksums.json").write_text("{}"),
        lambda folder: (folder / "10" / "checksums.json").unlink(),
        lambda folder: shutil.rmtree(folder / "10"),
    ],
)
def test_nothing_is_deleted_beside_a_model_that_is_damaged(stage_folder, damage):
    damage(stage_folder)
    shutil.copytree(stage_folder, stage_folder.with_name("copy"))
    before = sorted(str(path) for path in stage_folder.parent.rglob("*"))
    assert not keep_model_alone(stage_folder, 10, [stage_folder.with_name("copy")])
    assert sorted(str(path) for path in stage_folder.parent.rglob("*")) == before


@pytest.mark.parametrize("num_renamed", [0, 1, 2])
def test_a_kill_while_a_stage_is_reduced_leaves_a_state_that_is_whole(
    stage_folder, tmp_path, monkeypatch, num_renamed
):
    """Killed after so many of the two renames, at the deletion that follows."""
    renames = []
    rename = Path.rename

    def count(path, target):
        if len(renames) == num_renamed:
            raise KeyboardInterrupt
        renames.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", count)
    monkeypatch.setattr(checkpoint_files.shutil, "rmtree", lambda *_, **__: None)
    with contextlib.suppress(KeyboardInterrupt):
        keep_model_alone(stage_folder, 10)
    monkeypatch.undo()
    Workdir(tmp_path).clear_unfinished_training(is_ended=True)
    steps = ["10"] if num_renamed else ["10", "5"]
    assert sorted(path.name for path in stage_folder.iterdir()) == steps
    state, training = fields_of(20, 10)
    with Checkpoints(stage_folder) as checkpoints:
        restored = checkpoints.restore_latest(abstract_fields, Parts(last_step=10))
        assert_same(restored.state, state if num_renamed == 2 else state | training)
    assert keep_model_alone(stage_folder, 10)
    assert [path.name for path in stage_folder.iterdir()] == ["10"]


def test_the_first_save_is_waited_for_and_told(tmp_path):
    told = []

    def tell():
        told.append(sorted(path.name for path in tmp_path.iterdir()))

    with Checkpoints(tmp_path, when_first_saved=tell) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.zeros(1 << 18)}, {})
    assert told == [["1"]]


def test_a_checkpoint_of_the_format_before_is_read(tmp_path, monkeypatch):
    """All was in one item; what is asked for of it is the caller's to pick."""
    state, training = fields_of(20)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr("cosurfgs_jax.training.checkpoints.FORMAT", 2)
        checkpoints.save(5, state | training, {"num": 20})
        monkeypatch.undo()
        for parts in (Parts(), Parts(training=False)):
            assert_same(checkpoints.restore_latest(abstract_fields, parts).state, state | training)
    assert not is_model_alone(tmp_path / "5") and keep_model_alone(tmp_path, 5)
    assert not is_model_alone(tmp_path / "none")
