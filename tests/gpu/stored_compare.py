"""How far a backend's results are from stored ones, and how far they may be."""

import time
from pathlib import Path

import numpy as np
import raster_cases as cases
import stored_cases as stored
from test_raster_parity import (
    FIELD_TOLERANCE,
    MEDIAN_TOLERANCE,
    SURFEL_TOLERANCE,
    TOLERANCE,
    TOLERANCES,
    UNDECIDED_NORMALS,
)

# Limits of large cases are three to five times what the emulated CUDA kernels differ by from the
# CPU's (a million surfels at 3840x2160, the worst of them). Means over blocks: |error| <=
# BLOCK_TOLERANCE * (1 + |stored|), but for a share of blocks in which decisions turned. Those move
# by no more than TURNED_HITS hits at the alpha threshold would move a pixel; the median depth may
# move by anything.
BLOCK_TOLERANCE = 2e-5
TURNED_BLOCKS = 5e-3
TURNED_HITS = 8
# Rows of gradients, relative to their own norm plus a thousandth of the typical one: a turned
# decision changes few of them, but by much.
TURNED_ROWS = 2e-3
ROWS_TOLERANCE = 3e-3
NORM_TOLERANCE = 1e-3
CAMERA_TOLERANCE = 1.5e-2  # a sum over all surfels, most of which cancels
_TINY = 1e-30  # instead of a division by zero


class Comparison:
    """Measured numbers of a case, each with its limit."""

    def __init__(self):
        self.numbers: dict[str, tuple[float, float]] = {}

    def add(self, what: str, value: float, limit: float) -> None:
        """Notes a number. Of several with one name the one that is furthest towards its limit
        stays; NaN is beyond every limit."""
        pair = (float(value) if np.isfinite(value) else np.inf, float(limit))
        if what not in self.numbers or _fraction(pair) > _fraction(self.numbers[what]):
            self.numbers[what] = pair

    def failures(self) -> list[str]:
        """The numbers beyond their limits, in words."""
        return [
            f"{what}: expected at most {limit:.2g}, got {value:.2g}"
            for what, (value, limit) in self.numbers.items()
            if value > limit
        ]

    def nearest(self) -> str:
        """The number that is furthest towards its limit, in words."""
        what = max(self.numbers, key=lambda name: _fraction(self.numbers[name]))
        value, limit = self.numbers[what]
        return f"nearest to its limit: {what}, {value:.2g} of {limit:.2g}"


def _fraction(pair: tuple[float, float]) -> float:
    value, limit = pair
    return value / max(limit, _TINY)


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _row_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error over the norm (plus a thousandth of the typical norm) of the rows that are not zero in
    both.
    """
    error = np.linalg.norm((got - want).reshape(len(want), -1).astype(np.float64), axis=1)
    norm = np.linalg.norm(want.reshape(len(want), -1).astype(np.float64), axis=1)
    relative = error / np.maximum(norm + 1e-3 * np.sqrt((norm**2).mean()), _TINY)
    return relative[(error > 0) | (norm > 0) | np.isnan(error)]


def _map_errors(got: dict, want: dict, num_pixels: int) -> dict[str, np.ndarray]:
    """Per map |error| / (1 + |stored|) of means over so many pixels, the largest of the
    channels.
    """
    errors = {}
    for name in cases.FLOAT_MAPS:
        stored_map = want[f"map/{name}"].astype(np.float64) / num_pixels
        error = np.abs(got[f"map/{name}"] / num_pixels - stored_map) / (1 + np.abs(stored_map))
        errors[name] = error.max(axis=-1) if name in ("color", "normal_sum") else error
    return errors


# Whole cases, as in tests/parity: close where decisions are clear, few turned ones elsewhere
# ------------------------


def _add_pixels(result: Comparison, name: str, got: dict, want: dict) -> None:
    safe = want["safe"]
    errors = _map_errors(got, want, 1)
    if name == UNDECIDED_NORMALS:
        errors.pop("normal_sum")
    tolerance = TOLERANCES.get(name, TOLERANCE)
    for error in errors.values():
        result.add("maps", error[safe].max(initial=0), tolerance)
    turned = ~safe & (np.stack(list(errors.values())).max(axis=0) >= tolerance)
    result.add("turned pixels", turned.sum(), 0.5 * (~safe).sum())
    result.add("transmittance anywhere", errors["transmittance"].max(initial=0), 4 / 255)


def _add_contributions(result: Comparison, got: dict, want: dict) -> None:
    """Of which each pixel that is not clear may change one hit, or two."""
    unclear = (~want["safe"]).sum()
    error = np.abs(got["contributions"] - want["contributions"]).reshape(-1, 4)
    sums = want["contributions"].reshape(-1, 4)[:, 0]
    allowed = 1e-4 * (1 + sums) + unclear * 2 / 255
    result.add("sums of weights, of what is allowed", (error[:, 0] / allowed).max(initial=0), 1)
    result.add("largest weights", error[:, 1].max(initial=0), 1e-4 + (unclear > 0) * 2 / 255)
    result.add("counted pixels", error[:, 2:].max(initial=0), unclear)


def compare_whole(name: str, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> Comparison:
    """A small case: all pixels, all gradients."""
    result = Comparison()
    result.add(
        "surfels that were skipped", np.abs(got["num_invalid"] - want["num_invalid"]).max(), 0
    )
    _add_pixels(result, name, got, want)
    _add_contributions(result, got, want)
    gradients = {key: value for key, value in want.items() if key.startswith("gradient/")}
    # Some gradients are zero but for rounding: what counts is the largest one's size.
    floor = 1e-6 * max(map(_norm, gradients.values()), default=0) / FIELD_TOLERANCE
    for key, value in gradients.items():
        norm = _norm(value)
        result.add("gradients", _norm(got[key] - value) / max(norm + floor, _TINY), FIELD_TOLERANCE)
        if key.removeprefix("gradient/") in cases.FIELDS and norm > floor:
            rows = _row_errors(got[key], value)
            result.add("a surfel's gradient", rows.max(), SURFEL_TOLERANCE)
            result.add("half of the surfels' gradients", np.median(rows), MEDIAN_TOLERANCE)
    return result


# Large cases: sums over blocks, random rows, and the norm of everything
# ----------------------------------------------


def _add_blocks(result: Comparison, got: dict, want: dict) -> None:
    num_pixels = stored.BLOCK**2
    for name, error in _map_errors(got, want, num_pixels).items():
        result.add("half of the blocks", np.median(error), BLOCK_TOLERANCE / 10)
        result.add("share of turned blocks", (~(error <= BLOCK_TOLERANCE)).mean(), TURNED_BLOCKS)
        if name != "median_depth":
            largest = np.abs(want[f"map/{name}"]).max() / num_pixels
            result.add(
                f"{name} of a block", error.max(), TURNED_HITS / 255 / num_pixels * (1 + largest)
            )


def _add_rows(result: Comparison, kind: str, got: np.ndarray, want: np.ndarray) -> None:
    rows = _row_errors(got, want)
    result.add(
        f"half of the surfels' {kind}", np.median(rows) if rows.size else 0, MEDIAN_TOLERANCE
    )
    result.add(
        f"share of turned {kind}",
        (~(rows <= SURFEL_TOLERANCE)).sum() / max(rows.size, 1),
        TURNED_ROWS,
    )
    result.add(f"all rows of {kind}", _norm(got - want) / max(_norm(want), _TINY), ROWS_TOLERANCE)


def compare_large(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> Comparison:
    """A large case; `got` is reduced as `want` is."""
    result = Comparison()
    result.add(
        "surfels that were skipped", np.abs(got["num_invalid"] - want["num_invalid"]).max(), 0
    )
    _add_blocks(result, got, want)
    for key, value in want.items():
        kind = "contributions" if key == "contributions" else "gradients"
        if f"norm/{key}" in want:
            norm = float(want[f"norm/{key}"])
            result.add(
                f"norm of all {kind}",
                abs(got[f"norm/{key}"] - norm) / max(norm, _TINY),
                NORM_TOLERANCE,
            )
            _add_rows(result, kind, got[key], value)
        elif key.startswith("gradient/"):
            error = _norm(got[key] - value) / max(_norm(value), _TINY)
            result.add("gradients of camera and background", error, CAMERA_TOLERANCE)
    return result


# Files
# ---------------------------------------------------------------------------


def compare(name: str, backend: str, folder: Path) -> Comparison:
    """Computes a case and compares it with its file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, of another format, or of inputs that
            cannot be drawn here.
    """
    want = stored.load(name, folder)
    case, cotangents = stored.inputs(name, want)
    got = stored.compute(backend, case, cotangents)
    return (
        compare_large(stored.reduce(got), want)
        if name in stored.LARGE
        else compare_whole(name, got, want)
    )


def compare_all(names: list[str], backend: str, folder: Path) -> dict[str, dict]:
    """Compares cases and prints a line for each.

    Returns:
        By name: what is wrong (empty if nothing), the numbers with their limits, seconds.
    """
    rows = {}
    for name in names:
        row = {"wrong": "", "numbers": {}}
        text = ""
        started = time.perf_counter()
        try:
            result = compare(name, backend, folder)
            text = result.nearest()
            row = {"wrong": "; ".join(result.failures()), "numbers": result.numbers}
        except (FileNotFoundError, ValueError) as error:
            row["wrong"] = str(error)
        row["seconds"] = time.perf_counter() - started
        print(
            f"{'FAILED' if row['wrong'] else 'ok':7}{name:26}{row['seconds']:6.1f} s  "
            f"{row['wrong'] or text}",
            flush=True,
        )
        rows[name] = row
    return rows
