"""What lies in each leaf of a tree over the ground."""

import numpy as np
import pytest

from cosurfgs_jax.geometry import ground_tree


@pytest.mark.parametrize("num_leaves", [3, 2**15 - 1, 2**15, 2**15 + 1, 2**17])
def test_each_leaf_has_the_numbers_of_what_lies_in_it_in_ascending_order(num_leaves):
    last = num_leaves - 1
    leaf = np.array([last, 0, last, 1, 0, last - 1])
    groups = ground_tree.grouped(leaf, num_leaves)
    assert len(groups) == num_leaves
    found = {number: group.tolist() for number, group in enumerate(groups) if group.size}
    expected: dict[int, list[int]] = {}
    for index, number in enumerate(leaf.tolist()):
        expected.setdefault(number, []).append(index)
    assert found == expected
