"""Photographs that do not show the colours of points where poses put them are named; others not."""

import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax.data import color_checks
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.geometry.distortion import lens_from_params
from cosurfgs_jax.geometry.views import PointCloud, Views

_SIDE = 96
_FOCAL = 90.0
_NUM_VIEWS = 6


def _seen(folder) -> Scene:
    """Six cameras in a row above a coloured floor, and what they see of it."""
    rng = np.random.default_rng(2)
    floor = rng.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    cells = rng.uniform(0, 60, (3000, 2))
    points = np.concatenate([cells / 10 - 3, np.full((len(cells), 1), 4.0)], axis=1)
    poses = np.tile(np.eye(4), (_NUM_VIEWS, 1, 1))
    poses[:, 0, 3] = 0.6 - 0.25 * np.arange(_NUM_VIEWS)
    middle = (np.arange(_SIDE) + 0.5 - _SIDE / 2) / _FOCAL * 4
    paths = []
    for number, pose in enumerate(poses):
        columns = ((middle - pose[0, 3] + 3) * 10).astype(int).clip(0, 59)
        rows = ((middle + 3) * 10).astype(int).clip(0, 59)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(floor[rows[:, None], columns]).save(paths[-1])
    matrix = np.array([[_FOCAL, 0, _SIDE / 2], [0, _FOCAL, _SIDE / 2], [0, 0, 1.0]])
    colors = floor[cells[:, 1].astype(int), cells[:, 0].astype(int)]
    return Scene(
        name="floor",
        path=str(folder),
        image_names=[f"{number}.png" for number in range(_NUM_VIEWS)],
        image_paths=paths,
        views=Views(poses, np.tile(matrix, (_NUM_VIEWS, 1, 1)), np.full((_NUM_VIEWS, 2), _SIDE)),
        mask_paths=[None] * _NUM_VIEWS,
        has_masks=False,
        cloud=PointCloud.without_tracks(points, colors),
        is_test=np.zeros(_NUM_VIEWS, bool),
        up=np.array([0.0, 0, -1]),
        ground_truth=None,
        distortion=[None] * _NUM_VIEWS,
        photo_sizes=np.full((_NUM_VIEWS, 2), _SIDE),
        shrink_factors=np.ones(_NUM_VIEWS),
    )


def _said(scene: Scene, caplog) -> str:
    lens = lens_from_params("PINHOLE", _SIDE, _SIDE, [_FOCAL, _FOCAL, _SIDE / 2, _SIDE / 2])
    with caplog.at_level(logging.INFO, logger="cosurfgs_jax"):
        color_checks.check(scene, [lens] * scene.num_views, "poses.json", 2)
    return caplog.text


def _moved(scene: Scene, view: int, shift) -> Scene:
    poses = scene.views.camera_from_dataset.copy()
    poses[view, :3, 3] += shift
    return dataclasses.replace(
        scene, views=dataclasses.replace(scene.views, camera_from_dataset=poses)
    )


def test_right_poses_are_left_alone(tmp_path, caplog):
    scene = _seen(tmp_path)
    assert _said(scene, caplog) == ""
    dark = np.asarray(Image.open(scene.image_paths[2])) // 4
    noise = np.random.default_rng(0).normal(0, 20, dark.shape)
    Image.fromarray((dark + noise).clip(0, 255).astype(np.uint8)).save(scene.image_paths[2])
    assert _said(scene, caplog) == ""


@pytest.mark.parametrize("shift", [(0.3, 0, 0), (0, -0.4, 0), (1.5, 1, 0)])
def test_a_camera_that_stands_elsewhere_is_named(tmp_path, caplog, shift):
    said = _said(_moved(_seen(tmp_path), 3, shift), caplog)
    assert "1 of 6 photographs do not show" in said and "3.png" in said


def test_a_photograph_of_something_else_is_named(tmp_path, caplog):
    scene = _seen(tmp_path)
    other = np.random.default_rng(9).integers(0, 256, (_SIDE, _SIDE, 3)).astype(np.uint8)
    Image.fromarray(other).resize((_SIDE, _SIDE)).save(scene.image_paths[4])
    assert "4.png" in _said(scene, caplog)


def test_a_camera_that_looks_away_is_named_without_a_warning(tmp_path, caplog):
    said = _said(_moved(_seen(tmp_path), 1, (0, 0, -9)), caplog)
    assert "fewer than 16" in said and "1.png" in said and "WARNING" not in said


def test_colours_that_say_nothing_accuse_nobody(tmp_path, caplog):
    scene = _moved(_seen(tmp_path), 3, (0.3, 0, 0))
    mixed = np.random.default_rng(1).permutation(scene.cloud.colors)
    for colors in (np.full_like(mixed, 7), mixed):
        cloud = PointCloud.without_tracks(scene.cloud.points, colors)
        assert _said(dataclasses.replace(scene, cloud=cloud), caplog) == ""


def test_small_pictures_are_decoded_where_that_is_quick(tmp_path, monkeypatch):
    for ending in ("jpg", "png"):
        Image.new("RGB", (800, 400), (200, 10, 10)).save(tmp_path / f"a.{ending}")
    small = color_checks.read_small(str(tmp_path / "a.jpg"))
    assert small.shape == (128, 256, 3) and abs(int(small[5, 5, 0]) - 200) < 4
    monkeypatch.setattr(color_checks, "_MAX_PIXELS", 2**15)
    assert color_checks.read_small(str(tmp_path / "a.png")) is None
    assert color_checks.read_small(str(tmp_path / "a.jpg")) is not None
