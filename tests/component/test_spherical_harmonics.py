"""Spherical harmonics against SciPy's complex ones, and their rotation against rotated
evaluation.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.spatial.transform import Rotation

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import spherical_harmonics as sph


def _directions(count, seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _scipy_basis(degree, directions):
    """Real harmonics without the Condon-Shortley sign, then with (-1)^m as 3DGS files have it."""
    x, y, z = directions.T
    polar = np.arccos(z)
    azimuth = np.arctan2(y, x)
    columns = []
    for band in range(degree + 1):
        for order in range(-band, band + 1):
            value = special.sph_harm_y(band, abs(order), polar, azimuth)  # includes (-1)^m
            part = value.imag if order < 0 else value.real
            columns.append(part * (np.sqrt(2) if order else 1))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("degree", range(4))
def test_basis_is_the_real_harmonics(degree):
    directions = _directions(100)
    np.testing.assert_allclose(
        sph.basis(degree, directions), _scipy_basis(degree, directions), atol=1e-14
    )


def test_constants_of_3dgs_files():
    # Values that loaders and viewers hard-code, to the digits they give.
    assert abs(sph.C0 - 0.28209479177387814) < 1e-15
    assert abs(sph.C1 - 0.4886025119029199) < 1e-15
    values = sph.basis(1, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(values[:, 1:], np.diag([-sph.C1, sph.C1, -sph.C1]), atol=1e-15)


def test_evaluate_ignores_higher_bands():
    rng = np.random.default_rng(1)
    sh = rng.normal(size=(10, 16, 3))
    directions = _directions(10)
    expected = np.einsum("nk,nkc->nc", _scipy_basis(1, directions), sh[:, :4])
    np.testing.assert_allclose(sph.evaluate(1, sh, directions), expected, atol=1e-14)
    as_jax = sph.evaluate(1, jnp.asarray(sh, jnp.float32), jnp.asarray(directions, jnp.float32))
    np.testing.assert_allclose(as_jax, expected, atol=2e-6)


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_rotated_coefficients_show_the_same_colours(degree, make):
    rng = np.random.default_rng(degree)
    sh = rng.normal(size=(8, (degree + 1) ** 2, 3))
    rotation = Rotation.from_rotvec([0.7, -1.9, 0.4]).as_matrix()
    dtype = np.float64 if make is np.asarray else np.float32
    turned = sph.rotate(make(sh.astype(dtype)), make(rotation.astype(dtype)))
    assert turned.dtype == dtype
    for direction in _directions(5, seed=2):
        old = sph.evaluate(degree, sh, np.tile(direction, (8, 1)))
        new = sph.evaluate(
            degree, np.asarray(turned), np.tile(rotation @ direction, (8, 1)).astype(dtype)
        )
        np.testing.assert_allclose(new, old, atol=1e-13 if dtype == np.float64 else 5e-6)


def test_wrong_number_of_coefficients_is_an_input_error():
    with pytest.raises(InputError, match="expected 1, 4, 9 or 16 coefficients, got 5"):
        sph.rotate(np.zeros((2, 5, 3)), np.eye(3))
