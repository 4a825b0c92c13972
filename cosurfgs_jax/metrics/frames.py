"""Whether a surface and ground truth are in one frame and unit, and if not, what was probably
forgotten.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from cosurfgs_jax.errors import InputError

# Lengths of the ground truth to those of the surface, and what that looks like.
_UNITS = (
    (1000.0, "millimetres against metres"),
    (100.0, "centimetres against metres"),
    (3.2808, "feet against metres"),
    (0.001, "metres against millimetres"),
    (0.01, "metres against centimetres"),
    (0.3048, "metres against feet"),
)
_UNIT_SLACK = (
    1.5  # how far a ratio of spreads may be from a unit's: the two may cover different parts
)
_MAX_TREE_POINTS = 100_000
_MAX_QUERY_POINTS = 2000  # points: the medians need no more
# Shares of the width. A surface within the first of the truth is in its frame, however bad it is; a
# change of frame is believed where it brings both within the second, and five times nearer than
# they are.
_ALIKE = 0.02
_FOUND = 0.01
_BETTER = 5.0
_MIN_SHIFT = 0.25  # of the width: less may be a fault of the model, which is to be scored


class _Change(NamedTuple):
    """Takes ground truth to the surface's frame: signs * truth[axes] * scale + shift."""

    words: str
    axes: tuple[int, ...] = (0, 1, 2)
    signs: tuple[int, ...] = (1, 1, 1)
    scale: float = 1.0
    shift: np.ndarray | float = 0.0

    def forward(self, truth: np.ndarray) -> np.ndarray:
        return truth[:, self.axes] * np.array(self.signs) * self.scale + self.shift

    def backward(self, surface: np.ndarray) -> np.ndarray:
        turned = (surface - self.shift) / self.scale * np.array(self.signs)
        return turned[:, np.argsort(self.axes)]


class _Cloud:
    """Some points of one side, to measure distances from and to."""

    def __init__(self, points: np.ndarray):
        generator = np.random.default_rng(0)
        kept = points[
            np.sort(
                generator.choice(len(points), min(len(points), _MAX_TREE_POINTS), replace=False)
            )
        ]
        self.points = kept[:: max(1, len(kept) // _MAX_QUERY_POINTS)]
        self.tree = cKDTree(kept)
        self.width = float(np.max(np.diff(np.percentile(kept, [1, 99], axis=0), axis=0)))
        self.center = np.median(points, axis=0)
        self.spread = float(np.median(np.linalg.norm(points - self.center, axis=1)))

    def median_distance(self, points: np.ndarray, farthest: float = np.inf) -> float:
        """Median over points of the distance to this side; infinite beyond `farthest`."""
        return float(np.median(self.tree.query(points, distance_upper_bound=farthest)[0]))


def _changes(surface: _Cloud, truth: _Cloud) -> list[_Change]:
    changes = [
        _Change(f"it looks like {words}: {_times(scale)}", scale=1 / scale)
        for scale, words in _UNITS
    ]
    for axes, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        if (axes, signs) != ((0, 1, 2), (1, 1, 1)):
            names = ", ".join(
                ("" if sign > 0 else "-") + "xyz"[axis]
                for axis, sign in zip(axes, signs, strict=True)
            )
            what = "swapped" if axes != (0, 1, 2) else "flipped"
            changes.append(
                _Change(
                    f"axes seem to be {what}: its ({names}) fits the surface's (x, y, z)",
                    axes,
                    signs,
                )
            )
    shift = surface.center - truth.center
    if np.linalg.norm(shift) > _MIN_SHIFT * surface.width:
        changes.append(
            _Change(
                "it seems to be shifted: it fits after adding "
                f"{_vector(shift)}; was an origin subtracted?",
                shift=shift,
            )
        )
    return changes


def _vector(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def _times(ratio: float) -> str:
    return f"{ratio:.4g} times as large"


def _misfit_now(surface: _Cloud, truth: _Cloud) -> float:
    """How far the nearer side lies from the other as it is, as a fraction of the smaller
    one's width.
    """
    distance = min(truth.median_distance(surface.points), surface.median_distance(truth.points))
    return distance / max(min(surface.width, truth.width), 1e-300)


def _likely_cause(surface: _Cloud, truth: _Cloud, now: float) -> str | None:
    """What would bring the two together, in words; None if nothing that is thought of here."""
    best = np.inf
    words = None
    for change in _changes(surface, truth):
        farthest = 2 * _FOUND * surface.width
        # Both ways: a cloud that is shrunk to a point is near to everything.
        there = change.scale * truth.median_distance(
            change.backward(surface.points), farthest / change.scale
        )
        back = surface.median_distance(change.forward(truth.points), farthest)
        misfit = max(there, back) / max(surface.width, 1e-300)
        if misfit < best:
            best = misfit
            words = change.words
    return words if best <= _FOUND and best * _BETTER <= now else None


def _guess(ratio: float) -> str:
    for scale, words in _UNITS:
        if 1 / _UNIT_SLACK <= ratio / scale <= _UNIT_SLACK:
            return f"it looks like {words}: {_times(ratio)}"
    if 0.1 <= ratio <= 10:
        return "the two lie apart: was an origin subtracted from one of them?"
    return f"it is {_times(ratio)}"


def check_same_frame(surface: np.ndarray, truth: np.ndarray) -> None:
    """Tells a mistake of unit, origin or axes from a bad surface.

    Medians and spreads are compared loosely, as one side may cover a part of the other only. Then,
    where the two are not near each other, other units, all orders and signs of the axes and a shift
    are tried. What maps a place onto itself stays unseen: x and y swapped over flat ground, which
    scores tell well enough.

    Args:
        surface: f64[M,3]. truth: f64[G,3].
    Raises:
        InputError: they are of different size or place, or one of those changes brings them
            together; it names the likely cause.
    """
    ours = _Cloud(surface)
    theirs = _Cloud(truth)
    ratio = theirs.spread / max(ours.spread, 1e-300)
    shift = np.linalg.norm(ours.center - theirs.center)
    now = _misfit_now(ours, theirs)
    if now <= _ALIKE:  # also a scan of a small part
        return
    is_elsewhere = not 0.1 <= ratio <= 10 or shift > 4 * max(ours.spread, theirs.spread)
    cause = _likely_cause(ours, theirs, now)
    if cause or is_elsewhere:
        raise InputError(
            "ground truth: expected the frame and unit of the model, got median "
            f"{_vector(theirs.center)} with spread {theirs.spread:.4g} against the surface's "
            "median "
            f"{_vector(ours.center)} with spread {ours.spread:.4g}; {cause or _guess(ratio)}; "
            "transform or rescale the ground truth first"
        )
