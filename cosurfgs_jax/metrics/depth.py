"""How good depth and normals of a view are, against exact ones and by themselves. NumPy."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

_NEAR = 0.01  # of the depth: what counts as right
_UP_COSINE = 0.5  # roofs and ground are within 60 degrees of up
STEP_REACH = 4  # pixels on either side to which a line is fitted


def depth_errors(
    depth: Float[np.ndarray, "h w"],
    truth: Float[np.ndarray, "h w"],
    is_counted: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, float] | None:
    """Errors of a depth map against the exact one.

    Args:
        depth: camera z, 0 = nothing.
        truth: exact camera z at the pixel centres, 0 = nothing; same unit.
        is_counted: pixels that count; None = all.
    Returns:
        "median" and "p90" (90th percentile) of |error| in the unit; "relative_median": the median
        of |error| / exact depth; these over pixels where both have a depth. "within_1_percent": the
        fraction of all pixels with an exact depth whose error is at most 1 % of it, where nothing
        is wrong too; "covered": the fraction of them where the model has a depth. None where no
        pixel has both.
    """
    has_truth = truth > 0
    if is_counted is not None:
        has_truth = has_truth & is_counted
    both = has_truth & np.isfinite(depth) & (depth > 0)
    if not both.any():
        return None
    exact = truth[both].astype(np.float64)
    error = np.abs(depth[both] - exact)
    return {
        "median": float(np.median(error)),
        "p90": float(np.percentile(error, 90)),
        "relative_median": float(np.median(error / exact)),
        "within_1_percent": float((error <= _NEAR * exact).sum() / has_truth.sum()),
        "covered": float(both.sum() / has_truth.sum()),
    }


def normal_angles(
    normal: Float[np.ndarray, "*n 3"], truth: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "*n"]:
    """Degrees between normals of any length and exact ones of unit length."""
    normal = np.asarray(normal, np.float64)
    cosine = (normal * truth).sum(axis=-1) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def normal_errors(
    normal: Float[np.ndarray, "h w 3"],
    truth: Float[np.ndarray, "h w 3"],
    is_counted: Bool[np.ndarray, "h w"],
    up: Float[np.ndarray, "3"],
) -> dict[str, float]:
    """Median angles between a view's normals and the exact ones, degrees.

    Args:
        normal: any length. truth: unit length; same frame as `up`.
        is_counted: pixels that count.
        up: unit length.
    Returns:
        "all"; "up_facing": where the exact normal is within 60 degrees of up (ground and roofs);
        "walls": elsewhere. A kind that no pixel shows is left out.
    """
    exact = truth[is_counted]
    angles = normal_angles(normal[is_counted], exact)
    is_up = exact @ np.asarray(up, exact.dtype) >= _UP_COSINE
    kinds = {"all": angles, "up_facing": angles[is_up], "walls": angles[~is_up]}
    return {name: float(np.median(values)) for name, values in kinds.items() if len(values)}


def _line_ends(values: np.ndarray, reach: int) -> np.ndarray:
    """Lines are fitted to `reach` neighbouring values along the last axis; where they end, half a
    pixel beyond the last value.

    [..., n] -> [..., n - reach + 1].
    """
    offsets = np.arange(reach) - 0.5 * (reach - 1)
    weights = 1 / reach + 0.5 * reach * offsets / np.square(offsets).sum()
    windows = np.lib.stride_tricks.sliding_window_view(values, reach, axis=-1)
    return windows @ weights


def _are_equal(values: np.ndarray, count: int) -> np.ndarray:
    """Whether `count` neighbours along the last axis are equal: [..., n] -> [..., n -
    count + 1].
    """
    windows = np.lib.stride_tricks.sliding_window_view(values, count, axis=-1)
    return (windows == windows[..., :1]).all(axis=-1)


def _of_pairs(
    of_lines: Callable[[np.ndarray], np.ndarray], values: np.ndarray, reach: int, fill
) -> np.ndarray:
    """Numbers for pairs of neighbouring pixels: [2,h,w], [0] of a pixel and the next of its row,
    [1] of its column.

    `of_lines` makes them from the pixels of lines, [lines, n] -> [lines, n - 2 * reach + 1]: for
    the pairs that have `reach` pixels on either side. The others get `fill`.
    """
    result = np.full((2, *values.shape), fill)
    for target, lines in ((result[0], values), (result[1].T, values.T)):
        if lines.shape[1] >= 2 * reach:
            target[:, reach - 1 : lines.shape[1] - reach] = of_lines(lines)
    return result


def depth_steps(
    depth: Float[np.ndarray, "h w"], reach: int = STEP_REACH
) -> Float[np.ndarray, "2 h w"]:
    """How far a depth map jumps between neighbouring pixels, beyond its slope.

    On either side of the border between two pixels, along the row or the column, a line is fitted
    to the inverse depth of `reach` pixels, and both are continued to the border. Inverse depth is
    linear in the image on any plane, so that a plane has no step however it is seen. What has steps
    everywhere is rough.

    Args:
        depth: camera z, 0 = nothing.
        reach: pixels of a line.
    Returns:
        The steps as fractions of the depth, each at least 0: [0] from a pixel to the next of its
        row, [1] to the next of its column; NaN where there are not `reach` pixels with depth on
        either side.
    """

    def steps(inverse):
        before = _line_ends(inverse, reach)[:, :-reach]
        after = _line_ends(inverse[:, ::-1], reach)[:, ::-1][:, reach:]
        middle = 0.5 * (before + after)
        return np.abs(before - after) / np.where(
            middle > 0, middle, np.nan
        )  # rough lines can end behind the camera

    has_depth = depth > 0
    return _of_pairs(
        steps,
        np.where(has_depth, 1 / np.where(has_depth, depth, 1).astype(np.float64), np.nan),
        reach,
        np.nan,
    )


def label_borders(
    labels: Int[np.ndarray, "h w"], reach: int = STEP_REACH
) -> tuple[Bool[np.ndarray, "2 h w"], Bool[np.ndarray, "2 h w"]]:
    """Where neighbouring pixels have different labels, and where they lie within one.

    Args:
        labels: of pixels.
        reach: so many pixels on either side must be of one label each.
    Returns:
        (is_border, is_within) of the pairs of pixels of `depth_steps`.
    """

    def is_one_each(lines):
        is_one = _are_equal(lines, reach)
        return is_one[:, :-reach] & is_one[:, reach:]

    is_same = _of_pairs(lambda lines: _are_equal(lines, 2 * reach), labels, reach, False)
    return _of_pairs(is_one_each, labels, reach, False) & ~is_same, is_same
