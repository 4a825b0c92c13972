"""The partition of a place: cells, balance, order, membership, merging and the way to a file and
back.
"""

import dataclasses
import functools
import json
import logging
import re

import numpy as np
import pytest
from scenes import town_scene

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.airspace import box_coverage, cameras_in_world, may_show
from cosurfgs_jax.geometry.cameras import camera_center, pixel_rays, project
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.partition import Partition, build, build_partition
from cosurfgs_jax.settings import GeneratedSettings, PartitionSettings

# Of inputs that are in the world already.
IN_WORLD = SceneFrame(1.0, np.eye(3), np.zeros(3))
HEIGHT = 30
WIDTH = 40
TOWN = GeneratedSettings(num_views=24, width=96, height=72, size_m=90.0)


def look_down(centers, tilt=0.0, headings=0.0):
    """Poses at centres f64[V,3]; a tilt of 0 looks straight down, one of pi/2 at the horizon;
    headings are radians.
    """
    tilt = np.broadcast_to(tilt, len(centers))
    headings = np.broadcast_to(headings, len(centers))
    forward = np.stack(
        [np.sin(tilt) * np.cos(headings), np.sin(tilt) * np.sin(headings), -np.cos(tilt)], axis=1
    )
    right = np.stack([np.sin(headings), -np.cos(headings), np.zeros(len(centers))], axis=1)
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", poses[:, :3, :3], centers)
    return poses


def cameras(centers, tilt=0.0, headings=0.0, focal=40.0):
    """Photographs of WIDTH x HEIGHT pixels, off centre."""
    intrinsics = np.tile(
        [[focal, 0, 0.45 * WIDTH], [0, 1.1 * focal, 0.55 * HEIGHT], [0, 0, 1.0]],
        (len(centers), 1, 1),
    )
    return {
        "camera_from_world": look_down(centers, tilt, headings),
        "intrinsics": intrinsics,
        "image_sizes": np.tile([HEIGHT, WIDTH], (len(centers), 1)).astype(np.int64),
    }


def no_tracks(num_points):
    return {
        "track_offsets": np.zeros(num_points + 1, np.int64),
        "track_views": np.zeros(0, np.int32),
    }


@functools.cache
def skewed_input():
    """Points crowded in one corner and cameras in another, with a few points a thousand times
    farther out.
    """
    rng = np.random.default_rng(3)
    points = np.concatenate(
        [
            rng.normal([0.6, 0.4, 0], [0.1, 0.05, 0.02], (3000, 3)),
            rng.uniform([-1, -0.6, 0], [1, 0.6, 0.1], (1000, 3)),
            rng.uniform(-900, 900, (8, 3)),
        ]
    )
    centers = np.concatenate(
        [
            rng.normal([-0.5, -0.2, 0.5], 0.08, (30, 3)),
            rng.uniform([-1, -0.6, 0.4], [1, 0.6, 0.6], (30, 3)),
        ]
    )
    lonely = cameras(
        centers,
        tilt=rng.uniform(0, 1, 60) + 2 * (np.arange(60) > 50),
        headings=rng.uniform(0, 6.28, 60),
    )
    train_views = np.flatnonzero(np.arange(60) % 8)
    return {"points_world": points, **no_tracks(len(points)), **lonely, "train_views": train_views}


@functools.cache
def town_input():
    scene = town_scene(TOWN)
    frame = SceneFrame.from_points(scene.cloud.points, scene.views.centers, scene.up)
    return {
        "points_world": frame.to_world(scene.cloud.points),
        "track_offsets": scene.cloud.track_offsets,
        "track_views": scene.cloud.track_views,
        "camera_from_world": frame.camera_to_world_frame(scene.views.camera_from_dataset),
        "intrinsics": scene.views.intrinsics,
        "image_sizes": scene.views.image_sizes,
        "train_views": scene.train_views,
    }


def cut(given, num_blocks, num_edges=1, **changes):
    """The partition with limits that starve no block, but for those that are given."""
    limits = {"min_views": 1, "min_points": 1, "min_coverage": 0.01, **changes}
    return build_partition(
        PointCloud(
            given["points_world"],
            np.zeros((len(given["points_world"]), 3), np.uint8),
            given["track_offsets"],
            given["track_views"],
        ),
        Views(given["camera_from_world"], given["intrinsics"], given["image_sizes"]),
        IN_WORLD,
        given["train_views"],
        PartitionSettings(num_blocks=num_blocks, num_edges=num_edges, **limits),
    )


def work(partition, given):
    """Half the share of the points and half that of the training cameras in each cell, from the
    boxes and not the tree.
    """

    def fractions(ground):
        inside = (ground[:, None] >= partition.lows) & (ground[:, None] < partition.highs)
        return inside.all(axis=2).mean(axis=0)

    centers = camera_center(given["camera_from_world"])[given["train_views"]]
    return 0.5 * fractions(given["points_world"][:, :2]) + 0.5 * fractions(centers[:, :2])


@pytest.mark.parametrize(
    "num_blocks, num_edges", [(1, 1), (2, 2), (3, 1), (4, 2), (5, 2), (6, 2), (8, 3)]
)
def test_every_point_is_in_one_cell_and_edges_are_contiguous(num_blocks, num_edges):
    partition = cut(skewed_input(), num_blocks, num_edges)
    assert (partition.num_blocks, partition.num_edges) == (num_blocks, num_edges)
    points = np.random.default_rng(0).uniform(-3, 3, (2000, 3))
    walls = np.concatenate([partition.lows[np.isfinite(partition.lows)], [0.0]])
    points[:500, :2] = np.random.default_rng(1).choice(walls, (500, 2))
    inside = (
        (points[:, None, :2] >= partition.lows) & (points[:, None, :2] < partition.highs)
    ).all(axis=2)
    assert (inside.sum(axis=1) == 1).all()
    assert np.array_equal(partition.cell_of(points), inside.argmax(axis=1))
    assert np.array_equal(
        partition.cell_of(points[:, :2].reshape(40, 50, 2)), inside.argmax(axis=1).reshape(40, 50)
    )
    assert (partition.inner_highs > partition.inner_lows).all() and np.isfinite(
        partition.inner_lows
    ).all()
    assert (partition.inner_lows >= partition.lows).all() and (
        partition.inner_highs <= partition.highs
    ).all()
    # The points 900 lengths away are not in the bounds.
    assert np.abs([partition.inner_lows, partition.inner_highs]).max() < 3
    assert (np.diff(partition.edge_of_block) >= 0).all()
    sizes = [len(partition.blocks_of_edge(edge)) for edge in range(num_edges)]
    assert sum(sizes) == num_blocks and max(sizes) - min(sizes) <= 1
    leaves = (
        json.dumps(partition.nodes).replace("[", " ").replace("]", " ").replace(",", " ").split()
    )
    assert [int(leaf) for leaf in leaves if "." not in leaf][-1] == num_blocks - 1


@pytest.mark.parametrize("num_blocks, num_edges", [(2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (8, 4)])
@pytest.mark.parametrize("given", [skewed_input, town_input])
def test_work_is_balanced(given, num_blocks, num_edges):
    partition = cut(given(), num_blocks, num_edges)
    num_views = len(given()["train_views"])
    assert partition.num_blocks == num_blocks
    fractions = work(partition, given())
    assert fractions.sum() == pytest.approx(1)
    # A cut misses its share by at most half the work of a camera, 0.5 / num_views, and two thirds
    # of that go on to a side.
    np.testing.assert_allclose(fractions, 1 / num_blocks, atol=0.75 / num_views)


@pytest.mark.parametrize("axis", [0, 1])
def test_long_cells_are_cut_across(axis):
    points = np.random.default_rng(0).uniform([-6, -1, 0], [6, 1, 0.1], (3000, 3))
    centers = np.stack(np.meshgrid(np.linspace(-6, 6, 30), [-0.8, 0.8], [0.5]), axis=-1).reshape(
        -1, 3
    )
    if axis:
        points = points[:, [1, 0, 2]]
        centers = centers[:, [1, 0, 2]]
    partition = cut(
        {
            "points_world": points,
            **no_tracks(3000),
            **cameras(centers),
            "train_views": np.arange(60),
        },
        4,
        2,
    )
    sides = partition.inner_highs - partition.inner_lows
    np.testing.assert_allclose(sides, np.broadcast_to([2, 3] if axis else [3, 2], (4, 2)), rtol=0.1)


@pytest.mark.parametrize("num_blocks, num_edges", [(2, 1), (5, 2), (8, 2), (13, 3)])
def test_every_ray_meets_the_cells_in_their_order(num_blocks, num_edges):
    partition = cut(skewed_input(), num_blocks, num_edges)
    rng = np.random.default_rng(5)
    starts = rng.uniform(-2, 2, (300, 3))
    ends = rng.uniform(-2, 2, (300, 3))
    order = partition.front_to_back(starts)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(num_blocks), (300, 1)))
    assert np.array_equal(order[:, 0], partition.cell_of(starts))
    assert np.array_equal(order[7], partition.front_to_back(starts[7]))
    rank = np.argsort(order, axis=1)
    steps = np.linspace(0, 1, 800)[:, None, None]
    cells = partition.cell_of(starts + steps * (ends - starts))
    ranks = np.take_along_axis(rank, cells.T, axis=1)
    assert (np.diff(ranks, axis=1) >= 0).all()
    # Most rays cross walls, so that a wrong order would show.
    assert (ranks[:, -1] > ranks[:, 0]).mean() > 0.4


def test_expanded_cells_and_wall_distances():
    partition = cut(skewed_input(), 6, 2, expansion=0.25)
    points = np.random.default_rng(2).uniform(-1.5, 1.5, (1000, 3))
    cells = partition.cell_of(points)
    sides = partition.inner_highs - partition.inner_lows
    expected = np.full(1000, np.inf)
    for row, (point, cell) in enumerate(zip(points, cells, strict=True)):
        for axis in range(2):
            for face in (partition.lows[cell, axis], partition.highs[cell, axis]):
                if np.isfinite(face):
                    expected[row] = min(expected[row], abs(point[axis] - face) / sides[cell, axis])
    np.testing.assert_allclose(partition.wall_distance(points), expected)
    for block in range(6):
        low = partition.lows[block] - 0.25 * sides[block]
        high = partition.highs[block] + 0.25 * sides[block]
        inside = ((points[:, :2] >= low) & (points[:, :2] < high)).all(axis=1)
        assert np.array_equal(partition.is_in_expanded(block, points), inside)
        assert inside[cells == block].all() and inside.sum() > (cells == block).sum()
    both = partition.is_in_expanded(1, points) | partition.is_in_expanded(4, points)
    assert np.array_equal(partition.is_in_expanded(np.array([1, 4]), points), both)
    assert partition.is_in_expanded(list(range(6)), points).all()
    exact = cut(skewed_input(), 6, 2, expansion=0.0)
    assert np.array_equal(exact.is_in_expanded(3, points), exact.cell_of(points) == 3)


@pytest.fixture(autouse=True)
def only_warnings(caplog):
    """Tests that ran before may have started a program, which makes the package say more."""
    caplog.set_level(logging.WARNING, "cosurfgs_jax")


@pytest.mark.parametrize("given", [skewed_input, town_input])
def test_one_block_is_everything(given, caplog):
    given = given()
    partition = cut(given, 1, min_views=1000, min_points=10**9)
    assert (
        partition.nodes == 0
        and partition.num_edges == 1
        and not [r for r in caplog.records if r.levelno >= logging.WARNING]
    )
    assert np.array_equal(partition.views[0], given["train_views"])
    assert np.array_equal(partition.points[0], np.arange(len(given["points_world"])))
    assert partition.lengths.tolist() == [1.0]
    assert (partition.coverage.toarray() == 1).all() and (partition.home == 0).all()
    assert np.isinf(partition.lows).all() and np.isinf(partition.highs).all()
    assert np.isinf(partition.wall_distance(given["points_world"])).all()
    assert partition.front_to_back(np.zeros(3)).tolist() == [0]


def test_lengths_are_those_of_the_scene_frame():
    given = town_input()
    partition = cut(given, 3)
    centers = camera_center(given["camera_from_world"])
    for views, points, length in zip(
        partition.views, partition.points, partition.lengths, strict=True
    ):
        part = given["points_world"][points]
        ground = np.array([*np.median(part[:, :2], axis=0), np.percentile(part[:, 2], 20)])
        reach = 1.1 * np.percentile(np.linalg.norm(centers[views] - ground, axis=1), 95)
        assert length == pytest.approx(max(reach, np.median(np.linalg.norm(part - ground, axis=1))))
        assert 0.3 < length < 1.1


@pytest.mark.parametrize("given", [skewed_input, town_input])
def test_coverage_is_the_share_of_rays_that_hit_the_airspace(given):
    given = given()
    partition = cut(given, 4, 2)
    centers = camera_center(given["camera_from_world"])
    lows = np.column_stack([partition.inner_lows, partition.low_z])
    highs = np.column_stack([partition.inner_highs, partition.high_z])
    coverage = partition.coverage.toarray()
    counted = np.empty_like(coverage)
    for view, (pose, intrinsics) in enumerate(
        zip(given["camera_from_world"], given["intrinsics"], strict=True)
    ):
        rays = pixel_rays(intrinsics, tuple(given["image_sizes"][view].tolist())) @ pose[:3, :3]
        for block in range(4):
            entry, leave = ((bound[block] - centers[view]) / rays for bound in (lows, highs))
            near = np.minimum(entry, leave).max(axis=-1)
            far = np.maximum(entry, leave).min(axis=-1)
            counted[view, block] = (np.maximum(near, 0) < far).mean()
    np.testing.assert_allclose(coverage, counted, atol=0.03)
    assert np.abs(coverage - counted).mean() < 0.004
    # Whole, partial and no coverage all occur; the town's cameras look down from above.
    assert (coverage == 0).any() and ((counted > 0.1) & (counted < 0.9)).sum() > 10


@pytest.mark.parametrize("given", [skewed_input, town_input])
def test_what_is_asked_from_the_root_down_is_what_every_block_finds_of_everything(given):
    given = given()
    all_seen = []
    partition = cut(given, 7, 2)
    views = Views(given["camera_from_world"], given["intrinsics"], given["image_sizes"])
    everything = cameras_in_world(views, IN_WORLD)
    points = given["points_world"]
    coverage = partition.coverage.toarray()
    inside = build._spread_ground(partition, points[:, :2], np.arange(len(points)))
    for block in range(7):
        low = np.append(partition.inner_lows[block], partition.low_z[block])
        high = np.append(partition.inner_highs[block], partition.high_z[block])
        assert np.array_equal(coverage[:, block], box_coverage(low, high, everything))
        seen = may_show(low, high, everything)
        assert seen[coverage[:, block] > 0].all()
        all_seen.append(seen.all())
        own = points[((points[:, :2] >= low[:2]) & (points[:, :2] < high[:2])).all(axis=1)]
        heights = np.percentile(own[:, 2], build._HEIGHTS)
        assert [partition.low_z[block], partition.high_z[block]] == heights.tolist()
        is_inside = partition.is_in_expanded(block, points)
        assert np.array_equal(inside[block], np.flatnonzero(is_inside))
    assert not all(all_seen)


def test_coverage_of_cameras_inside_behind_and_beside():
    """Cells that meet near x = 0: cameras above the wall, inside the greater one, looking up,
    through both, away.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 0], [1, 1, 0.5], (4000, 3))
    centers = np.array(
        [[0, 0, 1.0], [0, 0, 1.0], [0.5, 0, 0.25], [0.5, 0, 3.0], [-0.5, 0, 0.25], [-3, 0, 0.3]]
    )
    given = cameras(
        centers,
        tilt=[0, 0, np.pi / 2, np.pi, np.pi / 2, np.pi / 2],
        headings=[0, 0, 0, 0, 0, np.pi],
        focal=400.0,
    )
    given["intrinsics"][:, :2, 2] = [WIDTH / 2, HEIGHT / 2]
    partition = cut(
        {"points_world": points, **no_tracks(4000), **given, "train_views": np.arange(6)},
        2,
        expansion=0.0,
    )
    # The wall lies where the work is halved, not at 0.
    assert partition.nodes[0] == 0 and abs(partition.nodes[1]) < 0.2
    # Cells of slightly different height overlap a little in the picture.
    coverage = partition.coverage.toarray()
    assert coverage[:2].sum(axis=1) == pytest.approx([1, 1], abs=1e-3)
    assert coverage[2].tolist() == [0, 1]
    assert coverage[3].tolist() == [0, 0] and coverage[5].tolist() == [0, 0]
    assert coverage[4].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("given", [skewed_input, town_input])
def test_views_and_points_of_blocks(given):
    given = given()
    partition = cut(given, 4, 2, min_coverage=0.25)
    centers = camera_center(given["camera_from_world"])
    points = given["points_world"]
    assert np.array_equal(partition.home, partition.cell_of(centers))
    is_train = np.isin(np.arange(len(centers)), given["train_views"])
    coverage = partition.coverage.toarray()
    for block in range(4):
        wanted = partition.is_in_expanded(block, centers) | (coverage[:, block] >= 0.25)
        assert np.array_equal(partition.views[block], np.flatnonzero(wanted & is_train))
        seen = partition.is_in_expanded(block, points)
        for view in partition.views[block]:
            if len(given["track_views"]):
                hits = np.flatnonzero(given["track_views"] == view)
                seen[np.searchsorted(given["track_offsets"], hits, side="right") - 1] = True
            else:
                pixels, depth = project(
                    points, given["camera_from_world"][view], given["intrinsics"][view]
                )
                seen |= (
                    (depth > 0)
                    & (pixels >= 0).all(axis=1)
                    & (pixels < given["image_sizes"][view, ::-1]).all(axis=1)
                )
        assert np.array_equal(partition.points[block], np.flatnonzero(seen))
        assert 0 < len(partition.points[block]) < len(points)


def corner_input(lonely_x=4.0):
    """Three crowds of points with cameras over them, and a fourth place with cameras but almost no
    points.
    """
    rng = np.random.default_rng(1)
    middles = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [lonely_x, 0, 0]])
    counts = [500, 500, 500, 4]
    points = np.concatenate(
        [
            middle + rng.uniform([-0.3, -0.2, 0], [0.3, 0.2, 0.05], (count, 3))
            for middle, count in zip(middles, counts, strict=True)
        ]
    )
    views = [5, 5, 5, 20]
    centers = np.concatenate(
        [
            middle + rng.uniform([-0.3, -0.2, 0.2], [0.3, 0.2, 0.3], (count, 3))
            for middle, count in zip(middles, views, strict=True)
        ]
    )
    return {
        "points_world": points,
        **no_tracks(len(points)),
        **cameras(centers),
        "train_views": np.arange(35),
    }


@pytest.mark.parametrize(
    "lonely_x, edges, new_number", [(4.0, [0, 0, 1], [0, 1, 2, 2]), (-2.0, [0, 1, 1], [0, 0, 1, 2])]
)
def test_starved_blocks_are_merged_within_their_edge(lonely_x, edges, new_number, caplog):
    given = corner_input(lonely_x)
    whole = cut(given, 4, 2)
    few = np.bincount(whole.cell_of(given["points_world"]), minlength=4)
    assert few.min() < 100 <= np.sort(few)[1], "one cell should have the few points"
    assert not caplog.records
    merged = cut(given, 4, 2, min_points=100)
    assert (merged.num_blocks, merged.num_edges) == (
        3,
        2,
    ) and merged.edge_of_block.tolist() == edges
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "merged with its neighbour" in record.getMessage()
    # The other edge is as it was, and the sibling has the place of both.
    ground = np.random.default_rng(0).uniform(-4, 6, (1000, 2))
    np.testing.assert_array_equal(
        merged.cell_of(ground), np.array(new_number)[whole.cell_of(ground)]
    )
    assert np.bincount(merged.cell_of(given["points_world"])).min() >= 100


def test_a_starved_edge_disappears(caplog):
    merged = cut(corner_input(), 2, 2, min_points=900)
    assert (merged.num_blocks, merged.num_edges) == (1, 1) and merged.lengths.tolist() == [1.0]
    assert "no other block and is gone" in caplog.text and "edge 1" in caplog.text
    assert len(merged.views[0]) == 35 and len(merged.points[0]) == 1504
    assert cut(corner_input(), 6, 3, min_views=10**6).num_blocks == 1


def test_too_few_views_starve_a_block():
    partition = cut(skewed_input(), 8, 2)
    limit = min(len(views) for views in partition.views) + 1
    merged = cut(skewed_input(), 8, 2, min_views=limit)
    assert 1 < merged.num_blocks < 8 and min(len(views) for views in merged.views) >= limit


def test_more_blocks_than_photographs_are_refused():
    given = skewed_input()
    with pytest.raises(
        InputError,
        match="config.partition.num_blocks: expected at most the 52 training photographs, got 53",
    ):
        cut(given, 53)
    assert cut(given, 52).num_blocks > 26


def test_positions_that_cannot_be_cut(caplog):
    """All on one line: cells have no width across it but that of the least side. All in one place:
    one block.
    """
    rng = np.random.default_rng(0)
    points = np.zeros((300, 3))
    points[:, 0] = rng.uniform(-1, 1, 300)
    centers = np.column_stack([np.linspace(-1, 1, 20), np.zeros(20), np.ones(20)])
    given = {**no_tracks(300), **cameras(centers), "train_views": np.arange(20)}
    partition = cut({"points_world": points, **given}, 4, 2)
    assert partition.num_blocks == 4 and (partition.inner_highs > partition.inner_lows).all()
    # 300 points and cameras, each to be a block: the last wall, between 4 and 5, lies outside the
    # bounds of the content.
    many = np.column_stack([[*np.linspace(-1, 1, 298), 4, 5], np.zeros(300), np.ones(300)])
    rim = {
        "points_world": many * [1, 1, 0],
        **no_tracks(300),
        **cameras(many),
        "train_views": np.arange(300),
    }
    partition = cut(rim, 300)
    assert partition.num_blocks == 300 and (partition.inner_highs > partition.inner_lows).all()
    assert not caplog.records
    centers[:, :2] = 0
    points[:] = 0
    one = cut({"points_world": points, **given, **cameras(centers)}, 4, 2)
    assert one.num_blocks == one.num_edges == 1 and "at one place" in caplog.text


def test_file_and_back_is_exact():
    partition = cut(skewed_input(), 5, 2)
    table = json.loads(json.dumps(partition.to_dict(), allow_nan=False))
    for back in (Partition.from_dict(table), Partition.from_dict(partition.to_dict())):
        for name, value in vars(partition).items():
            other = getattr(back, name)
            if isinstance(value, list):
                assert len(value) == len(other)
                assert all(
                    np.array_equal(a, b) and a.dtype == b.dtype
                    for a, b in zip(value, other, strict=True)
                )
            elif name == "coverage":
                assert value.shape == other.shape and (value != other).nnz == 0
            elif isinstance(value, np.ndarray):
                assert np.array_equal(value, other) and value.dtype == other.dtype, name
            else:
                assert value == other
        assert back.fingerprint() == partition.fingerprint()
        assert back.to_dict() == partition.to_dict()
    one = cut(skewed_input(), 1)
    assert (
        Partition.from_dict(json.loads(json.dumps(one.to_dict()))).fingerprint()
        == one.fingerprint()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"nodes": [0, 0.5, 0]},
        {"views": [[0]]},
        {"inner_lows": [[0, 1]]},
        {"home": None},
        {"coverage": "x"},
    ],
)
def test_broken_tables_are_refused(change):
    with pytest.raises(InputError, match="partition: expected .*train again"):
        Partition.from_dict({**cut(skewed_input(), 3).to_dict(), **change})


def test_the_same_input_gives_the_same_partition_and_fingerprint():
    first = cut(skewed_input(), 6, 2)
    again = cut(skewed_input(), 6, 2)
    assert first.to_dict() == again.to_dict() and first.fingerprint() == again.fingerprint()
    assert len(first.fingerprint()) == 16 and int(first.fingerprint(), 16) >= 0
    others = [
        cut(skewed_input(), 6, 3),
        cut(skewed_input(), 6, 2, expansion=0.3),
        cut(skewed_input(), 5, 2),
    ]
    assert len({first.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    fewer = [first.points[0][1:], *first.points[1:]]
    assert dataclasses.replace(first, points=fewer).fingerprint() != first.fingerprint()
    # The order of the training views does not matter.
    shuffled = {**skewed_input(), "train_views": skewed_input()["train_views"][::-1]}
    assert cut(shuffled, 6, 2).fingerprint() == first.fingerprint()


def test_the_summary_says_what_was_made(caplog):
    with caplog.at_level(logging.INFO, "cosurfgs_jax.partition"):
        cut(skewed_input(), 4, 2)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("blocks: 4, edges: 2; ")
    least, most = re.search(r"([\d.]+)\.\.([\d.]+) of an equal part of the work", said).groups()
    assert 0.5 < float(least) <= 1 <= float(most) < 2


def cells_of(root, num_blocks, points):
    edges = np.zeros(num_blocks, int)
    return build._make_cells(root, edges, build._bounds(points[:, :2]), points, 0.2)


def test_cells_hold_the_bulk_of_what_is_there():
    """Outer walls are at the 1st and the 99th percentile, floor and ceiling at the 2nd and the 99th
    of the cell's own points.
    """
    points = np.repeat(np.arange(101.0)[:, None], 3, axis=1)
    low, high = build._bounds(points[:, :2], points[:51, :2])
    assert low.tolist() == [0.5, 0.5] and high.tolist() == [99, 99]
    whole = cells_of(0, 1, points)
    assert whole.inner_lows.tolist() == [[1, 1]] and whole.inner_highs.tolist() == [[99, 99]]
    np.testing.assert_allclose([whole.low_z[0], whole.high_z[0]], [1 + 0.02 * 97, 1 + 0.99 * 97])
    halves = cells_of((0, 50.0, 0, 1), 2, points)
    np.testing.assert_allclose(halves.low_z, [1 + 0.02 * 48, 50 + 0.02 * 48])
    np.testing.assert_allclose(halves.high_z, [1 + 0.99 * 48, 50 + 0.99 * 48])


def test_cells_beyond_the_bulk_keep_a_thousandth():
    points = np.repeat(np.arange(101.0)[:, None], 3, axis=1)
    above = cells_of((0, 200.0, 0, 1), 2, points)
    np.testing.assert_allclose(above.inner_highs, [[200, 99], [200.001, 99]])
    np.testing.assert_allclose(above.high_z, [1 + 0.99 * 97, 99])  # of none of its own: of all
    below = cells_of((0, -5.0, 0, 1), 2, points)
    np.testing.assert_allclose(below.inner_lows, [[-5.001, 1], [-5, 1]])
