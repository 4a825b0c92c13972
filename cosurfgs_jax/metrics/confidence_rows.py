"""Distances of a mesh to ground truth by the confidence of its vertices: whether it says the truth
about itself.
"""

import numpy as np

_STARTS = (0, 1, 2, 3, 4, 6, 10, 20)  # photographs from which on a row is, up to the next one


def confidence_ranges() -> list[dict]:
    """The ranges of confidence: [{"from", "to"}] in photographs, both included, the last with "to"
    None.
    """
    ends = [start - 1 for start in _STARTS[1:]]
    return [{"from": start, "to": end} for start, end in zip(_STARTS, [*ends, None], strict=True)]


def confidence_range(confidence: np.ndarray) -> np.ndarray:
    """The numbers i64[N] of the ranges that f32[N] are in. After decimation a confidence is a mean:
    1.9 photographs are not yet two.
    """
    return np.searchsorted(_STARTS, confidence, side="right") - 1


def confidence_rows(confidence: np.ndarray | None, distances: np.ndarray, tau: float) -> list[dict]:
    """A row for each range of confidence that a vertex has.

    Args:
        confidence: f32[N], photographs, of `surface.Mesh`; None = not known, no row.
        distances: f64[N] of the vertices to the ground truth, NaN where they do not count.
        tau: threshold of precision.
    Returns:
        [{"from", "to" (photographs, whole numbers; None = without end), "share" (of the vertices
        that count), "median", "p90", "tau", "precision"}]. JSON data.
    """
    if confidence is None:
        return []
    is_counted = np.isfinite(distances)
    which = confidence_range(confidence)
    rows = []
    for number, limits in enumerate(confidence_ranges()):
        is_row = is_counted & (which == number)
        if not is_row.any():
            continue
        median, high = np.percentile(distances[is_row], [50, 90])
        rows.append(
            {
                **limits,
                "share": float(is_row.sum() / is_counted.sum()),
                "median": float(median),
                "p90": float(high),
                "tau": tau,
                "precision": float((distances[is_row] < tau).mean()),
            }
        )
    return rows


def photographs_of(row: dict) -> str:
    """The range of a row in words: "1", "4 to 5" or "20 or more"."""
    if row["to"] is None:
        return f"{row['from']} or more"
    if row["to"] == row["from"]:
        return f"{row['from']}"
    return f"{row['from']} to {row['to']}"


def confidence_line(row: dict, unit: str) -> str:
    """One line on one of `confidence_rows`."""
    return (
        f"confidence {photographs_of(row)} ({row['share']:.1%} of the vertices): off by "
        f"{row['median']:.3g} {unit} (90 %: {row['p90']:.3g}); precision at {row['tau']:.3g}: "
        f"{row['precision']:.3f}"
    )
