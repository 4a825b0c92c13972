"""Which photographs are compared with which."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from cosurfgs_jax.settings import PrepareSettings

_MAX_EXHAUSTIVE = 100  # photographs: 4,950 pairs take a quarter of an hour on two cores
_MIN_KNOWN = 0.5  # fraction of the photographs with GPS for which it decides
_ALWAYS = 2  # neighbours by name that are compared in any case: GPS may be wrong


class Pairs(NamedTuple):
    """Pairs of photographs, each once and the smaller number first, and how they were chosen."""

    numbers: Int[np.ndarray, "m 2"]
    words: str


def choose_pairs(places: Float[np.ndarray, "n 2"], settings: PrepareSettings) -> Pairs:
    """Chooses pairs of photographs that may show the same.

    Args:
        places: east and north in metres of all photographs in the order of their names; NaN where
            they are not known.
        settings: `matching` and `neighbors`.
    """
    num = len(places)
    is_known = np.asarray(np.isfinite(places).all(axis=1))
    method = settings.matching
    if method == "auto":
        method = "sequential"
        if is_known.mean() >= _MIN_KNOWN:
            method = "gps"
        elif num <= _MAX_EXHAUSTIVE:
            method = "exhaustive"
    in_sequence = max(settings.neighbors // 2, 1)
    if method == "exhaustive" or num <= settings.neighbors + 1:
        first, second = np.triu_indices(num, k=1)
        return Pairs(np.stack([first, second], axis=1), "all with all")
    if method == "sequential":
        return Pairs(
            _sequence(np.arange(num), num, in_sequence, is_doubling=True),
            f"{in_sequence} neighbours by name on each side, and farther ones at doubling steps",
        )
    unknown = np.flatnonzero(~is_known)
    parts = [
        _nearest(places, is_known, settings.neighbors),
        _sequence(np.arange(num), num, _ALWAYS),
        _sequence(unknown, num, in_sequence, is_doubling=True),
    ]
    words = f"the {settings.neighbors} nearest by GPS"
    if len(unknown):
        words += f"; {len(unknown)} photographs without GPS by name"
    return Pairs(_unique(np.concatenate(parts)), words)


def _unique(pairs: np.ndarray) -> np.ndarray:
    pairs = np.sort(pairs, axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _nearest(places: np.ndarray, is_known: np.ndarray, count: int) -> np.ndarray:
    numbers = np.flatnonzero(is_known)
    count = min(count + 1, len(numbers))  # each finds itself
    _, found = cKDTree(places[is_known]).query(places[is_known], k=count)
    first = np.repeat(numbers, count)
    return np.stack([first, numbers[np.reshape(found, -1)]], axis=1)


def _sequence(
    numbers: np.ndarray, num: int, reach: int, *, is_doubling: bool = False
) -> np.ndarray:
    """Pairs of some photographs with those before and behind them, up to `reach` steps away, and
    then at doubling steps.
    """
    steps = set(range(1, reach + 1))
    if is_doubling:
        steps |= {2**power for power in range(num.bit_length())}
    pairs = [
        np.stack([numbers, numbers + sign * step], axis=1) for step in steps for sign in (-1, 1)
    ]
    found = np.concatenate(pairs)
    return _unique(found[(found[:, 1] >= 0) & (found[:, 1] < num)])
