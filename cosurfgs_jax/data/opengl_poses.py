"""Poses in the axes of OpenGL, x right, y up, z back, which formats of radiance fields share."""

import numpy as np

from cosurfgs_jax.errors import InputError

# Rotations are written with 6 to 17 digits; beyond this a matrix is none.
ROTATION_TOLERANCE = 1e-3


def nearest_rotation(matrix: np.ndarray, where: str) -> np.ndarray:
    """The rotation that a matrix f64[3,3] is up to rounding; what is not finite stays as it is and
    is refused later, with the view's name.

    Raises:
        InputError: it is none.
    """
    if not np.all(np.isfinite(matrix)):
        return matrix
    left, scales, right = np.linalg.svd(matrix)
    if np.any(np.abs(scales - 1) > ROTATION_TOLERANCE) or np.linalg.det(matrix) < 0:
        raise InputError(
            f"{where}: expected a rotation in the upper left of the matrix, got {matrix.tolist()}"
        )
    return left @ right


def camera_from_opengl(rotation: np.ndarray, center: np.ndarray, where: str) -> np.ndarray:
    """camera_from_dataset f64[4,4], camera x right, y down, z forward.

    Args:
        rotation: f64[3,3], dataset from camera; its columns are right, up and back.
        center: f64[3], of the camera, dataset.
        where: file and frame, for messages.
    Raises:
        InputError: `rotation` is none.
    """
    rotation = nearest_rotation(rotation * np.array([1.0, -1.0, -1.0]), where)
    camera_from_dataset = np.eye(4)
    camera_from_dataset[:3, :3] = rotation.T
    camera_from_dataset[:3, 3] = -rotation.T @ center
    return camera_from_dataset
