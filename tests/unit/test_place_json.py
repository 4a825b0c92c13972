"""place.json: what is noted of the files beside it, and what is not."""

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import NAME, Place, placing, read_places

TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
HERE = Place(TURN, np.array([5e5, 4e6, 0.125]), 32633)
THERE = Place(np.eye(3), np.array([1.0, 2, 3]))


def write(folder, **places):
    names = {f"{stem}.ply": place for stem, place in places.items()}
    with placing(folder, names):
        for name in names:
            assert name not in read_places(folder)
            (folder / name).touch()


def test_places_come_back_and_are_those_of_the_last_file(tmp_path):
    write(tmp_path, a=THERE, b=THERE)
    write(tmp_path, a=HERE)
    found = read_places(tmp_path)
    assert sorted(found) == ["a.ply", "b.ply"]
    np.testing.assert_array_equal(found["a.ply"].rotation, TURN)
    assert found["a.ply"].offset.tolist() == [5e5, 4e6, 0.125]
    assert (found["a.ply"].epsg, found["b.ply"].epsg) == (32633, 0)
    np.testing.assert_array_equal(
        found["a.ply"].to_map(np.array([[1.0, 2, 3]])), [[5e5 - 2, 4e6 + 1, 3.125]]
    )


def test_a_file_that_is_gone_or_was_not_finished_has_none(tmp_path):
    write(tmp_path, a=THERE, b=THERE)
    (tmp_path / "a.ply").unlink()
    with pytest.raises(InputError, match="full"), placing(tmp_path, {"b.ply": HERE}):
        raise InputError("the disk is full")
    assert read_places(tmp_path) == {}
    with pytest.raises(InputError, match="full"), placing(tmp_path / "new", {"b.ply": HERE}):
        raise InputError("the disk is full")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"format": 9}', "expected a file of format 1"),
        ('{"format": 1, "files": {"a.ply": {"epsg": 1, "offset": [1, 2]}}}', "KeyError"),
        ('{"format": 1, "files": {"a.ply": {"offset": [1], "rotation": [2]}}}', "ValueError"),
        ('{"format": 1, "files": 3}', "AttributeError"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, words):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match=f"{NAME}: .*{words}.*; delete it"):
        read_places(tmp_path)
