"""What is believed of a dataset and what is not, whatever format it has."""

import dataclasses
import json
import logging
import struct

import dataset_files
import numpy as np
import pytest

from cosurfgs_jax.data import checks, colmap
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import lens_from_params
from cosurfgs_jax.settings import DataSettings, GeneratedSettings


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _camera(*params, model="PINHOLE", width=64, height=48):
    return dataset_files.make_model(cameras={7: (model, width, height, list(params))})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            _camera(1e-300, 60.0, 32.0, 24.0),
            r"view_00\.png: expected a focal length of .* got 1e-300 and 60",
        ),
        (_camera(60.0, 1e9, 32.0, 24.0), r"expected a focal length of .* got 60 and 1e\+09"),
        (
            _camera(60.0, 60.0, 1e8, 24.0),
            r"expected the principal point in the photograph or near it, got 1e\+08, 24",
        ),
        (
            _camera(60.0, 60.0, 32.0, 24.0, 1e9, 0.0, 0.0, 0.0, model="OPENCV"),
            "expected coefficients of distortion below",
        ),
    ],
)
def test_lenses(tmp_path, model, message):
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(InputError, match=message):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("params", "is_said"),
    [
        ((60.0, 62.9, 32.0, 24.0), False),
        ((60.0, 63.1, 32.0, 24.0), True),
        ((60.0, 60.0, 47.9, 9.0), False),
        ((60.0, 60.0, 48.1, 24.0), True),
        ((60.0, 60.0, 32.0, 7.9), True),
    ],
)
def test_unusual_cameras_are_said(tmp_path, caplog, params, is_said):
    dataset_files.write_dataset(tmp_path, _camera(*params))
    _load(tmp_path)
    text = "the cameras of 4 of 4 photographs are unusual, the first is that of view_00.png, with "
    assert (text in caplog.text) == is_said


@pytest.mark.parametrize(
    ("model", "tail"), [("OPENCV", [0.0]), ("FULL_OPENCV", [0.0, 0.0, 0.0, 0.0, 0.0])]
)
@pytest.mark.parametrize(("tangential", "is_said"), [(0.049, False), (-0.051, True)])
def test_tangential_distortion_is_said_where_it_is_unusual(model, tail, tangential, is_said):
    params = [60.0, 60.0, 32.0, 24.0, 0.0, 0.0, tangential, *tail]
    assert checks._is_unusual(lens_from_params(model, 48, 64, params)) == is_said


def test_sides(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    large = dataclasses.replace(
        model, cameras={7: ("PINHOLE", 2**40, 48, [60.0, 61.0, 31.5, 24.25])}
    )
    dataset_files.write_binary(large, tmp_path / "sparse" / "0")
    with pytest.raises(
        InputError,
        match="expected a photograph of at most 131072 pixels a side, got 1099511627776x48",
    ):
        _load(tmp_path)


def test_far_cameras_and_points(tmp_path, caplog):
    model = dataset_files.make_model(num_views=6)
    model.points[[3, 8]] = [[1e9, 0, 0], [0, 0, -1e300]]
    dataset_files.write_dataset(tmp_path, model)
    with caplog.at_level(logging.WARNING):
        scene = _load(tmp_path)
    assert "2 of 30 points are left out" in caplog.text
    kept = np.delete(np.arange(30), [3, 8])
    np.testing.assert_array_equal(scene.cloud.points, model.points[kept])
    for number, point in enumerate(kept):
        views = scene.cloud.track_views[
            scene.cloud.track_offsets[number] : scene.cloud.track_offsets[number + 1]
        ]
        assert views.tolist() == sorted(
            model.image_ids.index(image) for image in model.tracks[point]
        )
    for shift in ([1e20, 0, 0], [1e8, 0, 0]):
        model.shifts[2] = shift
        dataset_files.write_binary(model, tmp_path / "sparse" / "0")
        with pytest.raises(
            InputError, match=r"cameras around one place, got 1 of 6 far away .*view_02\.png"
        ):
            _load(tmp_path)


def test_points_of_another_frame(tmp_path):
    model = dataset_files.make_model()
    model.points += 1e8
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(InputError, match="expected points near the cameras, got none of 30"):
        _load(tmp_path)


@pytest.mark.parametrize("name", ["../../x.png", "/abs/x.png", "C:\\x.png", "a/../../x.png"])
def test_names_lead_nowhere_else(tmp_path, name):
    model = dataset_files.make_model()
    dataset_files.write_images(model, tmp_path / "images")
    named = dataclasses.replace(
        model, names=[name.replace("x.png", f"view_{number:02d}.png") for number in range(4)]
    )
    dataset_files.write_binary(named, tmp_path / "sparse" / "0")
    scene = _load(tmp_path)
    assert scene.image_names == model.names
    with pytest.raises(InputError, match="expected relative image names"):
        dataclasses.replace(scene, image_names=["../x.png", *scene.image_names[1:]])


@pytest.mark.parametrize("name", ["a\nb.png", "x" * 210 + ".png"])
def test_names_that_no_file_should_have(tmp_path, name):
    model = dataset_files.make_model(names=["a.png", name, "c.png"])
    dataset_files.write_dataset(tmp_path, model)
    with pytest.raises(
        InputError, match="sparse/0: expected relative image names of at most 200 bytes"
    ):
        _load(tmp_path)


@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
@pytest.mark.parametrize(
    "change", ["more declared", "less declared", "bytes behind", "2^60 declared"]
)
def test_a_binary_file_ends_where_its_last_entry_ends(tmp_path, stem, change):
    cameras = {number: ("PINHOLE", 64, 48, [60.0, 61.0, 31.5, 24.25]) for number in (3, 4)}
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(cameras=cameras))
    path = tmp_path / "sparse" / "0" / f"{stem}.bin"
    data = path.read_bytes()
    count = struct.unpack("<Q", data[:8])[0]
    count += {"more declared": 1, "less declared": -1, "2^60 declared": 2**60}.get(change, 0)
    path.write_bytes(
        struct.pack("<Q", count) + data[8:] + (b"\0" * 12 if change == "bytes behind" else b"")
    )
    with pytest.raises(
        InputError,
        match=rf"{stem}\.bin: expected a whole COLMAP file, got .*export the model again",
    ):
        _load(tmp_path)


@pytest.mark.parametrize("write", [dataset_files.write_binary, dataset_files.write_text])
@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
def test_one_number_twice(tmp_path, write, stem):
    cameras = {number: ("PINHOLE", 64, 48, [60.0, 61.0, 31.5, 24.25]) for number in (3, 4)}
    write(dataset_files.make_model(cameras=cameras), tmp_path)
    path = next(tmp_path.glob(f"{stem}.*"))
    if path.suffix == ".txt":
        lines = path.read_text().splitlines()
        lines[-1 if stem != "images" else -2] = lines[1 if stem == "images" else -2]
        path.write_text("\n".join(lines) + "\n")
    else:
        old, new, kind = {
            "cameras": (4, 3, "<I"),
            "images": (14, 11, "<I"),
            "points3D": (105, 104, "<Q"),
        }[stem]
        path.write_bytes(
            path.read_bytes().replace(
                struct.pack(kind, old) + {"cameras": struct.pack("<i", 1)}.get(stem, b""),
                struct.pack(kind, new) + {"cameras": struct.pack("<i", 1)}.get(stem, b""),
            )
        )
    with pytest.raises(InputError, match=r"(camera|image|point) \d+ is there (twice|2 times)"):
        colmap.read_model(tmp_path)


def test_quaternions_of_another_length_are_said(tmp_path, caplog):
    model = dataset_files.make_model()
    model.quats[1] *= 1.5
    dataset_files.write_binary(model, tmp_path)
    poses = colmap.read_model(tmp_path).camera_from_dataset
    np.testing.assert_allclose(
        poses[:, :3, :3] @ np.swapaxes(poses[:, :3, :3], 1, 2),
        np.tile(np.eye(3), (4, 1, 1)),
        atol=1e-12,
    )
    assert (
        "1 quaternions are not of length 1" in caplog.text
        and "view_01.png, of length 1.5" in caplog.text
    )


def test_heads_of_text_files_that_declare_another_number_are_said(tmp_path, caplog):
    model = dataset_files.make_model()
    dataset_files.write_text(model, tmp_path)
    for stem, count in (("cameras", 1), ("images", 4), ("points3D", 30)):
        path = tmp_path / f"{stem}.txt"
        rest = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        head = f"# Number of {stem.lower().removesuffix('3d')}: {count + 2}, mean: 3"
        path.write_text("\n".join([head, *rest]) + "\n")
    colmap.read_model(tmp_path)
    for stem, count in (("cameras", 1), ("images", 4), ("points3D", 30)):
        assert f"{stem}.txt: its head declares {count + 2}, the file has {count}" in caplog.text


def test_names_with_spaces_and_numbers_are_no_features(tmp_path):
    model = dataset_files.make_model(names=["a b 12", "c 3 4.png", "d 5 6"])
    model.quats[:] = [1, 0, 0, 0]
    model.shifts[:] = [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    dataset_files.write_text(model, tmp_path, None)
    path = tmp_path / "images.txt"
    path.write_text(path.read_text().replace(".0 ", " "))
    assert colmap.read_model(tmp_path).image_names == model.names


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_text_models_of_windows_programs(tmp_path, encoding):
    model = dataset_files.make_model(names=["Hütte 1.png", "b.png", "ñ/c.png"])
    dataset_files.write_text(model, tmp_path / "sparse")
    dataset_files.write_images(model, tmp_path / "images")
    for path in (tmp_path / "sparse").iterdir():
        path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
    scene = _load(tmp_path)
    assert scene.image_names == sorted(model.names)
    np.testing.assert_array_equal(
        np.sort(scene.cloud.points, axis=0), np.sort(model.points, axis=0)
    )


def test_binary_names_of_a_code_page(tmp_path, caplog):
    model = dataset_files.write_dataset(
        tmp_path, dataset_files.make_model(names=["Hütte_1.png", "Hütte_2.png"])
    )
    path = tmp_path / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc"))
    scene = _load(tmp_path)
    assert scene.image_names == model.names and "2 names are no UTF-8" in caplog.text
    "\n".join(scene.image_names).encode()
    json.dumps(scene.image_names)


def test_points_beside_the_cameras_as_ply(tmp_path):
    from cosurfgs_jax.formats.ply import table_of, write_ply

    model = dataset_files.write_dataset(tmp_path)
    folder = tmp_path / "sparse" / "0"
    (folder / "points3D.bin").unlink()
    fractions = model.colors / 255
    write_ply(
        folder / "Points3d.PLY",
        table_of(("x y z", "f8", model.points), ("red green blue", "f4", fractions)),
    )
    scene = _load(tmp_path)
    np.testing.assert_array_equal(scene.cloud.points, model.points)
    np.testing.assert_array_equal(scene.cloud.colors, model.colors)
    assert len(scene.cloud.track_views) == 0
    write_ply(
        folder / "Points3d.PLY",
        table_of(
            ("x y z", "f8", model.points),
            ("red green blue", "u2", model.colors.astype(np.uint16) * 257),
        ),
    )
    np.testing.assert_array_equal(_load(tmp_path).cloud.colors, model.colors)
