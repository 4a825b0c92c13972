"""The map of the blocks: well-formed, with everything where it should be."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest
from test_partition import cut, skewed_input

from cosurfgs_jax.geometry.cameras import camera_center
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
