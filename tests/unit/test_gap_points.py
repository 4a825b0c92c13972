"""Points where structure from motion found none."""

import numpy as np
import pytest

from cosurfgs_jax.geometry.gap_points import gap_points
from cosurfgs_jax.geometry.views import PointCloud, Views

SIZE = (240, 320)
INTRINSICS = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
HOLE = np.array([3.0, -2.0])  # middle, in the plane
RADIUS = 8.0


def _height(xy):
    """A plane that is not level."""
    return 0.04 * xy[:, 0] - 0.02 * xy[:, 1] + 2.0


def _views(*centers) -> Views:
    """Looking straight down, x right, from 60 above."""
    poses = []
    for x, y in centers:
        pose = np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] = -pose[:3, :3] @ np.array([x, y, 60.0])
        poses.append(pose)
    count = len(poses)
    return Views(np.stack(poses), np.tile(INTRINSICS, (count, 1, 1)), np.tile(SIZE, (count, 1)))


@pytest.fixture(scope="module")
def ground():
    """A plane of points, 2 apart, with a round hole."""
    x, y = np.meshgrid(np.arange(-40, 40, 2.0), np.arange(-30, 30, 2.0))
    xy = np.stack([x.ravel(), y.ravel()], axis=1) + np.random.default_rng(0).uniform(
        -0.4, 0.4, (x.size, 2)
    )
    return xy[np.linalg.norm(xy - HOLE, axis=1) > RADIUS]


def _cloud(xy, heights=None, views_of_point=None) -> PointCloud:
    points = np.concatenate([xy, (_height(xy) if heights is None else heights)[:, None]], axis=1)
    colors = np.stack([100 + xy[:, 0], 100 + xy[:, 1], np.full(len(xy), 7)], axis=1)
    cloud = PointCloud.without_tracks(points, np.round(colors).astype(np.uint8))
    if views_of_point is None:
        return cloud
    offsets = np.concatenate([[0], np.cumsum([len(views) for views in views_of_point])])
    return PointCloud(
        cloud.points, cloud.colors, offsets, np.concatenate(views_of_point).astype(np.int32)
    )


def _fill(cloud, views, most=10_000, chosen=None, used=None):
    chosen = np.arange(len(cloud)) if chosen is None else chosen
    used = np.arange(len(views)) if used is None else np.array(used)
    return gap_points(cloud, chosen, views, used=used, most=most)


def test_a_hole_is_filled_with_points_on_its_plane(ground):
    cloud = _cloud(ground)
    points, colors = _fill(cloud, _views((0, 0)))
    assert 5 < len(points) < 60
    np.testing.assert_allclose(points[:, 2], _height(points[:, :2]), atol=1e-9)
    # Only the hole: everything else is within reach of a point.
    assert (np.linalg.norm(points[:, :2] - HOLE, axis=1) < RADIUS).all()
    # Its middle, too, and on all sides.
    assert np.linalg.norm(points[:, :2] - HOLE, axis=1).min() < 2.5
    np.testing.assert_allclose(points[:, :2].mean(axis=0), HOLE, atol=1.0)
    assert colors.dtype == np.uint8
    np.testing.assert_allclose(colors[:, :2], 100 + points[:, :2], atol=2.0)
    assert (colors[:, 2] == 7).all()


def test_what_one_view_fills_is_no_gap_for_the_next(ground):
    cloud = _cloud(ground)
    one, _ = _fill(cloud, _views((0, 0)))
    two, _ = _fill(cloud, _views((0, 0), (0.3, 0.2)))
    assert len(two) < 1.3 * len(one)
    np.testing.assert_array_equal(two[: len(one)], one)


def test_a_step_of_the_depth_is_not_bridged(ground):
    heights = np.where(ground[:, 0] < HOLE[0], 0.0, 2.0)  # of 60
    cloud = _cloud(ground, heights)
    points, _ = _fill(cloud, _views((0, 0)))
    assert len(points)
    is_low = np.isclose(points[:, 2], 0.0)
    assert (is_low | np.isclose(points[:, 2], 2.0)).all()


def test_a_view_is_filled_by_the_points_that_it_sees(ground):
    half = ground[:, 0] < HOLE[0]
    views = _views((0, 0), (1, 0))
    cloud = _cloud(ground, views_of_point=[[0] if is_left else [0, 1] for is_left in half])
    whole, _ = _fill(cloud, views, used=[0])
    right, _ = _fill(cloud, views, used=[1])
    assert len(whole) > len(right)
    # Nothing left of the points that it sees: there are no triangles.
    assert right[:, 0].min() > ground[~half][:, 0].min()
    # Without tracks it sees all.
    all_seen, _ = _fill(_cloud(ground), views, used=[1])
    assert all_seen[:, 0].min() < right[:, 0].min()


def test_only_chosen_points_count(ground):
    is_right = ground[:, 0] > HOLE[0]
    points, _ = _fill(_cloud(ground), _views((0, 0)), chosen=np.flatnonzero(is_right))
    assert (points[:, 0] > ground[is_right][:, 0].min()).all()


def test_too_many_points_become_fewer_everywhere(ground):
    cloud = _cloud(ground)
    all_points, _ = _fill(cloud, _views((0, 0)))
    most = len(all_points) // 2
    points, colors = _fill(cloud, _views((0, 0)), most=most)
    assert 0 < len(points) <= most
    assert len(colors) == len(points)
    np.testing.assert_allclose(points[:, :2].mean(axis=0), HOLE, atol=2.0)


@pytest.mark.parametrize("count", [0, 3])
def test_views_that_see_hardly_a_point_fill_nothing(ground, count):
    points, colors = _fill(_cloud(ground[:count]), _views((0, 0)))
    assert points.shape == (0, 3)
    assert colors.shape == (0, 3)


def test_a_last_view_that_sees_no_point_fills_nothing(ground):
    cloud = _cloud(ground, views_of_point=[[0]] * len(ground))
    alone, _ = _fill(cloud, _views((0, 0)))
    with_blind, _ = _fill(cloud, _views((0, 0), (1, 0)))
    assert len(alone)
    np.testing.assert_array_equal(with_blind, alone)


def test_points_in_a_line_have_no_triangles():
    line = np.stack([np.arange(-20, 20.0), np.zeros(40)], axis=1)
    points, _ = _fill(_cloud(line, np.zeros(40)), _views((0, 0)))
    assert len(points) == 0


def test_no_room_makes_no_points(ground):
    assert len(_fill(_cloud(ground), _views((0, 0)), most=0)[0]) == 0
