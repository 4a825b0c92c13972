"""Sets that have poses already come to the map: a flight whose model was turned, scaled and moved,
with GPS in a file.
"""

import json
import re

import numpy as np
import pytest
from flight_case import LATITUDE, LONGITUDE, METRES, flight_of, mapped
from PIL import ExifTags, Image

from cosurfgs_jax import prepare, program
from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import lens_from_params, pixels_from_normalised
from cosurfgs_jax.settings import DataSettings, GeneratedSettings
from cosurfgs_jax.sfm import map_system

EPSG = 32615
HEIGHT, WIDTH = 30, 40
LENS = ("SIMPLE_RADIAL", [35.0, 20.0, 15.0, 0.02])
NOISE_M = 0.2


class Flight:
    """Photographs, where they were taken on the map, and their model in a frame of its own."""

    def __init__(self, root, frame="turned"):
        self.root = root
        self.images = root / "photos"
        poses, self.centers, self.points = flight_of(slant_deg=8)
        self.model = mapped(poses, self.points, np.random.default_rng(6))
        if frame == "aligned":  # true north, metres, z up
            self.model = type(self.model)(self.model.names, poses, self.points)
        self.images.mkdir()
        for name in self.model.names:
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(self.images / name)

    def on_map(self, places):
        """Places of the flight in map coordinates."""
        latitudes = LATITUDE + places[:, 1] / METRES
        longitudes = LONGITUDE + places[:, 0] / METRES / np.cos(np.deg2rad(LATITUDE))
        ground = map_system.to_map(EPSG, latitudes, longitudes)
        return np.column_stack([ground, 200 + places[:, 2]])

    def write_gps(self, changes=None, names=None):
        """geo.txt in map coordinates, good to NOISE_M."""
        noise = np.random.default_rng(1).normal(scale=NOISE_M, size=self.centers.shape)
        places = dict(zip(self.model.names, self.on_map(self.centers) + noise, strict=True))
        lines = [f"EPSG:{EPSG}"]
        for name in names or self.model.names:
            words = places[name] + (changes or {}).get(name, 0.0)
            lines.append(f"{name} {' '.join(f'{value:.3f}' for value in words)} 1 2 3")
        path = self.root / "geo.txt"
        path.write_text("\n".join(lines))
        return path

    def write_colmap(self, write="write_binary"):
        """A COLMAP model with tracks of two to four photographs."""
        pycolmap = pytest.importorskip("pycolmap")
        from cosurfgs_jax.sfm.known_poses import reconstruction_of

        lens = lens_from_params(LENS[0], HEIGHT, WIDTH, LENS[1])
        count = len(self.model.names)
        model = reconstruction_of(self.model.names, [lens] * count, self.model.camera_from_mapper)
        tracks = [[] for _ in self.points]
        for number, pose in enumerate(self.model.camera_from_mapper, start=1):
            local = self.model.points @ pose[:3, :3].T + pose[:3, 3]
            pixels = pixels_from_normalised(lens, local[:, :2] / local[:, 2:])
            is_seen = (local[:, 2] > 0) & ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=1)
            seen = np.flatnonzero(is_seen)
            model.image(number).points2D = [pycolmap.Point2D(pixels[row]) for row in seen]
            for place, row in enumerate(seen):
                tracks[row].append((number, place))
        for point, track in zip(self.model.points, tracks, strict=True):
            if len(track) > 1:
                elements = [pycolmap.TrackElement(*pair) for pair in track]
                model.add_point3D(point, pycolmap.Track(elements), np.array([9, 99, 9], np.uint8))
        folder = self.root / "scene" / "sparse" / "0"
        folder.mkdir(parents=True)
        getattr(model, write)(folder)
        return folder

    def write_transforms(self):
        """transforms.json, and its points beside it."""
        frames = []
        for name, pose in zip(self.model.names, self.model.camera_from_mapper, strict=True):
            matrix = np.linalg.inv(pose) @ np.diag([1.0, -1, -1, 1])
            frames.append({"file_path": f"images/{name}", "transform_matrix": matrix.tolist()})
        focal, *principal, k1 = LENS[1]
        meta = {"w": WIDTH, "h": HEIGHT, "fl_x": focal, "fl_y": focal, "k1": k1, "frames": frames}
        meta |= {"cx": principal[0], "cy": principal[1]}
        path = self.root / "mine.json"
        path.write_text(json.dumps(meta))
        rows = "".join(f"{x} {y} {z}\n" for x, y, z in self.model.points)
        head = f"ply\nformat ascii 1.0\nelement vertex {len(self.model.points)}\n"
        head += "".join(f"property double {axis}\n" for axis in "xyz") + "end_header\n"
        (self.root / "sparse_pc.ply").write_text(head + rows)
        return path

    def prepare(self, poses, *flags, out="out"):
        """The exit code."""
        argv = ["prepare", f"--images={self.images}", f"--poses={poses}"]
        argv += [f"--out={self.root / out}", *flags]
        return program.run(prepare.main, prepare.declare, argv=argv)

    def check_place(self, atol):
        """Cameras and points of the dataset are where they are on the map."""
        found = read_model(self.root / "out" / "sparse" / "0")
        offset = np.array(read_geo(self.root / "out" / "geo.json").offset)
        order = [found.image_names.index(name) for name in self.model.names]
        centers = camera_center(found.camera_from_dataset[order])
        np.testing.assert_allclose(centers + offset, self.on_map(self.centers), atol=atol)
        assert np.abs(centers).max() < 200
        return found


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
    assert "no GPS of 1 of 18 photographs: 07.jpg" in text


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
