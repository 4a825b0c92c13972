"""`prepare` from photographs of the generated town to a dataset that is read, and its mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_layouts
from PIL import ExifTags, Image
from scenes import town_folder
from scipy.spatial import cKDTree

from cosurfgs_jax import prepare, program
from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.data.ground_truth import load_ground_truth
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, PrepareSettings
from cosurfgs_jax.sfm import known_poses
from cosurfgs_jax.sfm.similarity import fit_weighted
from cosurfgs_jax.training.run_log import Progress

TOWN = GeneratedSettings(num_views=12, width=320, height=240, size_m=50.0)
LATITUDE, LONGITUDE = -33.86, 151.21
METRES = 111_320.0
FOCAL_35MM = 27
SPACED = "DJI_0007"  # the first photograph with a space in its name
UNRELATED = "noise.jpg"
NEAR_M = 0.5
# Cut so that the principal point of the town's camera, (161.92, 117.84), is in the middle, where
# `prepare` leaves it.
BOX = (4, 0, 320, 236)


def _degrees(value: float) -> tuple[float, float, float]:
    whole = int(value)
    minutes = int((value - whole) * 60)
    return (whole, minutes, (value - whole - minutes / 60) * 3600)


def _exif(east: float, north: float, up: float) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[41989] = FOCAL_35MM
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    longitude = LONGITUDE + east / METRES / np.cos(np.deg2rad(LATITUDE))
    gps[1] = "S"
    gps[2] = _degrees(-LATITUDE - north / METRES)
    gps[3] = "E"
    gps[4] = _degrees(longitude)
    gps[5] = b"\0"
    gps[6] = up
    return exif


def _centers(folder: Path) -> dict[str, np.ndarray]:
    model = read_model(folder / "sparse" / "0")
    rotations = model.camera_from_dataset[:, :3, :3]
    centers = -np.einsum("vij,vi->vj", rotations, model.camera_from_dataset[:, :3, 3])
    return {
        Path(name).stem.replace(" ", "_"): center
        for name, center in zip(model.image_names, centers, strict=True)
    }


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Photographs of the town with GPS to 0.2 m, and one of noise."""
    folder = tmp_path_factory.mktemp("flight") / "photos"
    (folder / "left").mkdir(parents=True)
    random = np.random.default_rng(0)
    town = town_folder(TOWN)
    for stem, center in _centers(town).items():
        (source,) = (town / "images").glob(f"{stem}.*")
        place = center - [500, -300, 40] + random.normal(scale=0.2, size=3)
        with Image.open(source) as image:
            # A space, and a folder: whatever names people give.
            name = f"left/{stem}.jpg" if stem < SPACED else f"{stem.replace('_', ' ')}.jpg"
            image.crop(BOX).save(folder / name, quality=92, exif=_exif(*place))
    noise = random.integers(0, 255, (240, 320, 3), np.uint8)
    Image.fromarray(noise).save(folder / UNRELATED, exif=_exif(0, 0, 60))
    return folder


def _prepare(images: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cosurfgs_jax.prepare", f"--images={images}", f"--out={out}"]
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory) -> tuple[Path, str]:
    pytest.importorskip("pycolmap", reason="prepare needs pycolmap")
    pytest.importorskip("pyproj", reason="prepare needs pyproj for GPS")
    out = tmp_path_factory.mktemp("prepared") / "town"
    result = _prepare(photographs, out, "--max_features=1000")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_photographs_come_to_their_place(prepared):
    out, text = prepared
    geo = json.loads((out / "geo.json").read_text())
    assert geo["epsg"] == 32756 and geo["unit"] == "metre"
    assert geo["sfm"]["registered"] == TOWN.num_views
    assert (
        f"registered {TOWN.num_views} of {TOWN.num_views + 1} photographs; missing: {UNRELATED}"
        in text
    )
    assert list(geo["sfm"]["missing"]) == [UNRELATED]
    assert geo["fit"]["scale_error"] < 0.02 and max(geo["fit"]["residual_rms"].values()) < NEAR_M
    assert (
        f"next: cosurfgs train --preset=aerial --config.data.path={out} --config.data.downscale=1"
        in text
    )
    found = _centers(out)
    truth = _centers(town_folder(TOWN))
    ours = np.array([found[name] for name in truth])
    theirs = np.array(list(truth.values()))
    # The scale of the map, 0.9996 at most, and its turn against true north are not those of the
    # town: distances are compared.
    between = np.linalg.norm(ours[:, None] - ours[None], axis=-1)
    expected = np.linalg.norm(theirs[:, None] - theirs[None], axis=-1)
    np.testing.assert_allclose(between, expected, atol=NEAR_M)
    np.testing.assert_allclose(ours[:, 2] + geo["offset"][2], theirs[:, 2] - 40, atol=NEAR_M)


def test_the_dataset_is_read_as_it_is(prepared, photographs):
    out, _ = prepared
    assert (out / "images").resolve() == photographs.resolve()
    scene = load_scene(DataSettings(path=str(out)), GeneratedSettings(), out / "cache")
    assert scene.num_views == TOWN.num_views and scene.up.tolist() == [0, 0, 1]
    assert len(scene.cloud) > 300 and scene.cloud.has_tracks
    assert np.abs(scene.views.centers).max() < 200


def test_the_same_command_finds_everything_done(prepared, photographs):
    out, text = prepared
    states = {
        path: path.stat().st_mtime_ns
        for path in (out / ".prepare" / "mapped.json", out / ".prepare" / "mapped" / "images.bin")
    }
    result = _prepare(photographs, out, "--max_features=1000")
    assert result.returncode == 0 and result.stdout == text
    assert "features" not in result.stderr and "poses" not in result.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in states.items())
    assert (
        not list((out / ".scratch").rglob("*.bin")) and not (out / ".prepare" / "models").exists()
    )


# Runs `prepare`, and ends as if it was killed at a call of one function.
KILLED = """
import contextlib, os, sys
from pathlib import Path
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import database, dataset_folder, phases

images, out, where, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
calls = 0

def end(name):
    global calls
    calls += name == where
    if calls == count:
        os._exit(9)

class Bar:
    def __init__(self, name):
        self.name = name
    def update(self, step):
        end(self.name)

@contextlib.contextmanager
def progress(name, total):
    yield Bar(name)

def ending(module, name):
    before = getattr(module, name)
    def function(*arguments, **options):
        end(name)
        return before(*arguments, **options)
    setattr(module, name, function)

ending(database, "write_photograph")
ending(database, "unquote_names")
ending(os, "replace")
ending(dataset_folder.geo_json, "write_geo")
phases.prepare(images, out, PrepareSettings(max_features=1000), progress)
"""


def test_killed_in_each_phase_it_goes_on(prepared, photographs, tmp_path):
    """One dataset is killed again and again, each time farther on, and becomes the same."""
    out = tmp_path / "town"
    for where, count in (
        ("write_photograph", 5),  # photographs enter the database
        ("features", 1),  # some have features
        ("matches", 1),  # some pairs are compared, and names are quoted
        ("unquote_names", 2),  # all are compared, and names are quoted
        ("poses", 4),
        ("replace", 2),  # the model is about to come to its place
        ("write_geo", 1),  # it is there, and its place is not
    ):
        command = [sys.executable, "-c", KILLED, str(photographs), str(out), where, str(count)]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert killed.returncode == 9, (where, killed.stderr)
    result = _prepare(photographs, out, "--max_features=1000")
    assert result.returncode == 0, result.stderr
    assert "features" not in result.stderr and "matches" not in result.stderr
    # COLMAP's verification of pairs differs by a few points from run to run.
    lines, expected = (text.splitlines() for text in (result.stdout, prepared[1]))
    assert lines[0] == expected[0] and len(lines) == len(expected)
    centers = [_centers(folder) for folder in (prepared[0], out)]
    for name, center in centers[0].items():
        np.testing.assert_allclose(centers[1][name], center, atol=0.1)
    assert not list(out.glob(".scratch/prepare/*")) and not list(out.rglob(".unfinished*"))


def test_without_gps_the_scale_is_unknown(prepared, photographs, tmp_path):
    out = tmp_path / "bare"
    shutil.copytree(prepared[0], out, symlinks=True)
    result = _prepare(photographs, out, "--max_features=1000", "--gps=ignore")
    assert result.returncode == 0 and "scale unknown" in result.stdout
    geo = json.loads((out / "geo.json").read_text())
    assert geo["epsg"] is None and geo["unit"] is None and geo["offset"] == [0, 0, 0]
    truth = _centers(town_folder(TOWN))
    found = _centers(out)
    ours = np.array([found[name] for name in truth])
    theirs = np.array(list(truth.values()))
    fit = fit_weighted(ours, theirs, np.ones(len(ours)))
    # z is up, as well as photographs tell that are rolled by some degrees.
    assert fit.rotation[2, 2] > np.cos(np.deg2rad(8))


def test_control_points_say_where_it_is(prepared, photographs, tmp_path, capsys):
    """Points on the ground, marked where the town's own cameras see them."""
    out = tmp_path / "controlled"
    shutil.copytree(prepared[0], out, symlinks=True)
    town = read_model(town_folder(TOWN) / "sparse" / "0")
    shift = np.array([333_900.0, 6_251_800.0, -28.0])
    lines = ["WGS84 UTM 56S"]
    corners = np.array([[-15, -15, 0], [15, -15, 2], [15, 15, 0], [-15, 15, 1]]) + [500, -300, 40]
    for number, ground in enumerate(corners):
        words = " ".join(map(str, ground + shift))
        for name, pose, lens in zip(
            town.image_names, town.camera_from_dataset, town.lenses, strict=True
        ):
            x, y, z = lens.intrinsics @ (pose[:3, :3] @ ground + pose[:3, 3])
            column, row = np.array([x / z, y / z]) - BOX[:2] - [0.5, 0.5]
            if z > 0 and 0 <= column < BOX[2] - BOX[0] and 0 <= row < BOX[3]:
                stem = Path(name).stem.replace("_", "?")
                (photo,) = (path.name for path in photographs.rglob(f"{stem}.jpg"))
                lines.append(f"{words}\t{column}\t{row}\t{photo}\tcorner {number}")
    (path := tmp_path / "gcp_list.txt").write_text("\n".join(lines))
    argv = ["prepare", f"--images={photographs}", f"--out={out}", "--max_features=1000"]
    argv += [f"--gcp={path}", "--check_points=corner 3"]
    assert program.run(prepare.main, prepare.declare, argv=argv) == 0
    text = capsys.readouterr().out
    assert "corner 3 (check point, not used): " in text and "not there" not in text
    geo = json.loads((out / "geo.json").read_text())
    assert geo["epsg"] == 32756 and geo["fit"]["num_used"] == 3
    assert max(geo["fit"]["check_rms"].values()) < NEAR_M
    for name, center in _centers(town_folder(TOWN)).items():
        np.testing.assert_allclose(_centers(out)[name] + geo["offset"], center + shift, atol=NEAR_M)


def test_poses_of_another_program_are_kept(photographs, tmp_path, capsys):
    """The town's own, as Pix4D writes them; points are triangulated, and fit."""
    pytest.importorskip("pycolmap")
    town = read_model(town_folder(TOWN) / "sparse" / "0")
    lines = ["camera model m = K [R|-Rt] X"]
    matrix = town.lenses[0].intrinsics - [[0, 0, BOX[0]], [0, 0, BOX[1]], [0, 0, 0]]
    for name, pose in zip(town.image_names, town.camera_from_dataset, strict=True):
        stem = Path(name).stem.replace("_", "?")
        (photo,) = (path.name for path in photographs.rglob(f"{stem}.jpg"))
        center = -pose[:3, :3].T @ pose[:3, 3]
        rows = [*matrix, [0, 0, 0], [0, 0], center, *pose[:3, :3]]
        lines.append(f"{photo} {BOX[2] - BOX[0]} {BOX[3] - BOX[1]}")
        lines += [" ".join(map(str, row)) for row in rows]
    (path := tmp_path / "p_calibrated_camera_parameters.txt").write_text("\n".join(lines))
    out = tmp_path / "out"
    argv = ["prepare", f"--images={photographs}", f"--out={out}", f"--cameras={path}"]
    assert program.run(prepare.main, prepare.declare, argv=[*argv, "--max_features=300"]) == 0
    text = capsys.readouterr().out
    assert "poses and lenses: of Pix4D, kept" in text and "is that of Pix4D" in text
    assert f"1 photograph of the folder have no pose in {path.name}" in text
    geo = json.loads((out / "geo.json").read_text())
    assert geo["sfm"]["reprojection_error_px"] < 0.5 and geo["sfm"]["num_points"] > 300
    for name, center in _centers(town_folder(TOWN)).items():
        np.testing.assert_allclose(_centers(out)[name], center, atol=1e-6)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--images="], "--images, --poses: expected one of them, got none"),
        (["--images={photos}/none"], "--images: expected a folder of photographs"),
        (["--images={tmp}"], "expected at least 3 photographs"),
        (["--matching=all"], "--matching: expected one of auto, gps"),
        (["--max_features=many"], "max_features"),
        (["--epsg=4326"], "--epsg: expected a projected system in metres"),
        (["--cameras={tmp}/none"], "--cameras: expected a file of poses"),
        (["--gcp={tmp}/none"], "--gcp: expected a file of ground control points"),
        (["--gps=ignore", "--epsg=32756"], "--epsg: expected at least 3 photographs with latitude"),
        (["--out={photos}"], "expected another folder than --images"),
        (["--out={town}"], "has a COLMAP model already"),
        (["--out={photos}/noise.jpg"], "which is a file"),
    ],
)
def test_a_mistake_is_one_sentence(photographs, tmp_path, capsys, flags, words):
    pytest.importorskip("pycolmap", reason="prepare needs pycolmap")
    pytest.importorskip("pyproj", reason="prepare needs pyproj for GPS")
    names = {"photos": photographs, "tmp": tmp_path, "town": town_folder(TOWN)}
    given = [flag.format(**names) for flag in flags]
    argv = ["prepare", f"--images={photographs}", f"--out={tmp_path / 'out'}", *given]
    assert program.run(prepare.main, prepare.declare, argv=argv) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "GPS, " not in line]
    assert message.startswith("error: ") and words in message


def test_poses_without_points_get_some_and_stay_as_they_are(tmp_path):
    pytest.importorskip("pycolmap", reason="prepare needs pycolmap")
    town = town_folder(TOWN)
    root = tmp_path / "layout"
    source = scene_layouts.write_mega_nerf(town, root, every=6)
    out = tmp_path / "out"
    settings = PrepareSettings(max_features=1000)
    found = known_poses.triangulate(root, out, settings, Progress)
    assert found.num_photographs == TOWN.num_views and found.has_split and found.error_px < 0.5
    data = DataSettings(path=str(out), split="folders")
    scene = load_scene(data, GeneratedSettings(), tmp_path / "cache")
    assert [scene.image_names[view] for view in scene.test_views] == [
        "val/000000.jpg",
        "val/000006.jpg",
    ]
    turn = scene_layouts.DRB_FROM_ENU
    centers = Views(source.camera_from_dataset, *[np.empty(0)] * 2).centers @ turn.T
    ours = np.array([scene.views.centers[scene.image_names.index(name)] for name in _parts()])
    np.testing.assert_allclose(ours, centers, atol=1e-4)
    truth = load_ground_truth(town)
    points = scene.cloud.points @ turn  # in the town's frame
    nearest = cKDTree(truth.points).query(points)[1]
    above = np.einsum("pi,pi->p", points - truth.points[nearest], truth.normals[nearest])
    assert len(points) > 1000 and np.median(np.abs(above)) < 0.1
    done = []

    def progress(name, total):
        done.append(name)
        return Progress(name, total)

    again = known_poses.triangulate(root, out, settings, progress)
    assert not done and again.num_points == found.num_points


def _parts() -> list[str]:
    """Names of the layout's photographs in the order of the source's."""
    return [
        f"{'train' if number % 6 else 'val'}/{number:06d}.jpg" for number in range(TOWN.num_views)
    ]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--gps=require"], "--gps: expected --images=DIR beside --poses, got none"),
        (["--lens=OPENCV"], "--lens, --poses: expected one of the two"),
        (["--out={town}"], "expected another folder than --poses"),
        (["--poses={tmp}"], "expected a dataset in"),
    ],
)
def test_mistakes_with_poses(tmp_path, capsys, flags, words):
    pytest.importorskip("pycolmap", reason="prepare needs pycolmap")
    names = {"tmp": tmp_path, "town": town_folder(TOWN)}
    given = [flag.format(**names) for flag in flags]
    argv = ["prepare", f"--poses={names['town']}", f"--out={tmp_path / 'out'}", *given]
    assert program.run(prepare.main, prepare.declare, argv=argv) == 2
    assert words in capsys.readouterr().err


def test_without_pycolmap_the_extra_is_named(photographs, tmp_path):
    (tmp_path / "pycolmap.py").write_text("raise ImportError('none here')")
    command = [sys.executable, "-m", "cosurfgs_jax.prepare"]
    result = subprocess.run(
        [*command, f"--images={photographs}", f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 2 and 'pip install "cosurfgs_jax[sfm]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_training_on_bare_photographs_names_the_command(photographs, tmp_path):
    with pytest.raises(InputError, match="cosurfgs prepare --images=.*photos --out=") as caught:
        load_scene(DataSettings(path=str(photographs)), GeneratedSettings(), tmp_path)
    assert f"{TOWN.num_views + 1} photographs" in str(caught.value)
