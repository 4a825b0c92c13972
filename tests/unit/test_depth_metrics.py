"""Errors of depth and normals, and jumps of depth at borders, on maps whose errors are known."""

import numpy as np
import pytest

from cosurfgs_jax import metrics

SIZE = (20, 30)


def test_depth_errors_of_a_known_offset():
    truth = np.full(SIZE, 100.0, np.float32)
    depth = truth + 0.5
    depth[:, 15:] = 102.0  # beyond 1 %
    depth[:4] = 0  # nothing there
    truth[:, 0] = 0  # sky
    errors = metrics.depth_errors(depth, truth)
    assert errors["median"] == pytest.approx(2.0) and errors["p90"] == pytest.approx(
        2.0
    )  # 15 of 29 columns
    assert errors["relative_median"] == pytest.approx(0.02)
    assert errors["covered"] == pytest.approx(16 / 20)
    assert errors["within_1_percent"] == pytest.approx(16 * 14 / (20 * 29))
    left = np.zeros(SIZE, bool)
    left[:, :15] = True
    assert metrics.depth_errors(depth, truth, left)["median"] == pytest.approx(0.5)
    assert metrics.depth_errors(np.zeros(SIZE), truth) is None
    depth[10] = np.nan
    assert metrics.depth_errors(depth, truth)["covered"] == pytest.approx(15 / 20)


def test_normal_errors_tell_roofs_from_walls():
    up = np.array([0, 0.6, -0.8])  # any direction
    side = np.array([1.0, 0, 0])
    truth = np.tile(up, (*SIZE, 1))
    truth[:, :10] = side

    def tilted(normal, towards, degrees):
        angle = np.radians(degrees)
        return np.cos(angle) * normal + np.sin(angle) * towards

    normal = np.tile(0.3 * tilted(up, side, 7), (*SIZE, 1))  # of any length
    normal[:, :10] = tilted(side, up, 30)
    errors = metrics.normal_errors(normal, truth, np.ones(SIZE, bool), up)
    assert errors == {
        "all": pytest.approx(7),
        "up_facing": pytest.approx(7),
        "walls": pytest.approx(30),
    }
    roofs = np.zeros(SIZE, bool)
    roofs[:, 10:] = True
    assert set(metrics.normal_errors(normal, truth, roofs, up)) == {"all", "up_facing"}
    # The border between the two lies at 60 degrees.
    for degrees, kind in ((59, "up_facing"), (61, "walls")):
        roof = np.tile(tilted(up, side, degrees), (*SIZE, 1))
        assert set(metrics.normal_errors(roof, roof, roofs, up)) == {"all", kind}


def plane(slope_x=0.004, slope_y=-0.003):
    """Depth of a tilted plane: its inverse is linear in the image."""
    y, x = np.mgrid[:40, :50]
    return 1 / (0.05 + slope_x * x / 10 + slope_y * y / 10)


def test_a_plane_has_no_steps_however_tilted():
    cells = np.zeros((40, 50), int)
    cells[:, 25:] = 1
    steps = metrics.depth_steps(plane())
    is_border, is_within = metrics.label_borders(cells)
    assert is_border.sum() == 40 and is_border[0, :, 24].all()
    assert np.nanmax(steps) < 1e-12 and np.isfinite(steps[is_border | is_within]).all()
    assert np.isfinite(steps).sum() == 40 * (50 - 7) + 50 * (40 - 7)
    # On two of 49 borders a row, and on two of 39 a column, there are not four pixels of one cell
    # on either side.
    assert is_within.sum() == 40 * 2 * (25 - 7) + 50 * (40 - 7)


def test_a_step_between_cells_is_found_as_a_share_of_the_depth_and_elsewhere_is_roughness():
    depth = plane()
    cells = np.zeros((40, 50), int)
    cells[:, 25:] = 1
    depth[:, 25:] *= 1.01
    steps = metrics.depth_steps(depth)
    is_border, is_within = metrics.label_borders(cells)
    assert steps[is_border] == pytest.approx(0.01, rel=0.01) and steps[is_within].max() < 1e-12
    assert metrics.depth_steps(depth * 1000) == pytest.approx(steps, nan_ok=True)  # in another unit
    turned = metrics.depth_steps(depth.T)
    assert np.array_equal(turned[0], steps[1].T, equal_nan=True) and np.array_equal(
        turned[1], steps[0].T, equal_nan=True
    )
    steps = metrics.depth_steps(
        depth * (1 + 1e-3 * np.random.default_rng(0).standard_normal(depth.shape))
    )
    assert 5e-4 < np.median(steps[is_within]) < 3e-3 and np.median(
        steps[is_border]
    ) == pytest.approx(0.01, rel=0.1)


def test_steps_are_measured_only_where_both_sides_have_depth():
    depth = plane()
    depth[:20, 23] = 0
    is_known = np.isfinite(metrics.depth_steps(depth))
    assert (
        is_known[0, 20:, 24].all()
        and not is_known[0, :20, 19:27].any()
        and is_known[0, :20, 18].all()
    )
    assert not np.isfinite(metrics.depth_steps(np.zeros((40, 50)))).any()
    assert not np.isfinite(metrics.depth_steps(np.ones((5, 6)))).any()
    assert not np.any(metrics.label_borders(np.zeros((5, 6), int)))


def test_a_border_needs_one_label_on_either_side():
    cells = np.zeros((9, 20), int)
    cells[:, 10:] = 1
    cells[:, 13] = 2
    assert not metrics.label_borders(cells)[0].any()
    cells[:, 13] = 1
    is_border, _ = metrics.label_borders(cells)
    assert is_border[0, :, 9].all() and is_border.sum() == 9
