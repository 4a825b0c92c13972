"""A similarity as a text file of 4 by 4 numbers, as benchmarks give one with a laser scan."""

from pathlib import Path

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import number, read_lines, reading

_TOLERANCE = 1e-4  # of the scale: such files have six digits and more


def read_similarity(path: str | Path) -> np.ndarray:
    """The matrix f64[4,4] of a text file; lines that begin with # do not count.

    Raises:
        InputError: unreadable, other than 16 numbers, or no rotation with a scale and a shift.
    """
    with reading(path, "4 lines of 4 numbers", "write it again"):
        lines = [line for line in read_lines(path) if not line.lstrip().startswith("#")]
        words = " ".join(lines).replace(",", " ").split()
        matrix = np.array([number(word) for word in words]).reshape(4, 4)
    linear = matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear)) if np.isfinite(matrix).all() else 0.0
    is_similar = scale > 0 and np.allclose(
        linear @ linear.T, scale**2 * np.eye(3), atol=_TOLERANCE * scale**2, rtol=0
    )
    if not is_similar or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InputError(
            f"{path}: expected a rotation with a scale and a shift, and a last row of 0 0 0 1, got "
            f"{matrix.tolist()}; write it again"
        )
    return matrix
