"""Photographs that do not show the colours of points where poses put them are named; others not."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax.data import color_checks
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import lens_from_params
from cosurfgs_jax.geometry.views import PointCloud, Views

_SIDE = 96
_FOCAL = 90.0


def _seen(folder, num_views: int = 6) -> Scene:
    """Cameras in a row above a coloured floor, and what they see of it."""
    rng = np.random.default_rng(2)
    floor = rng.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    cells = rng.uniform(0, 60, (3000, 2))
    points = np.concatenate([cells / 10 - 3, np.full((len(cells), 1), 4.0)], axis=1)
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    poses[:, 0, 3] = 0.6 - 0.25 * np.arange(num_views)
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
        image_names=[f"{number}.png" for number in range(num_views)],
        image_paths=paths,
        views=Views(poses, np.tile(matrix, (num_views, 1, 1)), np.full((num_views, 2), _SIDE)),
        mask_paths=[None] * num_views,
        has_masks=False,
        cloud=PointCloud.without_tracks(points, colors),
        is_test=np.zeros(num_views, bool),
        up=np.array([0.0, 0, -1]),
        ground_truth=None,
        distortion=[None] * num_views,
        photo_sizes=np.full((num_views, 2), _SIDE),
        shrink_factors=np.ones(num_views),
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
    told = "are not those of the photographs"
    for colors, words in ((np.full_like(mixed, 7), ""), (mixed, told)):
        cloud = PointCloud.without_tracks(scene.cloud.points, colors)
        said = _said(dataclasses.replace(scene, cloud=cloud), caplog)
        assert bool(said) == bool(words) and words in said and "WARNING" not in said


def _with_tracks(scene: Scene) -> Scene:
    count = len(scene.cloud)
    tracks = np.arange(count, dtype=np.int32) % scene.num_views
    cloud = PointCloud(scene.cloud.points, scene.cloud.colors, np.arange(count + 1), tracks)
    return dataclasses.replace(scene, cloud=cloud)


@pytest.mark.parametrize("has_tracks", [False, True])
@pytest.mark.parametrize(
    ("turn", "order", "words"),
    [
        (2, (0, 1, 2, 3, 4, 5), "turned by 180 degrees"),
        (1, (0, 1, 2, 3, 4, 5), "turned by 90 degrees to the right"),
        (0, (1, 2, 3, 4, 5, 0), "for the one after it"),
        (0, (5, 0, 1, 2, 3, 4), "for the one before it"),
    ],
)
def test_photographs_exchanged_after_poses_were_found_are_told(
    tmp_path, caplog, has_tracks, turn, order, words
):
    scene = _seen(tmp_path)
    if has_tracks:
        scene = _with_tracks(scene)
    pictures = [np.asarray(Image.open(path)) for path in scene.image_paths]
    for path, number in zip(scene.image_paths, order, strict=True):
        Image.fromarray(np.rot90(pictures[number], turn)).save(path)
    said = _said(scene, caplog)
    assert "WARNING" in said and words in said


def test_photographs_cut_after_poses_were_found_are_told(tmp_path, caplog):
    scene = _with_tracks(_seen(tmp_path))
    for path in scene.image_paths:
        picture = Image.open(path)
        picture.crop((0, 0, _SIDE // 2, _SIDE // 2)).save(path)
    said = _said(scene, caplog)
    assert "WARNING" in said and "were cut or are others" in said


def test_some_that_are_upside_down_are_named_with_their_turn(tmp_path, caplog):
    scene = _with_tracks(_seen(tmp_path, 8))
    for number in (2, 5, 6):
        picture = np.asarray(Image.open(scene.image_paths[number]))
        Image.fromarray(picture[::-1, ::-1]).save(scene.image_paths[number])
    said = _said(scene, caplog)
    assert "3 of 8 photographs do not show" in said and "2.png, 5.png, 6.png" in said
    assert "if it were turned by 180 degrees" in said


def _with_plain_views(scene: Scene, numbers, level: float = 3) -> Scene:
    """Some views look at a plain area far away, with noise in the cloud and in the photographs."""
    rng = np.random.default_rng(4)

    def plain(*shape):
        return (120 + rng.normal(0, level, shape)).round().astype(np.uint8)

    cloud = scene.cloud
    points = np.concatenate([cloud.points, cloud.points + [40, 0, 0]])
    colors = np.concatenate([cloud.colors, plain(len(cloud), 3)])
    for number in numbers:
        scene = _moved(scene, number, (-40, 0, 0))
        Image.fromarray(plain(_SIDE, _SIDE, 3)).save(scene.image_paths[number])
    return dataclasses.replace(scene, cloud=PointCloud.without_tracks(points, colors))


def test_a_plain_area_accuses_nobody_and_hides_nobody(tmp_path, caplog):
    scene = _with_plain_views(_seen(tmp_path, 8), (2, 5))
    assert _said(scene, caplog) == ""
    said = _said(_moved(scene, 3, (0.3, 0, 0)), caplog)
    assert "1 of 8 photographs do not show" in said and "3.png" in said


def test_a_damaged_photograph_decides_nothing(tmp_path, caplog):
    scene = _moved(_seen(tmp_path), 3, (0.3, 0, 0))
    path = Path(scene.image_paths[1])
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + b"\0" * 99 + whole[middle + 99 :])
    with pytest.raises(InputError, match=r"1\.png: expected a whole image"):
        color_checks.read_small(scene.image_paths[1])
    said = _said(scene, caplog)
    assert "1 of 6 photographs do not show" in said and "3.png" in said and "1.png" not in said


def test_a_palette_that_cannot_be_turned_into_colours_is_damage(tmp_path, monkeypatch):
    scene = _seen(tmp_path)

    def fail(*_):
        raise ValueError("bad palette")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(InputError, match=r"0\.png: .*bad palette"):
        color_checks.read_small(scene.image_paths[0])


def test_of_many_views_some_are_compared(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(color_checks, "_MAX_VIEWS", 4)
    read = []
    small = color_checks.read_small
    monkeypatch.setattr(color_checks, "read_small", lambda path: read.append(path) or small(path))
    scene = _seen(tmp_path)
    said = _said(scene, caplog)
    assert "4 of 6 photographs are compared with the points' colours, the others are not" in said
    assert sorted(read) == [scene.image_paths[number] for number in (0, 2, 3, 5)]


def test_points_far_outside_that_a_lens_folds_back_are_not_seen(tmp_path):
    scene = _seen(tmp_path)
    params = [_FOCAL, _SIDE / 2, _SIDE / 2, -0.25]
    lens = lens_from_params("SIMPLE_RADIAL", _SIDE, _SIDE, params)
    # The radius r - r^3 / 4 is 0 at 2, too: this point falls near the middle, before the others.
    points = np.concatenate([scene.cloud.points, [[2.05 * 3, 0, 3.0]]])
    colors = np.concatenate([scene.cloud.colors, [[1, 2, 3]]]).astype(np.uint8)
    cloud = PointCloud.without_tracks(points, colors)
    seen = color_checks._look(scene.image_paths[0], lens, np.eye(4), cloud)
    again = color_checks._look(scene.image_paths[0], lens, np.eye(4), scene.cloud)
    np.testing.assert_array_equal(seen.pixels, again.pixels)
    np.testing.assert_array_equal(seen.colors, again.colors)


def test_a_lens_that_does_not_say_how_far_it_sees_has_no_limit():
    lens = lens_from_params("SIMPLE_RADIAL", _SIDE, _SIDE, [_FOCAL, _SIDE / 2, _SIDE / 2, -0.9])
    assert color_checks._farthest(lens) == np.inf
    lens = lens_from_params("SIMPLE_PINHOLE", _SIDE, _SIDE, [_FOCAL, _SIDE / 2, _SIDE / 2])
    assert color_checks._farthest(lens) == pytest.approx(_SIDE / _FOCAL)


def test_small_pictures_are_decoded_where_that_is_quick(tmp_path, monkeypatch):
    picture = Image.new("RGB", (800, 400), (200, 10, 10))
    for ending in ("jpg", "png"):
        picture.save(tmp_path / f"a.{ending}")
    picture.save(tmp_path / "a.jfif", format="JPEG")
    picture.save(tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[picture])
    picture.save(tmp_path / "b.jpg", format="PNG")
    small = color_checks.read_small(str(tmp_path / "a.jpg"))
    assert small.shape == (128, 256, 3) and abs(int(small[5, 5, 0]) - 200) < 4
    monkeypatch.setattr(color_checks, "_MAX_PIXELS", 2**15)
    for name in ("a.png", "b.jpg"):
        assert color_checks.read_small(str(tmp_path / name)) is None
    for name in ("a.jpg", "a.jfif", "a.mpo"):
        assert color_checks.read_small(str(tmp_path / name)) is not None
