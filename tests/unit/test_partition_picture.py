"""The map of the blocks: well-formed, with everything where it should be."""

import dataclasses
import json
import xml.etree.ElementTree

import numpy as np
import pytest
from scipy.sparse import csr_array
from test_partition import cut, skewed_input

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.partition import build
from cosurfgs_jax.report.partition_picture import MAX_POINTS, partition_picture, partition_table


def drawn(num_blocks, num_edges):
    given = skewed_input()
    partition = cut(given, num_blocks, num_edges)
    centers = camera_center(given["camera_from_world"])
    is_test = ~np.isin(np.arange(len(centers)), given["train_views"])
    table = json.loads(
        json.dumps(partition_table(partition, given["points_world"], centers, is_test))
    )
    return partition, table, xml.etree.ElementTree.fromstring(partition_picture(table))


def of_class(root, name):
    return [item for item in root.iter() if name in item.get("class", "").split()]


@pytest.mark.parametrize("num_blocks, num_edges", [(1, 1), (2, 1), (6, 2), (7, 3)])
def test_the_picture_has_all_parts(num_blocks, num_edges):
    partition, table, root = drawn(num_blocks, num_edges)
    assert len(table["points"]) == MAX_POINTS
    assert len(of_class(root, "edge-wall")) == num_edges - 1
    assert len(of_class(root, "wall")) == num_blocks - num_edges
    assert len(of_class(root, "camera")) == 60
    assert sum(item.get("fill") == "none" for item in of_class(root, "camera")) == 8
    assert [item.text for item in of_class(root, "number")] == [
        str(block) for block in range(num_blocks)
    ]
    assert len(of_class(root, "expanded")) == (num_blocks > 1)
    assert sum(item.get("d").count("M") for item in of_class(root, "points")) > 0.95 * MAX_POINTS
    assert all(
        "nan" not in value and "inf" not in value
        for item in root.iter()
        for value in item.attrib.values()
    )
    width, height = map(float, root.get("viewBox").split()[2:])
    for item in of_class(root, "camera"):
        assert 0 < float(item.get("cx")) < width and 0 < float(item.get("cy")) < height


def test_x_is_to_the_right_and_y_is_up():
    partition, table, root = drawn(6, 2)
    numbers = np.array(
        [[float(item.get("x")), -float(item.get("y"))] for item in of_class(root, "number")]
    )
    middles = 0.5 * (partition.inner_lows + partition.inner_highs)
    scale = np.polyfit(middles[:, 0], numbers[:, 0], 1)[0]
    offset = numbers[0] - scale * middles[0]
    assert scale > 0
    np.testing.assert_allclose(numbers, scale * middles + offset, atol=0.2)


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
    return xml.etree.ElementTree.fromstring(partition_picture(json.loads(json.dumps(table))))


def numbers_of(item, names):
    return [float(item.get(name)) for name in names.split()]


@pytest.mark.parametrize("edges, kind, thickness", [([0, 1], "edge-wall", 3), ([0, 0], "wall", 1)])
def test_a_map_to_the_pixel(edges, kind, thickness):
    """110 x 70 with its margins, 396 pixels wide: 3.6 pixels each."""
    root = two_cells(100.0, 60.0, edges)
    assert root.get("viewBox") == "0 0 420 326"
    (wall,) = of_class(root, kind)
    assert numbers_of(wall, "x1 y1 x2 y2 stroke-width") == [174, 282, 174, 30, thickness]
    (rim,) = of_class(root, "grid")
    assert numbers_of(rim, "x y width height") == [12, 30, 396, 252]
    first, second = of_class(root, "camera")
    assert numbers_of(first, "cx cy r") == [66, 228, 2.4]
    assert numbers_of(second, "cx cy r") == [354, 84, 2.4]
    assert first.get("fill") == "hsl(0 60% 48%)" and second.get("stroke") == "hsl(138 60% 48%)"
    assert [numbers_of(item, "x y") for item in of_class(root, "number")] == [
        [102, 161], [282, 161]
    ]  # fmt: skip
    (expanded,) = of_class(root, "expanded")
    assert numbers_of(expanded, "x y width height") == [12, 30, 190.8, 252]
    assert expanded.get("stroke") == "hsl(0 60% 48%)"
    title, *words = [item for item in root if item.tag == "text" and not of_class(item, "number")]
    assert title.text == f"2 blocks in {max(edges) + 1} edge{'s' * max(edges)}, from above"
    assert [numbers_of(item, "x y") for item in words] == [[12, 300], [12, 315]]


@pytest.mark.parametrize("width, height, pixels", [(100, 1, 232), (1, 100, 628)])
def test_a_long_strip_is_no_line_and_no_page(width, height, pixels):
    """From 0.4 to 1.4 times as high as wide."""
    assert two_cells(float(width), float(height), [0, 0]).get("viewBox") == f"0 0 420 {pixels}"
