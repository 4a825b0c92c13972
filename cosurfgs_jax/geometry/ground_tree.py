"""A kd-tree on the ground plane: nested (axis, wall, left, right), with anything at the leaves."""

import logging
from collections.abc import Callable

import numpy as np

_log = logging.getLogger(__name__)


def numbered(node, numbers):
    """A tree, also as lists, as tuples with consecutive numbers of an iterator at its leaves."""
    if not isinstance(node, list | tuple):
        return next(numbers)
    axis, wall, left, right = node
    return int(axis), float(wall), numbered(left, numbers), numbered(right, numbers)


def leaves(nodes) -> tuple[list[int], np.ndarray, np.ndarray]:
    """What is at the leaves, from left to right, and the cells' corners f64[B,2]."""
    found = []

    def walk(node, low, high):
        if not isinstance(node, tuple):
            found.append((node, low, high))
            return
        axis, wall, left, right = node
        walk(left, low, np.where(np.arange(2) == axis, wall, high))
        walk(right, np.where(np.arange(2) == axis, wall, low), high)

    walk(nodes, np.full(2, -np.inf), np.full(2, np.inf))
    names, lows, highs = zip(*found, strict=True)
    return list(names), np.array(lows), np.array(highs)


def locate(node, ground):
    """The leaf of each point on the ground: f64[n,2] -> i64[n]."""
    if not isinstance(node, tuple):
        return np.full(len(ground), node, np.int64)
    axis, wall, left, right = node
    is_left = ground[:, axis] < wall
    found = np.empty(len(ground), np.int64)
    found[is_left] = locate(left, ground[is_left])
    found[~is_left] = locate(right, ground[~is_left])
    return found


def _first_leaf(node) -> int:
    while isinstance(node, tuple):
        node = node[2]
    return node


def spread(
    nodes: tuple | int,
    lows: np.ndarray,
    highs: np.ndarray,
    members: np.ndarray,
    is_near: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> list[np.ndarray]:
    """What is near the box of each leaf, found from the root down: what is far from all boxes of a
    branch is compared with none of them.

    Args:
        nodes: B leaves, numbered.
        lows, highs: f64[B,d], the corners of the leaves' boxes, which may overlap.
        members: i64[n], numbers of points, views or anything else.
        is_near: (low f64[d], high f64[d], members i64[k]) -> bool[k]; true for a box that holds one
            for which it is true.
    Returns:
        B arrays, in the order of `members`.
    """
    found: list[np.ndarray] = []

    def walk(node, members, after):
        first = _first_leaf(node)
        low = lows[first:after].min(axis=0)
        high = highs[first:after].max(axis=0)
        members = members[is_near(low, high, members)]
        if not isinstance(node, tuple):
            found.append(members)
            return
        walk(node[2], members, _first_leaf(node[3]))
        walk(node[3], members, after)

    walk(nodes, members, len(lows))
    return found


def grouped(leaf: np.ndarray, num_leaves: int) -> list[np.ndarray]:
    """The numbers of what lies in each leaf: i64[n] of `locate` -> B ascending arrays."""
    if num_leaves < 2**15:
        leaf = leaf.astype(np.int16)  # which NumPy sorts in linear time
    order = np.argsort(leaf, kind="stable")
    return np.split(order, np.searchsorted(leaf[order], np.arange(1, num_leaves)))


def near_first(node, ground):
    """The leaves as rays from each point on the ground meet them: f64[n,2] -> i64[n,B]."""
    if not isinstance(node, tuple):
        return np.full((len(ground), 1), node, np.int64)
    axis, wall, left, right = node
    left = near_first(left, ground)
    right = near_first(right, ground)
    is_left = ground[:, axis, None] < wall
    return np.where(
        is_left, np.concatenate([left, right], axis=1), np.concatenate([right, left], axis=1)
    )


def _wall(positions, weights, fraction) -> float | None:
    """Midway between the neighbouring positions that divide the weight best; None if all positions
    are the same.
    """
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    below = np.cumsum(weights[order])
    gaps = np.flatnonzero(np.diff(positions) > 0)
    if not gaps.size:
        return None
    gap = gaps[np.argmin(np.abs(below[gaps] - fraction * below[-1]))]
    return float(0.5 * (positions[gap] + positions[gap + 1]))


def cut(ground, weights, low, high, groups):
    """The tree of a cell: `groups` are (edge, number of its blocks here), `weights` work at
    `ground`; its leaves are edges.
    """
    total = sum(count for _, count in groups)
    if total == 1:
        return groups[0][0]
    if len(groups) > 1:
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    else:
        ((edge, count),) = groups
        halves = [(edge, count // 2)], [(edge, count - count // 2)]
    fraction = sum(count for _, count in halves[0]) / total
    for axis in np.argsort(low - high, kind="stable").tolist():
        wall = _wall(ground[:, axis], weights, fraction)
        if wall is not None:
            break
    else:
        _log.warning(
            "%d blocks were asked for where all points and cameras stand at one place; made one of "
            "them",
            total,
        )
        return groups[0][0]
    is_left = ground[:, axis] < wall
    is_axis = np.arange(2) == axis
    left = cut(ground[is_left], weights[is_left], low, np.where(is_axis, wall, high), halves[0])
    right = cut(ground[~is_left], weights[~is_left], np.where(is_axis, wall, low), high, halves[1])
    return axis, wall, left, right
