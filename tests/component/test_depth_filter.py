"""Which rendered depth is trusted: ranges, neighbours, confirmations, edge-on views."""

import numpy as np
import pytest
from depth_views import FAR, HEIGHT, INTRINSICS, WIDTH, look_at, plane_view, rays, views_of

from cosurfgs_jax.geometry.view_pairs import choose_neighbors
from cosurfgs_jax.geometry.views import PointCloud
from cosurfgs_jax.surface import depth_filter


def witnesses(geometry) -> list[depth_filter.Witness]:
    """Of (depth, intrinsics, pose) each."""
    return [
        depth_filter.Witness(lambda depth=depth: depth, depth.shape, intrinsics, pose)
        for depth, intrinsics, pose in geometry
    ]


def test_depth_limits_follow_tracks_or_projection():
    generator = np.random.default_rng(0)
    near = np.concatenate(
        [generator.uniform(-1, 1, (200, 2)), generator.uniform(4, 6, (200, 1))], axis=1
    )
    behind_wall = near + np.array([0, 0, 30.0])
    points = np.concatenate([near, behind_wall])
    views = views_of(np.tile(np.eye(4), (2, 1, 1)))
    projected = depth_filter.seen_depths(PointCloud.without_tracks(points), views)
    assert projected[0].max() > 30
    offsets = np.concatenate(
        [np.arange(201), np.full(200, 200)]
    )  # the first 200 points are tracked by view 0 only
    cloud = PointCloud(points, np.zeros((400, 3), np.uint8), offsets, np.zeros(200, np.int32))
    tracked = depth_filter.seen_depths(cloud, views)
    assert tracked[0].max() < 6.1 and len(tracked[0]) > 150
    assert tracked[1].max() > 30  # without tracks: by projection
    limits = depth_filter.depth_limits([tracked[0], np.zeros(0)], margin=1.5)
    assert limits[0] == pytest.approx([4 / 1.5, 6 * 1.5], rel=0.03)
    assert np.array_equal(limits[0], limits[1])  # a view that sees nothing takes everybody's


def test_neighbors_look_the_same_way_from_elsewhere():
    centers = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0.001, 0, 0], [1, 1, 0.0]])
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, :3, 3] = -centers
    turn = np.diag([-1.0, 1.0, -1.0])  # the last one looks back
    poses[4, :3, :3] = turn
    poses[4, :3, 3] = -turn @ centers[4]
    neighbors = choose_neighbors(views_of(poses), num_neighbors=2)
    assert neighbors[0].tolist() == [1, 2]  # not 3: almost the same place
    assert neighbors[2].tolist() == [1, 3]
    assert neighbors[4].tolist() == []
    assert choose_neighbors(views_of(poses[:1]))[0].size == 0


def test_consistent_depth_is_confirmed_and_wrong_depth_is_not():
    normal = np.array([0.2, 0.1, 1.0])
    views = []
    for x in (0.0, 0.4, -0.4):
        views.append(
            plane_view(look_at(FAR + np.array([x, 0.1 * x, -5.0]), FAR), normal, FAR @ normal)
        )
    geometry = [(view.depth, view.intrinsics, view.camera_from_dataset) for view in views]
    wrong = views[0].depth.copy()
    wrong[40:50, 60:70] *= 1.1
    count, possible = depth_filter.count_confirmations(
        wrong, *geometry[0][1:], witnesses(geometry[1:])
    )
    inner = (slice(20, 76), slice(25, 103))
    expected = np.full((HEIGHT, WIDTH), 2)
    expected[40:50, 60:70] = 0
    assert np.array_equal(count[inner], expected[inner])
    assert np.array_equal(
        possible[inner], expected[inner]
    )  # what lies behind the neighbours' surface, they could not confirm
    filtered, counts = depth_filter.filter_multi_view(
        wrong, *geometry[0][1:], witnesses(geometry[1:])
    )
    assert (filtered[40:50, 60:70] == 0).all() and counts["unconfirmed"] >= 100
    assert counts["kept"] == (filtered > 0).sum()
    alone, counts = depth_filter.filter_multi_view(wrong, *geometry[0][1:], [])
    assert counts["kept"] == 0  # nobody can confirm it
    kept, _ = depth_filter.filter_multi_view(wrong, *geometry[0][1:], [], min_neighbor_views=0)
    assert np.array_equal(kept, wrong)


def test_pixels_with_enough_confirmations_are_not_asked_about_again_and_nothing_changes():
    rng = np.random.default_rng(0)
    normal = np.array([0.1, 0.1, 1.0])
    geometry = []
    for x in (0.0, 0.3, -0.4, 0.5, -0.6, 0.7):
        view = plane_view(look_at(FAR + np.array([x, 0.3 * x, -5.0]), FAR), normal, FAR @ normal)
        depth = np.where(rng.uniform(size=view.depth.shape) < 0.97, view.depth, 0)
        depth[
            (rng.uniform(size=(HEIGHT // 4, WIDTH // 4)) < 0.4).repeat(4, axis=0).repeat(4, axis=1)
        ] *= 1.2
        geometry.append((depth.astype(np.float32), view.intrinsics, view.camera_from_dataset))
    count, possible = depth_filter.count_confirmations(*geometry[0], witnesses(geometry[1:]))
    fewer, fewer_possible = depth_filter.count_confirmations(
        *geometry[0], witnesses(geometry[1:]), enough=2
    )
    assert (
        (fewer < count).any()
        and (fewer >= np.minimum(count, 2)).all()
        and (fewer_possible <= possible).all()
    )
    for least in (1, 2, 3):
        kept, _ = depth_filter.filter_multi_view(
            *geometry[0], witnesses(geometry[1:]), min_neighbor_views=least
        )
        assert np.array_equal(
            kept > 0, (geometry[0][0] > 0) & (count >= np.clip(possible, 1, least))
        )
        assert 0.2 < (kept > 0).mean() < 0.9


def test_the_sizes_of_calls_do_not_matter(monkeypatch):
    normal = np.array([0.1, 0.1, 1.0])
    geometry = []
    for x in (0.0, 0.3, -0.4):
        view = plane_view(look_at(FAR + np.array([x, 0.3 * x, -5.0]), FAR), normal, FAR @ normal)
        geometry.append((view.depth, view.intrinsics, view.camera_from_dataset))
    expected = depth_filter.count_confirmations(*geometry[0], witnesses(geometry[1:]))
    assert len(np.unique(expected[0])) == 3
    monkeypatch.setattr(depth_filter, "_LARGE_CALL", 3000)
    monkeypatch.setattr(depth_filter, "_SMALL_CALL", 700)
    found = depth_filter.count_confirmations(*geometry[0], witnesses(geometry[1:]))
    assert np.array_equal(found, expected)


def test_one_confirmation_is_enough_where_one_neighbour_looks():
    """Two views of a plane, and a third that shows its left half only: the right half is confirmed
    by one, floaters by none.
    """
    normal = np.array([0.0, 0.1, 1.0])
    views = [
        plane_view(look_at(FAR + np.array([x, 0, -5.0]), FAR), normal, FAR @ normal)
        for x in (0.0, 0.4, -0.4)
    ]
    geometry = [(view.depth.copy(), view.intrinsics, view.camera_from_dataset) for view in views]
    geometry[2][0][:, WIDTH // 2 :] = 0
    own = geometry[0][0]
    right = (slice(20, 76), slice(90, 103))
    left = (slice(20, 76), slice(25, 40))
    own[30:40, 92:98] *= 0.9  # before the surface: one neighbour could confirm it, and does not
    own[30:40, 30:36] *= 0.9
    count, possible = depth_filter.count_confirmations(*geometry[0], witnesses(geometry[1:]))
    assert (possible[right] == 1).all() and (possible[left] == 2).all()
    kept, _ = depth_filter.filter_multi_view(*geometry[0], witnesses(geometry[1:]))
    is_floater = np.zeros(own.shape, bool)
    is_floater[30:40, 92:98] = is_floater[30:40, 30:36] = True
    for part in (left, right):
        assert np.array_equal(kept[part] > 0, ~is_floater[part])
    geometry[2][0][:] = (
        views[2].depth * 1.1
    )  # where a second neighbour sees farther, one is not enough
    kept, _ = depth_filter.filter_multi_view(*geometry[0], witnesses(geometry[1:]))
    assert not kept[right].any()


def test_what_the_nearest_do_not_show_a_farther_neighbour_confirms():
    """Cameras before a plane, the nearest to the left: the right rim of the picture is in that of
    the last one alone.
    """
    offsets = (0.0, -1.6, -2.0, -2.4, 2.0)
    normal = np.array([0.0, 0.0, 1.0])
    views = []
    for x in offsets:
        pose = np.eye(4)
        pose[:3, 3] = -(FAR + np.array([x, 0, -5.0]))
        views.append(plane_view(pose, normal, FAR @ normal))
    geometry = [(view.depth, view.intrinsics, view.camera_from_dataset) for view in views]
    loaded = []

    def neighbor(number):
        def load():
            loaded.append(number)
            return geometry[number][0]

        return depth_filter.Witness(load, (HEIGHT, WIDTH), *geometry[number][1:])

    others = [neighbor(number) for number in range(1, len(offsets))]
    rim = (slice(20, 76), slice(WIDTH - 8, WIDTH - 4))
    nearest, _ = depth_filter.count_confirmations(*geometry[0], others[:3])
    assert not nearest[rim].any()
    count, _ = depth_filter.count_confirmations(*geometry[0], others, max_asked=2)
    assert (count[rim] == 1).all()
    left = (slice(20, 76), slice(4, 8))
    assert (count[left] == 2).all() and (nearest[left] == 3).all()
    loaded.clear()
    only_rim = np.zeros_like(geometry[0][0])
    only_rim[rim] = geometry[0][0][rim]
    count, possible = depth_filter.count_confirmations(only_rim, *geometry[0][1:], others)
    assert loaded == [4] and (count[rim] == 1).all() and (possible[rim] == 1).all()


def test_neighbours_beside_the_open_pixels_are_not_asked_and_nothing_changes(monkeypatch):
    rng = np.random.default_rng(4)
    normal = np.array([0.1, -0.1, 1.0])
    geometry = []
    for x, y, turn in rng.uniform(-6, 6, (24, 3)):
        eye = FAR + np.array([x, y, -5.0])
        pose = look_at(eye, eye + np.array([0.1 * turn, 0.05 * turn, 5.0]))
        view = plane_view(pose, normal, FAR @ normal)
        geometry.append((view.depth, view.intrinsics, view.camera_from_dataset))
    own, intrinsics, pose = geometry[0]
    own = np.where(rng.uniform(size=own.shape) < 0.3, own, 0)
    own[:, : WIDTH // 2] = 0
    asked = witnesses(geometry[1:])
    found = depth_filter.count_confirmations(own, intrinsics, pose, asked, max_asked=4)
    judged = []
    beside = depth_filter._is_beside
    monkeypatch.setattr(
        depth_filter, "_is_beside", lambda *given: judged.append(beside(*given)) or False
    )
    expected = depth_filter.count_confirmations(own, intrinsics, pose, asked, max_asked=4)
    assert np.array_equal(found, expected) and (expected[0] > 0).any()
    assert 3 < sum(judged) < len(judged) - 3


def test_confirmation_is_within_a_pixel_not_two():
    """A depth error that moves the point by a known number of pixels in the neighbour and back."""
    poses = [np.eye(4), np.eye(4)]
    poses[1][0, 3] = -0.5  # half a unit to the right
    depth = np.full((HEIGHT, WIDTH), 5.0, np.float32)
    for shift_px, is_confirmed in ((0.8, True), (1.2, False)):
        # Disparity is focal * baseline / depth; the neighbour's depth decides where the point comes
        # back to.
        disparity = INTRINSICS[0, 0] * 0.5 / 5.0 + shift_px
        neighbor = np.full((HEIGHT, WIDTH), INTRINSICS[0, 0] * 0.5 / disparity, np.float32)
        count, _ = depth_filter.count_confirmations(
            depth,
            INTRINSICS,
            poses[0],
            witnesses([(neighbor, INTRINSICS, poses[1])]),
            max_relative_depth=0.5,
        )
        assert (count[30:60, 40:90] == is_confirmed).all()


def test_exact_depth_is_confirmed_to_a_hundredth_of_a_pixel():
    """Reading the neighbour half a pixel beside would cost 0.1 to 0.2 pixels on these slopes."""
    for normal in (np.array([0.7, 0.1, 0.7]), np.array([0.1, -0.6, 0.8])):
        views = [
            plane_view(look_at(np.array([x, y, -5.0]), np.zeros(3), up=(0, -1.0, 0)), normal, 0.0)
            for x, y in ((0.0, 0.0), (-1.2, 0.3), (0.3, 1.2))
        ]
        geometry = [(view.depth, view.intrinsics, view.camera_from_dataset) for view in views]
        count, _ = depth_filter.count_confirmations(
            *geometry[0], witnesses(geometry[1:]), max_pixels=0.01
        )
        assert (count[30:66, 45:83] == 2).all()


def test_grazing_and_invalid_depth_is_dropped_and_counted():
    normal = np.array([np.sin(1.35), 0, np.cos(1.35)])
    view = plane_view(np.eye(4), normal, 1.0)
    angle = np.degrees(np.arccos(np.abs(rays() @ normal) / np.linalg.norm(rays(), axis=-1)))
    depth = view.depth.copy()
    depth[:4] = np.nan
    expected = (view.depth > 0) & (angle <= 75)
    expected[:4] = False
    for normal_map in (np.broadcast_to(-normal * 0.6, (HEIGHT, WIDTH, 3)), None):
        filtered, counts = depth_filter.filter_single_view(
            depth, normal_map, INTRINSICS, np.eye(4), max_angle_deg=75
        )
        inner = (slice(8, -1), slice(1, -1))
        if normal_map is not None:
            assert np.array_equal(filtered > 0, expected)
        assert ((filtered > 0) == expected)[inner].mean() > 0.97
        num_dropped = sum(counts[key] for key in ("invalid", "out_of_range", "grazing"))
        assert num_dropped + (filtered > 0).sum() == counts["pixels"]
        assert 0 < counts["grazing"] < counts["pixels"]
