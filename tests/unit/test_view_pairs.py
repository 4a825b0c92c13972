"""Which views are neighbours, at the limits of angle, distance and number."""

import numpy as np
import pytest

from cosurfgs_jax.geometry.view_pairs import (
    Onlookers,
    choice_probabilities,
    choose_neighbors,
    cover_pictures,
)
from cosurfgs_jax.geometry.views import Views


def views_at(places, angles_deg=None) -> Views:
    """Cameras on the x axis, that look along z, turned about y."""
    places = np.asarray(places, float)
    angles = np.radians(np.zeros(len(places)) if angles_deg is None else angles_deg)
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    for pose, place, angle in zip(poses, places, angles, strict=True):
        cosine, sine = np.cos(angle), np.sin(angle)
        pose[:3, :3] = [[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]
        pose[:3, 3] = -pose[:3, :3] @ [place, 0, 0]
    intrinsics = np.tile(np.eye(3), (len(places), 1, 1))
    return Views(poses, intrinsics, np.full((len(places), 2), 10))


def neighbors(*given, **choices) -> list[list[int]]:
    return [found.tolist() for found in choose_neighbors(views_at(*given), **choices)]


def test_the_nearest_eight_nearest_first():
    found = neighbors(np.arange(12) * 1.01 ** np.arange(12))
    assert found[0] == [1, 2, 3, 4, 5, 6, 7, 8] and found[11] == [10, 9, 8, 7, 6, 5, 4, 3]
    assert neighbors([0, 1, 3], num_neighbors=1) == [[1], [0], [1]]
    assert neighbors([0.0]) == [[]] and neighbors([0, 1]) == [[1], [0]]


def test_views_look_the_same_way_within_45_degrees():
    assert neighbors([0, 1, 2], [0, 44, -46]) == [[1], [0], []]
    assert neighbors([0, 1], [0, 31], max_axis_angle_deg=30.0) == [[], []]


def test_views_from_one_place_are_no_neighbours():
    """Nearer than a twentieth of the median distance between nearest cameras, which is 1."""
    for gap, is_neighbor in ((0.049, False), (0.051, True)):
        found = neighbors([0, 1, 2, 3, 4, 4 + gap])
        assert (5 in found[4]) == (4 in found[5]) == is_neighbor


@pytest.mark.parametrize(
    "depth, expected",
    [
        (1.9, [1]),  # 1 is far enough away, 2 is too far
        (2.1, [1, 2]),
        (19.0, [1, 2, 3]),
        (21.0, [2, 3]),  # 1 is nearer than a twentieth
        (0.5, [1, 2, 3]),  # none is good: all are taken
        (np.nan, [1, 2, 3]),
    ],
)
def test_neighbours_stand_off_by_a_twentieth_of_the_depth_to_all_of_it(depth, expected):
    assert neighbors([0, 1, 2, 4], depths=np.array([depth] * 4))[0] == expected


def test_onlookers_are_in_reach_nearest_first():
    """A picture of 10 pixels with a focal length of 10 shows 0.71 of the depth to its corner."""
    views = views_at([0.0, 1.0, 2.0, 4.0, 30.0], [0, 0, 0, 80, 0])
    views.intrinsics[:, :2, :2] *= 10
    views.intrinsics[:, :2, 2] = 5
    far = Onlookers(views, np.full(5, 20.0))
    assert far.of(1).tolist() == [0, 2, 4]  # not 3, which is turned away
    near = Onlookers(views, np.full(5, 5.0))
    assert near.of(0).tolist() == [1, 2] and near.of(4).tolist() == []
    good = Onlookers(views, np.full(5, 20.0), depths=np.full(5, 1.5))
    assert good.of(0).tolist() == [1]


def asked_of_all(views, view, reach, depth) -> list[int]:
    """The plain definition of `Onlookers.of`."""
    away = np.linalg.norm(views.centers - views.centers[view], axis=1)
    axes = views.camera_from_dataset[:, 2, :3]
    found = [
        (away[other], other)
        for other in range(len(views))
        if other != view
        and axes[other] @ axes[view] > np.cos(np.radians(75))
        and away[other] <= reach[other] + reach[view]
        and (np.isnan(depth) or 0.05 * depth <= away[other] <= depth)
    ]
    return [other for _, other in sorted(found)]


def test_onlookers_are_those_that_asking_all_views_finds():
    rng = np.random.default_rng(0)
    views = views_at(rng.uniform(0, 100, 120), rng.uniform(-60, 60, 120))
    views.intrinsics[:, :2, :2] *= 10
    views.intrinsics[:, :2, 2] = 5
    farthest = rng.uniform(0.5, 9, 120)
    farthest[[7, 8]] = [np.inf, 60]  # one looks at the horizon
    depths = np.where(rng.random(120) < 0.5, np.nan, farthest)
    onlookers = Onlookers(views, farthest, min_baseline=0.0, depths=depths)
    for view in range(120):
        wanted = asked_of_all(views, view, farthest * np.sqrt(1.5), depths[view])
        assert onlookers.of(view).tolist() == wanted
    assert len(onlookers.of(7)) != len(onlookers.of(9)) > 0


def test_neighbours_are_added_that_show_the_rest_of_a_picture():
    """Cameras 1, 2 and 3 to the right, 6 and 7 to the left; each sees 10 wide at the points."""
    views = views_at([0.0, 1.0, 2.0, 3.0, -6.0, -7.0])
    views.intrinsics[:, :2, :2] *= 10
    views.intrinsics[:, :2, 2] = 5
    wide = np.linspace(-4.5, 4.5, 91)
    seen = [np.stack([x + wide, np.zeros(91), np.full(91, 10.0)], axis=1) for x in range(6)]
    onlookers = Onlookers(views, np.full(6, 10.0))
    near = choose_neighbors(views, 3)
    assert near[0].tolist() == [1, 2, 3]
    covered = cover_pictures(near, seen, onlookers)
    assert covered[0].tolist() == [1, 2, 3, 4]  # 5 shows nothing more of it
    assert cover_pictures([np.array([], int)] * 6, seen, onlookers)[0].tolist() == []
    few = [points[(points[:, 0] > -3.9) | (np.arange(91) < 1)] for points in seen]
    assert cover_pictures(near, few, onlookers)[0].tolist() == [1, 2, 3]


def test_a_neighbour_that_alone_shows_a_part_is_compared_as_often_as_the_part_is_large():
    views = views_at([0.0, -4.0, -4.1, 4.0, 50.0])
    views.intrinsics[:, :2, :2] *= 10
    views.intrinsics[:, :2, 2] = 5
    points = np.stack([np.linspace(-4.5, 4.5, 90), np.zeros(90), np.full(90, 10.0)], axis=1)
    others = np.array([1, 2, 3])
    points = points[np.abs(points[:, 0]) > 1.1]  # what both sides show is left out
    np.testing.assert_allclose(
        choice_probabilities(others, views, points), [0.25, 0.25, 0.5], atol=1e-9
    )
    fewer = points[points[:, 0] < 0]
    np.testing.assert_allclose(choice_probabilities(others, views, fewer)[2], 0.01, rtol=0.02)
    np.testing.assert_allclose(choice_probabilities(others, views, np.zeros((0, 3))), [1 / 3] * 3)
