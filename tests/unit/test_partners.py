"""Which neighbour a view is compared with."""

import numpy as np
import pytest

from cosurfgs_jax.training.partners import Partners


@pytest.mark.parametrize(
    "random, chosen", [(0.0, 7), (0.49, 7), (0.5, 3), (0.74, 3), (0.75, 9), (0.999999, 9)]
)
def test_partners_are_chosen_as_often_as_their_shares(random, chosen):
    partners = Partners(np.array([7, 3, 9]), np.array([0.5, 0.75, 1 - 1e-9]))
    assert partners.choose(random) == chosen


def test_a_sum_below_one_leaves_no_gap_and_no_neighbours_give_none():
    assert Partners(np.array([7, 3]), np.array([0.5, 0.99])).choose(0.995) == 3
    assert Partners(np.zeros(0, int), np.zeros(0)).choose(0.5) is None
