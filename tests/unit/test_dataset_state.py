"""What counts as a change of a dataset, and what is said to lie outside of it."""

import json
import os
from pathlib import Path

import pytest

from cosurfgs_jax.data import lookup, matrix_city, transforms_json
from cosurfgs_jax.data.dataset_state import state_of_dataset
from cosurfgs_jax.workdir import Workdir


def _new(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    for name in ("images/a.jpg", "images/cam/b.jpg", "masks/cam/b.png", "sparse/0/points3D.bin"):
        _new(tmp_path / "set" / name)
    return tmp_path / "set"


def _state(root):
    return state_of_dataset(root, Workdir(root / "run"))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: _new(root / ".thumbnails" / "a.jpg"),
        lambda root: _new(root / ".DS_Store"),
        lambda root: _new(root / "images" / "@eaDir" / "a.jpg"),
        lambda root: _new(root / "train.log", b"step 1"),
        lambda root: _new(root / "run" / "place" / "a.npy"),
        lambda root: [_new(root / "other" / name) for name in ("config.json", "checkpoints/a/1")],
        lambda root: os.utime(root / "images", ns=(0, 0)),
    ],
)
def test_what_no_reader_looks_at_is_no_change(root, change):
    (root / "other").mkdir()
    _new(root / "other" / "config.json")
    _new(root / "other" / "partition.json")
    before = _state(root)
    change(root)
    assert _state(root).text == before.text


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.utime(root / "images" / "cam" / "b.jpg", ns=(0, 0)),
        lambda root: os.utime(root / "masks" / "cam" / "b.png", ns=(0, 0)),
        lambda root: _new(root / "images" / "a.jpg", b"larger"),
        lambda root: (root / "images" / "a.jpg").rename(root / "images" / "c.jpg"),
        lambda root: (root / "images" / "a.jpg").rename(root / "images" / "cam" / "a.jpg"),
        lambda root: (root / "images_2").mkdir(),
        lambda root: _new(root / "other" / "config.json"),
        lambda root: (root / "dangling").symlink_to(root / "nowhere"),
        lambda root: (root / "to_itself").symlink_to(root / "to_itself"),
    ],
)
def test_a_change_is_one(root, change):
    before = _state(root)
    change(root)
    assert _state(root).text != before.text
    assert _state(root).text == _state(root).text


def test_what_cannot_be_looked_at_counts_and_ends_nothing(root, monkeypatch):
    before = _state(root)
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("sparse"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert _state(root).text != before.text


def test_a_link_to_a_folder_is_followed(root, tmp_path):
    _new(tmp_path / "disk" / "c.jpg")
    (root / "images" / "more").symlink_to(tmp_path / "disk")
    before = _state(root)
    assert before.tells_of([str(root / "images" / "more" / "c.jpg")])
    os.utime(tmp_path / "disk" / "c.jpg", ns=(0, 0))
    assert _state(root).text != before.text


@pytest.mark.parametrize(
    "path, is_told",
    [("images/cam/b.jpg", True), ("../a.jpg", False), ("images/.a.jpg", False), ("x/a.jpg", False)],
)
def test_what_it_tells_of(root, path, is_told):
    paths = [str(root / "images" / "a.jpg"), os.path.join(root, path)]
    assert _state(root).tells_of(paths) == is_told


@pytest.mark.parametrize(
    "name, is_found",
    [
        ("", True),
        ("a/b.jpg", True),
        ("./a/b.jpg", True),
        ("/a.jpg", False),
        ("../a.jpg", False),
        ("a/../b.jpg", False),
        ("a\\..\\b.jpg", False),
        ("C:\\a.jpg", False),
        (".a/b.jpg", False),
        ("a/@eaDir/b.jpg", False),
    ],
)
def test_names_that_lead_to_what_is_walked(name, is_found):
    assert lookup.is_walked(name) == is_found


def _pose_file(root, **meta):
    frames = [{"file_path": "images/a.jpg"}, *meta.pop("frames", [])]
    return transforms_json.as_pose_file(root / "transforms.json", {"frames": frames, **meta}, False)


@pytest.mark.parametrize(
    "meta, outside",
    [
        ({"ply_file_path": "points.ply"}, ()),
        ({"ply_file_path": "../lidar/p.ply"}, ("../lidar/p.ply",)),
        ({"frames": [{"file_path": "/photos/b.jpg"}]}, ("/photos/b.jpg",)),
        ({"frames": [{"file_path": "b.jpg", "mask_path": "../m.png"}]}, ("../m.png",)),
    ],
)
def test_files_of_poses_say_what_lies_outside(root, meta, outside):
    assert transforms_json._outside([_pose_file(root, **meta)]) == outside


def test_a_block_of_matrix_city_looks_for_its_test_photographs(tmp_path, monkeypatch):
    """Also where they are not there: they may come."""
    root = tmp_path / "train" / "block_1"
    _new(root / "transforms.json", json.dumps({"frames": []}).encode())
    read = []

    class Found:
        outside = ()

    monkeypatch.setattr(transforms_json, "read_files", lambda *given: read.append(given) or Found())
    monkeypatch.setattr(matrix_city.dataclasses, "replace", lambda found, outside: outside)
    outside = getattr(matrix_city.read_matrix_city, "__wrapped__", None)(root)
    assert outside == (str(tmp_path / "test" / "block_1_test" / "transforms.json"),) and read
