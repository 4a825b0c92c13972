"""How good depth and normals of a view are, against exact ones and by themselves. NumPy."""

import numpy as np
from jaxtyping import Bool, Float, Int

_NEAR = 0.01  # of the depth: what counts as right
_UP_COSINE = 0.5  # roofs and ground are within 60 degrees of up
STEP_REACH = 4  # pixels on either side to which a line is fitted


def depth_errors(depth: Float[np.ndarray, "h w"], truth: Float[np.ndarray, "h w"],
                 is_counted: Bool[np.ndarray, "h w"] | None = None) -> dict[str, float] | None:
    """Errors of a depth map against the exact one.

    Args:
        depth: camera z, 0 = nothing.
        truth: exact camera z at the pixel centres, 0 = nothing; same unit.
        is_counted: pixels that count; None = all.
    Returns:
        "median" and "p90" (90th percentile) of |error| in the unit; "relative_median": the median of |error| / exact depth;
        these over pixels where both have a depth. "within_1_percent": the share of all pixels with an exact depth whose error
        is at most 1 % of it, where nothing is wrong too; "covered": the share of them where the model has a depth. None where
        no pixel has both.
    """
    has_truth = truth > 0
    if is_counted is not None:
        has_truth = has_truth & is_counted
    both = has_truth & np.isfinite(depth) & (depth > 0)
    if not both.any():
        return None
    exact = truth[both].astype(np.float64)
    error = np.abs(depth[both] - exact)
    return {"median": float(np.median(error)), "p90": float(np.percentile(error, 90)),
            "relative_median": float(np.median(error / exact)),
            "within_1_percent": float((error <= _NEAR * exact).sum() / has_truth.sum()),
            "covered": float(both.sum() / has_truth.sum())}


def normal_angles(normal: Float[np.ndarray, "*n 3"], truth: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Degrees between normals of any length and exact ones of unit length."""
    normal = np.asarray(normal, np.float64)
    cosine = (normal * truth).sum(axis=-1) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def normal_errors(normal: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"], is_counted: Bool[np.ndarray, "h w"],
                  up: Float[np.ndarray, "3"]) -> dict[str, float]:
    """Median angles between a view's normals and the exact ones, degrees.

    Args:
        normal: any length. truth: unit length; same frame as `up`.
        is_counted: pixels that count.
        up: unit length.
    Returns:
        "all"; "up_facing": where the exact normal is within 60 degrees of up (ground and roofs); "walls": elsewhere. A kind
        that no pixel shows is left out.
    """
    exact = truth[is_counted]
    angles, is_up = normal_angles(normal[is_counted], exact), exact @ np.asarray(up, exact.dtype) >= _UP_COSINE
    kinds = {"all": angles, "up_facing": angles[is_up], "walls": angles[~is_up]}
    return {name: float(np.median(values)) for name, values in kinds.items() if len(values)}


def _line_ends(values: np.ndarray, reach: int) -> np.ndarray:
    """Lines are fitted to `reach` neighbouring values along the last axis; where they end, half a pixel beyond the last value.

    [..., n] -> [..., n - reach + 1].
    """
    offsets = np.arange(reach) - 0.5 * (reach - 1)
    weights = 1 / reach + 0.5 * reach * offsets / np.square(offsets).sum()
    windows = np.lib.stride_tricks.sliding_window_view(values, reach, axis=-1)
    return windows @ weights


def depth_steps(depth: Float[np.ndarray, "h w"], labels: Int[np.ndarray, "h w"],
                reach: int = STEP_REACH) -> tuple[Float[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """How far a depth map jumps between neighbouring pixels, beyond its slope: at borders of labels, and elsewhere.

    On either side of the border between two pixels, along the row or the column, a line is fitted to the inverse depth of
    `reach` pixels, and both are continued to the border. Inverse depth is linear in the image on any plane, so that a plane
    has no step however it is seen. What has a step elsewhere too is rough.

    Args:
        depth: camera z, 0 = nothing.
        labels: which part (cell) each pixel's hit belongs to; a border counts where each side is of one label.
        reach: pixels of a line.
    Returns:
        The steps as shares of the depth f64[k], each at least 0, and whether it is one between labels bool[k].
    """
    steps, borders = [], []
    for turned, names in ((depth, labels), (depth.T, labels.T)):
        if turned.shape[1] < 2 * reach:
            continue
        is_valid = turned > 0
        inverse = np.where(is_valid, 1 / np.where(is_valid, turned, 1).astype(np.float64), 0)
        before = _line_ends(inverse, reach)[:, :-reach]
        after = _line_ends(inverse[:, ::-1], reach)[:, ::-1][:, reach:]

        def windows(values):
            return np.lib.stride_tricks.sliding_window_view(values, reach, axis=1)

        is_one = windows(is_valid).all(axis=-1) & (windows(names) == names[:, : names.shape[1] - reach + 1, None]).all(axis=-1)
        is_used = is_one[:, :-reach] & is_one[:, reach:]
        first, second = before[is_used], after[is_used]
        middle = 0.5 * (first + second)
        is_sane = middle > 0  # lines through rough depth can end behind the camera
        steps.append((np.abs(first - second) / np.where(is_sane, middle, 1))[is_sane])
        last = names[:, reach - 1: names.shape[1] - reach]
        borders.append((last != names[:, reach: names.shape[1] - reach + 1])[is_used][is_sane])
    return (np.concatenate(steps), np.concatenate(borders)) if steps else (np.zeros(0), np.zeros(0, bool))
