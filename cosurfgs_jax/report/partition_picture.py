"""The blocks of a place seen from above, as inline SVG."""

import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.partition import Partition

MAX_POINTS = 3000
_WIDTH = 420
_TOP = 30
_BOTTOM = 44
_PAD = 12
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


def _color(block: int) -> str:
    # Steps of the golden angle: neighbours in number, which are neighbours in place, differ most.
    return f"hsl({137.508 * block % 360:.0f} 60% 48%)"


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
    """An SVG map: cells, thick walls between edges, points, cameras by home block, one expanded
    cell.

    Args:
        table: what `partition_table` gave.
    Returns:
        SVG text, x to the right and y up. Cells are cut off at the picture's rim.
    Raises:
        InputError: the partition in the table is none, or of another format number.
    """
    partition = Partition.from_dict(table["partition"])
    points, cameras = (
        np.array(table[name], np.float64).reshape(-1, 2) for name in ("points", "cameras")
    )
    low, high = _frame(partition, cameras)
    scale = (_WIDTH - 2 * _PAD) / (high - low)[0]
    map_height = scale * (high - low)[1]

    def place(ground):
        x, y = ((np.clip(ground, low, high) - low) * scale).T
        return np.stack([_PAD + x, _TOP + map_height - y], axis=-1)

    blocks = _count(partition.num_blocks, "block")
    edges = _count(partition.num_edges, "edge")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_TOP + map_height + _BOTTOM:.0f}" role="img" class="chart">',
        f'<text x="{_PAD}" y="20" class="title">{blocks} in {edges}, from above</text>',
    ]
    parts += _draw_points(
        partition, points[((points >= low) & (points <= high)).all(axis=1)], place
    )
    parts += _draw_cells(partition, low, high, place)
    for (x, y), home, is_test in zip(
        place(cameras), partition.home.tolist(), table["is_test"], strict=True
    ):
        fill = f'fill="{_color(home)}" stroke="none"'
        if is_test:
            fill = f'fill="none" stroke="{_color(home)}"'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" {fill} class="camera"/>')
    for block, (x, y) in enumerate(place(0.5 * (partition.inner_lows + partition.inner_highs))):
        parts.append(
            f'<text x="{x:.1f}" y="{y + 5:.1f}" class="title number" '
            f'text-anchor="middle">{block}</text>'
        )
    words = ["dots: training cameras; rings: test cameras; colour: the block where they stand"]
    if partition.num_blocks > 1:
        words.append("thick: between edges; dashed: the expanded cell of one block")
    for line, text in enumerate(words):
        parts.append(
            f'<text x="{_PAD}" y="{_TOP + map_height + 18 + 15 * line:.0f}" '
            f'class="tick">{text}</text>'
        )
    return "".join(parts) + "</svg>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _draw_points(partition, points, place) -> list[str]:
    """One path a block: 3000 elements would make the page slow and large."""
    cells = partition.cell_of(points)
    places = place(points)
    parts = []
    for block in np.unique(cells).tolist():
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places[cells == block])
        parts.append(
            f'<path d="{dots}" stroke="{_color(block)}" stroke-opacity="0.35" stroke-width="1.5" '
            'stroke-linecap="round" fill="none" class="points"/>'
        )
    return parts


def _draw_cells(partition, low, high, place) -> list[str]:
    """The rim, the walls, and as an example the expanded cell that has the most walls."""
    (x0, y1), (x1, y0) = place(np.array([low, high]))
    parts = [
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
        'class="grid" fill="none"/>'
    ]
    for ends, before, behind in _walls(partition.nodes, low, high)[1]:
        (x0, y0), (x1, y1) = place(ends)
        width = 1
        kind = "wall"
        if partition.edge_of_block[before] != partition.edge_of_block[behind]:
            width = 3
            kind = "edge-wall"
        parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="currentColor" '
            f'stroke-width="{width}" class="{kind}"/>'
        )
    num_walls = np.isfinite([partition.lows, partition.highs]).sum(axis=(0, 2))
    block = int(np.argmax(num_walls))
    if num_walls[block]:
        margin = partition.expansion * (partition.inner_highs - partition.inner_lows)[block]
        (x0, y1), (x1, y0) = place(
            np.array([partition.lows[block] - margin, partition.highs[block] + margin])
        )
        parts.append(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
            'fill="none" '
            f'stroke="{_color(block)}" stroke-width="1.5" stroke-dasharray="5 4" class="expanded"/>'
        )
    return parts
