"""Which photographs are compared with which: by GPS, by name, or all with all."""

import numpy as np
import pytest

from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm.pairs import choose_pairs


def _grid(num_lines, per_line, spacing=10.0):
    line, step = np.divmod(np.arange(num_lines * per_line), per_line)
    return np.stack([step * spacing, line * 3 * spacing], axis=1)


def _set(pairs):
    assert (pairs.numbers[:, 0] < pairs.numbers[:, 1]).all()
    found = set(map(tuple, pairs.numbers.tolist()))
    assert len(found) == len(pairs.numbers)
    return found


def test_pairs_by_gps_reach_across_lines():
    places = _grid(20, 30)
    pairs = choose_pairs(places, PrepareSettings(neighbors=12))
    found = _set(pairs)
    distances = np.linalg.norm(np.diff(places[pairs.numbers], axis=1)[:, 0], axis=1)
    assert "12 nearest by GPS" in pairs.words and len(found) < 600 * 12
    assert (5, 35) in found and (5, 6) in found and (29, 30) in found  # across, along, in time
    assert np.median(distances) < 40


def test_photographs_without_gps_are_compared_by_name():
    places = _grid(20, 30)
    places[100:103] = np.nan
    pairs = choose_pairs(places, PrepareSettings(neighbors=12))
    found = _set(pairs)
    assert "3 photographs without GPS by name" in pairs.words
    # Six neighbours by name on each side, and farther ones at doubling steps; two for all others.
    steps = {*range(1, 7), *(2**power for power in range(10))}
    unknown = {
        tuple(sorted((number, number + sign * step)))
        for number in (100, 101, 102)
        for step in steps
        for sign in (-1, 1)
        if 0 <= number + sign * step < 600
    }
    of_unknown = {pair for pair in found if {*pair} & {100, 101, 102}}
    assert of_unknown == unknown


def test_neighbours_by_name_are_compared_wherever_gps_puts_them():
    num = 40
    order = np.arange(num) * 17 % num  # along a line
    places = np.stack([order * 100.0, np.zeros(num)], axis=1)
    found = _set(choose_pairs(places, PrepareSettings(neighbors=2)))
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    by_name = {(i, j) for i, j in pairs if j - i <= 2}
    by_place = {(i, j) for i, j in pairs if abs(order[i] - order[j]) == 1}
    # The second nearest of the first and of the last one.
    ends = {(i, j) for i, j in pairs if {order[i], order[j]} in ({0, 2}, {num - 1, num - 3})}
    assert found == by_name | by_place | ends


@pytest.mark.parametrize(
    "num, settings, words, count",
    [
        (60, {}, "all with all", 60 * 59 // 2),
        (101, {}, "neighbours by name", None),
        (101, {"matching": "exhaustive"}, "all with all", 101 * 50),
        (30, {"matching": "sequential", "neighbors": 4}, "2 neighbours by name", None),
        (15, {"matching": "sequential"}, "all with all", 105),
    ],
)
def test_pairs_without_gps(num, settings, words, count):
    pairs = choose_pairs(np.full((num, 2), np.nan), PrepareSettings(**settings))
    found = _set(pairs)
    assert words in pairs.words and all((i, i + 1) in found for i in range(num - 1))
    if count:
        assert len(found) == count
    else:
        steps = {second - first for first, second in found}
        neighbors = PrepareSettings(**settings).neighbors
        doubling = {step for step in (1, 2, 4, 8, 16, 32, 64) if step < num}
        assert steps == {*range(1, neighbors // 2 + 1)} | doubling


@pytest.mark.parametrize(
    "num_known, num, words",
    [(50, 100, "12 nearest by GPS"), (49, 100, "all with all"), (49, 101, "neighbours by name"),
     (51, 101, "12 nearest by GPS")],
)  # fmt: skip
def test_gps_decides_where_half_of_the_photographs_have_it(num_known, num, words):
    places = _grid(1, num)
    places[num_known:] = np.nan
    assert words in choose_pairs(places, PrepareSettings(neighbors=12)).words


def test_few_photographs_are_all_compared():
    """Where none has more than the number of neighbours."""
    for num, words in ((13, "all with all"), (14, "12 nearest by GPS")):
        assert words in choose_pairs(_grid(1, num), PrepareSettings(neighbors=12)).words
