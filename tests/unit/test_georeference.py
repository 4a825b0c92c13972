"""Robust similarities, coordinate systems, and where a reconstruction is put."""

import contextlib
import dataclasses

import numpy as np
import pytest
from flight_case import (
    LATITUDE,
    LONGITUDE,
    METRES,
    about_z,
    flight_of,
    gps_of,
    mapped,
    random_rotation,
)

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import georeference, map_system
from cosurfgs_jax.sfm.exif import ELLIPSOID, PhotoTags
from cosurfgs_jax.sfm.georeference import place
from cosurfgs_jax.sfm.similarity import Similarity, fit_robust, fit_weighted, line_fraction


@pytest.mark.parametrize("is_upright", [False, True])
def test_a_similarity_is_found_exactly(is_upright):
    rng = np.random.default_rng(1)
    rotation = about_z(2.0) if is_upright else random_rotation(rng)
    truth = Similarity(7.5, rotation, np.array([1e5, -2e6, 30.0]))
    source = rng.normal(size=(9, 3))
    fit = fit_weighted(source, truth.apply(source), rng.uniform(1, 2, 9), is_upright=is_upright)
    np.testing.assert_allclose(fit.rotation, rotation, atol=1e-9)
    assert fit.scale == pytest.approx(7.5)
    np.testing.assert_allclose(fit.apply(source), truth.apply(source), atol=1e-6)
    twice = truth.then(fit)
    np.testing.assert_allclose(twice.apply(source), fit.apply(truth.apply(source)), rtol=1e-9)


@pytest.mark.parametrize("is_upright", [False, True])
def test_two_of_five_points_may_be_wrong(is_upright):
    rng = np.random.default_rng(2)
    truth = Similarity(20.0, about_z(-1.0), np.array([3.0, 4, 5]))
    source = rng.normal(size=(40, 3))
    target = truth.apply(source) + rng.normal(scale=0.3, size=(40, 3))
    target[:16] += rng.normal(scale=100, size=(16, 3))
    fit = fit_robust(source, target, is_upright=is_upright)
    assert not fit.is_used[:16].any() and fit.is_used[16:].sum() >= 22
    assert fit.similarity.scale == pytest.approx(20, rel=0.01)
    assert (fit.rms < 0.5).all() and (fit.rms > 0.15).all()
    assert 0.0005 < fit.scale_error < 0.01


@pytest.mark.parametrize("is_upright", [False, True])
def test_nearly_half_of_the_points_may_be_wrong_together(is_upright):
    """As where GPS jumped for a part of a flight: all 9 of 20 by the same way."""
    source = np.random.default_rng(3).uniform(-50, 50, (20, 3))
    is_wrong = np.arange(20) < 9
    target = 2.0 * source + np.where(is_wrong[:, None], [300.0, -200.0, 80.0], 0.0)
    fit = fit_robust(source, target, is_upright=is_upright)
    assert fit.similarity.scale == pytest.approx(2)
    assert (fit.is_used == ~is_wrong).all()


def test_the_error_of_the_scale_is_that_of_repeated_fits():
    rng = np.random.default_rng(3)
    source = rng.normal(size=(30, 3)) * [10, 10, 1]
    scales = []
    for _ in range(25):
        fit = fit_robust(source, source + rng.normal(scale=0.5, size=source.shape))
        scales.append(fit.similarity.scale)
    assert fit.scale_error == pytest.approx(np.std(scales), rel=0.4)


def test_points_on_a_line():
    along = np.linspace(0, 1, 20)[:, None]
    assert line_fraction(along * [1, 2, 0]) < 1e-9
    assert line_fraction(np.random.default_rng(0).normal(size=(99, 3))) > 0.7


@pytest.mark.parametrize(
    "latitude, longitude, epsg",
    [(46.84, -91.99, 32615), (-33.9, 151.2, 32756), (0.0, -180.0, 32601), (10.0, 180.0, 32601)],
)
def test_zones_of_utm(latitude, longitude, epsg):
    assert map_system.utm_epsg(latitude, longitude) == epsg


def test_map_coordinates():
    pytest.importorskip("pyproj")
    # The middle meridian of zone 15 is at 93 degrees west: 500,000 m east by definition.
    ground = map_system.to_map(32615, np.array([0.0, 46.0]), np.array([-93.0, -93.0]))
    np.testing.assert_allclose(ground[:, 0], 500_000, atol=1e-3)
    # 5,096,175 m of the meridian's arc (WGS84) times 0.9996.
    np.testing.assert_allclose(ground[:, 1], [0, 5_096_175.75 * 0.9996], atol=500)


@pytest.mark.parametrize(
    "epsg, words",
    [
        (4326, "in metres"),
        (2222, "in metres"),
        (32633, "which is for|stretches"),
        (3857, "stretches them by 46 %"),
        (1, "unknown"),
    ],
)
def test_a_wrong_system_is_refused(epsg, words):
    pytest.importorskip("pyproj")
    with pytest.raises(InputError, match="--epsg: expected .*" + words):
        map_system.check_system(epsg, LATITUDE, LONGITUDE)
    map_system.check_system(32615, LATITUDE, LONGITUDE)


@pytest.fixture
def flight():
    pytest.importorskip("pyproj")
    poses, centers, points = flight_of()
    model = mapped(poses, points, np.random.default_rng(6))
    return model, centers


def test_a_flight_comes_to_its_place(flight):
    model, centers = flight
    found = place(model, gps_of(model.names, centers), PrepareSettings())
    geo = found.geo
    assert geo.epsg == 32615 and geo.has_scale and not found.warnings
    assert all(value % 10 == 0 for value in geo.offset)
    moved = found.similarity.apply(model.centers)
    assert np.abs(moved).max() < 200  # small numbers for viewers
    places = map_system.to_map(
        32615,
        LATITUDE + centers[:, 1] / METRES,
        LONGITUDE + centers[:, 0] / METRES / np.cos(np.deg2rad(LATITUDE)),
    )
    # A degree is not exactly METRES everywhere: 0.3 % of 60 m.
    np.testing.assert_allclose((moved + geo.offset)[:, :2], places, atol=0.3)
    np.testing.assert_allclose((moved + geo.offset)[:, 2], 200 + centers[:, 2], atol=0.3)
    ground = found.similarity.apply(model.points)[:, 2] + geo.offset[2]
    assert np.median(ground) == pytest.approx(201.5, abs=0.5)
    fit = geo.details["fit"]
    assert (
        fit["num_used"] == 18
        and fit["scale_error"] < 0.01
        and max(fit["residual_rms"].values()) < 0.3
    )


def test_an_aligned_model_keeps_its_vertical_where_gps_does_not_tell_it():
    """One line of a model in metres with z up, over a slope, which photographs take for level."""
    pytest.importorskip("pyproj")
    poses, centers, points = flight_of(num_lines=1)
    poses[:, :3, :3] = poses[:1, :3, :3]
    points[:, 2] += 0.15 * points[:, 1]
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", poses[:, :3, :3], centers)
    names = [f"{number:02d}.jpg" for number in range(18)]
    model = georeference.Reconstructed(names, poses, points)
    found = place(model, gps_of(names, centers, noise=0.2), PrepareSettings())
    assert found.similarity.rotation[2, 2] == pytest.approx(1, abs=1e-12)
    assert found.geo.details["fit"]["method"].endswith("vertical of the model")
    half = dataclasses.replace(model, points=points / 2)
    half.camera_from_mapper[:, :3, 3] /= 2
    found = place(half, gps_of(names, centers, noise=0.2), PrepareSettings())
    assert found.similarity.rotation[2, 2] < np.cos(np.deg2rad(5))
    with pytest.raises(InputError, match="--gps=require: .* got 18 on one line; give --gcp"):
        place(model, gps_of(names, centers), PrepareSettings(gps="require"))


def test_gps_that_is_far_off_is_left_out_and_named(flight):
    model, centers = flight
    wrong = centers.copy()
    wrong[[3, 11]] += [400.0, 300, 0]
    found = place(model, gps_of(model.names, wrong, noise=0.3), PrepareSettings())
    assert found.geo.details["fit"]["left_out"] == ["03.jpg", "11.jpg"]
    assert any("03.jpg, 11.jpg" in text for text in found.warnings)
    rms = found.geo.details["fit"]["residual_rms"]
    assert list(rms) == ["east", "north", "up"] and 0.1 < max(rms.values()) < 0.7


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mixed_up_hemisphere_is_refused(flight, axis):
    model, centers = flight
    signs = np.ones(3)
    signs[axis] = -1
    tags = gps_of(model.names, centers * signs, noise=0.2)
    with pytest.raises(InputError, match="mirror image.*GPSLatitudeRef"):
        place(model, tags, PrepareSettings())
    assert not place(model, tags, PrepareSettings(gps="ignore")).geo.has_scale


@pytest.mark.parametrize(("fraction", "is_mirrored"), [(0.29, True), (0.31, False)])
def test_a_mirror_image_has_to_fit_much_better(monkeypatch, fraction, is_mirrored):
    fit = fit_robust(np.eye(3), np.eye(3))
    fit, mirrored = (
        dataclasses.replace(fit, residuals=np.full((3, 3), median / np.sqrt(3)), scale_error=0.01)
        for median in (10.0, 10.0 * fraction)
    )
    monkeypatch.setattr(georeference, "fit_robust", lambda *_, **__: mirrored)
    expectation = contextlib.nullcontext()
    if is_mirrored:
        expectation = pytest.raises(InputError, match="2.9 m median residual mirrored")
    with expectation:
        georeference._check_not_mirrored(np.zeros((3, 3)), np.ones((3, 3)), fit)


def test_one_line_takes_the_vertical_of_the_photographs():
    """GPS on a line does not say how the flight is rolled about it."""
    pytest.importorskip("pyproj")
    poses, centers, points = flight_of(num_lines=1)
    model = mapped(poses, points, np.random.default_rng(7))
    found = place(model, gps_of(model.names, centers, noise=0.5), PrepareSettings())
    assert "vertical of the photographs" in found.geo.details["fit"]["method"]
    assert any("cannot tell left from right" in words for words in found.warnings)
    ground = found.similarity.apply(model.points)
    plane = np.linalg.lstsq(np.column_stack([ground[:, :2], np.ones(400)]), ground[:, 2])[0]
    assert np.abs(plane[:2]).max() < 0.03


def test_heights_that_drift_do_not_tilt_the_ground(flight):
    model, centers = flight
    drift = centers + np.outer(np.linspace(0, 1, 18), [0, 0, 60.0])
    found = place(model, gps_of(model.names, drift), PrepareSettings())
    assert any("heights of GPS differ by 18 m" in text for text in found.warnings)
    assert found.geo.details["fit"]["scale_error"] < 0.01
    assert "vertical of the photographs" in found.geo.details["fit"]["method"]


def test_without_heights_the_ground_is_at_zero(flight):
    model, centers = flight
    found = place(model, gps_of(model.names, centers, altitude=None), PrepareSettings())
    assert found.geo.offset[2] == 0 and list(found.geo.details["fit"]["residual_rms"]) == [
        "east",
        "north",
    ]
    moved = found.similarity.apply(model.points)
    assert abs(np.median(moved[:, 2])) < 0.01
    heights = found.similarity.apply(model.centers)[:, 2]
    assert np.median(heights) == pytest.approx(38.5, rel=0.05)


def test_without_gps_z_is_up_and_the_scale_unknown(flight):
    model, _ = flight
    tags = dict.fromkeys(model.names, PhotoTags())
    found = place(model, tags, PrepareSettings())
    assert not found.geo.has_scale and not found.geo.is_map and found.similarity.scale == 1
    ground = found.similarity.apply(model.points)
    assert np.ptp(ground[:, 2]) < 0.1 * np.ptp(ground[:, 0])
    assert (found.similarity.apply(model.centers)[:, 2] > ground[:, 2].max()).all()
    assert "0 of the registered photographs have GPS" in found.geo.details["fit"]["reason"]
    for settings in (PrepareSettings(gps="require"), PrepareSettings(epsg=32615)):
        with pytest.raises(InputError, match="expected at least 3 photographs with latitude"):
            place(model, tags, settings)


@pytest.mark.parametrize("num_alike", [18, 12])
def test_positions_that_are_all_alike_are_no_scale(flight, num_alike):
    model, centers = flight
    alike = centers.copy()
    alike[:num_alike] = centers[0]
    tags = gps_of(model.names, alike)
    found = place(model, tags, PrepareSettings())
    assert not found.geo.has_scale and found.similarity.scale == 1
    assert "all alike, or noise" in found.geo.details["fit"]["reason"]
    with pytest.raises(InputError, match="tell the scale to 15%"):
        place(model, tags, PrepareSettings(gps="require"))


def test_noise_cannot_look_like_a_scale():
    rng = np.random.default_rng(8)
    angles = np.linspace(0, 2 * np.pi, 200)
    ring = np.column_stack([np.cos(angles), np.sin(angles), 0 * angles])
    noise = rng.normal(scale=5, size=(200, 3))
    assert fit_robust(ring, noise).scale_error > 0.15
    assert fit_robust(ring, 200 * ring + noise).scale_error < 0.01


def test_a_position_before_the_first_fix_is_left_out_and_named(flight):
    model, centers = flight
    tags = gps_of(model.names, centers)
    tags["05.jpg"] = PhotoTags(latitude=0.0001, longitude=0.0003, altitude=0.0)
    found = place(model, tags, PrepareSettings())
    assert found.geo.epsg == 32615 and found.geo.details["fit"]["num_used"] == 17
    assert any("05.jpg" in text and "from the others" in text for text in found.warnings)


def test_few_heights_do_not_cost_the_other_positions(flight):
    model, centers = flight
    tags = gps_of(model.names, centers, altitude=None)
    tags |= {name: gps_of(model.names, centers)[name] for name in model.names[:3]}
    fit = place(model, tags, PrepareSettings()).geo.details["fit"]
    assert fit["num_positions"] == 18 and list(fit["residual_rms"]) == ["east", "north"]


def test_the_datum_is_that_of_the_photographs(flight):
    model, centers = flight
    found = place(model, gps_of(model.names, centers, datum=ELLIPSOID), PrepareSettings())
    assert found.geo.details["vertical_datum"] == ELLIPSOID
