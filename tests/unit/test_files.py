"""Text as other programs write it, numbers, names that files may have, and the boundary that
readers share.
"""

import json
import logging
import zipfile

import numpy as np
import pytest

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError

TEXT = "# Kopf\n1 Hütte.jpg\n2 Straße 7.jpg"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_program(tmp_path, caplog, encoding, end):
    path = tmp_path / "a.txt"
    path.write_bytes((TEXT + "\n").replace("\n", end).encode(encoding))
    with caplog.at_level(logging.WARNING):
        assert files.read_lines(path) == TEXT.split("\n")
    assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")
    table = json.dumps({"name": "Hütte", "x": 1}, ensure_ascii=False)
    path.write_bytes(table.encode(encoding))
    assert files.read_json(path) == {"name": "Hütte", "x": 1}


def test_what_is_no_text_is_refused_with_its_path(tmp_path):
    for content in (
        b"\xff\xfe\x00",
        b"\x00\xd8" * 50,
        b"[" * 200_000,
        b"",
        b'{"a": 1',
        b"9" * 5000,
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json: expected JSON, got .* damaged"):
            files.read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"gone\.json: cannot be read \(No such file"):
        files.read_json(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)
    (tmp_path / "a.json").write_text("[3]")
    with pytest.raises(InputError, match=r"a\.json: expected a JSON object, got '\[3\]'"):
        files.read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("word", "value"),
    [("1920", 1920), ("1920.0", 1920), ("-1", -1), ("+3", 3), ("1e3", 1000), ("07", 7)],
)
def test_whole_numbers(word, value):
    assert files.whole_number(word) == value


@pytest.mark.parametrize("word", ["", "1.5", "1_0", "nan", "inf", "1e300", "x", "0x10", "1,0", "٣"])
def test_no_whole_numbers(word):
    with pytest.raises((ValueError, OverflowError)):
        files.whole_number(word)
    if word not in ("1.5", "nan", "inf", "1e300"):
        with pytest.raises(ValueError):
            files.number(word)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("../../x.jpg", "x.jpg"),
        ("/etc/x.jpg", "etc/x.jpg"),
        ("C:\\me\\x.jpg", "me/x.jpg"),
        ("a/../../b/./x.jpg", "a/b/x.jpg"),
        ("..", ""),
        ("a//x", "a/x"),
        ("a/ .. /x", "a/x"),
    ],
)
def test_safe_names(name, safe):
    assert files.safe_name(name) == safe
    if safe and name == safe:
        files.check_name(safe, "model")
    elif name != safe:
        with pytest.raises(InputError, match="model: expected relative image names"):
            files.check_name(name, "model")


@pytest.mark.parametrize(
    "name", ["", "a\0b", "a\nb", "x" * 201, "é" * 101, "a/" * 500 + "x", "\udcfc.jpg", "a\u2028b"]
)
def test_names_that_no_file_should_have(name):
    with pytest.raises(
        InputError, match="model: expected relative image names of at most 200 bytes, got "
    ):
        files.check_name(name, "model")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RecursionError(),
        MemoryError(),
        ZeroDivisionError("by zero"),
        StopIteration(),
        OSError("no image"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "why"),
    ],
)
def test_the_boundary_turns_everything_into_one_error(error):
    with pytest.raises(
        InputError,
        match="here: expected a file of poses, got one that is cut off or damaged .*; write it "
        "again",
    ):
        with files.reading("here", "a file of poses", "write it again"):
            raise error


def test_the_boundary_lets_input_errors_and_the_user_pass():
    for error in (InputError("as it is"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)), files.reading("here", "a file", "write it again"):
            raise error


def test_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, depth=np.ones(3), other=np.zeros(1))
    found = files.read_arrays(path, ("depth",), optional=("normal", "other"))
    assert sorted(found) == ["depth", "other"]
    with pytest.raises(
        InputError, match=r"a\.npz: expected an \.npz file with normal, got .*normal.*delete it"
    ):
        files.read_arrays(path, ("normal",))
    np.savez(path, depth=np.array([{}], object))
    with pytest.raises(InputError, match=r"a\.npz: .*damaged"):
        files.read_arrays(path, ("depth",))
    data = path.read_bytes()
    for broken in (b"", data[:40], b"\x93NUMPY", data[:-30]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.npz: .*damaged"):
            files.read_arrays(path, ("depth",))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("depth.npy", b"no array")
    with pytest.raises(InputError, match=r"a\.npz: .*damaged"):
        files.read_arrays(path, ("depth",))
