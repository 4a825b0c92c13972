"""Features lie where their points project; where not, the log says so, with the photographs."""

import dataclasses
import logging
import struct

import fuzz_cases
import numpy as np
import pytest

from cosurfgs_jax.data import colmap, colmap_text, compared_features, feature_checks
from cosurfgs_jax.data.compared_features import FEATURE
from cosurfgs_jax.data.feature_checks import SeenPoints
from cosurfgs_jax.geometry.distortion import lens_from_params, pixels_from_normalised

NUM_VIEWS = 8
NUM_POINTS = 60
LENS = lens_from_params("SIMPLE_RADIAL", 480, 640, [500.0, 320.0, 240.0, 0.3])
READERS = {reader.name: reader for reader in fuzz_cases.readers()}


def _seen(lens=LENS, noise_px=0.4) -> SeenPoints:
    """Cameras in a row; all see all points, whose numbers begin at 7 and are in no order."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (NUM_VIEWS, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.5, 0.5, NUM_VIEWS)
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 6], (NUM_POINTS, 3))
    ids = 7 + rng.permutation(NUM_POINTS)
    noise = rng.normal(0, noise_px, (NUM_VIEWS, NUM_POINTS, 2))
    features = []
    for view, pose in enumerate(poses):
        points_camera = points + pose[:3, 3]
        table = np.zeros(NUM_POINTS + 1, FEATURE)
        rays = points_camera[:, :2] / points_camera[:, 2:]
        table["pixel"][1:] = pixels_from_normalised(lens, rays) + noise[view]
        table["point"] = [-1, *ids]
        features.append(table)
    names = [f"{view}.png" for view in range(NUM_VIEWS)]
    errors = np.hypot(*np.moveaxis(noise, -1, 0)).mean(axis=0)
    return SeenPoints(
        source="model",
        names=names,
        lenses=[lens] * NUM_VIEWS,
        camera_from_dataset=poses,
        features=features,
        point_ids=ids,
        points=points,
        errors=errors,
        lengths=np.full(NUM_POINTS, NUM_VIEWS),
    )


def _said(seen, caplog) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        feature_checks.check(seen)
    return caplog.text


def test_what_fits_is_not_spoken_of(caplog):
    assert not _said(_seen(), caplog)
    assert not _said(_seen(noise_px=1e-9), caplog)
    seen = _seen()
    for said_by_file in (np.nan, 1.0, 0.0, -1.0):  # of programs that do not know
        errors = np.full(NUM_POINTS, said_by_file)
        assert not _said(seen._replace(errors=errors), caplog)
    nothing = np.empty(0, FEATURE)
    assert not _said(seen._replace(features=[nothing] * NUM_VIEWS), caplog)
    assert not _said(seen._replace(point_ids=seen.point_ids + 1000), caplog)
    assert not _said(seen._replace(point_ids=seen.point_ids[:0], points=seen.points[:0]), caplog)
    assert not _said(
        seen._replace(names=[], lenses=[], camera_from_dataset=np.empty((0, 4, 4)), features=[]),
        caplog,
    )


def _with_noise(views, noise_px: float) -> SeenPoints:
    """Some photographs are less sharp than the others; the points have it noted."""
    seen = _seen(noise_px=0.1)
    noise = np.random.default_rng(1).normal(0, noise_px, (len(views), NUM_POINTS, 2))
    errors = seen.errors.copy()
    for view, more in zip(views, noise, strict=True):
        seen.features[view]["pixel"][1:] += more
        errors += np.hypot(*more.T) / NUM_VIEWS
    return seen._replace(errors=errors)


@pytest.mark.parametrize("views", [[3], [2, 5]])
def test_photographs_that_were_never_sharp_are_not_said(caplog, views):
    assert not _said(_with_noise(views, 1.6), caplog)
    assert not _said(_with_noise(views, 6.0), caplog)
    seen = _with_noise(views, 1.6)
    seen.camera_from_dataset[views[0], 0, 3] += 0.1
    assert f": {views[0]}.png" in _said(seen, caplog)
    # Where nothing is noted, a pixel is nothing and four are something.
    unknown = np.full(NUM_POINTS, np.nan)
    assert not _said(_with_noise(views, 0.5)._replace(errors=unknown), caplog)
    assert f": {views[0]}.png" in _said(_with_noise(views, 6.0)._replace(errors=unknown), caplog)


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "SIMPLE_RADIAL_FISHEYE"])
@pytest.mark.parametrize("unit", [0.1, 100.0])
def test_the_unit_of_lengths_makes_no_difference(caplog, model, unit):
    seen = _seen(lens_from_params(model, 480, 640, [500.0, 320.0, 240.0, 0.05]))
    poses = seen.camera_from_dataset.copy()
    poses[:, :3, 3] *= unit
    seen = seen._replace(points=seen.points * unit, camera_from_dataset=poses)
    assert not _said(seen, caplog)
    poses[3, 0, 3] += 0.1 * unit
    assert ": 3.png;" in _said(seen, caplog)


def test_few_features_tell_nothing_of_a_photograph(caplog):
    for count, is_said in ((10, False), (11, True)):  # the first is of no point
        seen = _seen()
        seen.features[3] = seen.features[3][:count]
        seen.camera_from_dataset[3, 0, 3] += 0.05
        assert (": 3.png;" in _said(seen, caplog)) == is_said


@pytest.mark.parametrize("kind", ["rounded", "half a pixel", "other units"])
def test_less_than_a_pixel_in_all_photographs_is_nothing(caplog, kind):
    seen = _seen(noise_px=0.1)
    for features in seen.features:
        match kind:
            case "rounded":
                features["pixel"] = features["pixel"].round()
            case "half a pixel":
                features["pixel"] -= 0.5
    if kind == "other units":
        seen = seen._replace(errors=seen.errors / 500)
    assert not _said(seen, caplog)
    for features in seen.features:
        features["pixel"] += 2
    assert "in 8 of 8 photographs" in _said(seen, caplog)


@pytest.mark.parametrize("factor", [0.25, 0.7])
def test_features_in_pixels_of_a_larger_picture_are_compared_as_such(caplog, factor):
    seen = _seen()
    small = LENS.resized(round(480 * factor), round(640 * factor), factor, factor)
    for views in (range(NUM_VIEWS), range(3)):
        lenses = [LENS] * NUM_VIEWS
        for view in views:
            lenses[view] = small
        with caplog.at_level(logging.INFO):
            caplog.clear()
            feature_checks.check(seen._replace(lenses=lenses))
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert f"in {len(views)} of 8 photographs features are in pixels of" in caplog.text
        assert f"of 0.png in those of a picture {1 / factor:.3g}"[:-1] in caplog.text
    seen.camera_from_dataset[1, 0, 3] += 0.05
    text = _said(seen._replace(lenses=lenses), caplog)
    assert ": 1.png; poses" in text and len(caplog.records) == 1


def test_a_smaller_camera_of_another_lens_is_still_said(caplog):
    wrong = dataclasses.replace(LENS, focal_px=(700.0, 500.0)).resized(240, 320, 0.5, 0.5)
    assert "in 8 of 8" in _said(_seen()._replace(lenses=[wrong] * NUM_VIEWS), caplog)


@pytest.mark.parametrize("kind", ["turned", "shifted", "behind"])
def test_a_moved_pose_is_said(caplog, kind):
    seen = _seen()
    pose = seen.camera_from_dataset[3]
    match kind:
        case "turned":
            pose[:2, :2] = [[np.cos(0.03), -np.sin(0.03)], [np.sin(0.03), np.cos(0.03)]]
        case "shifted":
            pose[0, 3] += 0.05
        case "behind":
            pose[2, 3] = -10
    text = _said(seen, caplog)
    what = "features are"
    if kind == "behind":
        what = "most features are of points that lie behind the camera"
    assert f"model: in 1 of 8 photographs {what}" in text and " (in the others 0.4" in text
    assert ": 3.png; poses or cameras are wrong" in text
    assert len(caplog.records) == 1  # points and the other photographs are right


def test_what_is_not_finite_is_left_to_others(caplog):
    seen = _seen()
    seen.camera_from_dataset[3, 0, 0] = np.nan
    assert not _said(seen, caplog)


def test_a_camera_of_some_photographs_is_said_as_such(caplog):
    seen = _seen()
    seen.lenses[:3] = [dataclasses.replace(LENS, focal_px=(520.0, 520.0))] * 3
    text = _said(seen, caplog)
    assert "in 3 of 8 photographs" in text and "1.png, 2.png; these are all photographs" in text
    assert "of their cameras, which are wrong" in text


@pytest.mark.parametrize(
    "lens",
    [
        dataclasses.replace(LENS, model="PINHOLE", coefficients=()),
        LENS.resized(960, 1280, 2, 2),  # features of smaller photographs
        dataclasses.replace(LENS, focal_px=(250.0, 250.0), principal_px=(160.0, 120.0)),
        dataclasses.replace(LENS, focal_px=(515.0, 515.0)),
    ],
)
def test_a_camera_of_all_photographs_is_said(caplog, lens):
    seen = _seen()
    text = _said(seen._replace(lenses=[lens] * NUM_VIEWS), caplog)
    assert "in 8 of 8 photographs features are" in text and "a lens without its distortion" in text
    assert "the errors of the points say 0." in text or "no reconstruction keeps more" in text
    assert "0.png, 1.png" in text and len(caplog.records) == 1


def test_photographs_with_their_backs_to_the_points_are_said_without_a_number(caplog):
    seen = _seen()
    seen.camera_from_dataset[:, 2, 3] = -10
    text = _said(seen, caplog)
    assert "8 photographs most features are of points that lie behind the camera, though" in text


def test_without_errors_all_photographs_are_only_said_to_be_wrong_by_a_hundredth_of_a_side(caplog):
    seen = _seen()._replace(errors=np.full(NUM_POINTS, np.nan))
    near = dataclasses.replace(LENS, focal_px=(510.0, 510.0))
    assert not _said(seen._replace(lenses=[near] * NUM_VIEWS), caplog)
    far = dataclasses.replace(LENS, focal_px=(700.0, 700.0))
    assert "keeps more than 6.4: 0.png" in _said(seen._replace(lenses=[far] * NUM_VIEWS), caplog)


def test_moved_points_are_said(caplog):
    seen = _seen()
    seen.points[[11, 20]] += [0.2, 0, 0]
    text = _said(seen, caplog)
    assert "2 of 60 points that were compared are" in text and str(seen.points[11, 0])[:6] in text
    assert len(caplog.records) == 1
    # Not where they have it noted, or nothing is noted and it is less than a hundredth of a side.
    seen.errors[[11, 20]] = 25
    assert not _said(seen, caplog)
    seen = seen._replace(errors=np.zeros(NUM_POINTS))
    seen.points[[11, 20]] -= [0.15, 0, 0]
    assert not _said(seen, caplog)
    seen.points[[11, 20]] += [0.15, 0, 0]
    assert "2 of 60 points that were compared are 6.4 pixels or more" in _said(seen, caplog)


def test_features_of_larger_photographs_may_be_further_off(caplog):
    seen = _seen()
    times = 12  # of the noise as well
    seen.lenses[5] = LENS.resized(480 * times, 640 * times, times, times)
    seen.features[5]["pixel"] *= times
    assert not _said(seen, caplog)
    seen.camera_from_dataset[5, 0, 3] += 0.05
    assert ": 5.png;" in _said(seen, caplog)


def test_stand_ins_for_features_tell_nothing(caplog):
    seen = _seen()
    for features in seen.features:
        features["pixel"] = 0
    assert not _said(seen, caplog)


def test_a_fisheye_sees_behind_itself(caplog):
    params = [200.0, 200.0, 320.0, 240.0, 0.0, 0.0, 0.0, 0.0]
    seen = _seen(lens_from_params("OPENCV_FISHEYE", 480, 640, params))
    seen.points[4] *= [1, 1, -1]
    assert not _said(seen, caplog)


@pytest.mark.parametrize(("num_views", "most"), [(0, 1024), (195, 1024), (1000, 200), (40_000, 64)])
def test_few_features_of_each_of_many_photographs_are_compared(num_views, most):
    assert compared_features.max_features_of_view(num_views) == most
    assert len(compared_features.chosen(10_000, most)) in range(most - 63, most + 1)


def test_points_are_found_by_their_numbers(monkeypatch):
    monkeypatch.setattr(compared_features, "_CHUNK", 3)
    point_ids = np.array([9, -1, 4, 7, -1, 30, 2])
    rows = compared_features.rows_of(np.array([2, 9, 8, 2, 30, 99]), point_ids)
    assert rows.tolist() == [6, 0, -1, 6, 5, -1]
    assert compared_features.rows_of(np.empty(0, np.int64), point_ids).tolist() == []
    features = np.zeros(4, FEATURE)
    features["point"] = [30, -1, 9, 8]
    names, rows = compared_features.named([features, features[:0]], point_ids)
    assert names.tolist() == [8, 9, 30] and rows.tolist() == [-1, 0, 5]
    assert compared_features.named([], point_ids)[1].tolist() == []


@pytest.mark.parametrize(
    ("head", "kept", "count"),
    [
        ("# Number of images: 40000, mean observations: 90\n", [64, 64, 64], 40_000),
        ("", [200, 128, 64], 3),
    ],
)
def test_of_a_text_file_with_many_images_few_features_are_kept(
    tmp_path, monkeypatch, head, kept, count
):
    features = " ".join(f"{x} 0 {x}" for x in range(200))
    pose = "1 0 0 0 0 0 0 1"
    lines = [f"{n} {pose} {n}.png\n{features}\n" for n in range(1, 4)]
    (tmp_path / "images.txt").write_text(head + "".join(lines))
    monkeypatch.setattr(compared_features, "_MAX_FEATURES", 300)
    images = list(colmap_text.read_images(tmp_path / "images.txt"))
    assert [len(image.features) for image in images] == kept
    assert colmap_text.num_images(tmp_path / "images.txt") == count


@pytest.mark.parametrize("count", [0, 5, 1024, 1025, 1300, 10_000])
def test_runs_of_features_are_chosen_all_over_the_list(count):
    chosen = compared_features.chosen(count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 1024)
    if count:
        assert chosen.min() == 0 and chosen.max() == count - 1
    assert np.sum(np.diff(chosen) != 1) <= 15


def test_of_many_photographs_some_features_are_compared(monkeypatch, caplog):
    monkeypatch.setattr(compared_features, "_MAX_FEATURES", 8 * 128)
    seen = _seen()
    seen = seen._replace(features=[np.tile(features, 20) for features in seen.features])
    assert len(feature_checks._distances(seen)[1].pixels) in range(8 * 120, 8 * 128)
    seen.camera_from_dataset[3, 0, 3] += 0.05
    assert ": 3.png; poses" in _said(seen, caplog)


@pytest.mark.parametrize("name", ["colmap_binary", "colmap_text"])
def test_the_features_of_both_forms_are_compared(tmp_path, caplog, name):
    READERS[name].write(tmp_path)
    model = tmp_path / "sparse" / "0"
    colmap.read_model(model)
    assert not caplog.text
    if name == "colmap_binary":
        data = bytearray((model / "images.bin").read_bytes())
        struct.pack_into("<d", data, 8 + 36, 0.4)  # of the first image, 0 before
        (model / "images.bin").write_bytes(data)
    else:
        path = model / "images.txt"
        before = "1 1.0 0.0 0.0 0.0 -0.0 0.0 4.0 1"
        path.write_text(path.read_text().replace(before, "1 1.0 0.0 0.0 0.0 0.4 0.0 4.0 1"))
    colmap.read_model(model)
    assert "in 1 of 6 photographs" in caplog.text and "flight/IMG_0000.png;" in caplog.text


def test_points_without_tracks_may_have_other_numbers(tmp_path, caplog):
    READERS["colmap_text"].write(tmp_path)
    path = tmp_path / "sparse" / "0" / "points3D.txt"
    rows = [line.split()[:8] for line in path.read_text().splitlines()[2:]]
    for row in rows:
        row[1] = "3.5"
    path.write_text("\n".join(" ".join(row) for row in rows) + "\n")
    colmap.read_model(path.parent)
    assert not caplog.text
