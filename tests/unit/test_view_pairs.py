"""Which views are neighbours, at the limits of angle, distance and number."""

import numpy as np
import pytest

from cosurfgs_jax.geometry.view_pairs import choose_neighbors
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
