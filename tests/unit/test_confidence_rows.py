"""Distances by confidence: known ones come back, and what does not count is left out."""

import numpy as np
import pytest

from cosurfgs_jax.metrics import confidence_rows, photographs_of


def test_rows_are_those_of_the_vertices_in_their_range():
    confidence = np.array([1, 1, 2.5, 4, 5, 5.9, 20, 48, 3], np.float32)
    distances = np.array([5.0, 7.0, 3.0, 1.0, 2.0, 3.0, 0.5, 0.7, np.nan])
    rows = confidence_rows(confidence, distances, tau=1.5)
    found = {photographs_of(row): row for row in rows}
    assert list(found) == ["1", "2", "4 to 5", "20 or more"]
    assert [row["share"] for row in rows] == [2 / 8, 1 / 8, 3 / 8, 2 / 8]
    assert [row["median"] for row in rows] == pytest.approx([6, 3, 2, 0.6])
    assert [row["precision"] for row in rows] == pytest.approx([0, 0, 1 / 3, 1])
    assert found["4 to 5"]["p90"] == pytest.approx(2.8) and found["1"]["tau"] == 1.5
    assert confidence_rows(None, distances, tau=1.5) == []
    assert confidence_rows(confidence, np.full(9, np.nan), tau=1.5) == []
