"""Files found by names that are not quite theirs, and those that must not be mixed up."""

import logging
import unicodedata

import pytest

from cosurfgs_jax.data.lookup import FileIndex, say_outside, without_ending
from cosurfgs_jax.errors import InputError


def _index(root, *files, **choices):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return FileIndex(root, **choices)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("b/Haus 1.jpg", "b/Haus 1.jpg"),
        ("b\\Haus 1.jpg", "b/Haus 1.jpg"),
        ("./b//Haus 1.jpg", "b/Haus 1.jpg"),
        ("D:\\flights\\2021\\b\\Haus 1.JPG", "b/Haus 1.jpg"),
        ("\\\\server\\share\\b\\Haus 1.jpeg", "b/Haus 1.jpg"),
        ("/mnt/disk/photos/b/haus 1.tif", "b/Haus 1.jpg"),
        ("Haus 1", "b/Haus 1.jpg"),
        ("../other/x.0012", "other/x.0012.TIF"),
        ("x.0012.png", "other/x.0012.TIF"),
        ("D:\\raw\\b\\Haus 1.HEIC", "b/Haus 1.jpg"),
        ("haus 12.dng", "b/Haus 12.jpg"),
        (unicodedata.normalize("NFD", "ü/STRASSE.PNG"), "Ü/straße.png"),
    ],
)
def test_names_of_other_programs(tmp_path, name, file):
    index = _index(
        tmp_path,
        "b/Haus 1.jpg",
        "other/x.0012.TIF",
        "Ü/straße.png",
        "b/Haus 12.jpg",
        ".b/Haus 1.jpg",
        "__MACOSX/b/Haus 1.jpg",
    )
    assert index.find(name, "model") == tmp_path / file


@pytest.mark.parametrize(
    "name", ["c.jpg", "b/Haus.jpg", "", "..", "a\0b.jpg", "x" * 5000, "12.jpg"]
)
def test_names_of_nothing(tmp_path, name):
    assert _index(tmp_path, "b/Haus 1.jpg", "x/y.txt").find(name, "model") is None


def test_names_in_another_case_are_said(tmp_path, caplog):
    index = _index(tmp_path, "a/1.jpg", "a/2.jpg")
    with caplog.at_level(logging.INFO):
        index.find_all(["a/1", "b/a/2.jpg"], "model")
        assert not caplog.text
        index.find_all(["A/2.jpg", "a/1.jpg"], "model")
    assert "model: 1 names differ from those of their files in case" in caplog.text
    assert f"the first is A/2.jpg, of {tmp_path / 'a' / '2.jpg'}" in caplog.text


def test_what_fits_equally_well_is_refused(tmp_path):
    index = _index(tmp_path, "a/1.jpg", "b/1.jpg", "c/2.jpg", "c/2.png")
    with pytest.raises(
        InputError, match=r"^model: expected one file for 1\.jpg, got 2 .*a/1\.jpg, b/1\.jpg"
    ):
        index.find("1.jpg", "model")
    with pytest.raises(InputError, match="one file for c/2.bmp, got 2"):
        index.find("c/2.bmp", "model")
    assert index.find("e/b/1.jpg", "model") == tmp_path / "b/1.jpg"
    assert index.find("c/2.PNG", "model") == tmp_path / "c/2.png"
    flat = _index(tmp_path / "flat", "1.jpg")
    with pytest.raises(
        InputError, match=r"a file for each of a/1\.jpg and b/1\.jpg, got .*flat/1\.jpg for both"
    ):
        flat.find_all(["a/1.jpg", "b/1.jpg"], "model")


def test_one_folder_is_never_taken_for_another_that_is_there(tmp_path, caplog):
    index = _index(tmp_path, "cam1/1.jpg", "cam1/2.jpg", "cam1/3.jpg")
    names = ["cam1/1.jpg", "cam1/2.jpg", "cam2/1.jpg", "cam2/3.jpg"]
    assert index.find_all(names, "model") == [
        tmp_path / "cam1/1.jpg",
        tmp_path / "cam1/2.jpg",
        None,
        None,
    ]
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        assert index.find_all(["left/1.jpg", "left/2.jpg"], "m") == [
            tmp_path / "cam1/1.jpg",
            tmp_path / "cam1/2.jpg",
        ]
    assert (
        "2 files are in folders of another name here" in caplog.text and "left/1.jpg" in caplog.text
    )
    assert index.find_all(["left/1.jpg", "right/2.jpg"], "m") == [None, None]


def test_what_is_missing_from_a_folder_is_not_taken_from_another(tmp_path, caplog):
    index = _index(tmp_path, "1.jpg", "2.PNG", "old/1.jpg", "old/3.jpg", "a/1.jpg", "b/a/2.jpg")
    found = index.find_all(["1.jpg", "2.jpg", "3.jpg", "a/1.jpg", "a/2.jpg"], "m")
    assert found == [tmp_path / "1.jpg", tmp_path / "2.PNG", None, tmp_path / "a/1.jpg", None]
    assert not caplog.text
    assert index.find_all(["3.jpg", "2.jpg"], "m") == [tmp_path / "old/3.jpg", tmp_path / "2.PNG"]


def test_no_file_is_given_to_two_names(tmp_path):
    index = _index(tmp_path, "1.jpg", "a/3.jpg")
    with pytest.raises(
        InputError,
        match=r"m: expected a file for each of a/\.\./1\.jpg and 1\.jpg, got .* for both",
    ):
        index.find_all(["a/../1.jpg", "1.jpg"], "m")
    assert index.find_all(["1.JPG", "1.jpg"], "m") == [None, tmp_path / "1.jpg"]


def test_the_preferred_folder_and_those_that_are_left_out(tmp_path):
    index = _index(
        tmp_path,
        "images/1.jpg",
        "images_2/1.jpg",
        "masks/1.jpg",
        prefer="images",
        leave_out=("masks",),
    )
    assert index.find("1.png", "m") == tmp_path / "images/1.jpg"
    assert index.find("x/images_2/1.png", "m") == tmp_path / "images_2/1.jpg"
    assert index.names() == ["images/1.jpg", "images_2/1.jpg"]


def test_files_outside_are_read_and_said(tmp_path, caplog):
    index = _index(tmp_path / "data", "1.jpg")
    for name in ("2.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(b"")
    found = index.find_all(["1.jpg", "../2.jpg", str(tmp_path / "3.jpg")], "m")
    assert [path.resolve() for path in found] == [
        tmp_path / "data/1.jpg",
        tmp_path / "2.jpg",
        tmp_path / "3.jpg",
    ]
    say_outside(found, tmp_path / "data", "m")
    assert "2 files that it names lie outside" in caplog.text


def test_links_in_circles_end(tmp_path):
    index = _index(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert index.names() == ["a/1.jpg"]


def test_endings():
    assert (
        without_ending("a.JPG") == "a"
        and without_ending("a.0012") == "a.0012"
        and without_ending(".jpg") == ".jpg"
    )
