"""A place is kept in the workdir as it was opened, and read anew where the dataset has changed."""

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from scenes import SMALL, town_folder

from cosurfgs_jax import locks
from cosurfgs_jax.collab import open_run
from cosurfgs_jax.outputs import fused_mesh
from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
from cosurfgs_jax.training import kept_place, place_files
from cosurfgs_jax.training.partitioned_scene import bind_partition
from cosurfgs_jax.training.partners import BlockPartners
from cosurfgs_jax.training.place_files import TABLE
from cosurfgs_jax.workdir import Workdir


def _root(settings):
    return Path(settings.data.path)


def _is_kept(settings, workdir):
    folder = kept_place.kept_place(settings, workdir).folder
    return folder is not None and (folder / TABLE).exists()


@pytest.fixture
def settings(tmp_path):
    """Of a copy of the town, in three blocks."""
    shutil.copytree(town_folder(SMALL), tmp_path / "copy")
    return Settings(
        data=DataSettings(path=str(tmp_path / "copy")),
        partition=PartitionSettings(num_blocks=3, min_views=1, min_points=1),
    )


@pytest.fixture
def workdir(settings):
    """In the dataset's folder, where some have it: what is written there is not of the dataset."""
    return Workdir(_root(settings) / "run")


@pytest.fixture
def opened(monkeypatch):
    """How often a dataset is read."""
    calls = []
    read = kept_place.open_partitioned_scene

    def count(*given, **named):
        calls.append(named["compares_colors"])
        return read(*given, **named)

    monkeypatch.setattr(kept_place, "open_partitioned_scene", count)
    return calls


def test_what_is_kept_is_the_place_as_it_was_opened(settings, workdir, opened):
    assert not _is_kept(settings, workdir)
    first = kept_place.open_place(settings, workdir, keeps=True)
    assert _is_kept(settings, workdir)
    kept = kept_place.open_place(settings, workdir)
    assert len(opened) == 1 and kept.identity() == first.identity()
    assert first.known_identity is None, "it is found from what was read"
    assert kept.fingerprint() == first.fingerprint() == first.identity()["fingerprint"]
    clouds = (first.scene.cloud, kept.scene.cloud)
    assert not np.array_equal(clouds[0].points, clouds[1].points), "they are by cells"
    np.testing.assert_array_equal(clouds[0].points, clouds[1].points_in_order)
    partners = [BlockPartners(place, settings.loss) for place in (first, kept)]
    for block, same in zip(first.blocks, kept.blocks, strict=True):
        assert block._replace(points=same.points, views=same.views) == same
        assert np.array_equal(block.views, same.views) and block.views.dtype == same.views.dtype
        for lists in (
            (block.points, same.points),
            [p.partition.points[block.number] for p in (first, kept)],
        ):
            for name in ("points", "colors"):
                values = [
                    getattr(cloud, name)[own] for cloud, own in zip(clouds, lists, strict=True)
                ]
                np.testing.assert_array_equal(*values)
        for view, own in partners[0].of(block.number).items():
            np.testing.assert_array_equal(own.views, partners[1].of(block.number)[view].views)
            np.testing.assert_array_equal(
                own.cumulative, partners[1].of(block.number)[view].cumulative
            )
    for name in ("home", "lows", "inner_highs", "high_z", "lengths", "edge_of_block"):
        np.testing.assert_array_equal(getattr(first.partition, name), getattr(kept.partition, name))
    assert (first.partition.coverage != kept.partition.coverage).nnz == 0
    assert first.partition.nodes == kept.partition.nodes
    assert first.frame.to_dict() == kept.frame.to_dict()
    same = ("name", "path", "image_names", "image_paths", "distortion", "mask_paths")
    for name in (*same, "orientations"):
        assert getattr(first.scene, name) == getattr(kept.scene, name), name
    for name in ("photo_sizes", "shrink_factors", "is_test", "up"):
        np.testing.assert_array_equal(getattr(first.scene, name), getattr(kept.scene, name))
    for name, values in vars(first.scene.views).items():
        np.testing.assert_array_equal(values, getattr(kept.scene.views, name))


def _touch(path):
    os.utime(path, ns=(0, 0))


def _new(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda root, data: next((root / "images").iterdir()).unlink(),
        lambda root, data: _touch(next(root.glob("sparse/0/points3D.*"))),
        lambda root, data: next((root / "images").iterdir()).write_bytes(b"P6 1 1 255 abc"),
        lambda root, data: setattr(data, "split", "every4"),
    ],
)
def test_a_change_is_noticed(settings, workdir, opened, change):
    kept_place.open_place(settings, workdir, keeps=True)
    settings.data.host_memory_mb += 1
    assert _is_kept(settings, workdir), "nothing follows from it"
    change(Path(settings.data.path), settings.data)
    assert not _is_kept(settings, workdir)


def test_a_dataset_that_was_moved_is_the_same(settings, workdir, opened):
    kept_place.open_place(settings, workdir, keeps=True)
    old = _root(settings)
    old.rename(old.with_name("moved"))
    settings.data.path = str(old.with_name("moved"))
    kept = kept_place.open_place(settings, Workdir(old.with_name("moved") / "run"))
    assert len(opened) == 1 and kept.scene.name == "moved"
    assert all(Path(path).is_file() for path in kept.scene.image_paths)


@pytest.mark.parametrize(
    "change, why_not",
    [
        (lambda scene: {"outside": None}, "its reader does not say"),
        (lambda scene: {"outside": ("../lidar/p.ply",)}, "../lidar/p.ply"),
        (lambda scene: {"image_paths": ["/a.jpg", *scene.image_paths[1:]]}, "lie outside"),
        (lambda scene: {"left_out": ("a.jpg",)}, "1 photographs are left out, a.jpg"),
    ],
)
def test_what_the_state_does_not_tell_of_is_not_kept(
    settings, workdir, monkeypatch, caplog, change, why_not
):
    caplog.set_level("INFO")
    read = kept_place.open_partitioned_scene

    def read_other(*given, **named):
        place = read(*given, **named)
        return place._replace(scene=dataclasses.replace(place.scene, **change(place.scene)))

    monkeypatch.setattr(kept_place, "open_partitioned_scene", read_other)
    kept_place.open_place(settings, workdir, keeps=True)
    assert not _is_kept(settings, workdir) and why_not in caplog.text
    monkeypatch.setattr(kept_place.locks, "hold_first", None)  # nobody waits for it again
    caplog.clear()
    kept_place.open_place(settings, workdir, keeps=True)
    assert why_not in caplog.text


@pytest.mark.parametrize("name, value", [("model", "../other/sparse/0"), ("images", "/photos")])
def test_settings_that_lead_outside_keep_nothing(settings, workdir, name, value):
    setattr(settings.data, name, value)
    place = kept_place.kept_place(settings, workdir)
    assert place.folder is None and f"config.data.{name}" in place.why_not


def test_a_workdir_that_is_the_dataset_keeps_nothing(settings):
    place = kept_place.kept_place(settings, Workdir(_root(settings)))
    assert place.folder is None and place.why_not


def test_who_waits_reads_beside_the_others_where_nothing_was_kept(
    settings, workdir, opened, caplog
):
    """Nobody reads with the lock but the first."""
    caplog.set_level("INFO")
    lock = workdir.lock(f"place-{kept_place.kept_place(settings, workdir).folder.name}")
    with locks.hold_first(lock, "reads") as is_first:
        assert is_first
        waiter = threading.Thread(
            target=lambda: kept_place.open_place(settings, workdir, keeps=True)
        )
        waiter.start()
        while "waiting for another program" not in caplog.text:
            assert waiter.is_alive() and not opened
            waiter.join(0.01)
    waiter.join()
    assert len(opened) == 1 and not _is_kept(settings, workdir)
    with locks.hold_first(lock, "reads") as is_first:
        assert is_first


def test_who_waits_takes_what_the_first_has_kept(settings, workdir, opened, monkeypatch):
    hold = locks.hold_first

    @contextlib.contextmanager
    def hold_later(*given):
        monkeypatch.setattr(locks, "hold_first", hold)
        kept_place.open_place(settings, workdir, keeps=True)
        yield False

    monkeypatch.setattr(locks, "hold_first", hold_later)
    assert kept_place.open_place(settings, workdir, keeps=True).kept_in is not None
    assert len(opened) == 1


def test_a_dataset_that_changes_while_it_is_read_is_not_kept(
    settings, workdir, monkeypatch, caplog
):
    read = kept_place.open_partitioned_scene

    def read_and_change(*given, **named):
        _new(_root(settings) / "notes.txt")
        return read(*given, **named)

    monkeypatch.setattr(kept_place, "open_partitioned_scene", read_and_change)
    kept_place.open_place(settings, workdir, keeps=True)
    assert not workdir.place.exists() and "have changed while it was read" in caplog.text


def test_a_full_disk_leaves_nothing_and_ends_nothing(settings, workdir, monkeypatch, caplog):
    save = np.save

    def fill_up(file, array):
        if file.name.endswith(".npy") and array.ndim == 2:
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(place_files.np, "save", fill_up)
    assert kept_place.open_place(settings, workdir, keeps=True).kept_in is None
    assert not list(workdir.place.iterdir()) and "No space left" in caplog.text


def test_a_workdir_that_cannot_be_written_is_read_over(settings, tmp_path, opened, caplog):
    (tmp_path / "file").write_text("")
    kept_place.open_place(settings, Workdir(tmp_path / "file"), keeps=True)
    assert opened == [True] and "what is read is not kept" in caplog.text


def test_the_place_of_another_machine_stays_while_it_is_in_use(settings, workdir):
    kept_place.open_place(settings, workdir, keeps=True)
    (old,) = workdir.place.iterdir()
    _touch(next((_root(settings) / "images").iterdir()))
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(list(workdir.place.iterdir())) == 2
    new = kept_place.kept_place(settings, workdir)
    kept_place.delete_others(workdir, new)
    assert old.exists(), "it was written just now"
    for path in (old, *old.iterdir()):
        _touch(path)
    kept_place.delete_others(workdir, new)
    assert list(workdir.place.iterdir()) == [new.folder]


def test_why_a_kept_place_is_read_is_said(settings, workdir, caplog):
    caplog.set_level("INFO")
    kept_place.open_place(settings, workdir, keeps=True)
    assert "another state" not in caplog.text
    settings.seed += 1
    kept_place.open_place(settings, workdir)
    assert "another state" in caplog.text


def test_warnings_of_the_reader_are_said_each_time(settings, workdir, monkeypatch, caplog):
    read = kept_place.open_partitioned_scene

    def warn(*given, **named):
        kept_place._log.warning("two points are odd")
        return read(*given, **named)

    monkeypatch.setattr(kept_place, "open_partitioned_scene", warn)
    kept_place.open_place(settings, workdir, keeps=True)
    caplog.clear()
    kept_place.open_place(settings, workdir)
    assert "when it was read: two points are odd" in caplog.text
    assert caplog.text.count("odd") == 1


def test_what_others_may_see_otherwise_is_not_kept(settings, workdir, opened):
    """A photograph that is missing here may be elsewhere. Who would keep it compares colours."""
    next((Path(settings.data.path) / "images").iterdir()).unlink()
    for keeps in (True, True, False):
        kept_place.open_place(settings, workdir, keeps=keeps)
    assert opened == [True, True, False] and not _is_kept(settings, workdir)


def test_damaged_files_are_read_over(settings, workdir, opened, caplog):
    kept_place.open_place(settings, workdir, keeps=True)
    (folder,) = workdir.place.iterdir()
    (folder / "points.npy").write_bytes(b"")
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and "the dataset is read" in caplog.text
    caplog.clear()
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and not caplog.text


def test_a_place_that_was_deleted_is_made_again(settings, workdir, opened):
    kept_place.open_place(settings, workdir, keeps=True)
    (folder,) = workdir.place.iterdir()
    shutil.rmtree(folder)
    _new(folder / "mesh-0.npz")  # of a shard that had it open
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and _is_kept(settings, workdir)


def _without_checks(function):
    return getattr(function, "__wrapped__", function)


def test_a_plan_that_cannot_be_read_or_written_is_made(settings, workdir, monkeypatch, caplog):
    kept = kept_place.open_place(settings, workdir, keeps=True)
    trained = types.SimpleNamespace(partitioned=kept, settings=settings)
    plan_of = _without_checks(fused_mesh.plan_of)
    plan_of(trained)
    (path,) = kept.kept_in.glob("*.npz")
    path.write_bytes(b"PK")
    plans = [plan_of(trained)]
    assert "it is made again" in caplog.text and path.stat().st_size > 2
    (kept.kept_in.parent / "file").write_text("")
    trained.partitioned = kept._replace(kept_in=kept.kept_in.parent / "file")
    plans.append(plan_of(trained))
    assert "every shard makes" in caplog.text
    assert len(plans[0].areas) == len(plans[1].areas) > 0


def test_warnings_are_printed_where_nobody_has_set_up_the_logging(monkeypatch, caplog):
    printed = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging, "lastResort", printed)
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda _: False)
    with kept_place._noting_warnings() as texts:
        kept_place._log.warning("odd")
    assert texts == ["odd"] and printed.stream.getvalue() == "odd\n"


def test_a_partition_of_another_dataset_is_written_anew(settings, workdir):
    """The picture of the report has its points and cameras."""
    kept_place.open_place(settings, workdir, keeps=True)
    place = kept_place.open_place(settings, workdir)
    bind_partition(place, workdir)
    before = workdir.partition.stat().st_mtime_ns
    bind_partition(place, workdir)
    assert workdir.partition.stat().st_mtime_ns == before
    identity = place.identity() | {"fingerprint": "of other points"}
    bind_partition(place._replace(known_identity=identity), workdir)
    assert "of other points" in workdir.partition.read_text()


@pytest.mark.parametrize("is_kept", [True, False])
def test_others_wait_for_the_first_process_where_it_keeps_the_place(
    settings, workdir, monkeypatch, is_kept
):
    if not is_kept:  # and cannot be
        monkeypatch.setattr(kept_place, "_why_not", lambda *_: "of a reason")
    kept_place.open_place(settings, workdir, keeps=True)
    flags = []
    monkeypatch.setattr(open_run.processes, "any_process", lambda flag: flags.append(flag) or flag)
    monkeypatch.setattr(open_run.processes, "check_shared_folder", lambda *_: None)
    open_all = _without_checks(open_run.open_in_all_processes)
    open_all(settings, workdir)
    assert flags[1] is False, "all map it, or all read it, side by side"
    settings.seed += 1
    open_all(settings, workdir)
    assert flags[4] is True and _is_kept(settings, workdir) == is_kept


def test_the_plan_of_a_mesh_is_kept_with_the_place(settings, workdir, monkeypatch):
    kept_place.open_place(settings, workdir, keeps=True)
    kept = kept_place.open_place(settings, workdir)
    plan_of = _without_checks(fused_mesh.plan_of)
    trained = types.SimpleNamespace(partitioned=kept, settings=settings)
    first = plan_of(trained)
    monkeypatch.setattr(fused_mesh, "plan_mesh", None)
    again = plan_of(trained)
    assert len(first.areas) == len(again.areas) > 0 and first.grid.voxel_size > 0
    for area, same in zip(first.areas, again.areas, strict=True):
        assert area.index == same.index and np.array_equal(area.views, same.views)
    for name in ("numbers", "limits"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.grid.origin.tolist() == again.grid.origin.tolist()
    assert first.grid[1:] == again.grid[1:] and first.settings == again.settings
    for view in range(len(first.numbers)):
        assert first.onlookers.of(view).tolist() == again.onlookers.of(view).tolist()
    settings.surface.voxel_size = 2 * first.grid.voxel_size
    with pytest.raises(TypeError):  # another plan
        plan_of(trained)
