"""A checkpoint that is read block by block."""

import shutil

import jax
import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.saved_blocks import SavedBlocks

FIELDS = {"params": {"means": (6, 3), "sh": (6, 4, 3)}, "alive": (6,)}


def _state(step: int) -> dict:
    random = np.random.default_rng(step)
    return jax.tree.map(
        lambda shape: jax.numpy.asarray(random.normal(size=(2, *shape)).astype(np.float32)),
        FIELDS,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def _abstract(meta: dict) -> dict:
    shapes = FIELDS | meta.get("others", {})
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "a place of its own, ü" / "stage"
    with Checkpoints(place) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), {})
    return place


def _open(folder, make_abstract=_abstract):
    with Checkpoints(folder, is_read_only=True) as checkpoints:
        return checkpoints.open_latest(make_abstract)


def test_a_block_comes_back_bit_by_bit(folder):
    saved = _open(folder)
    assert saved.step == 2
    for block in (1, 0):
        found = saved.read(block, _abstract({}))
        jax.tree.map(
            np.testing.assert_array_equal, found, jax.tree.map(lambda x, b=block: x[b], _state(2))
        )
    assert saved.identity == _open(folder).identity
    shutil.rmtree(folder / "2")
    older = _open(folder)
    assert older.step == 1 and older.identity != saved.identity


def test_what_is_not_there_is_said(folder):
    with pytest.raises(InputError, match="only damaged ones .*masks.* is missing|only damaged"):
        _open(folder, lambda _: _abstract({"others": {"masks": (6,)}}))
    with pytest.raises(InputError, match=r"alive: expected an array of shape \(7,\) for each blo"):
        _open(folder, lambda _: _abstract({"others": {"alive": (7,)}}))
    shutil.rmtree(folder / "2")
    with pytest.raises(InputError, match="block 0 cannot be read .* give the same command again"):
        SavedBlocks(folder / "2", 2, {}).read(0, _abstract({}))


def test_a_damaged_one_is_left_out(folder, caplog):
    path = next(path for path in (folder / "2" / "state").rglob("d/*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert _open(folder).step == 1
    assert "checkpoint 2 is damaged" in caplog.text
    assert (folder / "2").is_dir()  # nothing is changed
