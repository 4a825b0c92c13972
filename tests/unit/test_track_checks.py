"""A point lies in the pictures that are said to see it; where not, the log says so."""

import dataclasses
import logging

import numpy as np
import pytest

from cosurfgs_jax.data import track_checks
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.geometry.distortion import lens_from_params
from cosurfgs_jax.geometry.views import PointCloud

NUM_VIEWS = 5
NUM_POINTS = 40
LENS = lens_from_params("SIMPLE_RADIAL", 480, 640, [500.0, 320.0, 240.0, 0.01])


@pytest.fixture
def capture():
    """Cameras in a row; all see all points."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (NUM_VIEWS, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.5, 0.5, NUM_VIEWS)
    points = rng.uniform([-1, -1, 4], [1, 1, 6], (NUM_POINTS, 3))
    cloud = PointCloud(
        points,
        np.zeros((NUM_POINTS, 3), np.uint8),
        NUM_VIEWS * np.arange(NUM_POINTS + 1),
        np.tile(np.arange(NUM_VIEWS, dtype=np.int32), NUM_POINTS),
    )
    names = [f"{number}.png" for number in range(NUM_VIEWS)]
    nothing = [None] * NUM_VIEWS
    return Capture("model", names, names, nothing, [LENS] * NUM_VIEWS, poses, cloud, nothing)


def _said(capture, caplog, level=logging.WARNING) -> str:
    caplog.clear()
    with caplog.at_level(level):
        track_checks.check(capture)
    return caplog.text


def test_what_fits_is_not_spoken_of(capture, caplog):
    assert not _said(capture, caplog)
    cloud = PointCloud.without_tracks(capture.cloud.points)
    assert not _said(dataclasses.replace(capture, cloud=cloud), caplog)


def test_points_without_tracks_that_no_picture_shows_are_said(capture, caplog):
    points = np.repeat(capture.cloud.points, 100, axis=0)
    points[:100] -= 100

    def said(points):
        cloud = PointCloud.without_tracks(points)
        return _said(dataclasses.replace(capture, cloud=cloud), caplog, logging.INFO)

    assert "100 of 2000 points that were tried are in no photograph" in said(points[:2000])
    assert "two frames" not in caplog.text
    assert "of 2048 points that were tried are" in said(points)  # of 4,000
    assert "40 of 40 points" in said(capture.cloud.points - 100) and "two frames" in caplog.text


def test_points_far_beyond_the_flight_are_no_fault(capture, caplog):
    rng = np.random.default_rng(1)
    city = rng.uniform([-20, -20, 4], [20, 20, 6], (20_000, 3))
    capture = dataclasses.replace(capture, cloud=PointCloud.without_tracks(city))
    text = _said(capture, caplog, logging.INFO)
    assert "of 2048 points that were tried are in no photograph" in text
    assert "two frames" not in text and not _said(capture, caplog)
    capture.camera_from_dataset[:, :3, :3] = np.diag([1.0, -1, -1])  # they look at the sky
    assert "two frames" in _said(capture, caplog)


@pytest.mark.parametrize("kind", ["turned", "behind", "elsewhere"])
def test_a_wrong_pose_is_said(capture, caplog, kind):
    pose = capture.camera_from_dataset[3]
    match kind:
        case "turned":
            pose[:3, :3] = np.diag([-1.0, 1, -1])
        case "behind":
            pose[2, 3] = -10
        case "elsewhere":
            pose[0, 3] = 8
    text = _said(capture, caplog)
    assert "model: 1 of 5 photographs do not look at most of the points" in text
    assert "the first is 3.png (40 of 40 points" in text
    assert "outside of most photographs" not in text  # the points are right


def test_a_wrong_lens_is_said(capture, caplog):
    lenses = [*capture.lenses]
    lenses[1] = dataclasses.replace(LENS, focal_px=(500.0 * 16, 500.0))
    assert "the first is 1.png" in _said(dataclasses.replace(capture, lenses=lenses), caplog)


def test_a_wrong_point_is_said(capture, caplog):
    capture.cloud.points[[7, 9]] = [[0, 0, -5], [30, 0, 5]]
    text = _said(capture, caplog)
    assert "2 of 40 points are outside of most photographs" in text and "[ 0.  0. -5.]" in text
    assert "do not look" not in text


def test_a_fisheye_sees_behind_itself(capture, caplog):
    capture.cloud.points[7] = [0.1, 0, -5]
    fisheye = lens_from_params(
        "OPENCV_FISHEYE", 480, 640, [200.0, 200.0, 320.0, 240.0, 0.0, 0.0, 0.0, 0.0]
    )
    assert "1 of 40 points" in _said(capture, caplog)
    assert not _said(dataclasses.replace(capture, lenses=[fisheye] * NUM_VIEWS), caplog)


def test_a_few_pixels_beyond_the_border_are_nothing(capture):
    capture.cloud.points[0] = [3.25, 0, 5]  # at 645, 670 and 695 of 640 pixels in the last views
    sightings = capture.cloud.sightings
    missed = sightings.views[track_checks.misses(capture)]
    assert missed.tolist() == [NUM_VIEWS - 1]


def test_few_views_and_points_tell_nothing_of_a_view(capture, caplog):
    cloud = PointCloud(
        capture.cloud.points[:2] * [1, 1, -1],
        capture.cloud.colors[:2],
        np.array([0, 1, 2]),
        np.array([0, 0], np.int32),
    )
    text = _said(dataclasses.replace(capture, cloud=cloud), caplog)
    assert "do not look" not in text and "2 of 2 points" in text
