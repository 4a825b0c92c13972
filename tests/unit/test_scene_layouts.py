"""The layouts in which the scenes of the field are distributed: Mega-NeRF's, MatrixCity's and
MVSNet's give the scene that a COLMAP dataset of the same photographs gives.
"""

import json
import logging

import dataset_files
import numpy as np
import pytest
import scene_layouts

from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

CAMERAS = {7: ("PINHOLE", 64, 48, [60.0, 60.0, 32.0, 24.0])}
# The dataset's frame from that of the source.
FRAMES = {
    "mega-nerf": (1.0, scene_layouts.DRB_FROM_ENU),
    "block": (1.0, np.eye(3)),
    "split": (0.01, np.eye(3)),
    "mvsnet": (1.0, np.eye(3)),
}


@pytest.fixture(params=FRAMES)
def layout(request, tmp_path):
    """Name, folder of the dataset, the capture that it was made from, and the model's writer."""
    names = [f"DJI_{number:04d}.png" for number in range(9)]
    model = dataset_files.make_model(names=names, cameras=CAMERAS)
    source = tmp_path / "source"
    dataset_files.write_dataset(source, model)
    root = tmp_path / "made"
    match request.param:
        case "mega-nerf":
            capture = scene_layouts.write_mega_nerf(source, root)
        case "mvsnet":
            capture = scene_layouts.write_mvsnet(source, root)
        case _:
            capture = scene_layouts.write_matrix_city(source, root)
            root = root / {"block": "train/block_1", "split": "pose/block_A"}[request.param]
    return request.param, root, capture, model


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _with_model(name, root, capture, model):
    """Adds the model that the dataset was made from, in its own frame."""
    order = [model.names.index(old) for old in capture.image_names]
    if name == "mvsnet":
        for number, place in enumerate(order):
            model.names[place] = f"{number:08d}.png"
    elif name != "mega-nerf":  # which knows the names from mappings.txt
        counts = {"train/block_1": 0, "test/block_1_test": 0}
        for number, place in enumerate(order):
            folder = "train/block_1" if number % 8 else "test/block_1_test"
            model.names[place] = f"{folder}/{counts[folder]:04d}.png"
            counts[folder] += 1
    dataset_files.write_binary(model, root / "sparse" / "0")


def test_the_scene_is_that_of_the_source(layout):
    name, root, capture, model = layout
    _with_model(*layout)
    scene = _load(root, split="all" if name == "mvsnet" else "folders")
    scale, rotation = FRAMES[name]
    poses = capture.camera_from_dataset
    order = np.arange(len(poses))
    if name != "mvsnet":  # names of photographs for testing sort before or behind the others
        order = np.argsort([number % 8 == 0 for number in order], kind="stable")
        if scene.test_views[0] == 0:
            order = np.roll(order, 2)
        assert scene.is_test.sum() == 2 and scene.is_test[order % 8 == 0].all()
    views = Views(poses[order], scene.views.intrinsics, scene.views.image_sizes)
    np.testing.assert_allclose(
        scene.views.centers, scale * views.centers @ rotation.T, atol=2e-6 * 40
    )
    turned = poses[order, :3, :3] @ rotation.T
    np.testing.assert_allclose(scene.views.camera_from_dataset[:, :3, :3], turned, atol=1e-6)
    np.testing.assert_allclose(scene.views.intrinsics[0], capture.lenses[0].intrinsics, rtol=1e-6)
    assert scene.distortion[0] is None  # that of the files was removed before
    expected = scale * model.points @ rotation.T
    np.testing.assert_allclose(scene.cloud.points, expected, atol=1e-4)
    np.testing.assert_array_equal(scene.cloud.colors, model.colors)


def test_without_points_it_says_how_to_make_some(layout):
    _, root, *_ = layout
    with pytest.raises(InputError, match=rf"got poses without any; .*prepare --poses={root}"):
        _load(root)


def test_photographs_that_are_missing_are_left_out(layout, caplog):
    name, root, *_ = layout
    _with_model(*layout)
    folder = {"mega-nerf": "train/rgbs", "mvsnet": "blended_images"}.get(name, ".")
    if name == "split":
        folder = "../../train/block_1"
    ending = "jpg" if name in ("mega-nerf", "mvsnet") else "png"
    photographs = sorted((root / folder).glob(f"*[0-9].{ending}"))
    photographs[3].unlink()
    with caplog.at_level(logging.WARNING):
        assert _load(root).num_views == 8
    assert "1 of 9 photographs are not there and are left out" in caplog.text
    for photograph in photographs:
        photograph.unlink(missing_ok=True)
    with pytest.raises(InputError, match="expected its photographs, got"):
        _load(root)


def _mega_nerf(tmp_path):
    source = tmp_path / "source"
    dataset_files.write_dataset(source, dataset_files.make_model(cameras=CAMERAS))
    scene_layouts.write_mega_nerf(source, tmp_path / "made")
    return tmp_path / "made"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train/metadata/000001.pt", {"c2w": np.eye(4)}, r"000001\.pt: expected c2w of shape"),
        ("train/metadata/000001.pt", {"c2w": 2 * np.eye(3, 4)}, "expected a rotation"),
        ("train/metadata/000001.pt", {"c2w": np.full((3, 4), np.nan)}, "expected finite numbers"),
        ("train/metadata/000001.pt", {"intrinsics": np.zeros(4)}, "positive focal length"),
        ("train/metadata/000001.pt", {"H": "tall"}, "expected H of shape"),
        ("coordinates.pt", {"pose_scale_factor": 0.0}, "expected a positive pose_scale_factor"),
        ("coordinates.pt", {"origin_drb": np.zeros(2)}, "expected origin_drb of shape"),
    ],
)
def test_values_that_make_no_sense(tmp_path, name, change, message):
    root = _mega_nerf(tmp_path)
    usual = {"origin_drb": np.zeros(3), "pose_scale_factor": 2.0}
    if "metadata" in name:
        pose = np.eye(3, 4)
        usual = {"H": 48, "W": 64, "c2w": pose, "intrinsics": np.array([60.0, 60, 32, 24])}
    scene_layouts.write_torch(root / name, usual | change)
    with pytest.raises(InputError, match=message):
        _load(root)


def test_a_block_needs_no_more_than_numbers_of_frames_and_a_test_block(tmp_path):
    source = tmp_path / "source"
    model = dataset_files.make_model(num_views=6, cameras=CAMERAS)
    dataset_files.write_dataset(source, model)
    scene_layouts.write_matrix_city(source, tmp_path, every=3)
    root = tmp_path / "train" / "block_1"
    for test in (tmp_path / "test" / "block_1_test").iterdir():
        test.unlink()
    model.names = [f"{number:04d}.png" for number in range(len(model.names))]
    path = root / "transforms.json"
    table = json.loads(path.read_text())
    table["frames"][1]["rot_mat"][3][3] = 0.01
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="got poses without any"):
        _load(root)  # 4 of the 6 views
    table["frames"][2] = 7
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="frame 2: expected an object, got 7"):
        _load(root)
    table["frames"][2] = {"frame_index": 2, "rot_mat": [[1, 2], [3, 4]]}
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="frame 2: transform_matrix: expected a matrix"):
        _load(root)


def test_a_camera_file_that_is_cut_off(tmp_path):
    source = tmp_path / "source"
    dataset_files.write_dataset(source, dataset_files.make_model(cameras=CAMERAS))
    scene_layouts.write_mvsnet(source, tmp_path / "made")
    path = tmp_path / "made" / "cams" / "00000001_cam.txt"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00000001_cam\.txt: expected a text file of a camera"):
        _load(tmp_path / "made")
    path.write_text(whole.replace("0.0 0.0 0.0 1.0", "0.0 0.0 0.0 2.0", 1))
    with pytest.raises(InputError, match="expected a last row of 0 0 0 1"):
        _load(tmp_path / "made")
