"""Checkpoints come back bit by bit, survive kills, and damage is found before it is used."""

import dataclasses
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoint_files import MODEL, verify
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.state import abstract_state, init_state
from cosurfgs_jax.types import Surfels


class State(NamedTuple):
    surfels: Surfels
    moments: dict
    key: jax.Array
    count: int
    nothing: None


def make_state(num: int, seed: int = 0) -> State:
    # Random numbers of JAX would be compiled for every shape.
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    surfels = Surfels(
        means=normal(num, 3),
        quats=normal(num, 4),
        log_scales=normal(num, 2),
        logit_opacities=normal(num),
        sh=normal(num, 4, 3),
        alive=jnp.asarray(generator.random(num) < 0.5),
    )
    moments = {"means": {"first": normal(num, 3), "steps": jnp.asarray(np.arange(num), jnp.int32)}}
    return State(surfels, moments, jax.random.key(seed), seed + 3, None)


def make_abstract(meta: dict) -> State:
    shapes = jax.eval_shape(lambda: make_state(meta["capacity"])._replace(count=0))
    return shapes._replace(count=0)


def assert_same(a: State, b: State) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
            y = jax.random.key_data(y)
        x = np.asarray(x)
        y = np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Steps 10, 20 and 30, with a capacity that grows at each; two are kept."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(
                step, make_state(10 * step, step), {"capacity": 10 * step, "seconds": step / 3}
            )
    return tmp_path / "checkpoints"


def biggest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def test_nothing_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_abstract) is None


def test_round_trip_is_exact_and_two_steps_stay(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [20, 30]
        restored = checkpoints.restore_latest(make_abstract)
    assert restored.step == 30
    assert restored.meta == {"capacity": 300, "seconds": 10.0, "format": 3}
    assert_same(restored.state, make_state(300, 30))


def test_special_numbers_come_back(tmp_path):
    values = jnp.array([jnp.nan, jnp.inf, -0.0, 1e-42, 3.4e38], jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        state = checkpoints.restore_latest(
            lambda meta: {"x": jax.ShapeDtypeStruct((5,), jnp.float32)}
        ).state
    assert np.asarray(state["x"]).tobytes() == np.asarray(values).tobytes()


def test_state_may_be_donated_during_the_save(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = jnp.zeros((1 << 20,), jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        for _ in range(5):
            values = step(values)
        state = checkpoints.restore_latest(
            lambda meta: {"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}
        ).state
    assert float(jnp.max(state["x"])) == 0.0


def test_restores_on_other_devices(tmp_path):
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    values = jnp.arange(32, dtype=jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jax.device_put(values, sharding)}, {})
        one = checkpoints.restore_latest(
            lambda meta: {"x": jax.ShapeDtypeStruct((32,), jnp.float32)}
        ).state["x"]
        four = checkpoints.restore_latest(
            lambda meta: {"x": jax.ShapeDtypeStruct((32,), jnp.float32, sharding=sharding)}
        )
    assert len(one.sharding.device_set) == 1 and len(four.state["x"].sharding.device_set) == 4
    np.testing.assert_array_equal(one, values)
    np.testing.assert_array_equal(four.state["x"], values)


def test_the_first_axis_is_filled_up_or_cut_for_other_numbers_of_devices(tmp_path):
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    values = jnp.arange(1, 13, dtype=jnp.float32).reshape(
        6, 2
    )  # 5 blocks, two on each of 3 devices

    def restore(num, **options):
        wanted = {"x": jax.ShapeDtypeStruct((num, 2), jnp.float32, **options)}
        return np.asarray(checkpoints.restore_latest(lambda meta: wanted).state["x"])

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        np.testing.assert_array_equal(restore(5), values[:5])
        np.testing.assert_array_equal(
            restore(8, sharding=sharding), np.pad(values, ((0, 2), (0, 0)))
        )


def test_saving_a_step_twice_changes_nothing(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(30, make_state(10), {"capacity": 10})
        assert checkpoints.restore_latest(make_abstract).meta["capacity"] == 300


def truncate(folder):
    path = biggest_file(folder / "30" / "state")
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder):
    path = biggest_file(folder / "30" / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def remove_data(folder):
    biggest_file(folder / "30" / "state").unlink()


def truncate_meta(folder):
    os.truncate(folder / "30" / "meta" / "metadata", 5)


def truncate_checksums(folder):
    os.truncate(folder / "30" / "checksums.json", 5)


def other_checksums(folder):
    (folder / "30" / "checksums.json").write_text("[3]")


def nameless_checksums(folder):
    (folder / "30" / "checksums.json").write_text('{"/": 1, "": [], "meta/../..": 2}')


def replace_meta(text):
    def damage(folder):
        for path in (folder / "30" / "meta").iterdir():
            path.write_text(text)
        (folder / "30" / "checksums.json").unlink()

    damage.__name__ = f"meta_{text}"
    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        remove_data,
        truncate_meta,
        truncate_checksums,
        other_checksums,
        nameless_checksums,
        replace_meta("[3]"),
        replace_meta("null"),
        replace_meta('{"format": 3}'),
    ],
)
def test_damaged_step_is_set_aside_and_saved_again(folder, damage, caplog):
    damage(folder)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore_latest(make_abstract)
        assert restored.step == 20
        assert_same(restored.state, make_state(200, 20))
        assert "checkpoint 30 is damaged" in caplog.text
        assert checkpoints.steps() == [20]
        checkpoints.save(30, make_state(300, 31), {"capacity": 300})
        again = checkpoints.restore_latest(make_abstract)
    assert again.step == 30
    assert_same(again.state, make_state(300, 31))
    assert (folder / "damaged-30").is_dir()


def test_damage_is_found_without_checksums_too(folder):
    (folder / "30" / "checksums.json").unlink()
    truncate_meta(folder)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_latest(make_abstract).step == 20


def test_files_without_a_checksum_are_not_verified(folder):
    """Then damage that is only found half-way through makes the older step count."""
    (folder / "30" / "checksums.json").write_text("{}")
    with Checkpoints(folder) as checkpoints:
        assert not verify(folder / "30", MODEL) and verify(folder / "20", MODEL)
        assert checkpoints.restore_latest(make_abstract).step == 30
    truncate(folder)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_latest(make_abstract).step == 20


def failing_save(checkpoints, monkeypatch):
    errors = [OSError(errno.EFBIG, "File too large")]  # orbax raises one once

    def wait():
        if errors:
            raise errors.pop()

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", wait)


def test_closing_tells_of_a_failed_save_in_a_sentence(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    failing_save(checkpoints, monkeypatch)
    with pytest.raises(InputError, match="could not be written"):
        checkpoints.close()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_what_ended_a_run_stays_the_error_where_a_save_fails_too(
    tmp_path, monkeypatch, caplog, error
):
    with pytest.raises(type(error)) as raised, Checkpoints(tmp_path) as checkpoints:
        failing_save(checkpoints, monkeypatch)
        raise error
    assert raised.value is error
    assert "could not be written (File too large)" in caplog.text


def test_a_reader_changes_nothing_and_sees_what_is_saved_meanwhile(folder):
    unfinished = folder / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    flip_a_bit(folder)
    with Checkpoints(folder, is_read_only=True) as reader:
        assert reader.restore_latest(make_abstract).step == 20
        assert unfinished.is_dir() and (folder / "30").is_dir(), "it is another's to clear"
        for step in (20, 30):  # a run saves another and deletes these before they are read
            shutil.rmtree(folder / str(step))
        with Checkpoints(folder) as writer:
            writer.save(50, make_state(300, 50), {"capacity": 300})
        assert reader.restore_latest(make_abstract).step == 50


def test_all_damaged_is_one_sentence_and_nothing_is_moved(folder):
    for step in (20, 30):
        os.truncate(biggest_file(folder / str(step) / "state"), 10)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(InputError, match="only damaged ones.*backup, or delete"),
    ):
        checkpoints.restore_latest(make_abstract)
    assert (folder / "20").is_dir() and (folder / "30").is_dir()


def test_unknown_format_is_refused(folder, monkeypatch):
    monkeypatch.setattr("cosurfgs_jax.training.checkpoints.FORMAT", 4)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(InputError, match="expected checkpoint format 4, got 3"),
    ):
        checkpoints.restore_latest(make_abstract)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # orbax leaves its coroutines behind
def test_wrong_shapes_are_no_damage(folder):
    with Checkpoints(folder) as checkpoints:
        wanted = make_abstract({"capacity": 300})
        for shape in ((300, 9, 3), (300, 12)):
            surfels = dataclasses.replace(
                wanted.surfels, sh=jax.ShapeDtypeStruct(shape, jnp.float32)
            )
            with pytest.raises(ValueError, match="surfels.sh.*not compatible"):
                checkpoints.restore_latest(
                    lambda meta, surfels=surfels: wanted._replace(surfels=surfels)
                )
        with pytest.raises(ValueError, match="structure"):
            checkpoints.restore_latest(
                lambda meta: {"x": jax.ShapeDtypeStruct((300,), jnp.float32)}
            )
        assert checkpoints.steps() == [20, 30]
    gc.collect()


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.state import abstract_state, init_state

class Dying(Checkpoints):
    def _write_checksums(self):
        if self._saving_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write_checksums()

checkpoints = Dying(sys.argv[1])
for step in (1, 2):
    checkpoints.save(step, {"x": jnp.full((1 << 18,), float(step))}, {"step": step})
    checkpoints.wait()
"""


def test_a_checkpoint_with_the_trained_fields_in_a_dict_restores(tmp_path):
    """As they were written before they had a class: the paths of the arrays are the same."""
    settings = Settings()
    fields = make_state(7).surfels
    state = init_state(fields, 3, settings)
    optimizer = state.optimizer._replace(mu=state.params, nu=state.params)
    state = dataclasses.replace(state, optimizer=optimizer)
    by_name = state.params.by_name()
    before = dataclasses.replace(
        state, params=by_name, optimizer=optimizer._replace(mu=by_name, nu=by_name)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, before, {})
        settings.surfels.sh_degree = 1
        restored = checkpoints.restore_latest(lambda _: abstract_state(7, 3, settings)).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_kill_during_a_save_loses_only_that_save(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("2")], (
        "the second save had not begun"
    )

    def abstract(meta):
        return {"x": jax.ShapeDtypeStruct((1 << 18,), jnp.float32)}

    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(abstract)
        assert (restored.step, restored.meta["step"], float(restored.state["x"][0])) == (1, 1, 1.0)
        checkpoints.save(2, {"x": jnp.full((1 << 18,), 5.0)}, {"step": 2})
        assert float(checkpoints.restore_latest(abstract).state["x"][-1]) == 5.0
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
