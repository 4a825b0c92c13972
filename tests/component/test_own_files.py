"""Of a checkpoint of many blocks a process reads what it restores, and no more."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import restart_of_two
from jax.sharding import NamedSharding, PartitionSpec

from cosurfgs_jax.training import own_files
from cosurfgs_jax.training.checkpoint_files import DamagedCheckpoint, size_of
from cosurfgs_jax.training.checkpoints import Checkpoints

BLOCKS = 4


def test_each_of_two_processes_reads_its_own_blocks_and_both_find_the_same_damage(tmp_path):
    folder = tmp_path / "stage"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [
        subprocess.Popen(
            [sys.executable, restart_of_two.__file__, folder, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in pair]
    finally:
        for process in pair:
            process.kill()
    for process, (out, err) in zip(pair, ended, strict=True):
        assert process.returncode == 0, err
        whole, damaged = json.loads(out.splitlines()[-1])
        assert (whole["step"], damaged["step"]) == (2, 1)
        size = size_of(folder / "1")
        for name in ("restored", "compared"):
            assert 0.4 * size < whole[name] < 0.51 * size
    assert (folder / "damaged-2").is_dir()


def test_a_block_is_read_alone_where_a_device_had_several(tmp_path):
    mesh = jax.make_mesh((1,), ("block",), devices=jax.devices()[:1])
    values = np.random.default_rng(0).standard_normal((BLOCKS, 5000, 3)).astype(np.float32)
    laid_out = jax.device_put(values, NamedSharding(mesh, PartitionSpec("block")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"means": laid_out}, {})
    abstract = {"means": jax.ShapeDtypeStruct(values.shape[1:], np.float32)}
    with Checkpoints(tmp_path, is_read_only=True) as checkpoints:
        saved = checkpoints.open_latest(lambda _: abstract)
    before = restart_of_two.read_by_tensorstore()
    np.testing.assert_array_equal(saved.read(2, abstract)["means"], values[2])
    read = restart_of_two.read_by_tensorstore() - before
    assert 0 < read < 1.1 * size_of(tmp_path / "1") / BLOCKS
    # The same on as many devices.
    mesh = jax.make_mesh((BLOCKS,), ("block",), devices=jax.devices()[:BLOCKS])
    own = jax.ShapeDtypeStruct(
        values.shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec("block"))
    )
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_latest(lambda _: {"means": own}).state["means"]
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("error", [OSError("no such disk"), DamagedCheckpoint("no such disk")])
def test_the_others_hear_of_every_failure(tmp_path, monkeypatch, error):
    heard = []
    monkeypatch.setattr(own_files.processes, "count", lambda: 2)
    monkeypatch.setattr(
        own_files.processes, "gather_texts", lambda text: heard.append(text) or ["", text]
    )

    def fail(*_):
        raise error

    monkeypatch.setattr(own_files, "files_of_others", fail)
    with pytest.raises(DamagedCheckpoint, match="no such disk"):
        own_files.verify(tmp_path, ("state",), {}, is_alone=False)
    assert len(heard) == 1


def test_a_number_among_the_arrays_leaves_the_others_apart(tmp_path):
    mesh = jax.make_mesh((2,), ("block",), devices=jax.devices()[:2])
    values = np.arange(2 * 50_000, dtype=np.float32).reshape(2, -1)
    laid_out = jax.device_put(values, NamedSharding(mesh, PartitionSpec("block")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"step": jax.numpy.float32(3), "means": laid_out}, {})
    pieces = list(own_files._pieces(tmp_path / "1" / "state", {"means": {1}}))
    assert sorted(is_needed for is_needed, _ in pieces) == [False, True]
