"""The map of the blocks: everything is where it should be."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.sparse import csr_array
from test_partition import cut, skewed_input

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.partition import build
from cosurfgs_jax.report.charts import drawing
from cosurfgs_jax.report.partition_picture import (
    MAX_POINTS,
    draw_partition,
    partition_picture,
    partition_table,
)

pytest.importorskip("matplotlib")


class Drawn:
    """What is on the map of a table."""

    def __init__(self, partition, table):
        with drawing((5, 5)) as figure:
            draw_partition(figure, partition, table)
        (self.axes,) = figure.axes
        self.points, self.cameras, self.rings = self.axes.collections
        self.walls = [(line.get_xydata(), line.get_linewidth()) for line in self.axes.lines]
        self.numbers = {text.get_text(): text.xy for text in self.axes.texts}
        self.expanded = list(self.axes.patches)


def drawn(num_blocks, num_edges):
    given = skewed_input()
    partition = cut(given, num_blocks, num_edges)
    centers = camera_center(given["camera_from_world"])
    is_test = ~np.isin(np.arange(len(centers)), given["train_views"])
    table = json.loads(
        json.dumps(partition_table(partition, given["points_world"], centers, is_test))
    )
    return partition, table, Drawn(partition, table)


@pytest.mark.parametrize("num_blocks, num_edges", [(1, 1), (2, 1), (6, 2), (7, 3)])
def test_the_map_has_all_parts(num_blocks, num_edges):
    partition, table, found = drawn(num_blocks, num_edges)
    assert len(table["points"]) == len(found.points.get_offsets()) == MAX_POINTS
    widths = [width for _, width in found.walls]
    assert widths.count(3) == num_edges - 1 and widths.count(1) == num_blocks - num_edges
    assert len(found.cameras.get_offsets()) == 52 and len(found.rings.get_offsets()) == 8
    assert list(found.numbers) == [str(block) for block in range(num_blocks)]
    assert len(found.expanded) == (num_blocks > 1)
    cameras = np.array(table["cameras"])
    is_test = np.array(table["is_test"])
    assert np.array_equal(found.rings.get_offsets(), cameras[is_test])
    (left, right), (bottom, top) = found.axes.get_xlim(), found.axes.get_ylim()
    assert (cameras > [left, bottom]).all() and (cameras < [right, top]).all()
    assert (right - left) * 0.399 <= top - bottom <= (right - left) * 1.401
    middles = 0.5 * (partition.inner_lows + partition.inner_highs)
    assert np.allclose(list(found.numbers.values()), middles)


def test_what_belongs_to_a_block_has_its_colour():
    partition, _, found = drawn(6, 2)
    colors = found.points.get_facecolors()[:, :3]
    cells = partition.cell_of(np.array(found.points.get_offsets()))
    by_block = {block: np.unique(colors[cells == block], axis=0) for block in range(6)}
    assert all(len(values) == 1 for values in by_block.values())
    assert len(np.unique(np.concatenate(list(by_block.values())), axis=0)) == 6


def test_the_words_below_count_blocks_and_edges():
    _, table, _ = drawn(2, 1)
    text = partition_picture(table)
    assert "2 blocks in 1 edge, from above" in text and "dashed: the expanded cell" in text
    _, table, _ = drawn(1, 1)
    assert "1 block in 1 edge" in partition_picture(table)


def two_cells(width, height, edges):
    """A rectangle from the origin, cut at 40 % of its width, with a camera for training and one
    for testing.
    """
    cells = build._make_cells(
        (0, 0.4 * width, 0, 1),
        np.array(edges),
        (np.zeros(2), np.array([width, height])),
        np.zeros((1, 3)),
        0.2,
    )
    partition = dataclasses.replace(
        cells,
        home=np.array([0, 1]),
        lengths=np.ones(2),
        coverage=csr_array(np.ones((2, 2))),
        views=[np.array([0]), np.array([1])],
        points=[np.zeros(0, int)] * 2,
    )
    cameras = np.array([[0.1 * width, height / 6], [0.9 * width, height / 1.2]])
    table = partition_table(partition, np.zeros((1, 2)), cameras, np.array([False, True]))
    return Drawn(partition, json.loads(json.dumps(table)))


@pytest.mark.parametrize("edges, thickness", [([0, 1], 3), ([0, 0], 1)])
def test_two_cells_and_their_wall(edges, thickness):
    """100 x 60, cut at 40, with 5 % of 100 around it; a cell reaches a fifth of its own width
    beyond its wall.
    """
    found = two_cells(100.0, 60.0, edges)
    assert found.axes.get_xlim() == (-5, 105) and found.axes.get_ylim() == (-5, 65)
    ((wall, width),) = found.walls
    assert np.allclose(wall, [[40, -5], [40, 65]]) and width == thickness
    assert np.allclose(found.cameras.get_offsets(), [[10, 10]])
    assert np.allclose(found.rings.get_offsets(), [[90, 50]])
    assert np.allclose(list(found.numbers.values()), [[20, 30], [70, 30]])
    (expanded,) = found.expanded
    assert np.allclose(expanded.get_bbox().get_points(), [[-5, -5], [48, 65]])


@pytest.mark.parametrize("width, height, aspect", [(100, 1, 0.4), (1, 100, 1.4)])
def test_a_long_strip_is_no_line_and_no_page(width, height, aspect):
    """From 0.4 to 1.4 times as high as wide."""
    axes = two_cells(float(width), float(height), [0, 0]).axes
    assert np.ptp(axes.get_ylim()) == pytest.approx(aspect * np.ptp(axes.get_xlim()))
