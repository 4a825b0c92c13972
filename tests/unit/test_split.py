"""Which views are for testing."""

import numpy as np
import pytest

from cosurfgs_jax.data.split import views_for_testing
from cosurfgs_jax.errors import InputError

NAMES = [f"cam/{i:03d}.jpg" for i in range(10)]


def _views(split, tmp_path, names=NAMES, own=None):
    return np.flatnonzero(views_for_testing(split, names, tmp_path, own)).tolist()


@pytest.mark.parametrize(
    ("split", "views"),
    [("every8", [0, 8]), ("every3", [0, 3, 6, 9]), ("every100", [0]), ("all", [])],
)
def test_by_rule(tmp_path, split, views):
    assert _views(split, tmp_path) == views


def test_list_file(tmp_path, monkeypatch):
    (tmp_path / "held out.txt").write_text(
        "# mine\n003.jpg\n\ncam/007.jpg\n001\nimages/cam/009.jpg\r\n"
    )
    assert _views("held out.txt", tmp_path) == [1, 3, 7, 9]
    assert _views(str(tmp_path / "held out.txt"), tmp_path / "elsewhere") == [1, 3, 7, 9]


def test_names_in_lists_must_be_known_and_clear(tmp_path):
    (tmp_path / "list.txt").write_text("003.jpg\n033.jpg\n044.jpg\n")
    with pytest.raises(
        InputError, match=r"list\.txt: .*2 that fit no image or several, the first is '033\.jpg'"
    ):
        _views("list.txt", tmp_path)
    (tmp_path / "list.txt").write_text("1.jpg\n")
    with pytest.raises(InputError, match=r"1 that fit no image or several"):
        _views("list.txt", tmp_path, ["a/1.jpg", "b/1.jpg"])


def test_own_names_come_first(tmp_path):
    (tmp_path / "test.txt").write_text("003.jpg\n")
    assert _views("folders", tmp_path, own=["cam/004.jpg"]) == [4]
    assert _views("folders", tmp_path) == [3]


def test_folders_of_images(tmp_path):
    names = ["test/a.jpg", "train/b.jpg", "train/c.jpg", "val/d.jpg"]
    assert _views("folders", tmp_path, names) == [0, 3]
    with pytest.raises(InputError, match=r"1 elsewhere, the first is other/x\.jpg"):
        _views("folders", tmp_path, [*names, "other/x.jpg"])


def test_lists_of_the_dataset(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(NAMES[:7]))
    assert _views("folders", tmp_path) == [7, 8, 9]
    (tmp_path / "val.txt").write_text("\n".join(NAMES[7:]))
    assert _views("folders", tmp_path) == [7, 8, 9]
    (tmp_path / "val.txt").write_text("\n".join(NAMES[6:9]))
    with pytest.raises(InputError, match=r"got 2 in both or neither, the first is cam/006\.jpg"):
        _views("folders", tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("every1", r"every<n> with n of at least 2"),
        ("every0", r"every<n> with n of at least 2"),
        ("evry8", r'expected "every<n>", "all", "folders" or a text file .*got \'evry8\''),
        ("folders", r"dataset with its own split"),
    ],
)
def test_splits_that_make_no_sense(tmp_path, split, message):
    with pytest.raises(InputError, match=rf"config\.data\.split: .*{message}"):
        _views(split, tmp_path)


def test_no_view_left_for_training(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(NAMES))
    with pytest.raises(InputError, match=r"leaves none of 10"):
        _views("list.txt", tmp_path)


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"list\.txt: expected a text file"):
        _views("list.txt", tmp_path)
