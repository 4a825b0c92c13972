"""Sets that have poses already come to the map: a flight whose model was turned, scaled and moved,
with GPS in a file.
"""

import re

import numpy as np
import pytest
from PIL import ExifTags, Image
from posed_flight import EPSG, HEIGHT, LENS, NOISE_M, WIDTH, Flight

from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import pixels_from_normalised
from cosurfgs_jax.settings import DataSettings, GeneratedSettings


@pytest.fixture
def flight(tmp_path):
    pytest.importorskip("pyproj")
    pytest.importorskip("pycolmap")
    return Flight(tmp_path)


@pytest.mark.parametrize("write", ["write_binary", "write_text"])
def test_a_turned_model_comes_to_its_place_and_keeps_the_rest(flight, write, capsys):
    folder = flight.write_colmap(write)
    before = read_model(folder)
    assert flight.prepare(folder, f"--gps={flight.write_gps()}") == 0
    text = capsys.readouterr().out
    found = flight.check_place(atol=3 * NOISE_M)
    assert found.lenses == before.lenses and len(found.cloud) == len(before.cloud) > 200
    np.testing.assert_array_equal(found.cloud.track_views, before.cloud.track_views)
    np.testing.assert_array_equal(found.cloud.track_offsets, before.cloud.track_offsets)
    offset = read_geo(flight.root / "out" / "geo.json").offset
    seen = np.linalg.norm(
        flight.on_map(flight.points)[:, None] - (found.cloud.points + offset)[None, :9], axis=-1
    )
    assert seen.min(axis=0).max() < 3 * NOISE_M
    assert "registered 18 of 18 photographs" in text and "reprojection error 0.00 px" in text
    assert "poses and lenses: of the COLMAP model, kept" in text and "suspicious" not in text
    assert f"EPSG:{EPSG}" in text and "the zero of the positions of photographs" in text
    unit = re.search(r"its unit ([0-9.]+) m", text)
    assert unit and float(unit[1]) == pytest.approx(1 / 0.13, rel=0.01)


def test_a_file_of_transforms_with_its_masks(flight, capsys):
    (flight.root / "masks").mkdir()
    Image.new("L", (WIDTH, HEIGHT), 255).save(flight.root / "masks" / "03.png")
    path = flight.write_transforms()
    assert flight.prepare(path, f"--gps={flight.write_gps()}") == 0
    found = flight.check_place(atol=3 * NOISE_M)
    assert found.lenses[0].coefficients[0] == LENS[1][-1]
    assert len(found.cloud) == len(flight.points)
    text = capsys.readouterr().out
    assert "poses and lenses: of mine.json, kept" in text and "error is unknown" in text
    out = flight.root / "out"
    scene = load_scene(DataSettings(path=str(out)), GeneratedSettings(), out / "cache")
    assert scene.num_views == 18 and [p for p in scene.mask_paths if p] == [
        str(out / "masks" / "03.jpg.png")
    ]


def test_an_aligned_model_stays_as_it_is(tmp_path, capsys):
    """True north to grid north is 0.7 degrees here, and a metre 0.9997 of the map."""
    pytest.importorskip("pyproj")
    pytest.importorskip("pycolmap")
    flight = Flight(tmp_path, "aligned")
    assert flight.prepare(flight.write_colmap(), f"--gps={flight.write_gps()}") == 0
    found = flight.check_place(atol=3 * NOISE_M)
    between = [np.linalg.norm(places[:1] - places, axis=1) for places in (
        camera_center(found.camera_from_dataset), flight.centers)]  # fmt: skip
    np.testing.assert_allclose(between[0], between[1], rtol=0.01)
    up = found.camera_from_dataset[:, :3, 2]
    expected = flight.model.camera_from_mapper[:, :3, 2]
    assert np.rad2deg(np.arccos(np.clip((up * expected).sum(axis=1), -1, 1))).max() < 1


def test_wrong_missing_and_foreign_positions_are_named(flight, capsys):
    wrong = {"03.jpg": [400.0, 300, 0]}
    names = [name for name in flight.model.names if name != "07.jpg"]
    path = flight.write_gps(wrong, names)
    path.write_text(path.read_text() + "\nother.jpg 1 2 3")
    path.write_text(path.read_text().replace("other.jpg 1 2 3", "other.jpg 576700 5188100 240"))
    assert flight.prepare(flight.write_colmap(), f"--gps={path}") == 0
    flight.check_place(atol=3 * NOISE_M)
    text = capsys.readouterr().out
    assert "suspicious: 1 photograph of geo.txt are not in" in text and ": other.jpg" in text
    assert "where they were taken and was not used: 03.jpg" in text
    assert "without GPS, and placed by the others: 07.jpg" in text
    assert text.count("07.jpg") == 1  # once, not as suspicious, too


def test_photographs_that_are_missing_leave_their_poses_out(flight, capsys):
    (flight.images / "00.jpg").unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(flight.images / "bare.jpg")
    folder = flight.write_colmap()
    assert flight.prepare(folder, "--gps=ignore") == 0
    text = capsys.readouterr().out
    assert "1 photograph of 0 are not in the folder, and are left out: 00.jpg" in text
    assert "1 photograph of the folder have no pose in 0, and are not used: bare.jpg" in text
    assert "scale unknown (GPS is ignored)" in text and "z is up, by the photographs" in text
    found = read_model(flight.root / "out" / "sparse" / "0")
    assert found.image_names == flight.model.names[1:]
    heights = camera_center(found.camera_from_dataset)[:, 2]
    assert heights.min() > np.median(found.cloud.points[:, 2])


def test_a_model_that_colmap_does_not_read(flight, capsys):
    """The dataset's reader does: text in UTF-16."""
    folder = flight.write_colmap("write_text")
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text(), encoding="utf-16")
    assert flight.prepare(folder, f"--gps={flight.write_gps()}") == 0
    assert len(flight.check_place(atol=3 * NOISE_M).cloud) > 200
    assert "which photographs see the points of the COLMAP model is not" in capsys.readouterr().out


def test_photographs_that_exif_data_turn(flight):
    """Their cameras are those of the turned ones."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(flight.images / "05.jpg", exif=exif)
    assert flight.prepare(flight.write_colmap(), f"--gps={flight.write_gps()}") == 0
    Image.new("RGB", (HEIGHT, WIDTH)).save(flight.images / "05.jpg")
    assert flight.prepare(flight.root / "scene", "--gps=ignore") == 2


def test_control_points_place_it_instead(flight, capsys):
    folder = flight.write_colmap()
    before = read_model(folder)
    lines = [f"EPSG:{EPSG}"]
    wanted = [0, 57, 123, 200, 310]
    places = flight.on_map(flight.points)
    for row in wanted:
        for name, pose in zip(before.image_names, flight.model.camera_from_mapper, strict=True):
            local = pose[:3, :3] @ flight.model.points[row] + pose[:3, 3]
            pixel = pixels_from_normalised(before.lenses[0], local[:2] / local[2])
            if local[2] > 0 and ((pixel > 0) & (pixel < [WIDTH, HEIGHT])).all():
                column, line = pixel - 0.5
                position = " ".join(map(str, places[row]))
                lines.append(f"{position} {column} {line} {name} p{row}")
    (path := flight.root / "gcp_list.txt").write_text("\n".join(lines))
    assert flight.prepare(folder, f"--gcp={path}") == 0
    assert "ground control points, good to" in capsys.readouterr().out
    flight.check_place(atol=0.05)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--poses={root}/none"], "--poses: expected the folder of a dataset or of a COLMAP model"),
        (["--lens=OPENCV"], "--lens, --poses: expected one of the two"),
        (["--out={root}/scene"], "expected another folder than that of --poses"),
        (["--images={root}/others"], "expected at least 3 of its 18 photographs in"),
        (["--images={root}/wide"], "expected the shape of its camera, 40x30, got 40x20"),
        (["--gps={root}/none"], "--gps: expected auto, ignore, require, a file of positions or"),
        (["--gps={root}/two.txt"], "positions of at least 3 of the photographs"),
        (["--gps={root}/line.txt"], "expected positions that tell the vertical, got 6 on one line"),
        (["--gps={root}/words.txt"], "line 2: expected image_name geo_x geo_y [geo_z]"),
        (["--gps={root}/away.txt"], "expected positions where the system of the first line"),
        (["--gps=require"], "--gps=require: expected at least 3 photographs with latitude"),
    ],
)
def test_mistakes(flight, capsys, flags, words):
    folder = flight.write_colmap()
    for name, size in (("others", (WIDTH, HEIGHT)), ("wide", (WIDTH, 20))):
        (flight.root / name).mkdir()
        for number in range(4):
            stem = f"{number:02d}" if name == "wide" else f"other{number}"
            Image.new("RGB", size).save(flight.root / name / f"{stem}.jpg")
    gps = flight.write_gps(names=flight.model.names[:2]).read_text()
    (flight.root / "two.txt").write_text(gps)
    gps = flight.write_gps(names=flight.model.names[:6]).read_text()
    (flight.root / "line.txt").write_text(gps)
    (flight.root / "words.txt").write_text(f"EPSG:{EPSG}\n00.jpg east north")
    (flight.root / "away.txt").write_text(f"EPSG:{EPSG}\n00.jpg 9e6 9e6")
    given = [flag.format(root=flight.root) for flag in flags]
    assert flight.prepare(folder, *given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (flight.root / "out" / "sparse").exists()
