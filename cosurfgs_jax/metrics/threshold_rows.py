"""Precision, recall and F1 of distances at thresholds."""

import numpy as np


def threshold_rows(
    taus: list[tuple[float, str]], to_truth: np.ndarray, to_surface: np.ndarray
) -> list[dict]:
    """A row for each threshold.

    Args:
        taus: each with what it is, in words.
        to_truth: f64[M], distances of the surface's samples to the ground truth, not empty.
        to_surface: f64[G], distances of the ground truth to the surface, not empty.
    Returns:
        [{tau, kind, precision, recall, f1}].
    """
    rows = []
    for tau, kind in taus:
        precision = float((to_truth < tau).mean())
        recall = float((to_surface < tau).mean())
        f1 = 0.0
        if precision + recall > 0:
            f1 = 2 * precision * recall / (precision + recall)
        rows.append({"tau": tau, "kind": kind, "precision": precision, "recall": recall, "f1": f1})
    return rows
