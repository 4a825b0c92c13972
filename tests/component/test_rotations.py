"""Quaternions and matrices against SciPy, in both array libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosurfgs_jax.geometry import rotations


def _scipy_matrix(quats):
    return Rotation.from_quat(quats[..., [1, 2, 3, 0]]).as_matrix()


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_matrix_from_quat_agrees_with_scipy_for_any_length(make):
    quats = np.random.default_rng(0).normal(size=(64, 4)) * 3
    matrices = rotations.matrix_from_quat(make(quats.astype(np.float32)))
    np.testing.assert_allclose(matrices, _scipy_matrix(quats), atol=2e-6)


def test_numpy_keeps_float64():
    quats = np.random.default_rng(0).normal(size=(5, 4))
    matrices = rotations.matrix_from_quat(quats)
    assert matrices.dtype == np.float64
    np.testing.assert_allclose(matrices, _scipy_matrix(quats), atol=1e-15)


# Half turns have w = 0, where the textbook formula for the quaternion divides by zero.
HALF_TURNS = np.array(
    [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0], [1e-9, 0, 0.6, -0.8]], float
)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_quat_from_matrix_undoes_matrix_from_quat(make):
    quats = np.concatenate([np.random.default_rng(1).normal(size=(64, 4)), HALF_TURNS])
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    back = np.asarray(rotations.quat_from_matrix(make(_scipy_matrix(quats).astype(np.float32))))
    np.testing.assert_allclose(np.abs((back * quats).sum(-1)), 1, atol=1e-6)
    assert (back[:, 0] >= 0).all()


def test_quat_from_matrix_has_finite_gradient_at_half_turns():
    def round_trip(quat):
        return rotations.matrix_from_quat(
            rotations.quat_from_matrix(rotations.matrix_from_quat(quat))
        )

    for quat in HALF_TURNS:
        quat = jnp.asarray(quat, jnp.float32)
        jacobian = jax.jit(jax.jacrev(round_trip))(quat)
        expected = jax.jit(jax.jacrev(rotations.matrix_from_quat))(quat)
        np.testing.assert_allclose(jacobian, expected, atol=1e-5)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_quat_multiply_composes_rotations(make):
    rng = np.random.default_rng(2)
    left, right = (make(rng.normal(size=(32, 4)).astype(np.float32)) for _ in range(2))
    product = rotations.matrix_from_quat(rotations.quat_multiply(left, right))
    expected = rotations.matrix_from_quat(left) @ rotations.matrix_from_quat(right)
    np.testing.assert_allclose(product, expected, atol=5e-6)


def test_gradient_is_orthogonal_to_the_quaternion():
    rng = np.random.default_rng(3)
    quat = jnp.asarray(rng.normal(size=4), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    gradient = jax.grad(lambda q: (rotations.matrix_from_quat(q) * weights).sum())(quat)
    assert float(jnp.linalg.norm(gradient)) > 0.1
    assert abs(float(gradient @ quat)) < 1e-5
