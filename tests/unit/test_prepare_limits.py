"""Limits of `prepare` at their edges, and numbers that can be reckoned by hand."""

import numpy as np
import pytest
import scipy.stats

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import GeoReference
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import database as database_file
from cosurfgs_jax.sfm import map_system, phases, similarity, summary
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.georeference import Placement, check_positions
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder
from cosurfgs_jax.sfm.summary import ModelFacts


def folder_of(tmp_path, names, size=(640, 480), **tags) -> PhotoFolder:
    photos = [
        Photo(name, tmp_path / name, height=size[1], width=size[0], tags=PhotoTags(**tags))
        for name in names
    ]
    return PhotoFolder(tmp_path, photos, {})


def test_points_far_from_a_fit_are_left_out():
    """At 1.5 * 4.685 standard deviations, of which a good fit has the least that is given."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(400, 3))
    for far, is_used in ((6.9, True), (7.2, False)):
        target = source.copy()
        target[0, 2] += far
        fit = similarity.fit_robust(source, target, min_sigma=1.0)
        assert fit.is_used[1:].all() and fit.is_used[0] == is_used
        assert fit.median < 0.01
    assert pytest.approx(scipy.stats.chi(3).median(), abs=1e-4) == similarity._MEDIAN_DISTANCE


@pytest.mark.parametrize("num_axes, unknowns", [(3, 7), (2, 4)])
def test_the_error_of_a_scale_by_hand(num_axes, unknowns):
    """Of n d numbers, as many are free as are left beside the similarity's own."""
    explained = np.random.default_rng(1).normal(size=(4, num_axes)) + 5
    residuals = np.full((4, num_axes), 0.2)
    variance = 4 * num_axes * 0.04 / (4 * num_axes - unknowns)
    spread = 4 * explained.var(axis=0).sum()
    found = similarity._scale_error(explained, residuals)
    assert found == pytest.approx(np.sqrt(variance / spread))
    assert similarity._scale_error(np.ones((4, num_axes)), residuals) == np.inf
    few = similarity._scale_error(explained[:2], residuals[:2])
    assert few == pytest.approx(np.sqrt(2 * num_axes * 0.04 / (2 * explained[:2].var(0).sum())))


def test_how_far_points_are_from_a_line():
    points = np.array([[-2.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]]) + [5, 6, 7]
    assert similarity.line_fraction(points) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "latitude, longitude, words",
    [
        (30.0, -90.05, None),  # zone 15 is for 96 to 90 degrees west, and one more
        (30.0, -89.1, None),
        (30.0, -88.9, "which is for"),
        (30.0, -96.9, None),
        (30.0, -97.1, "which is for"),
        (-0.9, -93.0, None),
        (-1.1, -93.0, "which is for"),
        # 0.9996 (1 + angle^2 / 2) at the equator: 0.8 % at 7.5 degrees, 1.2 % at 8.9.
        (0.0, -85.5, "which is for"),
        (0.0, -84.1, "stretches them by 1 %"),
    ],
)
def test_where_a_system_may_be_used(latitude, longitude, words):
    pytest.importorskip("pyproj")
    if words is None:
        map_system.check_system(32615, latitude, longitude)
        return
    with pytest.raises(InputError, match=words):
        map_system.check_system(32615, latitude, longitude)


def test_positions_that_are_needed():
    for number, settings in ((3, {"gps": "require"}), (0, {}), (3, {"epsg": 32615})):
        check_positions(number, 9, PrepareSettings(**settings))
    with pytest.raises(InputError, match="--gps=require: expected at least 3 .* got 2 of 9"):
        check_positions(2, 9, PrepareSettings(gps="require"))
    with pytest.raises(InputError, match="--epsg: expected at least 3 .* got --gps=ignore"):
        check_positions(9, 9, PrepareSettings(gps="ignore", epsg=32615))


def test_metres_about_the_middle(tmp_path):
    folder = folder_of(tmp_path, "d")
    for name, latitude, longitude in (("c", 59.999, 10.002), ("b", 60.001, 10), ("a", 60, 10)):
        other = folder_of(tmp_path, name, latitude=latitude, longitude=longitude)
        folder.photos.insert(0, *other.photos)
    found = phases._places(folder, PrepareSettings())
    expected = [[0, 0], [0, 111.32], [222.64 * 0.5, -111.32], [np.nan, np.nan]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(phases._places(folder, PrepareSettings(gps="ignore"))).all()


def words_of(tmp_path, sizes=(640, 480), fit=None, **changes) -> summary.Summary:
    """The summary of ten photographs, of which nine have a pose, nothing being suspicious."""
    names = [f"{number}.jpg" for number in range(10)]
    contents = database_file.Contents(
        dict.fromkeys(names, 1000) | {"8.jpg": changes.pop("few", 1000)},
        dict.fromkeys(names, 3),
        [],
        {1: 1000.0},
    )
    facts = {
        "registered": names[:9],
        "group_sizes": [9],
        "error_px": 0.5,
        "num_points": 6630,
        "track_length": 4.0,
        "cameras": [{"focal": 1000.0, "focal_before": 1000.0}],
        "keeps_focal": False,
        "tells_focal": True,
    }
    fit = {"num_used": 9, "residual_rms": {}, "scale_error": 0.01} | (fit or {})
    details = {"fit": fit, "system": "UTM", "vertical_datum": "the sea"}
    geo = GeoReference(32615, (1.0, 2.0, 3.0), True, details)
    placement = Placement(similarity.Similarity(1, np.eye(3), np.zeros(3)), geo, [])
    folder = folder_of(tmp_path, names, sizes, latitude=1.0, longitude=2.0)
    facts = ModelFacts(**(facts | changes))
    return summary.summarize(folder, contents, facts, placement, max_image_size=2000)


@pytest.mark.parametrize(
    "good, bad, words",
    [
        ({"few": 250}, {"few": 249}, "8.jpg: less than 25% of the usual"),
        ({"error_px": 1.5}, {"error_px": 1.51}, "above 1.5 px"),
        (
            {"registered": [f"{number}.jpg" for number in range(5)]},
            {"registered": [f"{number}.jpg" for number in range(4)]},
            "only 4 of 10 photographs have a pose",
        ),
        ({"fit": {"scale_error": 0.049}}, {"fit": {"scale_error": 0.05}}, "only good to 5 %"),
        (
            {"cameras": [{"focal": 1099.0, "focal_before": 1000.0}]},
            {"cameras": [{"focal": 1101.0, "focal_before": 1000.0}]},
            "became 1101 px, it was 1000 before",
        ),
        (
            {"cameras": [{"focal": 901.0, "focal_before": 1000.0}]},
            {"cameras": [{"focal": 899.0, "focal_before": 1000.0}]},
            "became 899 px",
        ),
        ({"group_sizes": [9]}, {"group_sizes": [9, 2]}, "of 9, 2 photographs"),
    ],
)
def test_what_is_suspicious_begins_at_a_limit(tmp_path, good, bad, words):
    assert words_of(tmp_path, **good).suspicious == []
    (sentence,) = words_of(tmp_path, **bad).suspicious
    assert words in sentence


@pytest.mark.parametrize(
    "max_image_size, cases",
    [
        (640, ((63, 250, []), (62, 249, ["half", "large"]))),
        (2000, ((63, 250, []), (62, 249, ["half", "large"]))),
        (320, ((250, 250, []), (249, 249, ["half", "large"]))),
        (400, ((160, 250, []), (159, 250, ["half"]))),
    ],
)
def test_of_a_smaller_photograph_fewer_features_are_expected(tmp_path, max_image_size, cases):
    """In proportion to the pixels that features are found in: of photographs that are all shrunk to
    one size as many. Of a larger one no more than of the others.
    """
    photos = folder_of(tmp_path, ["a", "b", "c"]).photos
    photos += folder_of(tmp_path, ["half"], (320, 240)).photos
    photos += folder_of(tmp_path, ["large"], (1280, 960)).photos
    folder = PhotoFolder(tmp_path, photos, {})
    for half, large, few in cases:
        counts = {"a": 1000, "b": 1000, "c": 1000, "half": half, "large": large}
        contents = database_file.Contents(counts, {}, [], {})
        assert summary._few_features(folder, contents, max_image_size) == few


def test_a_photograph_without_a_pose_has_partners(tmp_path):
    found = words_of(tmp_path)
    assert found.missing == {"9.jpg": "overlaps with 3 others, too little to be placed"}


@pytest.mark.parametrize("side, downscale", [(400, 1), (1499, 1), (1501, 2), (4000, 4)])
def test_photographs_are_best_shrunk_to_a_thousand_pixels(tmp_path, side, downscale):
    assert words_of(tmp_path, (300, side)).downscale == downscale


def test_a_calibrated_focal_length_is_that_of_the_usual_size(tmp_path):
    """Smaller and turned photographs of the same camera get it in their pixels; others do not."""
    pytest.importorskip("pycolmap")
    mine = {"camera": "X", "focal_mm": 4.0, "focal_35mm": 34.6}
    photos = []
    for name, size, tags in (
        ("half", (320, 240), mine),
        ("usual", (640, 480), mine),
        ("usual too", (640, 480), mine),
        ("turned", (480, 640), mine),
        ("bare", (640, 480), {}),
        ("other", (640, 480), mine | {"camera": "Y"}),
        ("zoomed", (640, 480), mine | {"focal_mm": 8.0, "focal_35mm": 69.2}),
    ):
        photos += folder_of(tmp_path, [name], size, **tags).photos
    path = tmp_path / "database.db"
    settings = PrepareSettings(focal_px=700.0)
    database_file.add_photographs(path, PhotoFolder(tmp_path, photos, {}), settings)
    with database_file.opened(path) as database:
        found = {
            image.name: database.read_camera(image.camera_id).mean_focal_length()
            for image in database.read_all_images()
        }
    expected = {"half": 350, "usual": 700, "usual too": 700, "turned": 700}
    assert found == pytest.approx(expected | {"bare": 700, "other": 640, "zoomed": 1280})


def keypoints(number: int, shift: float) -> np.ndarray:
    """Features on a grid of 1000 x 1000 pixels, moved to the right."""
    x, y = np.meshgrid(np.linspace(0, 1000, number), np.linspace(0, 1000, number))
    return np.stack([x.ravel() + shift, y.ravel()], axis=1).astype(np.float32)


def test_what_the_database_says(tmp_path):
    """Doubles show more than 60 % of the same, moved by less than 0.2 % of the longer side."""
    pycolmap = pytest.importorskip("pycolmap")
    path = tmp_path / "database.db"
    names = ["a b.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    folder = folder_of(tmp_path, names, focal_35mm=34.6)
    database_file.add_photographs(path, folder, PrepareSettings(lens="SIMPLE_RADIAL"))
    with database_file.opened(path) as database:
        numbers = {image.name: image.image_id for image in database.read_all_images()}
        shifts = {"a b.jpg": 0.0, "b.jpg": 1.9, "c.jpg": 2.1, "d.jpg": 0.0}
        for name, shift in shifts.items():
            database.write_keypoints(numbers[name], keypoints(10, shift))
        for name, num_inliers in (("b.jpg", 61), ("c.jpg", 61), ("d.jpg", 60)):
            geometry = pycolmap.TwoViewGeometry()
            geometry.inlier_matches = np.tile(
                np.arange(num_inliers, dtype=np.uint32)[:, None], (1, 2)
            )
            database.write_two_view_geometry(numbers["a b.jpg"], numbers[name], geometry)
    found = database_file.read_contents(path, names)
    assert found.num_features == dict.fromkeys(names[:4], 100) | {"e.jpg": 0}
    assert found.num_partners == dict(zip(names, [3, 1, 1, 1, 0], strict=True))
    assert found.doubles == [("a b.jpg", "b.jpg")]
    assert list(found.focal_before.values()) == [640.0] and found.has_focal
    few = database_file.read_contents(path, names[1:3])
    assert few.num_partners == {"b.jpg": 0, "c.jpg": 0}
    with database_file.quoted_names(path), database_file.opened(path) as database:
        quoted = {image.name for image in database.read_all_images()}
        assert quoted == {"quoted:a%20b.jpg", *names[1:]}
    assert list(database_file.read_contents(path, names).num_features) == names


def test_cameras_in_the_database(tmp_path):
    """One for all photographs of a lens setting; those that come later join it, and a new call
    gives it the lens of its settings.
    """
    pytest.importorskip("pycolmap")
    path = tmp_path / "database.db"

    def cameras():
        with database_file.opened(path) as database:
            known = {camera.camera_id: camera for camera in database.read_all_cameras()}
            return {image.name: known[image.camera_id] for image in database.read_all_images()}

    tags = {"focal_35mm": 34.6, "camera": "X"}
    folder = folder_of(tmp_path, "ab", **tags)
    folder.photos.extend(folder_of(tmp_path, "c", size=(480, 640), **tags).photos)
    database_file.add_photographs(path, folder, PrepareSettings(lens="SIMPLE_RADIAL"))
    first = cameras()
    assert first["a"].camera_id == first["b"].camera_id != first["c"].camera_id
    assert (first["c"].width, first["c"].height) == (480, 640)
    assert first["a"].params.tolist() == [640, 320, 240, 0]
    folder.photos.extend(folder_of(tmp_path, "d", **tags).photos)
    database_file.add_photographs(path, folder, PrepareSettings(lens="RADIAL", focal_px=700.0))
    then = cameras()
    assert {name: camera.camera_id for name, camera in then.items()} == {
        name: first["a" if name == "d" else name].camera_id for name in "abcd"
    }
    assert then["a"].params.tolist() == [700, 320, 240, 0, 0] and then["a"].model_name == "RADIAL"
    assert all(camera.has_prior_focal_length for camera in then.values())
    with database_file.opened(path) as database:
        assert len(database.read_all_frames()) == 4 and len(database.read_all_rigs()) == 2


@pytest.mark.parametrize("is_known", [True, False])
def test_sensors_that_colmap_knows_tell_a_focal_length(tmp_path, monkeypatch, is_known):
    """Where neither the settings nor the EXIF data do."""
    pycolmap = pytest.importorskip("pycolmap")
    guess = pycolmap.Camera.create_from_model_name(0, "SIMPLE_RADIAL", 555.0, 640, 480)
    guess.has_prior_focal_length = is_known
    monkeypatch.setattr(pycolmap, "infer_camera_from_image", lambda path: guess)
    (photo,) = folder_of(tmp_path, "a").photos
    camera = database_file._camera(photo, "OPENCV", None)
    assert camera.has_prior_focal_length == is_known
    focal = 555 if is_known else 1.2 * 640
    assert camera.params.tolist() == [focal, focal, 320, 240, 0, 0, 0, 0]
    (told,) = folder_of(tmp_path, "a", focal_35mm=34.6).photos
    assert database_file._camera(told, "RADIAL", None).params[0] == 640
