"""Surfels from points: size, orientation, colour, and points that are not nice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import rotations, spherical_harmonics
from cosurfgs_jax.model import initialize

KEY = jax.random.key(0)


def _make(points, capacity=None, colors=None, **others):
    points = np.asarray(points, np.float64)
    colors = np.zeros(points.shape, np.uint8) if colors is None else colors
    arguments = {"sh_degree": 2, "init_opacity": 0.1, "key": KEY} | others
    return initialize.surfels_from_points(points, colors, capacity or len(points), **arguments)


def _plane_grid(normal, num=20, spacing=0.1):
    """Points of a square grid in the plane through the origin with this normal."""
    axes = np.linalg.svd(np.asarray(normal, float)[None])[2][1:]
    steps = spacing * np.stack(np.meshgrid(np.arange(num), np.arange(num)), axis=-1).reshape(-1, 2)
    return steps @ axes


@pytest.mark.parametrize("side", [1, -1])
def test_surfels_lie_in_the_plane_and_face_the_cameras(side):
    normal = np.array([1.0, 2, 2]) / 3
    points = _plane_grid(normal)
    surfels = _make(points, views=side * normal[None] * 3 + points.mean(axis=0))
    np.testing.assert_allclose(surfels.means, points, atol=1e-6)
    axes = rotations.matrix_from_quat(surfels.quats)
    np.testing.assert_allclose(axes[:, :, 2], np.broadcast_to(side * normal, (400, 3)), atol=1e-5)
    # Three neighbours of a grid at its spacing, but for the corners, which have two.
    is_corner = np.isin(np.arange(400), [0, 19, 380, 399])[:, None]
    expected = np.where(is_corner, 0.1 * (2 + np.sqrt(2)) / 3, 0.1)
    np.testing.assert_allclose(
        np.exp(surfels.log_scales), np.broadcast_to(expected, (400, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(jnp.linalg.norm(surfels.quats, axis=-1), 1, atol=1e-6)


def test_colors_opacity_and_dead_slots():
    colors = np.array([[0, 128, 255]] * 9, np.uint8)
    surfels = _make(_plane_grid([0, 0, 1], 3), capacity=12, colors=colors, init_opacity=0.3)
    np.testing.assert_array_equal(surfels.alive, [1] * 9 + [0] * 3)
    assert surfels.sh.shape == (12, 9, 3)
    directions = jnp.tile(jnp.array([[0.0, 0.6, 0.8]]), (12, 1))
    shown = spherical_harmonics.evaluate(2, surfels.sh, directions) + 0.5
    np.testing.assert_allclose(shown[:9], colors / 255, atol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(surfels.logit_opacities[:9]), 0.3, rtol=1e-5)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(surfels))
    np.testing.assert_array_equal(surfels.quats[9:], [[1, 0, 0, 0]] * 3)
    assert all(leaf.dtype in (jnp.float32, jnp.bool_) for leaf in jax.tree.leaves(surfels))


def test_too_many_points_are_chosen_from_by_the_key(caplog):
    points = np.random.default_rng(0).random((500, 3))
    with caplog.at_level("WARNING"):
        surfels = _make(points, capacity=100)
    assert "500 points for a capacity of 100" in caplog.text
    assert surfels.alive.all()
    rows = {tuple(row) for row in points.astype(np.float32)}
    assert all(tuple(row) in rows for row in np.asarray(surfels.means))
    np.testing.assert_array_equal(surfels.means, _make(points, capacity=100).means)
    assert (
        np.asarray(surfels.means)
        != np.asarray(_make(points, capacity=100, key=jax.random.key(1)).means)
    ).any()
    # The points are now farther apart, and the scales know.
    assert surfels.log_scales.mean() > _make(points).log_scales.mean() + 0.3


def test_duplicates_and_strays():
    points = _plane_grid([0, 0, 1], 10)
    points = np.concatenate([points, points[:50], [[0, 0, 1e6]], points[:1] + 1e-9])
    surfels = _make(points)
    assert int(surfels.alive.sum()) == 102
    scales = np.exp(surfels.log_scales[:102])
    assert (
        scales.max() <= 1.0 + 1e-5 and scales.min() >= 0.005 - 1e-6
    )  # 10 and 0.05 times the spacing
    assert jnp.isfinite(surfels.quats).all()


@pytest.mark.parametrize("num", [1, 2, 3])
def test_very_few_points(num):
    points = np.arange(3 * num, dtype=float).reshape(num, 3)
    surfels = _make(points, views=np.array([[0.0, 0, 9]]))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(surfels))
    np.testing.assert_allclose(jnp.linalg.norm(surfels.quats, axis=-1), 1, atol=1e-6)


def test_wrong_input_is_named():
    points = np.ones((4, 3))
    with pytest.raises(InputError, match="1 of 4 with NaN"):
        _make(np.where(np.arange(4)[:, None] == 2, np.nan, points))
    with pytest.raises(InputError, match="camera centres"):
        _make(points, views=np.full((2, 3), np.inf))
    with pytest.raises(InputError, match="at least one"):
        _make(np.zeros((0, 3)), capacity=4)
