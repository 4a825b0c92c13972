"""The blocks of a place seen from above."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.partition import Partition
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import drawing, jpeg_url

MAX_POINTS = 3000
_WIDTH = 7.0  # inches
_MARGIN = 0.05  # of the larger side of the content, around it
_ASPECTS = (0.4, 1.4)  # height to width of the map: a long strip would be a line, or a page


def partition_table(
    partition: Partition,
    points_world: Float[np.ndarray, "p d"],
    camera_centers_world: Float[np.ndarray, "v d"],
    is_test: Bool[np.ndarray, " v"],
) -> dict:
    """What `partition_picture` draws, for a JSON file.

    Args:
        partition: of V views.
        points_world: f64[P,3 or 2], world; at most MAX_POINTS of them are kept, by chance but
            always the same.
        camera_centers_world: f64[V,3 or 2], world.
        is_test: bool[V].
    Returns:
        "partition" (see `Partition.to_dict`), "points" and "cameras" as [x, y] in world lengths,
        "is_test".
    """
    num_points = len(points_world)
    kept = np.sort(
        np.random.default_rng(0).choice(num_points, min(num_points, MAX_POINTS), replace=False)
    )
    points, cameras = (
        np.asarray(values, np.float64)[:, :2].round(5)
        for values in (points_world[kept], camera_centers_world)
    )
    return {
        "partition": partition.without_lists().to_dict(),  # it would take 100 MB for a large place
        "points": points.tolist(),
        "cameras": cameras.tolist(),
        "is_test": is_test.tolist(),
    }


def _colors(blocks: np.ndarray) -> np.ndarray:
    """Colours f64[n,3] of blocks i64[n]."""
    from matplotlib.colors import hsv_to_rgb

    # Steps of the golden angle: neighbours in number, which are neighbours in place, differ most.
    hue = 137.508 / 360 * np.asarray(blocks, np.float64) % 1
    return hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), np.full(hue.shape, 0.75)], axis=-1))


def _walls(node, low, high):
    """(ends f64[2,2], a block before the wall, one behind it) of every wall inside a box."""
    if not isinstance(node, tuple):
        return node, []
    axis, wall, left, right = node
    ends = np.array([low, high])
    ends[:, axis] = wall
    first_left, walls_left = _walls(left, low, np.where(np.arange(2) == axis, wall, high))
    first_right, walls_right = _walls(right, np.where(np.arange(2) == axis, wall, low), high)
    return first_left, [(ends, first_left, first_right), *walls_left, *walls_right]


def _frame(partition: Partition, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of the ground that is drawn."""
    low = np.minimum(partition.inner_lows.min(axis=0), cameras.min(axis=0))
    high = np.maximum(partition.inner_highs.max(axis=0), cameras.max(axis=0))
    margin = _MARGIN * (high - low).max()
    low = low - margin
    high = high + margin
    width, height = high - low
    needed = np.array([height / _ASPECTS[1], width * _ASPECTS[0]])
    grow = 0.5 * np.maximum(needed - (high - low), 0)
    return low - grow, high + grow


def partition_picture(table: dict) -> str:
    """A map as HTML: cells, thick walls between edges, points, cameras by home block, one expanded
    cell.

    Args:
        table: what `partition_table` gave.
    Returns:
        A figure, x to the right and y up. Cells are cut off at the picture's rim.
    Raises:
        InputError: the partition in the table is none, or of another format number.
    """
    partition = Partition.from_dict(table["partition"])
    low, high = _frame(partition, _places(table, "cameras"))
    width, height = high - low
    with drawing((_WIDTH, _WIDTH * height / width)) as figure:
        draw_partition(figure, partition, table)
        url = jpeg_url(figure)
    blocks = _count(partition.num_blocks, "block")
    words = [f"{blocks} in {_count(partition.num_edges, 'edge')}, from above"]
    words.append("dots: training cameras; rings: test cameras; colour: the block where they stand")
    if partition.num_blocks > 1:
        words.append("thick: between edges; dashed: the expanded cell of one block")
    return page.figure(url, "; ".join(words))


def _places(table: dict, name: str) -> np.ndarray:
    """Points or cameras of a table, f64[n,2]."""
    return np.array(table[name], np.float64).reshape(-1, 2)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def draw_partition(figure: Any, partition: Partition, table: dict) -> None:
    """Draws the map into an empty figure.

    Args:
        figure: of `charts.drawing`.
        partition: the table's.
        table: what `partition_table` gave.
    """
    points = _places(table, "points")
    cameras = _places(table, "cameras")
    low, high = _frame(partition, cameras)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(True)
    axes.scatter(*points.T, s=3, c=_colors(partition.cell_of(points)), alpha=0.35, linewidths=0)
    for ends, before, behind in _walls(partition.nodes, low, high)[1]:
        is_thick = partition.edge_of_block[before] != partition.edge_of_block[behind]
        axes.plot(*ends.T, color="black", linewidth=3 if is_thick else 1)
    _draw_expanded(axes, partition)
    colors = _colors(partition.home)
    is_test = np.array(table["is_test"], bool)
    axes.scatter(*cameras[~is_test].T, s=16, c=colors[~is_test], linewidths=0)
    rings = axes.scatter(*cameras[is_test].T, s=16, edgecolors=colors[is_test])
    rings.set_facecolor("white")
    for block, middle in enumerate(0.5 * (partition.inner_lows + partition.inner_highs)):
        number = axes.annotate(str(block), middle, ha="center", va="center", clip_on=True)
        number.set(fontsize=15, fontweight="bold")


def _draw_expanded(axes: Any, partition: Partition) -> None:
    """As an example the expanded cell that has the most walls."""
    from matplotlib.patches import Rectangle

    num_walls = np.isfinite([partition.lows, partition.highs]).sum(axis=(0, 2))
    block = int(np.argmax(num_walls))
    if not num_walls[block]:
        return
    margin = partition.expansion * (partition.inner_highs - partition.inner_lows)[block]
    # Outer cells have no end: theirs is the picture's.
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low = np.maximum(partition.lows[block] - margin, [left, bottom])
    width, height = np.minimum(partition.highs[block] + margin, [right, top]) - low
    color = _colors(np.array(block))
    axes.add_patch(
        Rectangle(low, width, height, fill=False, edgecolor=color, linewidth=2, linestyle="--")
    )
