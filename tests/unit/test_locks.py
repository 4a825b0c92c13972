"""Who writes in a workdir: a second one gets a sentence, a dead one leaves nothing behind."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from cosurfgs_jax import ended, files, locks
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.data.town import dataset
from cosurfgs_jax.distributed.run_lock import hold_run
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, GeneratedSettings
from cosurfgs_jax.workdir import BLOCK, EXPORTS, MESH, TRAINING, Workdir

_HOLDER = """
import sys, time
from pathlib import Path
from cosurfgs_jax import files, locks
from cosurfgs_jax.workdir import MESH, Workdir
workdir = Workdir(Path(sys.argv[1]))
with workdir.writing(MESH) as scratch, locks.hold_shared(workdir.lock("processes")):
    (scratch / "depth.npy").write_bytes(b"half")
    with files.atomic_path(workdir.mesh) as path:
        path.write_bytes(b"half a mesh")
        print("holds", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that extracts a mesh into `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_HOLDER), tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _unfinished(folder):
    return list(folder.rglob(".unfinished-*"))


def _depths(workdir):
    return list(workdir.scratch(MESH.name).rglob("depth.npy"))


def _make_old(folder):
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0))


def test_the_second_comer_is_told_who_and_since_when(tmp_path, holder):
    workdir = Workdir(tmp_path)
    words = rf"{tmp_path}: the extraction .*process {holder.pid} on {socket.gethostname()} since 20"
    with pytest.raises(InputError, match=words), workdir.writing(MESH):
        pass
    assert _depths(workdir)


def test_others_go_on_beside_it_and_leave_its_files_alone(tmp_path, holder):
    workdir = Workdir(tmp_path)
    for output in (EXPORTS, TRAINING):
        with workdir.writing(output) as scratch:
            assert scratch.is_dir() and not list(scratch.iterdir())
        assert not scratch.exists()
    workdir.merge_metrics(geometry=None)
    assert len(_unfinished(tmp_path)) == 1, "its writer lives"


def test_a_killed_owner_leaves_neither_lock_nor_files(tmp_path, holder):
    workdir = Workdir(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert _unfinished(tmp_path) and _depths(workdir)
    with workdir.writing(MESH) as scratch:
        assert not _unfinished(tmp_path) and not list(scratch.iterdir())
        assert list(scratch.parent.iterdir()) == [scratch]
    assert not scratch.parent.exists()
    locks.wait_until_free(workdir.lock("processes"), "nobody")


def test_what_may_be_another_machines_stays_until_it_is_old(tmp_path, holder, monkeypatch, caplog):
    """Where a file system's locks hold on one machine alone, its owner there is not seen."""
    workdir = Workdir(tmp_path)
    checkpoint = workdir.checkpoints("device") / "40.orbax-checkpoint-tmp"
    town = workdir.data / ".generated-0123-unfinished-x"
    for folder in (checkpoint, town):
        folder.mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    for is_old in (False, True):
        if is_old:
            _make_old(tmp_path)
        is_ended = locks.has_last_ended(workdir.lock(MESH.name))
        assert is_ended == is_old, "this process has held it meanwhile"
        with workdir.writing(MESH) as scratch:
            workdir.clear_unfinished_training(is_ended=False)
            assert len(_depths(workdir)) == 1 - is_old and not list(scratch.iterdir())
            assert len(_unfinished(tmp_path)) == 1 - is_old
            assert checkpoint.exists() == town.exists() == (not is_old)
    assert f"process {holder.pid} on" in caplog.text and "did not end as usual" in caplog.text


def test_a_file_between_its_making_and_its_lock_stays(tmp_path):
    """Its writer is there."""
    name = f".unfinished-{ended.name_of(os.getppid(), socket.gethostname())}-x.json"
    (tmp_path / name).touch()
    files.clear_unfinished(tmp_path)
    assert _unfinished(tmp_path)
    _make_old(tmp_path)
    files.clear_unfinished(tmp_path)
    assert not _unfinished(tmp_path)


def test_processes_of_an_earlier_run_are_waited_for(tmp_path, holder, monkeypatch):
    path = Workdir(tmp_path).lock("processes")
    with locks.hold_shared(path):  # any number of them
        pass
    monkeypatch.setattr(locks, "_MAX_WAIT_S", 0.3)
    with pytest.raises(InputError, match=f"{tmp_path}: expected the old ones to end within 0.3 s"):
        locks.wait_until_free(path, "the old ones")


def test_who_waits_for_a_stopped_program_says_so(tmp_path, monkeypatch, caplog):
    path = Workdir(tmp_path).lock("metrics")
    monkeypatch.setattr(locks, "_TELL_AFTER_S", 0.1)
    done = threading.Event()

    def wait():
        with locks.hold_briefly(path):
            done.set()

    with locks.hold_briefly(path):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.4)
    thread.join(timeout=10)
    assert done.is_set()
    assert caplog.text.count(f"{tmp_path}: waiting for another program that writes metrics") == 1


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    workdir = Workdir(tmp_path)
    with workdir.writing(TRAINING), workdir.writing(TRAINING):
        for _ in range(3):
            workdir.merge_metrics(final=None)
    said = [r.message for r in caplog.records if "the file system has no locks" in r.message]
    # Once for each writer, and not again for each file.
    assert len(said) == 2 and all("(No locks available)" in text for text in said)


def test_what_a_killed_run_was_writing_is_deleted(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    towns = []
    monkeypatch.setattr(dataset, "_write_dataset", lambda _, folder: towns.append(folder) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # to know where the town is being made
        load_scene(DataSettings(path="generated"), GeneratedSettings(), workdir.data)
    left = [workdir.checkpoints("device") / "40.orbax-checkpoint-tmp", *towns]
    kept = [workdir.checkpoints("device") / "20", workdir.data]
    for folder in (*left, *kept):
        folder.mkdir(parents=True, exist_ok=True)
    (workdir.data / f".unfinished-{ended.own_name()}-masks.json").write_text("half")
    with workdir.writing(TRAINING):
        workdir.clear_unfinished_training(is_ended=True)
    assert len(left) == 2 and not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in kept)
    assert not _unfinished(tmp_path)


def test_a_run_deletes_what_was_left_in_the_folders_of_blocks(tmp_path):
    """By itself, as it deleted what it had taken, or by a job; not by one that may still write."""
    workdir = Workdir(tmp_path)
    left = [
        workdir.block(number).checkpoints("device") / "40.state.orbax-checkpoint-tmp-superseded"
        for number in (0, 1)
    ]
    left += [workdir.block(number).scratch(BLOCK.name) / "1@elsewhere" for number in (0, 1)]
    for folder in left:
        folder.mkdir(parents=True)
    lock = workdir.block(1).lock(BLOCK.name)
    lock.parent.mkdir()
    lock.write_text(json.dumps({"pid": 12, "host": "elsewhere", "since": "now"}))
    with hold_run(workdir):
        assert [folder.exists() for folder in left] == [False, True] * 2
        assert [path.name for path in workdir.block(0).root.iterdir()] == ["checkpoints"]


def test_a_job_deletes_the_town_that_a_killed_one_was_making(tmp_path, monkeypatch, holder):
    """Not that of one that lives."""
    hosts = {holder.pid: socket.gethostname(), 2**22 + 1: socket.gethostname(), 1: "elsewhere"}
    towns = [
        tmp_path / f".town-unfinished-{ended.name_of(pid, host)}-x" for pid, host in hosts.items()
    ]
    for town in towns:
        town.mkdir()
    monkeypatch.setattr(dataset, "_write_dataset", lambda settings, folder: None)
    dataset.make_town(GeneratedSettings(), tmp_path / "town")
    assert [town.exists() for town in towns] == [True, False, True]


def test_a_full_disk_is_what_all_processes_are_told(tmp_path, monkeypatch):
    """Not the first one alone, for which the others would wait."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="No space left on device"), hold_run(Workdir(tmp_path)):
        pass


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="could not be written"), Workdir(tmp_path).writing(MESH):
        pass


def test_a_line_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"gone/history.jsonl: could not be written \(No such"):
        files.append_line(tmp_path / "gone" / "history.jsonl", "{}")
