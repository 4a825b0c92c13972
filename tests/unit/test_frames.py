"""Ground truth in another frame or unit: what was probably forgotten is said, and a bad surface is
not taken for it.
"""

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.metrics import frames
from cosurfgs_jax.metrics.frames import check_same_frame


def block(num=20_000, seed=0):
    """Points on the faces of a box of 200 x 120 x 40 that stands on the ground, not centred on the
    origin.
    """
    generator = np.random.default_rng(seed)
    points = generator.random((num, 3))
    points[np.arange(num), generator.integers(0, 3, num)] = generator.integers(0, 2, num)
    return points * [200.0, 120, 40] + [30.0, -20, 5]


SURFACE = block()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda p: 1000 * p, "millimetres against metres: 1000 times as large"),
        (lambda p: 100 * p, "centimetres against metres"),
        (lambda p: 3.2808 * p, "feet against metres"),
        (lambda p: 0.3048 * p, "metres against feet"),
        (lambda p: 0.001 * p, "metres against millimetres"),
        (lambda p: p + [400_000.0, 5_600_000, 120], "was an origin subtracted"),
        (lambda p: p + [300.0, 0, 0], "fits after adding \\(-(29|30).*was an origin subtracted"),
        (lambda p: p[:, [0, 2, 1]], "axes seem to be swapped: its \\(x, z, y\\) fits"),
        (lambda p: p * [1, 1, -1.0], "axes seem to be flipped: its \\(x, y, -z\\) fits"),
        (lambda p: 37 * p, "it is 3\\d(\\.\\d+)? times as large"),
    ],
)
def test_the_likely_cause_is_named(change, cause):
    with pytest.raises(
        InputError, match=f"expected the frame and unit of the model, got median .*{cause}"
    ):
        check_same_frame(SURFACE, change(block(seed=1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p,
        lambda p: (
            p + np.random.default_rng(2).normal(0, 3.0, p.shape)
        ),  # noise of 1.5 % of the width
        lambda p: p[p[:, 0] < 90],  # a part of the place
        lambda p: p + [0, 0, 6.0],  # too high by 3 %: an error of the model
        lambda p: np.concatenate(
            [p, np.random.default_rng(3).uniform(-500, 500, (3000, 3))]
        ),  # stray pieces
    ],
)
def test_a_bad_surface_is_scored_and_not_refused(change):
    check_same_frame(change(SURFACE), block(seed=1))


def test_a_scan_of_a_small_part_is_no_mistake():
    generator = np.random.default_rng(1)

    def ground(num, side, center=(0.0, 0.0)):
        xy = generator.uniform(-side / 2, side / 2, (num, 2)) + center
        return np.c_[xy, 2 * np.sin(xy[:, 0] / 7) + np.cos(xy[:, 1] / 5)]

    check_same_frame(ground(200_000, 1000.0), ground(20_000, 80.0, (200.0, 100.0)))


@pytest.mark.parametrize(("num", "asked"), [(900, 900), (9000, 2250)])
def test_distances_are_taken_from_all_points_or_from_two_thousand_at_least(num, asked):
    points = block(num)
    cloud = frames._Cloud(points)
    assert len(cloud.points) == asked
    np.testing.assert_array_equal(cloud.points, points[:: num // asked])


MIDDLE = np.median(SURFACE, axis=0)
SPREAD = np.median(np.linalg.norm(SURFACE - MIDDLE, axis=1))


def about_its_middle(factor, shift=(0.0, 0.0, 0.0)):
    """Ground truth that is so many times as large as the surface, and elsewhere."""
    return (SURFACE - MIDDLE) * factor + MIDDLE + shift


@pytest.mark.parametrize("factor, is_refused", [(9.9, False), (10.1, True), (1 / 9.9, False),
                                                (1 / 10.1, True)])  # fmt: skip
def test_a_place_is_of_another_size_beyond_ten_times(factor, is_refused):
    """Also where it is far from the origin, as map coordinates are."""
    for origin in (0.0, np.array([4e5, 5e6, 100.0])):
        if not is_refused:
            check_same_frame(SURFACE + origin, about_its_middle(factor) + origin)
            continue
        with pytest.raises(InputError, match=f"it is {factor:.4g} times as large"):
            check_same_frame(SURFACE + origin, about_its_middle(factor) + origin)


@pytest.mark.parametrize("fraction, is_refused", [(3.98, False), (4.02, True)])
def test_a_place_is_elsewhere_beyond_four_spreads_of_the_larger(fraction, is_refused):
    truth = about_its_middle(2.0, (0.0, fraction * 2 * SPREAD, 0.0))
    if not is_refused:
        check_same_frame(SURFACE, truth)
        return
    with pytest.raises(InputError, match="the two lie apart"):
        check_same_frame(SURFACE, truth)


@pytest.mark.parametrize("fraction, is_refused", [(0.24, False), (0.26, True)])
def test_a_shift_of_a_quarter_of_the_width_is_a_mistake(fraction, is_refused):
    """Less may be a fault of the model."""
    width = np.ptp(np.percentile(SURFACE[:, 0], [1, 99]))
    truth = SURFACE + fraction * width * np.array([0.6, 0.64, 0.48])
    if not is_refused:
        check_same_frame(SURFACE, truth)
        return
    with pytest.raises(InputError, match="fits after adding"):
        check_same_frame(SURFACE, truth)


@pytest.mark.parametrize(
    "ratio, words",
    [
        (1490, "millimetres against metres"),
        (1510, "it is 1510 times"),
        (670, "millimetres against metres"),
        (660, "it is 660 times"),
        (149, "centimetres against metres"),
        (4.9, "feet against metres"),
        (5.0, "lie apart"),
        (10.0, "lie apart"),
        (10.1, "it is 10.1 times"),
        (0.21, "metres against feet"),
        (0.1, "lie apart"),
        (0.09, "it is 0.09 times"),
    ],
)
def test_a_ratio_of_sizes_in_words(ratio, words):
    assert words in frames._guess(ratio)
