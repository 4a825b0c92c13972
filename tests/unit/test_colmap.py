"""COLMAP models of every layout and form, and what is said about broken ones."""

import dataclasses
import shutil
import struct
from pathlib import Path

import dataset_files
import numpy as np
import pytest
from helpers import real_scene
from PIL import Image

from cosurfgs_jax.data import colmap, colmap_binary
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import distortion
from cosurfgs_jax.settings import DataSettings, GeneratedSettings


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _matrix(quat):
    w, x, y, z = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _check_is_model(capture, model):
    assert capture.image_names == model.names
    for view in range(len(model.names)):
        np.testing.assert_allclose(
            capture.camera_from_dataset[view, :3, :3], _matrix(model.quats[view]), atol=1e-14
        )
        np.testing.assert_array_equal(capture.camera_from_dataset[view, :3, 3], model.shifts[view])
        name, width, height, params = model.cameras[model.camera_ids[view]]
        lens = capture.lenses[view]
        assert (lens.model, lens.width, lens.height) == (name, width, height)
        assert params[-len(lens.coefficients) or len(params) :] == list(lens.coefficients)
    np.testing.assert_array_equal(capture.cloud.points, model.points)
    np.testing.assert_array_equal(capture.cloud.colors, model.colors)
    for point, track in enumerate(model.tracks):
        got = capture.cloud.track_views[
            capture.cloud.track_offsets[point] : capture.cloud.track_offsets[point + 1]
        ]
        assert got.tolist() == sorted({model.image_ids.index(image) for image in track})


def test_points_are_the_same_however_few_are_read_at_once(tmp_path, monkeypatch):
    model = dataset_files.make_model()
    dataset_files.write_binary(model, tmp_path)
    whole = colmap.read_model(tmp_path).cloud
    monkeypatch.setattr(colmap_binary, "_CHUNK", 3)
    monkeypatch.setattr(colmap, "_CHUNK", 2)
    parts = colmap.read_model(tmp_path).cloud
    assert len(whole) > 6
    for name in ("points", "colors", "track_offsets", "track_views"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    _check_is_model(colmap.read_model(tmp_path), model)


@pytest.mark.parametrize("form", ["binary", "empty lines", "no lines", "features", "windows"])
def test_reads_what_was_written(tmp_path, form):
    cameras = {
        3: ("OPENCV", 64, 48, [60.0, 61.0, 31.5, 24.25, -0.1, 0.01, 0.001, -0.002]),
        9: ("SIMPLE_RADIAL", 80, 60, [70.0, 40.0, 30.0, 0.05]),
    }
    model = dataset_files.make_model(names=["b/x 1.png", "a/x.png", "c.png"], cameras=cameras)
    model.tracks[4] = [5, 5, 11]  # the same image twice
    if form == "binary":
        dataset_files.write_binary(model, tmp_path)
    else:
        line = {"empty lines": "", "no lines": None, "windows": ""}.get(form, "1.5 2.5 -1 3 4 100")
        dataset_files.write_text(model, tmp_path, line)
    if form == "windows":
        path = tmp_path / "images.txt"
        path.write_bytes(path.read_text().replace("\n", "\r\n").replace("b/x", "b\\x").encode())
    _check_is_model(colmap.read_model(tmp_path), model)


def test_tracks_of_unknown_images_are_dropped_with_a_word(tmp_path, caplog):
    model = dataset_files.make_model()
    model.tracks[0] = [5, 6, 999]
    model.tracks[1] = [4]
    dataset_files.write_binary(model, tmp_path)
    capture = colmap.read_model(tmp_path)
    assert capture.cloud.track_views[: capture.cloud.track_offsets[2]].tolist() == [0]
    assert "points name 3 images that the model does not have, the first is number 4" in caplog.text


@pytest.mark.parametrize("place", ["sparse/0", "sparse/3", "sparse", "", "colmap/sparse/0"])
@pytest.mark.parametrize("write", [dataset_files.write_binary, dataset_files.write_text])
def test_layouts(tmp_path, place, write):
    model = dataset_files.make_model(names=["d.png", "sub/b.png", "a.png"])
    write(model, tmp_path / place)
    dataset_files.write_images(model, tmp_path / "images")
    for name in ("rigs.bin", "frames.bin"):
        (tmp_path / place / name).write_bytes(b"not looked at")
    scene = _load(tmp_path, split="all")
    assert scene.image_names == ["a.png", "d.png", "sub/b.png"]
    # Tracks follow the views into the order of names.
    rank = {5: 1, 8: 2, 11: 0}
    for point, track in enumerate(model.tracks):
        views = scene.cloud.track_views[
            scene.cloud.track_offsets[point] : scene.cloud.track_offsets[point + 1]
        ]
        assert views.tolist() == sorted(rank[image] for image in track)
    np.testing.assert_array_equal(scene.views.camera_from_dataset[0, :3, 3], model.shifts[2])
    np.testing.assert_array_equal(
        scene.views.intrinsics[0], [[60, 0, 31.5], [0, 61, 24.25], [0, 0, 1]]
    )


def test_takes_the_model_with_most_images_or_the_one_asked_for(tmp_path):
    small = dataset_files.make_model(num_views=2)
    large = dataset_files.make_model(num_views=5)
    dataset_files.write_binary(small, tmp_path / "sparse" / "0")
    dataset_files.write_text(large, tmp_path / "sparse" / "1")
    dataset_files.write_images(large, tmp_path / "images")
    assert _load(tmp_path).num_views == 5
    assert _load(tmp_path, model="sparse/0").num_views == 2
    with pytest.raises(InputError, match=r"config\.data\.model: .*sparse/7"):
        _load(tmp_path, model="sparse/7")


def test_points_without_tracks(tmp_path):
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(with_tracks=False))
    scene = _load(tmp_path)
    assert len(scene.cloud.track_views) == 0 and scene.cloud.track_offsets.tolist() == [0] * 31


@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.95])
def test_cut_off_files_are_named(tmp_path, stem, fraction):
    dataset_files.write_dataset(tmp_path)
    path = tmp_path / "sparse" / "0" / f"{stem}.bin"
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match=rf"{stem}\.bin: .*cut off or damaged"):
        _load(tmp_path)


@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
def test_damaged_text_files_are_named(tmp_path, stem):
    model = dataset_files.make_model()
    dataset_files.write_text(model, tmp_path / "sparse")
    path = tmp_path / "sparse" / f"{stem}.txt"
    path.write_text(path.read_text() + "12 what\n")
    with pytest.raises(InputError, match=rf"{stem}\.txt: "):
        _load(tmp_path)


def _with_camera(camera):
    return dataset_files.make_model(cameras={7: camera})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            _with_camera((99, 64, 48, [60.0])),
            r"camera 7: expected a camera model number from 0 to 17, got 99",
        ),
        (_with_camera(("EQUIRECTANGULAR", 64, 48, [64.0, 48.0])), r"camera 7: .*panorama"),
        (
            _with_camera(("PINHOLE", 64, 48, [-1.0, 60.0, 32.0, 24.0])),
            r"camera 7: .*positive focal length",
        ),
        (
            _with_camera(("PINHOLE", 64, 48, [60.0, np.nan, 32.0, 24.0])),
            r"camera 7: .*finite parameters",
        ),
        (dataset_files.make_model(num_views=1), r"at least 2 images with poses, got 1"),
        (dataset_files.make_model(num_points=0), r"poses without any; .*cosurfgs prepare --poses="),
        (dataset_files.make_model(names=["a.png", "b.png", "a.png"]), r"a\.png twice"),
    ],
)
def test_models_that_make_no_sense(tmp_path, model, message):
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(InputError, match=message):
        _load(tmp_path)


def test_unknown_model_in_text(tmp_path):
    dataset_files.write_text(_with_camera(("CRYSTAL_BALL", 64, 48, [60.0])), tmp_path / "sparse")
    with pytest.raises(
        InputError, match=r"camera 7: .*expected one of SIMPLE_PINHOLE.*'CRYSTAL_BALL'"
    ):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("field", "word"), [("shifts", "poses"), ("quats", "poses"), ("points", "points")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path, field, word, value):
    model = dataset_files.make_model()
    getattr(model, field)[2, 1] = value
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(InputError, match=rf"expected finite {word}.* 1 of "):
        _load(tmp_path)


def test_a_quaternion_of_zeros(tmp_path):
    model = dataset_files.make_model()
    model.quats[1] = 0
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(InputError, match=r"expected finite poses.*view_01\.png"):
        _load(tmp_path)


def test_an_image_without_its_camera(tmp_path):
    model = dataset_files.make_model()
    dataset_files.write_dataset(tmp_path, model)
    dataset_files.write_binary(
        dataclasses.replace(model, camera_ids=[7, 7, 8, 7]), tmp_path / "sparse" / "0"
    )
    with pytest.raises(
        InputError, match=r"view_02\.png: expected one of the 1 cameras.* got camera 8"
    ):
        _load(tmp_path)


def test_missing_images_are_left_out_with_a_count_unless_most_are(tmp_path, caplog):
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=5))
    (tmp_path / "images" / "view_01.png").unlink()
    (tmp_path / "images" / "view_03.png").unlink()
    (tmp_path / "list.txt").write_text("view_00.png\nview_03.png\n")  # of which one is not there
    assert _load(tmp_path, split="list.txt").is_test.tolist() == [True, False, False]
    with pytest.raises(
        InputError, match="expected a photograph for training, got none among the 3 that are left"
    ):
        _load(tmp_path, split="every2")
    scene = _load(tmp_path, split="all")
    assert scene.image_names == ["view_00.png", "view_02.png", "view_04.png"]
    assert (
        "2 of 5 photographs are not there and are left out: view_01.png, view_03.png" in caplog.text
    )
    np.testing.assert_array_equal(scene.views.camera_from_dataset[1, :3, 3], model.shifts[2])
    rank = {5: 0, 11: 1, 17: 2}
    for point, track in enumerate(model.tracks):
        views = scene.cloud.track_views[
            scene.cloud.track_offsets[point] : scene.cloud.track_offsets[point + 1]
        ]
        assert views.tolist() == sorted(rank[image] for image in track if image in rank)
    (tmp_path / "images" / "view_02.png").unlink()
    with pytest.raises(
        InputError,
        match=r"sparse/0: expected its photographs, got 2 of 5 .*missing: view_01\.png.*copy",
    ):
        _load(tmp_path)
    assert (
        load_scene(
            DataSettings(path=str(tmp_path)), GeneratedSettings(), "", allow_missing=True
        ).num_views
        == 5
    )
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(
        InputError, match=r"images: expected the photographs there, got no such folder"
    ):
        _load(tmp_path)


def test_the_image_folder_in_another_case(tmp_path):
    dataset_files.write_dataset(tmp_path)
    (tmp_path / "images").rename(tmp_path / "Images")
    assert _load(tmp_path).image_paths[1] == str(tmp_path / "Images" / "view_01.png")


def test_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.path: .*nowhere, which is not there"):
        _load(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(
        InputError, match=r"config\.data\.path: .*sparse/0.*transforms\.json, got notes\.md"
    ):
        _load(tmp_path)


@pytest.mark.parametrize("name", ["caliterra", "brighton"])
def test_real_models_agree_with_pycolmap(tmp_path, name):
    pycolmap = pytest.importorskip("pycolmap")
    folder = real_scene(name)
    reference = pycolmap.Reconstruction(folder / "sparse" / "0")
    # Written again by a new version, in both forms: rigs and frames come with it.
    for form in ("binary", "text"):
        (tmp_path / form).mkdir()
        getattr(reference, f"write_{form}")(tmp_path / form)
    assert (tmp_path / "binary" / "rigs.bin").is_file()
    by_name = {image.name: image for image in reference.images.values()}
    for path in (folder / "sparse" / "0", tmp_path / "binary", tmp_path / "text"):
        capture = colmap.read_model(path)
        assert sorted(capture.image_names) == sorted(by_name)
        assert len(capture.cloud.points) == reference.num_points3D()
        for view, image_name in enumerate(capture.image_names):
            image = by_name[image_name]
            np.testing.assert_allclose(
                capture.camera_from_dataset[view, :3],
                image.cam_from_world().matrix(),
                rtol=0,
                atol=1e-12,
            )
            assert (capture.cloud.track_views == view).sum() == len(
                {p.point3D_id for p in image.get_observation_points2D()}
            )


def test_real_scene_projects_its_points_into_the_images_that_see_them():
    scene = load_scene(DataSettings(path=str(real_scene("brighton"))), GeneratedSettings(), "")
    assert scene.num_views == 18 and scene.test_views.tolist() == [0, 8, 16]
    assert scene.up.tolist() == [0, 0, 1]
    counts = np.diff(scene.cloud.track_offsets)
    points = np.repeat(scene.cloud.points, counts, axis=0)
    poses = scene.views.camera_from_dataset[scene.cloud.track_views]
    in_camera = np.einsum("tij,tj->ti", poses[:, :3, :3], points) + poses[:, :3, 3]
    pixels = np.einsum(
        "tij,tj->ti", scene.views.intrinsics[scene.cloud.track_views], in_camera / in_camera[:, 2:]
    )
    sizes = scene.views.image_sizes[scene.cloud.track_views][:, ::-1]
    # Features at the border may be reprojected a pixel or two outside.
    assert np.all(in_camera[:, 2] > 0) and np.all(
        (pixels[:, :2] > -2) & (pixels[:, :2] < sizes + 2)
    )


def test_number_of_images_in_a_truncated_model_is_zero(tmp_path):
    dataset_files.write_dataset(tmp_path)
    dataset_files.write_binary(dataset_files.make_model(num_views=2), tmp_path / "sparse" / "1")
    (tmp_path / "sparse" / "0" / "images.bin").write_bytes(struct.pack("<I", 4))
    assert colmap.find_model(tmp_path).name == "1"


def test_images_of_another_shape_are_named(tmp_path):
    dataset_files.write_dataset(tmp_path)
    path = tmp_path / "images" / "view_02.png"
    for height, width in ((24, 35), (48, 63), (47, 64), (40, 64)):
        Image.fromarray(dataset_files.picture(height, width)).save(path)
        with pytest.raises(
            InputError, match=rf"view_02\.png: expected 64x48 pixels .*got {width}x{height}"
        ):
            _load(tmp_path)


@pytest.mark.parametrize("factor", [2, 1.6, 3.3, 0.5])
@pytest.mark.parametrize("rounding", [np.floor, np.round, np.ceil])
def test_cameras_are_scaled_to_the_photographs(tmp_path, caplog, factor, rounding):
    """Every photograph may have a scale of its own."""
    cameras = {
        1: ("SIMPLE_RADIAL", 640, 480, [500.0, 310.0, 250.0, -0.05]),
        2: ("PINHOLE", 301, 403, [300.0, 310.0, 140.0, 190.0]),
    }
    model = dataset_files.write_dataset(
        tmp_path, dataset_files.make_model(num_views=4, cameras=cameras)
    )
    whole = _load(tmp_path)
    for view in (0, 1, 3):
        _, width, height, _ = cameras[model.camera_ids[view]]
        height, width = (int(rounding(side / factor)) for side in (height, width))
        Image.fromarray(dataset_files.picture(height, width, seed=view)).save(
            tmp_path / "images" / model.names[view]
        )
    with caplog.at_level("INFO"):
        scene = _load(tmp_path)
    assert (
        "3 of 4 photographs are of " in caplog.text
        and "the cameras are scaled to them" in caplog.text
    )
    assert scene.photo_sizes[2].tolist() == [480, 640]
    for view in (0, 1, 3):
        ratio = scene.photo_sizes[view][::-1] / whole.photo_sizes[view][::-1]
        np.testing.assert_allclose(ratio, 1 / factor, atol=1 / 301)
        focal = [
            scene.views.intrinsics[view, axis, axis] / whole.views.intrinsics[view, axis, axis]
            for axis in (0, 1)
        ]
        np.testing.assert_allclose(focal, ratio, rtol=1e-12)
    np.testing.assert_allclose(
        scene.views.intrinsics[1, :2, 2],
        np.array([140, 190]) * scene.photo_sizes[1][::-1] / [301, 403],
    )
    with ImageStore(scene, 64) as store:
        np.testing.assert_array_equal(
            store.load(1), dataset_files.picture(*scene.photo_sizes[1], seed=1)
        )


def test_a_lens_per_photograph_gives_few_image_sizes(tmp_path):
    def lens(number):
        return (
            "OPENCV",
            400,
            300,
            [380.0, 380.0, 201.0, 149.0, -0.06 - 0.002 * number, 0.01, 1e-4 * number, 0.0],
        )

    cameras = {number: lens(number) for number in range(1, 13)}
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=12, cameras=cameras))
    scene = _load(tmp_path)
    exact = [distortion.undistorted_pinhole(scene.distortion[view]) for view in range(12)]
    assert len({(pinhole.height, pinhole.width) for pinhole in exact}) >= 5
    assert len(np.unique(scene.views.image_sizes, axis=0)) <= 2
    for view, pinhole in enumerate(exact):
        np.testing.assert_array_equal(
            scene.views.intrinsics[view], pinhole.intrinsics
        )  # nothing is cropped left or above
        lost = np.array([pinhole.height, pinhole.width]) - scene.views.image_sizes[view]
        assert np.all((lost >= 0) & (lost <= [6, 8]))
    with ImageStore(scene, 64) as store:
        assert all(
            store.load(view).shape[:2] == tuple(scene.views.image_sizes[view]) for view in range(12)
        )


@pytest.mark.parametrize("lens", ["PINHOLE", "OPENCV"])
def test_landscape_and_portrait_in_one_dataset(tmp_path, lens):
    distorted = [-0.05, 0.01, 0.0, 0.0] if lens == "OPENCV" else []
    cameras = {
        1: (lens, 64, 48, [60.0, 61.0, 31.5, 24.25, *distorted]),
        2: (lens, 40, 56, [55.0, 54.0, 19.5, 28.25, *distorted]),
    }
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=5, cameras=cameras))
    scene = _load(tmp_path)
    assert (scene.views.image_sizes[:, 1] > scene.views.image_sizes[:, 0]).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
    if lens == "PINHOLE":
        assert scene.views.image_sizes.tolist() == [[48, 64], [56, 40]] * 2 + [[48, 64]]
        assert scene.views.intrinsics[:, 0, 0].tolist() == [60, 55, 60, 55, 60]
    with ImageStore(scene, 64) as store:
        assert all(
            store.load(view).shape == (*scene.views.image_sizes[view], 3) for view in range(5)
        )
    half = _load(tmp_path, downscale=2)
    assert np.all(np.abs(half.views.image_sizes - scene.views.image_sizes / 2) <= 1)


@pytest.mark.parametrize("place", ["SPARSE/0", "Sparse", "Colmap/Sparse/0"])
def test_folders_in_any_case(tmp_path, place):
    model = dataset_files.make_model()
    dataset_files.write_binary(model, tmp_path / place)
    dataset_files.write_images(model, tmp_path / "IMAGES")
    dataset_files.write_images(model, tmp_path / "Images_2", divide=2)
    scene = _load(tmp_path)
    assert scene.image_names == model.names and "IMAGES" in scene.image_paths[0]
    assert "Images_2" in _load(tmp_path, downscale=2).image_paths[0]
    dataset_files.write_images(model, tmp_path / "images")
    assert Path(_load(tmp_path).image_paths[0]).parent.name == "images"


def test_a_list_may_name_photographs_that_are_left_out(tmp_path, caplog):
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=8))
    (tmp_path / "images" / model.names[3]).unlink()
    (tmp_path / "test.txt").write_text(f"{model.names[3]}\n{model.names[5]}\n", encoding="utf-16")
    for choice in ("folders", "test.txt"):
        scene = _load(tmp_path, split=choice)
        assert [scene.image_names[view] for view in scene.test_views] == [model.names[5]]
    assert "for testing are left out" not in caplog.text
    (tmp_path / "test.txt").write_text(model.names[3])
    assert not _load(tmp_path, split="folders").is_test.any()
    assert "all 1 photographs for testing are left out" in caplog.text
