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

# Large cases; the limits are some four times what the CUDA kernels' emulation differs by. Means over blocks: |error| <=
# BLOCK_TOLERANCE * (1 + |stored|) but for a share of blocks with turned decisions in them, whose sums move by no more than that
# many hits at the alpha threshold would move one pixel (the median of depths may move by anything).
BLOCK_TOLERANCE, TURNED_BLOCKS, TURNED_HITS = 2e-5, 2e-3, 8
# Rows of gradients, relative to their own norm plus a thousandth of the typical one: a turned decision changes few, but by much.
TURNED_ROWS, ROWS_TOLERANCE, NORM_TOLERANCE, CAMERA_TOLERANCE = 2e-3, 2e-3, 1e-3, 1e-2


class Comparison:
    """Measured numbers of a case, each with its limit."""

    def __init__(self):
        self.numbers: dict[str, tuple[float, float]] = {}

    def add(self, what: str, value: float, limit: float) -> None:
        """Notes a number; of several with one name the one that is furthest towards its limit. NaN is beyond every limit."""
        value, limit = float(value), float(limit)
        if not np.isfinite(value):
            value = np.inf
        before = self.numbers.get(what)
        if before is None or value * before[1] > before[0] * limit:
            self.numbers[what] = (value, limit)

    def failures(self) -> list[str]:
        """The numbers beyond their limits, in words."""
        return [f"{what}: expected at most {limit:.2g}, got {value:.2g}"
                for what, (value, limit) in self.numbers.items() if value > limit]

    def nearest(self) -> str:
        """The number that is furthest towards its limit, in words."""
        what, (value, limit) = max(self.numbers.items(), key=lambda item: item[1][0] / max(item[1][1], 1e-30))
        return f"nearest to its limit: {what}, {value:.2g} of {limit:.2g}"


def _relative_rows(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error over the norm (plus a thousandth of the typical norm) of the rows that are not zero in both."""
    error, norm = (np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1) for x in (got - want, want))
    is_something = (error > 0) | (norm > 0) | np.isnan(error)
    return (error / np.maximum(norm + 1e-3 * np.sqrt((norm**2).mean()), 1e-30))[is_something]


def _map_error(got: np.ndarray, want: np.ndarray, pixels: float = 1.0) -> np.ndarray:
    """|error| / (1 + |stored|) of means over so many pixels, of each channel."""
    got, want = got.astype(np.float64) / pixels, want.astype(np.float64) / pixels
    return np.abs(got - want) / (1 + np.abs(want))


def _without_channels(name: str, error: np.ndarray) -> np.ndarray:
    return error.max(axis=-1) if name in ("color", "normal_sum") else error


def compare_whole(name: str, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> Comparison:
    """As the tests of tests/parity: close where decisions are clear, few turned ones elsewhere."""
    result, safe = Comparison(), want["safe"]
    errors = {key: _without_channels(key, _map_error(got[f"map/{key}"], want[f"map/{key}"])) for key in cases.FLOAT_MAPS}
    if name == UNDECIDED_NORMALS:
        errors.pop("normal_sum")
    tolerance = TOLERANCES.get(name, TOLERANCE)
    for error in errors.values():
        result.add("maps", error[safe].max(initial=0), tolerance)
    turned = ~safe & (np.stack(list(errors.values())).max(axis=0) >= tolerance)
    result.add("turned pixels", turned.sum(), 0.5 * (~safe).sum())
    result.add("transmittance anywhere", errors["transmittance"].max(initial=0), 4 / 255)
    result.add("surfels that were skipped", np.abs(got["num_invalid"] - want["num_invalid"]).max(), 0)
    difference = np.abs(got["contributions"] - want["contributions"]).reshape(-1, 4)
    pixels, size = (~safe).sum(), want["contributions"].reshape(-1, 4)
    result.add("sums of weights", (difference[:, 0] / (1e-4 * (1 + size[:, 0]) + pixels * 2 / 255)).max(initial=0), 1)
    result.add("largest weights", difference[:, 1].max(initial=0), 1e-4 + (pixels > 0) * 2 / 255)
    result.add("counted pixels", difference[:, 2:].max(initial=0), pixels)
    gradients = {key.removeprefix("gradient/"): value for key, value in want.items() if key.startswith("gradient/")}
    floor = 1e-6 * max((np.linalg.norm(value) for value in gradients.values()), default=0)
    for key, value in gradients.items():
        error, norm = np.linalg.norm(got[f"gradient/{key}"] - value), np.linalg.norm(value)
        result.add("gradients", error / max(norm + floor / FIELD_TOLERANCE, 1e-30), FIELD_TOLERANCE)
        if key in cases.FIELDS and norm > floor / FIELD_TOLERANCE:
            rows = _relative_rows(got[f"gradient/{key}"], value)
            result.add("a surfel's gradient", rows.max(), SURFEL_TOLERANCE)
            result.add("half of the surfels' gradients", np.median(rows), MEDIAN_TOLERANCE)
    return result


def compare_large(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> Comparison:
    """Sums over blocks, random rows, and the norm of everything; `got` is reduced as `want` is."""
    result = Comparison()
    for key in cases.FLOAT_MAPS:
        error = _without_channels(key, _map_error(got[f"map/{key}"], want[f"map/{key}"], stored.BLOCK**2))
        result.add("half of the blocks", np.median(error), BLOCK_TOLERANCE / 10)
        result.add("share of turned blocks", (~(error <= BLOCK_TOLERANCE)).mean(), TURNED_BLOCKS)
        if key != "median_depth":
            largest = np.abs(want[f"map/{key}"]).max() / stored.BLOCK**2
            result.add(f"{key} of a block", error.max(), TURNED_HITS / 255 / stored.BLOCK**2 * (1 + largest))
    result.add("surfels that were skipped", np.abs(got["num_invalid"] - want["num_invalid"]).max(), 0)
    for key, value in want.items():
        if f"norm/{key}" in want:
            kind = "contributions" if key == "contributions" else "gradients"
            rows, norm = _relative_rows(got[key], value), float(want[f"norm/{key}"])
            result.add(f"half of the surfels' {kind}", np.median(rows) if rows.size else 0, MEDIAN_TOLERANCE)
            result.add(f"share of turned {kind}", (~(rows <= SURFEL_TOLERANCE)).sum() / max(rows.size, 1), TURNED_ROWS)
            result.add(f"all rows of {kind}", np.linalg.norm(got[key] - value) / max(np.linalg.norm(value), 1e-30),
                       ROWS_TOLERANCE)
            result.add(f"norm of all {kind}", abs(got[f"norm/{key}"] - norm) / max(norm, 1e-30), NORM_TOLERANCE)
        elif key.startswith("gradient/"):
            result.add("gradients of camera and background", np.linalg.norm(got[key] - value) / np.linalg.norm(value),
                       CAMERA_TOLERANCE)
    return result


def compare(name: str, backend: str, folder: Path) -> Comparison:
    """Computes a case and compares it with its file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, of another format, or of inputs that cannot be drawn here.
    """
    want = stored.load(name, folder)
    case, cotangents = stored.inputs(name, want)
    got = stored.compute(backend, case, cotangents)
    return compare_large(stored.reduce(got), want) if name in stored.LARGE else compare_whole(name, got, want)


def compare_all(names: list[str], backend: str, folder: Path) -> dict[str, dict]:
    """What is wrong (empty if nothing), numbers with their limits, and seconds of each case; prints a line for each."""
    rows = {}
    for name in names:
        started = time.perf_counter()
        try:
            result = compare(name, backend, folder)
            numbers, text, wrong = result.numbers, result.nearest(), "; ".join(result.failures())
        except (FileNotFoundError, ValueError) as error:
            numbers, text, wrong = {}, "", str(error)
        rows[name] = {"wrong": wrong, "numbers": numbers, "seconds": time.perf_counter() - started}
        print(f"{'FAILED' if wrong else 'ok':7}{name:26}{rows[name]['seconds']:6.1f} s  {wrong or text}", flush=True)
    return rows
