"""Parts of `prepare` that need no structure from motion: photographs, settings, words."""

import dataclasses
import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import GeoReference
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import dataset_folder, phases
from cosurfgs_jax.sfm.database import Contents
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.georeference import Placement, Reconstructed
from cosurfgs_jax.sfm.mapping import tells_focal
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder, read_folder
from cosurfgs_jax.sfm.similarity import Similarity
from cosurfgs_jax.sfm.summary import ModelFacts, some_of, summarize


def _image(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


def test_photographs_of_a_folder_and_what_cannot_be_read(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.tif", "out/images/d.jpg", ".thumbs/e.jpg"):
        _image(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    (tmp_path / "notes.txt").write_text("x")
    folder = read_folder(tmp_path, tmp_path / "out")
    assert [photo.name for photo in folder.photos] == ["a.PNG", "b.jpg", "sub/c.tif"]
    assert list(folder.unreadable) == ["broken.jpg"]
    assert "expected a whole image" in folder.unreadable["broken.jpg"]


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "got 0; give the folder"),
        (["a.webp", "b.JP2", "c.jpg"], "got 0, and 3 that cannot, .* cannot read .webp files"),
        (["DJI_0001.MP4", "DJI_0001.SRT"], "take pictures out of videos such as DJI_0001.MP4"),
        (["x.HEIC", "y.DNG"], "convert the .DNG and .HEIC files to JPEG first"),
        (["a.jpg", "b.jpg", "c.jpg"], "got 0, and 3 that cannot, the first is .*a.jpg"),
    ],
)
def test_no_photographs_is_one_sentence(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="--images: expected at least 3 photographs.*" + words):
        read_folder(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="which is not there"):
        read_folder(tmp_path / "nothing", tmp_path / "out")


def test_a_dataset_is_not_made_in_the_folder_of_a_run(tmp_path):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(InputError, match="--out: expected a new folder.*mine, which is the folder"):
        dataset_folder.check_folders(tmp_path / "photos", dataset_folder.DatasetFolder(run))
    (run / ".prepare").mkdir()
    dataset_folder.check_folders(tmp_path / "photos", dataset_folder.DatasetFolder(run))


def test_the_order_is_that_of_time_or_of_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        _image(tmp_path / f"IMG_{number}.jpg")
    names = [f"IMG_{number}.jpg" for number in (1, 9, 10, 100)]
    assert [photo.name for photo in read_folder(tmp_path, tmp_path).photos] == names
    for number in (1, 10, 100, 9):
        exif = Image.Exif()
        exif[306] = f"2024:05:01 10:00:{60 - number % 60:02d}"
        with Image.open(tmp_path / f"IMG_{number}.jpg") as image:
            image.save(tmp_path / f"IMG_{number}.jpg", exif=exif)
    names = [f"IMG_{number}.jpg" for number in (100, 10, 9, 1)]
    assert [photo.name for photo in read_folder(tmp_path, tmp_path).photos] == names


def test_results_within_the_folder_are_no_photographs(tmp_path, caplog):
    for name in ("a.jpg", "b.jpg", "sub/c.jpg", "runs/Mine/renders/0.png", "old/images/d.jpg"):
        _image(tmp_path / name)
    (tmp_path / "runs" / "Mine" / ".locks").mkdir()
    (tmp_path / "old" / ".prepare").mkdir()
    (tmp_path / ".locks").mkdir()
    names = [photo.name for photo in read_folder(tmp_path, tmp_path / "out").photos]
    assert names == ["a.jpg", "b.jpg", "sub/c.jpg"]
    words = "2 pictures are left out, .* for example old/images/d.jpg; give the folder"
    assert re.search(words, caplog.text)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match="got 2; " + words):
        read_folder(tmp_path, tmp_path / "out")


def test_names_that_are_no_text_are_left_out(tmp_path):
    for name in "abc":
        _image(tmp_path / f"{name}.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    _image(tmp_path / "d.jpg")
    folder = read_folder(tmp_path, tmp_path / "out")
    assert len(folder.photos) == 3
    ((name, reason),) = folder.unreadable.items()
    assert "rename it" in reason and f"{name}{reason}".encode()


def _features_of(tmp_path, folder):
    dataset = dataset_folder.DatasetFolder(tmp_path / "out")
    stats = {photo.name: photo.path.stat() for photo in folder.photos}
    known = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    dataset.features_key.parent.mkdir(parents=True)
    files.write_json(dataset.features_key, {"photographs": known})
    return dataset


def test_photographs_that_have_moved_are_found_again(tmp_path):
    for name in "abcd":
        _image(tmp_path / "photos" / f"{name}.jpg")
    folder = read_folder(tmp_path / "photos", tmp_path / "out")
    dataset = _features_of(tmp_path, folder)
    dataset_folder.link_photographs(folder, dataset)
    (tmp_path / "photos" / "d.jpg").unlink()  # a blurred one
    _image(tmp_path / "others" / "a.jpg", size=(50, 40))
    for place in ("others", "second"):  # a flight whose files have the same names, and sizes, too
        for name in "bcd" if place == "others" else "abcd":
            _image(tmp_path / place / f"{name}.jpg")
    with pytest.raises(InputError, match="to be the photographs of .*second, got .*photos"):
        dataset_folder.link_photographs(read_folder(tmp_path / "second", tmp_path / "out"), dataset)
    (tmp_path / "photos").rename(tmp_path / "disk")
    with pytest.raises(InputError, match="to be the photographs of .*others, got .*photos"):
        dataset_folder.link_photographs(read_folder(tmp_path / "others", tmp_path / "out"), dataset)
    dataset_folder.link_photographs(read_folder(tmp_path / "disk", tmp_path / "out"), dataset)
    assert dataset.images.resolve() == (tmp_path / "disk").resolve()


@pytest.mark.parametrize(
    "found", [3, ["a.jpg", "b.jpg"], {"a.jpg": None}, {"a.jpg": [1]}, {"a.jpg": [1, "2"]}]
)
def test_damaged_notes_of_features_are_refused(tmp_path, found):
    path = tmp_path / "features.json"
    files.write_json(path, {"photographs": found})
    with pytest.raises(InputError, match="features.json: expected size and time of change of"):
        phases._extends({"photographs": {}}, path)


@pytest.mark.parametrize(
    "change", [{}, {"group_sizes": 3}, {"group_sizes": ["3"]}, {"tells_focal": 1}, {"poses_of": 0}]
)
def test_damaged_notes_of_a_model_do_not_count(change):
    notes = {"group_sizes": [3, 2], "keeps_focal": True, "tells_focal": False, "poses_of": "a"}
    assert phases._is_whole(notes | change) == (not change)


def test_a_photograph_that_comes_back_changed_has_no_old_features(tmp_path, monkeypatch):
    """The database keeps the features of what is taken out of the folder."""
    monkeypatch.setattr(phases.database, "add_photographs", lambda *_: None)
    for name in ("extract_features", "match_features"):
        monkeypatch.setattr(phases.mapping, name, lambda *_: None)
    for name in "abcd":
        _image(tmp_path / f"{name}.jpg")
    dataset = dataset_folder.DatasetFolder(tmp_path / "out")

    def is_kept():
        """Whether the database of a call outlives the next one."""
        folder = read_folder(tmp_path, tmp_path / "out")
        names = [photo.name for photo in folder.photos]
        settings = PrepareSettings(gps="ignore")
        job = phases.mapping.Job(dataset.database, tmp_path, names, tmp_path, settings, None)
        key = phases._find_features(folder, dataset, job)
        assert list(key["photographs"]) == names
        was_there = dataset.database.exists()
        dataset.database.write_bytes(b"features")
        return was_there

    assert not is_kept() and is_kept()
    (tmp_path / "d.jpg").rename(tmp_path / "d.away")
    assert is_kept()
    (tmp_path / "d.away").rename(tmp_path / "d.jpg")
    assert is_kept()
    (tmp_path / "d.jpg").unlink()
    assert is_kept()
    _image(tmp_path / "d.jpg", size=(50, 40))
    assert not is_kept() and is_kept()


def test_where_there_are_no_links_photographs_are_copied_once(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        _image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "film.mp4").write_text("large")
    folder = read_folder(tmp_path / "photos", tmp_path / "photos" / "out")
    dataset = dataset_folder.DatasetFolder(tmp_path / "photos" / "out")
    dataset.scratch.mkdir(parents=True)
    dataset_folder.link_photographs(folder, dataset)
    found = {path.name for path in dataset.images.rglob("*") if path.is_file()}
    assert found == {"a.jpg", "b.jpg", "c.jpg"}
    dataset_folder.link_photographs(folder, dataset)  # the same command again
    _image(tmp_path / "photos" / "b.jpg", size=(80, 60))
    with pytest.raises(InputError, match="give another --out"):
        dataset_folder.link_photographs(read_folder(folder.root, dataset.root), dataset)


def _photo(name, tmp_path, size=(40, 30), **tags):
    return Photo(name, tmp_path / name, size[1], size[0], PhotoTags(**tags))


def test_a_camera_is_a_model_a_lens_setting_and_a_size(tmp_path):
    photos = [
        _photo("a", tmp_path, camera="X", focal_mm=4.0, focal_35mm=24.0),
        _photo("b", tmp_path, camera="X", focal_mm=4.0, focal_35mm=24.0),
        _photo("c", tmp_path, camera="X", focal_mm=8.0, focal_35mm=48.0),
        _photo("d", tmp_path, camera="X", focal_mm=4.0, focal_35mm=24.0, size=(30, 40)),
        _photo("e", tmp_path),
    ]
    cameras = PhotoFolder(tmp_path, photos, {}).cameras
    assert [[photo.name for photo in group] for group in cameras.values()] == [
        ["a", "b"], ["c"], ["d"], ["e"]
    ]  # fmt: skip
    assert photos[0].has_focal and photos[0].focal_px == pytest.approx(24 / 34.6 * 40)
    assert not photos[4].has_focal and photos[4].focal_px == pytest.approx(48)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("matching", "all", "one of auto, gps, sequential, exhaustive"),
        ("max_features", 3, "at least 100"),
        ("neighbors", 20_000, "at most 10000"),
        ("epsg", -1, "0 .the UTM zone."),
    ],
)
def test_settings_are_checked(name, value, words):
    PrepareSettings().validate()
    settings = dataclasses.replace(PrepareSettings(), **{name: value})
    with pytest.raises(InputError, match=f"--{name}: expected {words}"):
        settings.validate()


def _looking(height_of, tilt_deg=0.0, roof=0.0):
    rng = np.random.default_rng(0)
    tilt = np.deg2rad(rng.choice([-1, 1], 12) * tilt_deg)
    poses = np.tile(np.diag([1.0, -1, -1, 1]), (12, 1, 1))
    poses[:, 1, 1] = poses[:, 2, 2] = -np.cos(tilt)
    poses[:, 1, 2] = np.sin(tilt)
    poses[:, 2, 1] = -np.sin(tilt)
    centers = rng.uniform([0, 0, 0], [9, 9, 0], (12, 3)) + [[0, 0, height_of(i)] for i in range(12)]
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", poses[:, :3, :3], centers)
    points = rng.uniform([0, 0, 0], [9, 9, 0.1 + roof], (200, 3))
    return Reconstructed([str(i) for i in range(12)], poses, points)


def test_which_flights_tell_the_focal_length():
    assert not tells_focal(_looking(lambda i: 10.0))
    assert tells_focal(_looking(lambda i: 10.0, tilt_deg=25))
    assert tells_focal(_looking(lambda i: 10.0 + 5 * (i % 2)))
    assert tells_focal(_looking(lambda i: 10.0, roof=5))


FIT = {
    "method": "robust",
    "num_used": 5,
    "residual_rms": {"east": 0.51, "north": 0.42, "up": 1.24},
    "scale_error": 0.0061,
}


def _summary(tmp_path, has_scale=True, sizes=(5,), **changes):
    names = [f"{i}.jpg" for i in range(8)]
    photos = [
        _photo(name, tmp_path, size=(40, 30 + (name == "7.jpg")), latitude=1.0, longitude=2.0)
        for name in names
    ]
    for number in (1, 3):
        photos[number] = _photo(names[number], tmp_path)
    folder = PhotoFolder(tmp_path, photos, {"x.jpg": "x.jpg: expected a whole image"})
    contents = Contents(
        dict.fromkeys(names, 1000) | {"4.jpg": 100, "5.jpg": 0, "6.jpg": 120},
        dict.fromkeys(names, 3) | {"7.jpg": 0, "5.jpg": 0},
        [("0.jpg", "1.jpg")],
        {1: 1156.0},
    )
    camera = {"focal": 1393.0, "focal_before": 1156.0}
    facts = ModelFacts(names[:5], list(sizes), 0.42, 6630, 4.1, [camera], False, True)
    details = {
        "fit": FIT | {"reason": "GPS is ignored"},
        "system": "WGS 84 / UTM zone 15N",
        "vertical_datum": "the sea",
    }
    geo = GeoReference(32615 * has_scale, (10.0, 20, 30), has_scale, details)
    placement = Placement(Similarity(1, np.eye(3), np.zeros(3)), geo, ["a word of the fit"])
    facts = dataclasses.replace(facts, **changes)
    return summarize(folder, contents, facts, placement, max_image_size=2000)


def test_the_summary_names_what_is_missing_and_why(tmp_path):
    summary = _summary(tmp_path)
    assert summary.missing == {
        "5.jpg": "no features: without texture, or of a format that COLMAP cannot read",
        "6.jpg": "few features: blurred, or without texture",
        "7.jpg": "no photograph that it was compared with shows the same",
    }
    text = "\n".join(summary.lines())
    assert "registered 5 of 8 photographs; missing: 5.jpg (no features:" in text
    assert "reprojection error 0.42 px (mean), 6,630 points, each seen by 4.1 photographs" in text
    assert "metres, by GPS of 5 photographs, good to 0.61 %" in text
    assert "residuals 0.51 m east, 0.42 m north, 1.2 m up" in text
    assert "without GPS, and placed by the others: 1.jpg, 3.jpg" in text
    assert "EPSG:32615 (WGS 84 / UTM zone 15N)" in text and "plus 10,20,30" in text


def test_the_summary_says_what_is_suspicious(tmp_path):
    text = "\n".join(_summary(tmp_path, sizes=(5, 3)).suspicious)
    for words in (
        "1 file cannot be read, left out: x.jpg",
        "4.jpg: less than 25% of the usual number of features",
        "taken twice from the same place, or copies: 0.jpg and 1.jpg; copies count twice, and",
        "photographs of 2 sizes, as they are stored: 40x30 (7), 40x31 (7.jpg); each size is taken",
        "of 5, 3 photographs; only the largest",
        "the focal length became 1393 px, it was 1156 before; --focal=fix",
        "a word of the fit",
    ):
        assert words in text
    few = _summary(tmp_path, registered=["0.jpg", "1.jpg"])
    assert any("only 2 of 8 photographs have a pose" in text for text in few.suspicious)
    assert not any("have a pose" in text for text in _summary(tmp_path).suspicious)
    kept = _summary(tmp_path, keeps_focal=True)
    assert any("kept, 1393 px" in text for text in kept.found)
    cameras = [
        {"focal": 405.0, "focal_before": 405.0, "width": 700, "height": 394},
        {"focal": 202.4, "focal_before": 202.4, "width": 350, "height": 197},
    ]
    several = _summary(tmp_path, cameras=cameras)
    assert "focal length: refined, 405 px (700x394), 202 px (350x197)" in several.found
    known = "\n".join(_summary(tmp_path, poses_of="Pix4D").suspicious)
    assert "photographs of 2 sizes" in known and "camera of its own" not in known
    flat = _summary(tmp_path, keeps_focal=True, tells_focal=False)
    assert any("cannot tell it from the height" in text for text in flat.found)
    guessed = _summary(tmp_path, tells_focal=False)
    assert any("heights may be wrong by a third" in text for text in guessed.suspicious)


def test_without_scale_the_summary_says_so(tmp_path):
    text = "\n".join(_summary(tmp_path, has_scale=False).found)
    assert "scale unknown" in text and "z is up" in text and "EPSG" not in text


def test_long_lists_are_cut():
    assert some_of("abc") == "a, b, c"
    assert some_of(map(str, range(11))) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
