"""transforms.json: frames of reference, cameras, points, masks and the file's own split."""

import json
import logging
import os

import dataset_files
import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax.data import loading, opengl_poses, points_beside, transforms_json
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.data.split import views_for_testing
from cosurfgs_jax.data.transforms_json import lens_of
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

CAMERA = {"fl_x": 60.0, "fl_y": 61.0, "cx": 31.5, "cy": 24.25, "w": 64, "h": 48}
# What nerfstudio does to COLMAP's poses: z up.
APPLIED = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _write_points(path, points, colors=None, kind="float"):
    lines = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    lines += [f"property {kind} {axis}" for axis in "xyz"]
    lines += (
        [f"property uchar {name}" for name in ("red", "green", "blue")]
        if colors is not None
        else []
    )
    rows = points if colors is None else np.concatenate([points, colors], axis=1)
    kinds = [repr] * 3 + [lambda value: str(int(value))] * 3
    lines += [
        "end_header",
        *(" ".join(k(float(v)) for k, v in zip(kinds, row, strict=False)) for row in rows),
    ]
    path.write_text("\n".join(lines) + "\n")


def _write(root, model, applied=None, scale=1.0, camera=CAMERA, per_frame=False, **extra):
    """The same dataset as a COLMAP model: OpenGL poses, moved as `applied` says."""
    root.mkdir(exist_ok=True)
    full = np.eye(4)
    full[:3] = scale * (np.eye(4)[:3] if applied is None else applied)
    dataset_files.write_binary(model, root / "kept" / "apart")
    frames = []
    for i, name in enumerate(model.names):
        w, x, y, z = model.quats[i]
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        pose = np.eye(4)
        pose[:3, :3] = rotation.T @ np.diag([1, -1, -1])
        pose[:3, 3] = -rotation.T @ model.shifts[i]
        pose = full @ pose
        pose[:3, :3] /= scale
        frames.append(
            {
                "file_path": f"./images/{name}",
                "transform_matrix": pose.tolist(),
                **(camera if per_frame else {}),
            }
        )
    table = {
        "frames": frames,
        "ply_file_path": "points.ply",
        **({} if per_frame else camera),
        **extra,
    }
    if applied is not None:
        table["applied_transform"] = applied.tolist()
    if scale != 1:
        table["applied_scale"] = scale
    _write_points(
        root / "points.ply", model.points @ full[:3, :3].T + full[:3, 3], model.colors, "double"
    )
    (root / "transforms.json").write_text(json.dumps(table))
    dataset_files.write_images(model, root / "images")
    return table


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize(
    ("applied", "scale"), [(None, 1.0), (APPLIED, 1.0), (APPLIED + np.eye(3, 4, 3), 2.5)]
)
def test_gives_the_same_scene_as_the_colmap_model_it_was_made_from(
    tmp_path, applied, scale, per_frame
):
    model = dataset_files.make_model(names=["b.png", "sub/c.png", "a.png"], with_tracks=False)
    _write(tmp_path / "nerf", model, applied, scale, per_frame=per_frame)
    dataset_files.write_dataset(tmp_path / "colmap", model)
    got = _load(tmp_path / "nerf")
    expected = _load(tmp_path / "colmap")
    assert got.image_names == expected.image_names == ["a.png", "b.png", "sub/c.png"]
    fields = {
        "views": ("camera_from_dataset", "intrinsics", "image_sizes"),
        "cloud": ("points", "colors", "track_offsets"),
    }
    for part, names in fields.items():
        for name in names:
            np.testing.assert_allclose(
                getattr(getattr(got, part), name),
                getattr(getattr(expected, part), name),
                atol=1e-12,
                err_msg=name,
            )
    np.testing.assert_allclose(got.up, expected.up, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "model", "coefficients"),
    [
        ({}, "OPENCV", (0, 0, 0, 0)),
        ({"camera_model": "PINHOLE", "k1": 0.1}, "PINHOLE", ()),
        ({"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}, "OPENCV", (0.1, 0.2, 0.3, 0.4)),
        (
            {"k1": 0.1, "k2": 0.2, "k3": 0.5, "p1": 0.3},
            "FULL_OPENCV",
            (0.1, 0.2, 0.3, 0, 0.5, 0, 0, 0),
        ),
        (
            {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.4},
            "OPENCV_FISHEYE",
            (0.1, 0, 0, 0.4),
        ),
    ],
)
def test_camera_models(fields, model, coefficients):
    lens = lens_of({**CAMERA, **fields}, (1, 1), "x")
    assert (lens.model, lens.coefficients) == (model, coefficients)
    assert (lens.focal_px, lens.principal_px, lens.width, lens.height) == (
        (60, 61),
        (31.5, 24.25),
        64,
        48,
    )


def test_camera_from_an_angle_and_the_size_of_the_file():
    lens = lens_of({"camera_angle_x": np.pi / 2}, (48, 64), "x")
    np.testing.assert_allclose([*lens.focal_px, *lens.principal_px], [32, 32, 32, 24], rtol=1e-12)


def test_an_angle_that_is_not_that_of_the_focal_length_is_said(caplog):
    angle = 2 * np.arctan(64 / 2 / 60)
    lens_of({**CAMERA, "camera_angle_x": angle, "camera_angle_y": 0.0}, (1, 1), "a: frame 1")
    assert not caplog.text
    lens_of({**CAMERA, "camera_angle_x": 2 * np.arctan(64 / 60)}, (1, 1), "a: frame 1")
    assert "a: fl_x = 60 is taken, though camera_angle_x = 1.63" in caplog.text
    lens_of({**CAMERA, "camera_angle_x": 0.5}, (1, 1), "b: frame 1")  # a long lens
    assert "b: fl_x = 60 is taken, though camera_angle_x = 0.5 says 125.322" in caplog.text
    assert "says 30 for 64 pixels" in caplog.text
    caplog.clear()
    fisheye = {"camera_model": "OPENCV_FISHEYE", "camera_angle_x": 2.7}
    lens_of({**CAMERA, **fisheye}, (1, 1), "b: frame 1")  # its angle is no pinhole's
    assert not caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model OPENCV"),
        ({"k4": 0.1}, "no k4"),
        ({"fl_x": None}, "fl_x"),
        ({"fl_x": "60 px"}, "expected a number as fl_x, got '60 px'"),
        ({"fl_x": "60,5"}, "expected a number as fl_x, got '60,5'"),
        ({"fl_x": "6_0"}, "expected a number as fl_x, got '6_0'"),
        ({"fl_x": "nan"}, "expected a number as fl_x, got 'nan'"),
        ({"fl_x": "1e999"}, "expected a finite number as fl_x, got inf"),
        ({"fl_x": -60.0}, "positive focal length"),
    ],
)
def test_cameras_that_make_no_sense(fields, message):
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        lens_of({**CAMERA, **fields}, (48, 64), "here")


def test_numbers_written_as_text_are_read_and_said(caplog):
    as_text = {key: f" {value} " for key, value in CAMERA.items()}
    lens = lens_of(as_text, (1, 1), "words: frame 0")
    assert lens == lens_of(CAMERA, (1, 1), "here")
    assert "words: fl_x is written as text and read as a number" in caplog.text


@pytest.mark.parametrize("name", ["Transforms.json", "TRANSFORMS.JSON"])
def test_the_file_may_be_named_in_another_case(tmp_path, name):
    model = dataset_files.make_model(seed=2)
    _write(tmp_path, model)
    wanted = _load(tmp_path)
    (tmp_path / "transforms.json").rename(tmp_path / name)
    assert _load(tmp_path).image_names == wanted.image_names


def test_missing_photographs_are_left_out_with_a_count(tmp_path, caplog):
    _write(tmp_path, dataset_files.make_model(num_views=5))
    for name in ("view_01.png", "view_03.png"):
        (tmp_path / "images" / name).unlink()
    with caplog.at_level(logging.WARNING):
        scene = _load(tmp_path)
    assert scene.image_names == ["view_00.png", "view_02.png", "view_04.png"]
    assert (
        "2 of 5 photographs are not there and are left out: ./images/view_01.png, "
        "./images/view_03.png" in caplog.text
    )
    for name in ("view_00.png", "view_02.png"):  # most of them
        (tmp_path / "images" / name).unlink()
    with pytest.raises(InputError, match=r"expected its photographs, got 1 of 5 .*view_00\.png"):
        _load(tmp_path)


def test_masks_and_reduced_images(tmp_path):
    model = dataset_files.make_model()
    table = _write(tmp_path, model)
    keep = np.zeros((48, 64), np.uint8)
    keep[:, :30] = 255
    Image.fromarray(keep).save(tmp_path / "somewhere.png")
    table["frames"][1]["mask_path"] = "somewhere.png"
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    dataset_files.write_images(model, tmp_path / "images_2", divide=2)
    scene = _load(tmp_path, downscale=2)
    assert scene.has_masks and [bool(path) for path in scene.mask_paths] == [
        False,
        True,
        False,
        False,
    ]
    assert "images_2" in scene.image_paths[0] and scene.shrink_factors.tolist() == [1] * 4
    np.testing.assert_allclose(scene.views.intrinsics[0, 0], [30, 0, 15.75])
    table["frames"][1]["mask_path"] = "gone.png"
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"frame 1: expected the mask .*gone\.png"):
        _load(tmp_path)


def test_own_split(tmp_path):
    names = {"test_filenames": ["./images/view_02.png"], "val_filenames": ["./images/view_00.png"]}
    _write(tmp_path, dataset_files.make_model(), **names)
    assert _load(tmp_path, split="folders").test_views.tolist() == [0, 2]
    assert _load(tmp_path).test_views.tolist() == [0]


def test_a_colmap_model_goes_first(tmp_path):
    _write(tmp_path, dataset_files.make_model())
    (tmp_path / "kept" / "apart").rename(tmp_path / "sparse")
    assert len(_load(tmp_path).cloud.track_views) > 0


def test_points(tmp_path):
    model = dataset_files.make_model()
    table = _write(tmp_path, model)
    _write_points(tmp_path / "points.ply", model.points[:3])
    assert _load(tmp_path).cloud.colors.tolist() == [[128] * 3] * 3
    (tmp_path / "points.ply").rename(tmp_path / "sparse_pc.ply")
    with pytest.raises(InputError, match=r"points\.ply"):
        _load(tmp_path)
    del table["ply_file_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    assert len(_load(tmp_path).cloud.points) == 3
    (tmp_path / "sparse_pc.ply").unlink()
    with pytest.raises(InputError, match=r"expected points to start from, got poses without any"):
        _load(tmp_path)


def _without_point_file(root, table):
    del table["ply_file_path"]
    (root / "points.ply").unlink()
    (root / "transforms.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("applied", "scale"), [(None, 1.0), (APPLIED, 1.0), (APPLIED + np.eye(3, 4, 3), 2.5)]
)
def test_points_of_the_colmap_model_that_the_file_was_made_from(tmp_path, applied, scale):
    model = dataset_files.make_model(names=["b.png", "sub/c.png", "a.png"])
    _without_point_file(tmp_path, _write(tmp_path, model, applied, scale))
    dataset_files.write_binary(model, tmp_path / "colmap" / "sparse" / "0")
    scene = _load(tmp_path)
    np.testing.assert_array_equal(scene.cloud.points, model.points)
    np.testing.assert_array_equal(scene.cloud.colors, model.colors)


def test_points_of_a_colmap_model_in_another_frame_are_moved(tmp_path):
    model = dataset_files.make_model()
    scale = 2.5
    applied = APPLIED + np.eye(3, 4, 3)
    table = _write(tmp_path, model, applied, scale)
    dataset_files.write_binary(model, tmp_path / "colmap" / "sparse" / "0")
    del table["applied_transform"], table["applied_scale"]  # nothing says how poses were moved
    _without_point_file(tmp_path, table)
    expected = scale * (model.points @ applied[:, :3].T + applied[:, 3])
    np.testing.assert_allclose(_load(tmp_path).cloud.points, expected, atol=1e-9)


def test_points_of_a_colmap_model_of_other_poses_are_refused(tmp_path):
    model = dataset_files.make_model()
    _without_point_file(tmp_path, _write(tmp_path, model, APPLIED))
    model.shifts[2] += 0.5
    dataset_files.write_binary(model, tmp_path / "colmap" / "sparse" / "0")
    with pytest.raises(InputError, match=r"expected its photographs .*, got other poses there"):
        _load(tmp_path)
    model.names = [f"another_{name}" for name in model.names]
    dataset_files.write_binary(model, tmp_path / "colmap" / "sparse" / "0")
    with pytest.raises(InputError, match="no photograph that both name"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("frames"), "list of frames"),
        (
            lambda table: table["frames"][2].pop("file_path"),
            "frame 2: expected an object with file_path",
        ),
        (
            lambda table: table["frames"][2].pop("transform_matrix"),
            "frame 2: transform_matrix: expected a matrix",
        ),
        (
            lambda table: table["frames"][2].update(transform_matrix=[[1, 2]]),
            "frame 2: transform_matrix: expected a matrix",
        ),
        (
            lambda table: table["frames"][2].update(
                transform_matrix=np.diag([2, 2, 2, 1]).tolist()
            ),
            "frame 2: .*rotation",
        ),
        (
            lambda table: table["frames"][2].update(
                transform_matrix=np.diag([-1, 1, 1, 1]).tolist()
            ),
            "frame 2: .*rotation",
        ),
        (
            lambda table: table["frames"][2]["transform_matrix"][0].__setitem__(1, float("nan")),
            "expected finite poses",
        ),
        (
            lambda table: table.update(applied_transform=np.diag([1, 2, 1, 1]).tolist()),
            "expected applied_transform",
        ),
        (
            lambda table: table.update(applied_transform=np.diag([-1, 1, 1, 1]).tolist()),
            "expected applied_transform",
        ),
        (
            lambda table: table["frames"][3].update(file_path="images/view_00.png"),
            r"view_00\.png twice",
        ),
        (lambda table: table.update(w=65), r"view_00\.png: expected 65x48 pixels .*got 64x48"),
    ],
)
def test_files_that_make_no_sense(tmp_path, change, message):
    table = _write(tmp_path, dataset_files.make_model())
    change(table)
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=message):
        _load(tmp_path)


def test_a_damaged_file(tmp_path):
    _write(tmp_path, dataset_files.make_model())
    (tmp_path / "transforms.json").write_text('{"frames": [')
    with pytest.raises(InputError, match=r"transforms\.json"):
        _load(tmp_path)


def test_names_without_ending_and_paths_above(tmp_path, caplog):
    model = dataset_files.make_model()
    table = _write(tmp_path, model)
    (tmp_path / "inner").mkdir()
    for frame in table["frames"]:
        frame["file_path"] = "../images/" + frame["file_path"].rsplit("/", 1)[1].removesuffix(
            ".png"
        )
    table["ply_file_path"] = "../points.ply"
    Image.new("L", (64, 48), 255).save(tmp_path / "away.png")
    table["frames"][2]["mask_path"] = str(tmp_path / "away.png")
    (tmp_path / "inner" / "transforms.json").write_text(json.dumps(table))
    scene = _load(tmp_path / "inner")
    said = [text for text in caplog.messages if "lie outside of the dataset" in text]
    assert [text.rpartition("/")[2] for text in said] == ["away.png", "points.ply", "view_00.png"]
    assert scene.image_names == model.names
    assert views_for_testing("every8", scene.image_names, tmp_path).sum() == 1


@pytest.mark.parametrize(
    ("fields", "model", "coefficients"),
    [
        (
            {"is_fisheye": True, "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4},
            "OPENCV_FISHEYE",
            (0.1, 0.2, 0.3, 0.4),
        ),
        ({"is_fisheye": False, "k1": 0.1}, "OPENCV", (0.1, 0, 0, 0)),
        ({"is_fisheye": True, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE", (0, 0, 0, 0)),
        (
            {"camera_model": "RADIAL_FISHEYE", "k1": 0.1, "k2": 0.2},
            "OPENCV_FISHEYE",
            (0.1, 0.2, 0, 0),
        ),
        (
            {
                "k5": 0.0,
                "skew": 0,
                "rolling_shutter": [0, 0, 0, 0],
                "latlong": False,
                "aabb_scale": 16,
            },
            "OPENCV",
            (0, 0, 0, 0),
        ),
    ],
)
def test_lenses_of_other_programs(fields, model, coefficients):
    lens = lens_of({**CAMERA, **fields}, (1, 1), "x")
    assert (lens.model, lens.coefficients) == (model, coefficients)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"is_fisheye": True, "camera_model": "OPENCV"},
            "expected one lens, got is_fisheye and camera_model OPENCV",
        ),
        ({"is_fisheye": "yes"}, "expected true or false as is_fisheye, got 'yes'"),
        ({"k5": 0.01}, "got k5 = 0.01, which this program has no model for"),
        ({"b1": 2.5}, "got b1"),
        ({"skew": 0.1}, "got skew"),
        ({"rolling_shutter": [0, 0, 1, 0]}, "got rolling_shutter"),
        ({"ftheta_p1": 3}, "got ftheta_p1"),
        ({"latlong": True}, "got latlong"),
        ({"equirectangular": True}, "got equirect"),
        ({"distortion_params": [0.1, 0]}, "got distortion_params"),
        ({"s1": 1e-4}, "got s1"),
        ({"is_panorama": 1}, "got is_pano"),
        ({"is_fisheye": True, "p1": 0.1}, "expected 4 radial coefficients .*p1, p2 = 0.1"),
        ({"camera_model": "RADIAL_FISHEYE", "k3": 0.1}, "expected 2 radial coefficients"),
        ({"w": 64.5}, "expected a whole number of pixels as w, got 64.5"),
        ({"h": -48}, "expected a whole number of pixels as h"),
        ({"cx": float("nan")}, "expected a finite number as cx, got nan"),
        ({"camera_model": ["OPENCV"]}, "expected a name"),
    ],
)
def test_lenses_that_would_be_read_wrongly_are_refused(fields, message):
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        lens_of({**CAMERA, **fields}, (48, 64), "here")


def test_coefficients_that_a_pinhole_has_not_are_said(caplog):
    lens_of(
        {**CAMERA, "camera_model": "PERSPECTIVE", "k1": 0.125}, (48, 64), "file of test: frame 3"
    )
    assert (
        "file of test: camera_model PERSPECTIVE has no distortion, so that k1 to k4" in caplog.text
    )


def test_a_focal_length_from_degrees():
    np.testing.assert_allclose(
        lens_of({"x_fov": 90.0, "y_fov": 60.0}, (48, 64), "x").focal_px, [32, 24 * np.sqrt(3)]
    )


def _in_parts(root, model):
    """As the synthetic scenes of the original NeRF are: a file for each part, names without
    endings, an angle.
    """
    table = _write(root, model)
    frames = table.pop("frames")
    for number, frame in enumerate(frames):
        part = ("train", "val", "test")[number % 3]
        name = model.names[number].removesuffix(".png")
        (root / part).mkdir(exist_ok=True)
        (root / "images" / f"{name}.png").rename(root / part / f"{name}.png")
        frame["file_path"] = f"./{part}/{name}"
    (root / "transforms.json").unlink()
    del table["ply_file_path"]
    for number, part in enumerate(("train", "val", "test")):
        (root / f"transforms_{part}.json").write_text(
            json.dumps({**table, "frames": frames[number::3]})
        )
    return frames


@pytest.mark.parametrize(
    "cloud", ["pointcloud.ply", "Points3D.PLY", "points3d.ply", "point_cloud.ply"]
)
def test_a_file_for_each_part_of_the_split(tmp_path, cloud):
    model = dataset_files.make_model(num_views=7)
    _in_parts(tmp_path, model)
    (tmp_path / "points.ply").rename(tmp_path / cloud)
    scene = _load(tmp_path, split="folders")
    order = [int(name[-6:-4]) for name in scene.image_names]
    assert sorted(order) == list(range(7))
    assert [number % 3 > 0 for number in order] == scene.is_test.tolist()
    for view, number in enumerate(order):
        np.testing.assert_allclose(
            scene.views.camera_from_dataset[view, :3, 3], model.shifts[number], atol=1e-12
        )
    np.testing.assert_array_equal(scene.cloud.points, model.points)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_text_of_windows_programs(tmp_path, encoding):
    model = dataset_files.make_model(names=["Hütte.png", "b.png"])
    table = _write(tmp_path, model)
    (tmp_path / "transforms.json").write_bytes(
        json.dumps(table, ensure_ascii=False).encode(encoding)
    )
    assert _load(tmp_path).image_names == ["Hütte.png", "b.png"]


def test_masks_that_are_named_need_not_be_called_after_photographs(tmp_path):
    table = _write(tmp_path, dataset_files.make_model())
    (tmp_path / "masks").mkdir()
    for number, frame in enumerate(table["frames"]):
        Image.new("L", (64, 48), 255).save(tmp_path / "masks" / f"frame{number}.png")
        frame["mask_path"] = f"D:\\scene\\masks\\FRAME{number}.PNG"
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    assert [path[-10:] for path in _load(tmp_path).mask_paths] == [
        f"frame{number}.png" for number in range(4)
    ]


def test_photographs_in_a_folder_of_another_name(tmp_path, caplog):
    model = dataset_files.make_model()
    table = _write(tmp_path, model)
    for frame in table["frames"]:
        frame["file_path"] = frame["file_path"].replace("./images/", "capture/rgb/")
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    assert _load(tmp_path).num_views == 4
    assert "4 files are in folders of another name here" in caplog.text


def test_photographs_for_validation_and_testing_may_be_the_same(tmp_path, caplog):
    model = dataset_files.make_model(num_views=6)
    _write(tmp_path, model)
    table = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").unlink()
    for part, chosen in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(4, 6))):
        (tmp_path / f"transforms_{part}.json").write_text(
            json.dumps({**table, "frames": table["frames"][chosen]})
        )
    scene = _load(tmp_path, split="folders")
    assert scene.image_names == model.names and scene.is_test.tolist() == [False] * 4 + [True] * 2
    (tmp_path / "transforms_val.json").write_text(
        json.dumps({**table, "frames": table["frames"][3:5]})
    )
    with pytest.raises(InputError, match=r"every image once, got view_03\.png twice"):
        _load(tmp_path)
    for part in ("val", "test"):
        path = tmp_path / f"transforms_{part}.json"
        path.write_text(json.dumps({**table, "frames": []}))
    _load(tmp_path)
    said = [text for text in caplog.messages if text.endswith("it has no frames")]
    assert [text.rpartition("_")[2] for text in said] == [
        "val.json: it has no frames",
        "test.json: it has no frames",
    ]


def test_names_that_are_no_text_are_made_text(tmp_path, caplog):
    model = dataset_files.make_model(num_views=6)
    _write(tmp_path, model)
    table = json.loads((tmp_path / "transforms.json").read_text())
    for key in ("file_path", "mask_path"):
        frames = [*table["frames"][:-1], {**table["frames"][-1], key: "\udc80.png"}]
        (tmp_path / "transforms.json").write_text(json.dumps({**table, "frames": frames}))
        try:
            said = "" if _load(tmp_path).num_views == 5 else "all are there"
        except InputError as error:
            said = str(error)
        assert "\u20ac.png" in said + caplog.text
        (said + caplog.text).encode()
        caplog.clear()


def test_a_list_may_name_photographs_that_are_not_there(tmp_path):
    model = dataset_files.make_model(num_views=5)
    _write(tmp_path, model)
    (tmp_path / "images" / model.names[4]).unlink()
    (tmp_path / "test.txt").write_text(f"{model.names[4]}\nimages/{model.names[1]}\n")
    for choice in ("test.txt", "folders"):
        assert _load(tmp_path, split=choice).is_test.tolist() == [False, True, False, False]
    assert _load(tmp_path, split="every3").is_test.tolist() == [True, False, False, True]
    (tmp_path / "test.txt").write_text("view_05.png")
    with pytest.raises(
        InputError, match=r"got 1 that fit no image or several, the first is 'view_05\.png'"
    ):
        _load(tmp_path, split="test.txt")


@pytest.mark.parametrize("shape", [(2, 4), (5, 4), (3, 3), (4, 3), (3, 5), (4,), (1, 3, 4), (0, 4)])
def test_poses_of_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="a: expected a matrix of 3 or 4 rows of 4 numbers, got"):
        transforms_json._matrix(np.ones(shape).tolist(), (3, 4), "a")


def test_the_last_row_of_a_pose():
    pose = np.arange(16.0).reshape(4, 4)
    pose[3] = [0, 0, 9e-7, 1]
    found = transforms_json._matrix(pose.tolist(), (3, 4), "a")
    np.testing.assert_array_equal(found, [*pose[:3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(found, transforms_json._matrix(pose[:3].tolist(), (3, 4), "a"))
    pose[3, 2] = 2e-6
    with pytest.raises(InputError, match="a: expected a last row of 0 0 0 1, got"):
        transforms_json._matrix(pose.tolist(), (3, 4), "a")


def test_rotations_may_be_off_by_a_thousandth():
    for scale, is_good in ((1.0009, True), (0.9991, True), (1.0011, False), (0.9989, False)):
        matrix = np.diag([1.0, scale, 1.0])
        if is_good:
            np.testing.assert_allclose(opengl_poses.nearest_rotation(matrix, "a"), np.eye(3))
            continue
        with pytest.raises(InputError, match="a: expected a rotation in the upper left"):
            opengl_poses.nearest_rotation(matrix, "a")
    with pytest.raises(InputError, match="expected a rotation"):
        opengl_poses.nearest_rotation(np.diag([1.0, 1, -1]), "a")


def test_poses_are_those_of_another_frame_beyond_a_hundredth():
    """Of the reach of the cameras, and of a rotation's entries."""
    expected = np.tile(np.eye(4), (3, 1, 1))
    expected[:, 0, 3] = [-10.0, 0.0, 10.0]
    views = [2, 0, 1]

    def is_other(place, by):
        poses = expected[views].copy()
        poses[1][place] += by
        return points_beside._is_other(poses, expected[views], points_beside._reach(expected))

    assert not is_other((0, 3), 0.09) and is_other((0, 3), 0.11)
    assert not is_other((2, 0), 0.009) and is_other((2, 0), 0.011)
    assert not is_other((0, 3), np.nan)


@pytest.mark.parametrize(
    "paths, names",
    [
        (["images/a/1.jpg", "images/b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["x/images/1.jpg", "x/2.jpg"], ["images/1.jpg", "2.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["./images/1.jpg"], ["1.jpg"]),
        (["1.jpg", "2.jpg"], ["1.jpg", "2.jpg"]),
    ],
)
def test_names_are_below_the_folders_that_all_share(paths, names):
    assert transforms_json._short_names(paths) == names


@pytest.mark.parametrize("number", ["1", True, None])
def test_words_truth_and_nothing_are_no_numbers(number):
    rows = [[1, 0, 0, 0], [0, number, 0, 0], [0, 0, 1, 0]]
    with pytest.raises(InputError, match="frame 0: expected a matrix of 3 or 4 rows"):
        transforms_json._matrix(rows, (3, 4), "frame 0")


def test_pictures_without_a_frame_are_said(tmp_path, caplog, monkeypatch):
    model = dataset_files.make_model(names=["a.png", "b.png", "c.png"], with_tracks=False)
    table = _write(tmp_path, model)
    table["frames"][0]["depth_file_path"] = "images/a_depth.png"
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    (tmp_path / "other").mkdir()
    for name in ("images/d.JPG", "images/.e.png", "images/a_depth.png", "images/notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "other" / "f.png").touch()
    listed = []
    of_folder = os.listdir

    def listing(folder):
        listed.append(str(folder))
        return of_folder(folder)

    monkeypatch.setattr(transforms_json.os, "listdir", listing)
    caplog.set_level(logging.INFO)
    transforms_json.read_transforms(tmp_path)
    assert "1 pictures beside the others have no frame and are not used" in caplog.text
    assert "images/d.JPG" in caplog.text
    assert listed == [str(tmp_path / "images")]


@pytest.mark.parametrize("compares", [True, False])
def test_colours_are_compared_where_that_is_wanted(tmp_path, monkeypatch, compares):
    _write(tmp_path, dataset_files.make_model(with_tracks=False))
    calls = []
    monkeypatch.setattr(loading.color_checks, "check", lambda *given: calls.append(given))
    loading.load_scene(
        DataSettings(path=str(tmp_path)),
        GeneratedSettings(),
        tmp_path / "cache",
        compares_colors=compares,
    )
    assert len(calls) == compares
    for scene, lenses, source, _ in calls:
        assert len(lenses) == scene.num_views and "transforms.json" in source
