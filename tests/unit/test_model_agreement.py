"""Features and points of a COLMAP model name each other, and noted errors are those of features;
where not, the log says so.
"""

import logging
import re

import fuzz_cases
import numpy as np
import pytest

from cosurfgs_jax.data import colmap, model_agreement
from cosurfgs_jax.data.model_agreement import Noted

READERS = {reader.name: reader for reader in fuzz_cases.readers()}
NUM_POINTS = 50
NUM_VIEWS = 6


def _noted() -> Noted:
    """Each of six photographs sees all points."""
    pixels = np.random.default_rng(0).rayleigh(0.2, (NUM_POINTS, NUM_VIEWS))
    return Noted(
        source="model",
        points=np.arange(3.0 * NUM_POINTS).reshape(-1, 3),
        errors=pixels.mean(axis=1),
        lengths=np.full(NUM_POINTS, NUM_VIEWS),
        owners=np.repeat(np.arange(NUM_POINTS), NUM_VIEWS),
        pixels=pixels.reshape(-1),
    )


def _said(noted: Noted, caplog) -> list[tuple[int, str]]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        model_agreement.check_errors(noted)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_points_whose_errors_are_those_of_their_features_are_not_spoken_of(caplog):
    noted = _noted()
    assert not _said(noted, caplog)
    for errors in (np.full(NUM_POINTS, 1.0), np.full(NUM_POINTS, np.nan), np.zeros(NUM_POINTS)):
        assert not _said(noted._replace(errors=errors), caplog)  # of programs that do not know
    assert not _said(noted._replace(lengths=noted.lengths + 1), caplog)  # nothing is known for sure
    few = noted.owners < 9
    assert not _said(noted._replace(owners=noted.owners[few], pixels=9 + noted.pixels[few]), caplog)


def test_one_moved_point_is_said_with_its_place(caplog):
    noted = _noted()
    pixels = noted.pixels.copy()
    pixels[noted.owners == 7] += [0.9, 1.2, 0, 0, 0, 0]
    [(level, text)] = _said(noted._replace(pixels=pixels), caplog)
    assert level == logging.WARNING
    assert "1 of 50 points are 2 times" in text and "the first at [21. 22. 23.]" in text, text
    # Of some of its features it is known that the mean of all is as large.
    lengths = noted.lengths.copy()
    lengths[7] += 1
    assert _said(noted._replace(pixels=pixels, lengths=lengths), caplog)[0][0] == logging.WARNING
    lengths[7] += 50
    assert not _said(noted._replace(pixels=pixels, lengths=lengths), caplog)


def test_photographs_that_were_taken_out_are_no_alarm(caplog):
    noted = _noted()
    stays = np.tile(np.arange(NUM_VIEWS) >= NUM_VIEWS // 2, NUM_POINTS)
    stays[NUM_VIEWS * 4 :] = True  # of four points
    noted = noted._replace(
        owners=noted.owners[stays],
        pixels=noted.pixels[stays],
        lengths=np.bincount(noted.owners[stays]),
    )
    assert not _said(noted, caplog)


def test_a_little_of_all_is_said_without_a_warning(caplog):
    noted = _noted()
    [(level, text)] = _said(noted._replace(pixels=1.2 * noted.pixels), caplog)
    assert level == logging.INFO and "50 of 50 points have noted" in text
    assert not _said(noted._replace(pixels=1.03 * noted.pixels), caplog)


@pytest.mark.parametrize(
    "num_known, num_tracked, is_whole, level",
    [
        (10, 12, True, None),  # points that no feature names, as some programs write them
        (9, 9, True, logging.INFO),  # points were left out
        (9, 10, True, logging.WARNING),  # and one has a number that no feature names
        (9, 10, False, logging.INFO),  # which one that is not compared may name
        (4, 10, True, None),  # numbers of another program
    ],
)
def test_features_name_points_that_are_there(caplog, num_known, num_tracked, is_whole, level):
    named = np.arange(10) + 100
    has_track = np.arange(10) < num_known
    with caplog.at_level(logging.INFO):
        model_agreement.check_names("model", named, has_track, num_tracked, is_whole)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    assert level is None or "of 10 points that features name are not there" in caplog.text
    assert level is None or f"the first is number {100 + num_known}" in caplog.text


@pytest.mark.parametrize(
    "name, old, new, level, words",
    [
        ("points3D.txt", "\n8 ", "\n88 ", logging.WARNING, "the first is number 8"),
        (
            "points3D.txt",
            r"(\n26 \S+ \S+ )0",
            r"\1-0",
            logging.WARNING,
            "1 of 40 points are 2 time",
        ),
        ("cameras.txt", "32.0", "32.2", logging.INFO, "rounded or changed since"),
    ],
)
def test_of_a_model_that_was_changed(tmp_path, caplog, name, old, new, level, words):
    READERS["colmap_text"].write(tmp_path)
    folder = tmp_path / "sparse" / "0"
    caplog.set_level(logging.INFO)
    colmap.read_model(folder)
    assert not caplog.records
    text, count = re.subn(old, new, (folder / name).read_text())
    assert count == 1
    (folder / name).write_text(text)
    colmap.read_model(folder)
    [record] = caplog.records
    assert record.levelno == level and words in record.getMessage()
    assert str(folder) in record.getMessage()
