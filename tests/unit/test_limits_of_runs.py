"""Limits of what runs wait for, keep, share and compile, at their edges."""

import os
import signal
import time
import types

import jax
import numpy as np
import pytest

from cosurfgs_jax import ended
from cosurfgs_jax.collab import open_run
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.program import processes
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import extraction
from cosurfgs_jax.surface.few_sizes import parts_of
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.training import interrupts, step_reports
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.workdir import Workdir


def unchecked(function):
    """The function without the checks of tests, which stand-ins for scenes would not pass."""
    return getattr(function, "__wrapped__", function)


def test_parts_have_two_sizes():
    assert not list(parts_of(0, 100, 10))
    for count in (1, 9, 10, 99, 100, 101, 110, 205, 300):
        parts = list(parts_of(count, 100, 10))
        covered = [entry for part in parts for entry in range(count)[part.entries]]
        assert covered == list(range(count))
        assert [part.size for part in parts] == [100] * (count // 100) + [10] * (
            -(-(count % 100) // 10)
        )


def test_a_mesh_of_no_tile_is_empty(tmp_path):
    joined = TileStore(tmp_path).join(0.5)
    assert joined.largest_coordinate == joined.typical_edge == 0.0
    assert joined.num_vertices == joined.num_triangles == joined.num_triangles_before == 0
    whole = joined.to_mesh()
    assert len(whole.triangles) == 0 and whole.largest_coordinate == whole.typical_edge == 0.0


def test_a_tile_whose_writing_was_interrupted_is_not_taken(tmp_path, monkeypatch):
    triangle = Mesh(
        np.eye(3, dtype=np.float32),
        np.array([[0, 1, 2]], np.int32),
        np.zeros((3, 3), np.uint8),
        np.zeros((3, 3), np.float32),
    )
    save = np.save
    left = 100

    def fail(path, values):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        save(path, values)

    monkeypatch.setattr(np, "save", fail)
    TileStore(tmp_path).add(triangle, np.zeros(3, bool), "whole")
    for number in range(100 - left):
        left = number + 1
        with pytest.raises(KeyboardInterrupt):
            TileStore(tmp_path).add(triangle, np.zeros(3, bool), f"part-{number}")
    store = TileStore(tmp_path / "other")
    store.take([tmp_path])
    assert store.num_tiles == 1


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize(
    "num_blocks, sizes, is_padded, size",
    [
        (2, [(30, 40), (30, 40)], False, (30, 40)),
        (2, [(30, 40), (40, 30)], True, (40, 40)),
        (1, [(30, 40), (40, 30)], False, None),
        (1, [(30, 40), (30, 40)], False, (30, 40)),
    ],
)
def test_photographs_of_several_blocks_are_of_one_size(
    has_masks, num_blocks, sizes, is_padded, size
):
    scene = types.SimpleNamespace(
        has_masks=has_masks, views=types.SimpleNamespace(image_sizes=np.array(sizes))
    )
    place = types.SimpleNamespace(blocks=[None] * num_blocks, scene=scene)
    assert PartitionedScene.has_masked_photos.fget(place) == (has_masks or is_padded)
    assert PartitionedScene.photo_size.fget(place) == size


def run_without(missing) -> types.SimpleNamespace:
    """A run of six views, of which 0 to 2 are trained by block 0 and 3 by block 1; 4 and 5 are for
    testing, one in the cell of each; this process has block 0.
    """
    names = [f"{view}.jpg" for view in range(6)]
    scene = types.SimpleNamespace(
        path="data",
        test_views=np.array([4, 5]),
        image_names=names,
        image_paths=["" if view in missing else name for view, name in enumerate(names)],
    )
    partitioned = types.SimpleNamespace(
        scene=scene,
        kept_in=None,
        partition=types.SimpleNamespace(home=np.array([0, 0, 0, 1, 0, 1])),
        blocks=[types.SimpleNamespace(views=np.array(views)) for views in ([0, 1, 2], [3])],
    )
    return types.SimpleNamespace(
        partitioned=partitioned, layout=types.SimpleNamespace(local_blocks=[0])
    )


@pytest.mark.parametrize(
    "missing, words",
    [
        ([], None),
        ([3, 5], None),
        ([4], "4.jpg and 0 more are missing here"),
        ([4, 1, 3], "1.jpg and 1 more are missing here"),
    ],
)
def test_a_process_needs_the_photographs_of_its_own_blocks(missing, words):
    check = unchecked(open_run.check_photographs)
    mapped = run_without(missing)
    mapped.partitioned.kept_in = "place"  # whose paths are of another process: none of them is here
    with pytest.raises(InputError, match="0.jpg and 3 more are missing here"):
        check(mapped)
    if words is None:
        check(run_without(missing))
        return
    with pytest.raises(InputError, match=rf"\(here blocks 0\), got some .*: {words}"):
        check(run_without(missing))


@pytest.mark.parametrize("num_missing, is_opened_again", [(0, False), (2, True), (3, False)])
def test_a_tenth_of_the_photographs_may_be_missing_for_all(
    tmp_path, monkeypatch, num_missing, is_opened_again
):
    """Of 20: more are probably on another machine."""
    calls = []
    paths = [""] * num_missing + ["a.jpg"] * (20 - num_missing)
    place = types.SimpleNamespace(scene=types.SimpleNamespace(image_paths=paths, num_views=20))
    monkeypatch.setattr(open_run, "open_place", lambda *given, **_: calls.append(given) or place)
    settings = Settings()
    settings.data.path = "elsewhere"
    workdir = Workdir(tmp_path)
    assert unchecked(open_run.open_for_some_blocks)(settings, workdir) is place
    assert calls == [(settings, workdir, True, None), (settings, workdir)][: 1 + is_opened_again]


def test_who_asks_for_an_end_waits_for_some_steps(monkeypatch):
    waits = []
    timer = types.SimpleNamespace(start=lambda: None, cancel=lambda: waits.append("cancelled"))
    monkeypatch.setattr(
        interrupts.threading, "Timer", lambda seconds, *_: waits.append(seconds) or timer
    )
    for step_s, seconds in ((0.0, 15), (4.9, 15), (6.0, 18)):
        request = interrupts.StopRequest()
        request.step_took(step_s)
        assert not request
        request._on_signal(signal.SIGTERM, None)
        assert request and waits.pop() == pytest.approx(seconds)
        assert timer.daemon
        with pytest.raises(KeyboardInterrupt):
            request._on_signal(signal.SIGTERM, None)
        request.heard()
        assert waits.pop() == "cancelled"
        with pytest.raises(SystemExit) as end:
            request.exit()
        assert end.value.code == 143


def test_what_did_not_change_for_an_hour_is_old(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    for age, is_old in ((3590, False), (3610, True)):
        for path in (tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a"):
            os.utime(path, (0, time.time() - age))
        assert ended.is_old(tmp_path / "a") == is_old
    os.utime(tmp_path / "a" / "b" / "c")
    assert not ended.is_old(tmp_path / "a")


def test_reports_are_fetched_after_256_steps(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        step_reports,
        "fetch_parcels",
        lambda _, steps: sizes.append(len(steps)) or [{} for _ in steps],
    )
    reports = unchecked(step_reports.RecentReports)(None)
    for number in range(257):
        unchecked(step_reports.RecentReports.add)(reports, number)
    assert sizes == [256]
    assert len(reports.peek()) == 257 and sizes == [256, 1]
    assert len(reports.take()) == 257 and reports.take() == []


@pytest.mark.parametrize("asked, made", [(0, None), (1, None), (2, 2), (16, 16), (17, None)])
def test_up_to_sixteen_virtual_devices_are_made(monkeypatch, asked, made):
    updates = []
    monkeypatch.setattr(jax.config, "update", lambda *values: updates.append(values))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    processes._make_virtual_devices(asked)
    assert updates == ([] if made is None else [("jax_num_cpu_devices", made)])
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    processes._make_virtual_devices(4)
    assert len(updates) == (made is not None)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("", 0, -1), None),
        (("a:1", 1, 0), None),
        (("a:65535", 3, 2), None),
        (("a:65536", 3, 2), "expected host:port"),
        (("a:0", 3, 2), "expected host:port"),
        (("a:1", 3, 3), "expected 0 to 2 for 3 processes, got 3"),
        (("a:1", 0, 0), "expected all three or none"),
        (("", 3, -1), "expected all three or none"),
        (("", 0, 0), "expected all three or none"),
    ],
)
def test_flags_of_several_processes(flags, words):
    if words is None:
        processes._Cluster(*flags).check()
        return
    with pytest.raises(InputError, match=words):
        processes._Cluster(*flags).check()


@pytest.mark.parametrize(
    "environment, is_cluster",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"KUBERNETES_SERVICE_HOST": "a"}, False),
        ({"KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_schedulers_that_start_several_processes(monkeypatch, environment, is_cluster):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES",
                 "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._is_in_cluster() == is_cluster


def test_the_depth_of_the_last_32_views_stays_in_memory(tmp_path):
    """Twice as many as a pixel is compared with."""
    num = 34
    poses = np.tile(np.eye(4), (num, 1, 1))
    views = Views(poses, np.tile(np.eye(3), (num, 1, 1)), np.full((num, 2), 2))
    stored = extraction._StoredViews(tmp_path, views)
    for view in range(num):
        stored.store(view, np.full((2, 2), view, np.float32), np.zeros((2, 2, 3), np.uint8))
    for view in [*range(32), 0, 32, 33]:  # 1 and 2 are the ones that were not used for longest
        assert stored[view].depth[0, 0] == view
    for path in tmp_path.glob("*_depth.npy"):
        path.unlink()
    assert [stored.depth(view)[0, 0] for view in (0, *range(3, 34))] == [0, *range(3, 34)]
    for view in (1, 2):
        with pytest.raises(FileNotFoundError):
            stored.depth(view)
    stored.store(5, np.full((2, 2), 55, np.float32))
    assert stored.depth(5)[0, 0] == 55 and len(stored) == num
    with pytest.raises(IndexError):
        stored[num]
