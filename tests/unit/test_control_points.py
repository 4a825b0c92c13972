"""Ground control points: their file, their marks in photographs, and the place by them."""

import numpy as np
import pytest
from control_survey import GROUND, LENS, ORIGIN, SIZE, Survey, marks_of
from flight_case import flight_of, gps_of, random_rotation

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import map_system, summary
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.gcp_file import read_control_file
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder
from cosurfgs_jax.sfm.similarity import fit_robust
from cosurfgs_jax.sfm.triangulation import Sighting, triangulate

pytest.importorskip("pyproj")


@pytest.fixture
def survey(tmp_path):
    return Survey(tmp_path)


def _error(survey, placement):
    """From where photographs were taken to where they are put on the map, metres."""
    found = placement.similarity.apply(survey.model.centers) + placement.geo.offset
    return np.abs(found - ORIGIN - survey.centers).max()


def test_a_flight_comes_to_its_control_points(survey):
    found = survey.place()
    geo = found.geo
    assert geo.epsg == 32615 and geo.has_scale and not found.warnings
    assert _error(survey, found) < 0.01  # of marks to 0.001 pixels
    assert all(value % 10 == 0 for value in geo.offset)
    fit = geo.details["fit"]
    assert fit["num_used"] == 6 and max(fit["residual_rms"].values()) < 0.005
    assert [point["use"] for point in geo.details["control_points"]] == ["control"] * 6
    assert geo.details["vertical_datum"] == "the zero of the ground control points"
    words = summary._place_words(found, [])
    assert "by 6 ground control points" in words[0] and "EPSG:32615" in words[-1]
    assert any(text.startswith("gcp3 (control point): ") and " px" in text for text in words)


@pytest.mark.parametrize(
    "first, epsg",
    [
        ("WGS84 UTM 15N", 32615),
        ("+proj=utm +zone=15 +ellps=WGS84 +datum=WGS84 +units=m +no_defs", 32615),
        ("EPSG:32615+5703", 32615),
    ],
)
def test_systems_of_the_first_line(survey, first, epsg):
    survey.first = first
    control, _ = survey.read()
    assert control.epsg == epsg and not control.warnings
    assert control.vertical == ("NAVD88 height" if "+5703" in first else control.vertical)
    np.testing.assert_allclose(control.points[2].position, survey.places["gcp3"], atol=1e-3)


def test_degrees_become_the_utm_zone(survey):
    system = map_system.import_pyproj().CRS.from_epsg(32615)
    degrees = map_system.to_degrees(system, np.array(list(survey.places.values()))[:, :2])
    survey.first = "EPSG:4326"
    for name, (latitude, longitude) in zip(survey.names, degrees, strict=True):
        survey.places[name] = np.array([longitude, latitude, survey.places[name][2]])
    found = survey.place()
    assert found.geo.epsg == 32615 and _error(survey, found) < 0.01


def test_control_points_beat_gps_which_is_compared_with(survey):
    survey.tags = gps_of(survey.model.names, survey.centers * 1.01, noise=1.0)
    found = survey.place()
    near = map_system.to_map(32615, np.array([46.84]), np.array([-91.99]))[0]
    assert np.abs(near - ORIGIN[:2]).max() < 2000
    assert _error(survey, found) < 0.01
    difference = found.geo.details["gps_difference"]
    expected = near - ORIGIN[:2]
    assert difference["east"] == pytest.approx(expected[0], abs=2)
    assert difference["up"] == pytest.approx(200 - ORIGIN[2], abs=2)
    assert difference["scale"] == pytest.approx(0.01, abs=0.01)
    assert any("m from where the ground control points put" in text for text in found.warnings)
    assert any("GPS, which was not used" in text for text in summary._place_words(found, []))


def test_check_points_are_compared_with_and_not_used(survey):
    survey.places["gcp2"] = survey.places["gcp2"] + [0.0, 0.5, -0.25]
    found = survey.place(check_points="gcp2, gcp5")
    fit = found.geo.details["fit"]
    assert fit["num_used"] == 4 and fit["num_check_points"] == 2 and _error(survey, found) < 0.02
    table = {point["name"]: point for point in found.geo.details["control_points"]}
    assert table["gcp2"]["use"] == table["gcp5"]["use"] == "check"
    assert table["gcp2"]["residual"]["north"] == pytest.approx(-0.5, abs=0.01)
    assert table["gcp2"]["residual"]["up"] == pytest.approx(0.25, abs=0.01)
    assert fit["check_rms"]["north"] == pytest.approx(0.5 / np.sqrt(2), abs=0.01)
    with pytest.raises(InputError, match="--check_points: expected a file"):
        PrepareSettings(check_points="gcp1").validate()
    control, _ = survey.read(check_points="every3")
    assert [point.is_check for point in control.points] == [False, False, True] * 2
    with pytest.raises(InputError, match="--check_points: expected every4, or names .* got gcp9"):
        survey.read(check_points="gcp1,gcp9")
    with pytest.raises(InputError, match="at least 3 .* beside the check points, got 2"):
        survey.read(check_points="gcp1,gcp2,gcp3,gcp4")


def test_a_point_that_was_measured_wrongly_is_named(survey):
    survey.places["gcp4"] = survey.places["gcp4"] + [0, 0, 1.5]
    found = survey.place()
    (warning,) = found.warnings
    assert "gcp4 does not fit the others" in warning and "-1.500 m up" in warning
    assert _error(survey, found) < 0.02
    assert found.geo.details["control_points"][3]["use"] == "left out"


def test_one_point_of_two_names_is_said(survey):
    photo, pixel = survey.marks["gcp2"].popitem()
    survey.marks["gpc2"] = {photo: pixel}
    survey.places["gpc2"] = survey.places["gcp2"]
    control, _ = survey.read()
    (warning,) = control.warnings
    assert warning.startswith("gcp2, gpc2 of gcp_list.txt are at one place: if they are one point")


def test_marks_that_do_not_agree_are_named(survey):
    photo = next(iter(survey.marks["gcp5"]))
    survey.marks["gcp5"][photo] = survey.marks["gcp5"][photo] + [60, 10]
    first, second, *rest = survey.marks["gcp1"]
    survey.marks["gcp1"] = {first: survey.marks["gcp1"][first], second: np.array([500.0, 20.0])}
    survey.marks["gcp2"] = dict([next(iter(survey.marks["gcp2"].items()))])
    survey.marks["gcp6"]["nowhere.jpg"] = np.array([5.0, 5.0])
    survey.marks["gcp3"]["00.jpg"] = np.array([5000.0, 5.0])
    found = survey.place()
    text = "\n".join(found.warnings)
    assert f"gcp5 do not agree with its others, and were not used: {photo} (6" in text
    assert "gcp1 was not used: its marks do not agree (" in text
    assert "gcp2 was not used: it is marked in " in text and " alone, of the" in text
    assert "1 photographs of gcp_list.txt are not there: nowhere.jpg" in text
    assert "gcp3 in 00.jpg (1000x750)" in text
    assert [point["use"] for point in found.geo.details["control_points"]] == [
        "none", "none", "control", "control", "control", "control"
    ]  # fmt: skip
    assert _error(survey, found) < 0.02
    for name in ("gcp3", "gcp4"):
        survey.marks[name] = {}
        survey.places[name][2] = np.nan
    with pytest.raises(InputError, match="expected at least 3 ground .* got 2; gcp1: "):
        survey.place()


def test_photographs_are_found_in_any_folder(tmp_path):
    names = ["a.jpg", "left/b.JPG", "left/c.jpg", "right/c.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    photos = [Photo(name, tmp_path / name, tags=PhotoTags(), **SIZE) for name in names]
    folder = PhotoFolder(tmp_path, photos, {})
    found = folder.find(["A.jpg", "b", "C:\\x\\right\\c.jpg", "d.jpg", "b"], "")
    assert found == ["a.jpg", "left/b.JPG", "right/c.jpg", None, "left/b.JPG"]
    with pytest.raises(InputError, match="expected one photograph for c.jpg, got 2 .*left/c.jpg"):
        folder.find(["c.jpg"], "file")
    with pytest.raises(InputError, match="for each of b.JPG and b.jpg, got left/b.JPG for both"):
        folder.find(["b.JPG", "b.jpg"], "file")


def test_points_without_height_are_named(survey):
    survey.places["gcp2"] = survey.places["gcp2"] * [1, 1, np.nan]
    found = survey.place()
    assert found.warnings == ["ground control point gcp2 was not used: it has no height"]


def test_three_points_do_not_check_each_other(survey):
    for name in ("gcp2", "gcp5", "gcp6"):
        del survey.marks[name]
    found = survey.place()
    assert any("an error of one of them would not show" in text for text in found.warnings)
    assert _error(survey, found) < 0.05


def test_points_on_a_line_leave_the_roll_to_gps(survey):
    line = np.array([[5.0, 5, 0], [25, 10, 0], [45, 15, 0], [65, 20, 0]])
    names = survey.names[:4]
    survey.marks = {name: marks_of(survey.poses, line[row]) for row, name in enumerate(names)}
    survey.places = {name: line[row] + ORIGIN for row, name in enumerate(names)}
    survey.tags = gps_of(survey.model.names, survey.centers, noise=0.1)
    found = survey.place()
    assert any("nearly on one line" in text for text in found.warnings)
    assert found.geo.details["fit"]["method"].endswith("vertical by GPS")
    assert _error(survey, found) < 0.5


def test_points_in_one_corner_are_said(survey):
    for name, place in survey.places.items():
        ground = GROUND[survey.names.index(name)] * 0.3 + [20, 10, 0]
        place[:] = ground + ORIGIN
        survey.marks[name] = marks_of(survey.poses, ground)
    found = survey.place()
    assert any("span 3" in text and "of the flight" in text for text in found.warnings)


def test_exchanged_columns_are_refused(survey):
    for place in survey.places.values():
        place[:2] = place[1::-1]
    with pytest.raises(InputError, match="with x and y exchanged they are there: east"):
        survey.read()
    survey.tags = gps_of(survey.model.names, survey.centers)
    with pytest.raises(InputError, match="by the GPS of the photographs .* with x and y exchanged"):
        survey.read()
    # Where no system tells them apart, the photographs do: they are mirrored.
    survey.tags = dict.fromkeys(survey.model.names, PhotoTags())
    for name, place in survey.places.items():
        place[:] = GROUND[survey.names.index(name), [1, 0, 2]] + ORIGIN
    with pytest.raises(InputError, match="expected east before north .* fit exchanged"):
        survey.place()


def test_another_zone_or_place_is_refused(survey):
    survey.tags = gps_of(survey.model.names, survey.centers)
    survey.first = "EPSG:32633"
    with pytest.raises(InputError, match="got them 7,.* km away .* as EPSG:32615 they are there"):
        survey.read()
    survey.read(gps="ignore")
    survey.first = "EPSG:32615"
    for place in survey.places.values():
        place[1] -= 200_000
    with pytest.raises(InputError, match="got them 200 km away .* mend its first line or its coor"):
        survey.read()
    survey.tags = dict.fromkeys(survey.model.names, PhotoTags())
    for place in survey.places.values():
        place[0] += 3e6
    with pytest.raises(InputError, match="expected positions where the system of the first line"):
        survey.read()


def test_heights_in_feet_are_refused(survey):
    hills = GROUND * [1, 1, 3] + [0, 0, 1]
    for row, name in enumerate(survey.names):
        survey.marks[name] = marks_of(survey.poses, hills[row])
        survey.places[name] = hills[row] + ORIGIN
    survey.place()
    for place in survey.places.values():
        place[2] /= 0.3048
    with pytest.raises(InputError, match="which are in feet; multiply them by 0.3048"):
        survey.place()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "got an empty file"),
        ("EPSG:32615\n", "got none behind the first"),
        ("577000 5188000 250 1 2 00.jpg\n", "expected a coordinate system in the first line"),
        ("EPSG:2225\n", "in metres or in degrees, .* got 'EPSG:2225'"),
        ("EPSG:4978\n", "in metres or in degrees"),
        ("WGS84 UTM 99N\n", "expected a coordinate system in the first line"),
        ("EPSG:32615\n1 2 3 4 a.jpg\n", "line 2: expected geo_x geo_y geo_z im_x im_y image_name"),
        ("EPSG:32615\n1,0 2 3 4 5 a.jpg\n", "line 2: expected five numbers"),
        ("EPSG:32615\n1 2 3 4 inf a.jpg\n", "line 2: expected finite numbers"),
        ("EPSG:32615\n1 2 3 4 5 a.jpg p\n1 2 4 4 5 b.jpg p\n", "expected the position of p"),
        ("EPSG:32615\n1 2 3 4 5 a.jpg p\n1 2 3 4 6 a.jpg p\n", "expected p once in each photo"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "gcp.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_control_file(path)
    with pytest.raises(InputError, match="--gcp: expected a file .* which is not there"):
        read_control_file(tmp_path / "none.txt")


def test_lines_without_names_are_of_one_point_by_position(tmp_path):
    path = tmp_path / "gcp.txt"
    path.write_bytes(
        b"\xef\xbb\xbfEPSG:32615\r\n# marked by hand\r\n1 2 3 4 5 a.jpg\r\n\r\n1 2 3 4 5 b.jpg\r\n"
        b"1 2 NaN\t4.25\t5\tmy photo.jpg\tcorner 1\textra\r\n"
    )
    file = read_control_file(path)
    assert [point.name for point in file.points] == ["point 1", "corner 1"]
    assert [len(point.marks) for point in file.points] == [2, 1]
    (mark,) = file.points[1].marks
    assert mark.photo == "my photo.jpg" and mark.pixel == (4.75, 5.5)
    assert np.isnan(file.points[1].position[2])


def _shifted(pixel, rng, noise):
    return tuple(pixel + rng.normal(scale=noise, size=2))


def _sightings(poses, point, noise=0.0, count=6):
    rng = np.random.default_rng(1)
    found = list(marks_of(poses, point).items())[:count]
    return [
        Sighting(name, poses[int(name[:2])], LENS, _shifted(pixel, rng, noise or 1e-12))
        for name, pixel in found
    ]


def test_a_point_is_where_its_rays_meet():
    poses, _, _ = flight_of(slant_deg=10)
    point = np.array([30.0, 20, 2])
    found = triangulate(_sightings(poses, point))
    np.testing.assert_allclose(found.point, point, atol=1e-6)
    assert found.is_used.all() and found.errors_px.max() < 1e-5 and found.angle_deg > 10


def test_the_error_of_a_point_is_that_of_repeated_marks():
    """Marks to a pixel, as the least that is assumed."""
    poses, _, _ = flight_of(slant_deg=10)
    rng = np.random.default_rng(2)
    exact = _sightings(poses, np.array([30.0, 20, 2]))
    points = []
    for _ in range(60):
        marks = [sight._replace(pixel=_shifted(np.array(sight.pixel), rng, 1.0)) for sight in exact]
        points.append(triangulate(marks).point)
    spread = np.linalg.eigvalsh(np.cov(np.array(points).T))[-1] ** 0.5
    assert triangulate(exact).sigma == pytest.approx(spread, rel=0.3)


def test_wrong_marks_are_found_and_a_tie_is_none():
    poses, _, _ = flight_of(slant_deg=10)
    sightings = _sightings(poses, np.array([30.0, 20, 2]), noise=0.3)
    wrong = [sight._replace(pixel=(sight.pixel[0] + 9, sight.pixel[1] - 9)) for sight in sightings]
    mixed = [*sightings[:4], *wrong[4:]]
    found = triangulate(mixed)
    assert found.is_used.tolist() == [True] * 4 + [False] * 2
    assert (found.errors_px[4:] > 9).all() and (found.errors_px[:4] < 2).all()
    tie = triangulate([*sightings[:2], *_sightings(poses, np.array([31.0, 20, 2]))[2:4]])
    assert not tie.is_used.any() and np.isnan(tie.point).all()
    away = np.diag([1.0, -1, -1, 1]) @ poses[0]
    alone = triangulate([sightings[0], Sighting("x", away, LENS, (1.0, 1.0))])
    assert not alone.is_used.any()


def test_points_that_are_known_less_count_less():
    rng = np.random.default_rng(3)
    source = rng.normal(size=(6, 3))
    rotation = random_rotation(rng)
    target = source @ rotation.T
    target[0] += [0.3, 0, 0]
    sigmas = np.array([10.0, 1, 1, 1, 1, 1])
    kept = fit_robust(source, target, min_sigma=1.0, sigmas=sigmas)
    even = fit_robust(source, target, min_sigma=1.0)
    assert kept.is_used.all() and even.is_used.all()
    assert np.abs(kept.residuals[1:]).max() < 0.1 * np.abs(even.residuals[1:]).max()
