"""The way to the world of training and back, and the vertical of a dataset."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import real_scene

from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.geometry.scene_frame import SceneFrame, estimate_up
from cosurfgs_jax.settings import DataSettings, GeneratedSettings
from cosurfgs_jax.types import Surfels

# A survey frame: millions of metres from its origin.
SURVEY = np.array([448_000.123, 5_411_000.456, 287.5])


def _rotation(seed):
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def _look(centres, forward, up):
    """Camera poses at centres [V,3] that look along `forward` [V,3] with `up` [V,3] upwards in the
    image.
    """
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", poses[:, :3, :3], centres)
    return poses


def _survey_scene(seed=0, offset=SURVEY, up=(0, 0, 1)):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-100, -80, 0], [100, 80, 12], size=(4000, 3))
    centres = rng.uniform([-90, -70, 75], [90, 70, 85], size=(40, 3))
    headings = rng.uniform(0, 2 * np.pi, 40)
    up_in_image = np.stack([np.cos(headings), np.sin(headings), np.zeros(40)], axis=1)
    poses = _look(centres, np.tile([0.02, 0.03, -1.0], (40, 1)), up_in_image)
    poses[:, :3, 3] -= poses[:, :3, :3] @ offset
    return SimpleNamespace(poses=poses, points=points + offset, up=np.array(up, np.float64))


def _frame_of(scene):
    return SceneFrame.from_points(scene.points, camera_center(scene.poses), scene.up)


def test_a_round_trip_keeps_survey_coordinates():
    scene = _survey_scene(up=_rotation(1)[2])
    frame = _frame_of(scene)
    assert np.abs(frame.to_dataset(frame.to_world(scene.points)) - scene.points).max() < 1e-8
    np.testing.assert_allclose(frame.rotation @ scene.up, [0, 0, 1], atol=1e-14)
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(frame.rotation) > 0


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, 1e-9, -1), (0, -1, 0), (0.6, 0, 0.8)])
def test_rotation_of_any_up(up):
    up = np.array(up) / np.linalg.norm(up)
    rotation = _frame_of(_survey_scene(up=up)).rotation
    np.testing.assert_allclose(rotation @ up, [0, 0, 1], atol=1e-8)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-8)
    if up[2] == 1:
        np.testing.assert_array_equal(rotation, np.eye(3))


def test_world_is_centred_on_the_ground_and_of_size_one():
    scene = _survey_scene()
    frame = _frame_of(scene)
    points = frame.to_world(scene.points)
    np.testing.assert_allclose(np.median(points[:, :2], axis=0), 0, atol=1e-9)
    # Heights from 0 to 12 m: the ground is in the lower part of them.
    assert 0 > points[:, 2].min() * 1 / frame.scale > -4
    poses = frame.camera_to_world_frame(scene.poses)
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    assert 0.8 < distances.max() < 1.1
    # Neither stray points nor the unit matter.
    far = SimpleNamespace(
        **{**vars(scene), "points": np.concatenate([scene.points, scene.points[:200] * 3])}
    )
    assert abs(_frame_of(far).scale / frame.scale - 1) < 0.1


def test_pixels_stay_and_depths_scale():
    scene = _survey_scene()
    frame = _frame_of(scene)
    poses = frame.camera_to_world_frame(scene.poses)
    world = frame.to_world(scene.points[:50])
    for before, after in zip(scene.poses, poses, strict=True):
        old = scene.points[:50] @ before[:3, :3].T + before[:3, 3]
        new = world @ after[:3, :3].T + after[:3, 3]
        np.testing.assert_allclose(frame.depth_to_dataset(new), old, atol=1e-6)
        np.testing.assert_allclose(after[:3, :3] @ after[:3, :3].T, np.eye(3), atol=1e-12)
        assert after[3].tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(frame.camera_to_world_frame(scene.poses[3]), poses[3])


def test_json_round_trip_is_exact():
    frame = _frame_of(_survey_scene(up=_rotation(2)[2]))
    again = SceneFrame.from_dict(json.loads(json.dumps(frame.to_dict())))
    assert again.scale == frame.scale
    np.testing.assert_array_equal(again.rotation, frame.rotation)
    np.testing.assert_array_equal(again.translation, frame.translation)


@pytest.mark.parametrize(
    "table", [{}, {"format": 2}, {"format": 1, "scale": 1, "rotation": [1], "translation": [0] * 3}]
)
def test_other_tables_are_refused(table):
    with pytest.raises(InputError, match="scene frame: expected format"):
        SceneFrame.from_dict(table)


def test_surfels_are_the_same_discs_in_the_dataset():
    rng = np.random.default_rng(0)
    scene = _survey_scene(up=_rotation(3)[2])
    frame = _frame_of(scene)
    world = Surfels(
        means=rng.normal(size=(20, 3)).astype(np.float32),
        quats=rng.normal(size=(20, 4)).astype(np.float32),
        log_scales=rng.normal(size=(20, 2)).astype(np.float32),
        logit_opacities=rng.normal(size=20).astype(np.float32),
        sh=rng.normal(size=(20, 16, 3)).astype(np.float32),
        alive=rng.random(20) < 0.8,
    )
    surfels = frame.surfels_to_dataset(world)
    assert surfels.means.dtype == np.float64
    np.testing.assert_array_equal(surfels.alive, world.alive)
    np.testing.assert_array_equal(surfels.logit_opacities, world.logit_opacities)
    # One standard deviation along each axis, and the normal, of the disc in both frames.
    for axis in range(2):
        tips = [
            part.means
            + np.exp(part.log_scales[:, axis : axis + 1]) * matrix_from_quat(part.quats)[:, :, axis]
            for part in (world, surfels)
        ]
        np.testing.assert_allclose(frame.to_dataset(tips[0]), tips[1], atol=1e-3)
    normals = [matrix_from_quat(part.quats)[:, :, 2] for part in (world, surfels)]
    np.testing.assert_allclose(frame.directions_to_dataset(normals[0]), normals[1], atol=1e-6)
    # The same camera sees the same colours.
    camera = np.array([0.3, -0.2, 0.9])
    toward = [world.means - camera, surfels.means - frame.to_dataset(camera)]
    toward = [
        (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32) for part in toward
    ]
    colors = [
        spherical_harmonics.evaluate(3, part.sh, direction)
        for part, direction in zip((world, surfels), toward, strict=True)
    ]
    np.testing.assert_allclose(colors[0], colors[1], atol=1e-5)
    # Turning the coefficients matters.
    assert np.abs(spherical_harmonics.evaluate(3, world.sh, toward[1]) - colors[1]).max() > 0.1


def _flat(rng, extent=(100, 100, 4)):
    return rng.uniform(-1, 1, (2000, 3)) * extent


def _orbit(rng):
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    centres = np.stack([np.cos(angles), np.sin(angles), 0.3 + 0 * angles], axis=1) * 10
    return _look(centres, -centres, np.tile([0.0, 0, 1], (30, 1))), rng.normal(size=(500, 3))


def _street(rng):
    headings = rng.uniform(0, 2 * np.pi, 50)
    forward = np.stack([np.cos(headings), np.sin(headings), rng.normal(0, 0.05, 50)], axis=1)
    centres = rng.uniform(-20, 20, (50, 3)) * [1, 1, 0.01]
    return _look(centres, forward, np.tile([0.0, 0, 1], (50, 1))), rng.normal(size=(500, 3)) * [
        20,
        20,
        10,
    ]


def _nadir(rng, headings):
    forward = np.tile([0.0, 0, -1], (40, 1)) + rng.normal(0, 0.02, (40, 3))
    ups = np.stack([np.cos(headings), np.sin(headings), 0 * headings], axis=1)
    return _look(rng.uniform(-80, 80, (40, 3)) * [1, 1, 0.02] + [0, 0, 90], forward, ups), _flat(
        rng
    )


def _nadir_one_heading(rng):
    return _nadir(rng, np.full(40, 0.3))


def _nadir_lawnmower(rng):
    return _nadir(rng, np.repeat([0.3, 0.3 + np.pi], 20))


def _nadir_all_headings(rng):
    return _nadir(rng, rng.uniform(0, 2 * np.pi, 40))


def _oblique_one_heading(rng):
    forward = np.tile([1.0, 0, -1], (40, 1)) + rng.normal(0, 0.02, (40, 3))
    centres = rng.uniform(-80, 80, (40, 3)) * [1, 1, 0.02] + [0, 0, 90]
    return _look(centres, forward, np.tile([0.0, 0, 1], (40, 1))), _flat(rng)


def _walk_ahead(rng):
    forward = np.tile([1.0, 0, 0], (40, 1)) + rng.normal(0, 0.05, (40, 3))
    centres = np.linspace(0, 30, 40)[:, None] * [1.0, 0, 0]
    return _look(centres, forward, np.tile([0.0, 0, 1], (40, 1))), rng.normal(size=(500, 3)) * [
        30,
        10,
        10,
    ]


@pytest.mark.parametrize(
    "flight",
    [
        _orbit,
        _street,
        _nadir_one_heading,
        _nadir_lawnmower,
        _nadir_all_headings,
        _oblique_one_heading,
        _walk_ahead,
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_up_is_found_whatever_the_frame(flight, seed):
    poses, points = flight(np.random.default_rng(seed))
    assert estimate_up(poses, points).tolist() == [0, 0, 1]
    turn = _rotation(seed + 10)
    turned = poses.copy()
    turned[:, :3, :3] = poses[:, :3, :3] @ turn.T
    up = estimate_up(turned, points @ turn.T)
    assert np.rad2deg(np.arccos(min(1.0, up @ turn[:, 2]))) < 4
    assert abs(np.linalg.norm(up) - 1) < 1e-12


def test_z_is_kept_exactly_within_fifteen_degrees_only():
    for angle, is_kept in ((10, True), (20, False)):
        tilt = np.deg2rad(angle)
        turn = np.array(
            [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        )
        poses, points = _orbit(np.random.default_rng(0))
        poses[:, :3, :3] = poses[:, :3, :3] @ turn.T
        up = estimate_up(poses, points @ turn.T)
        assert (up.tolist() == [0, 0, 1]) is is_kept
        np.testing.assert_allclose(up, [0, 0, 1] if is_kept else turn[:, 2], atol=1e-9)


@pytest.mark.parametrize("name", ["caliterra", "brighton"])
def test_up_of_real_flights(name):
    scene = load_scene(DataSettings(path=str(real_scene(name))), GeneratedSettings(), "")
    assert scene.up.tolist() == [0, 0, 1]
    turn = _rotation(5)
    poses = scene.views.camera_from_dataset.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ turn.T
    up = estimate_up(poses, scene.cloud.points @ turn.T)
    # The level of these datasets is itself known to some degrees only: the ground slopes, cameras
    # hang askew.
    assert np.rad2deg(np.arccos(up @ turn[:, 2])) < 5
