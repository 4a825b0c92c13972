"""Places along a Z-order curve: neighbours in space have near numbers."""

import numpy as np


def z_order(points: np.ndarray) -> np.ndarray:
    """The number i64[N] of each of the points [N,3] along a Z-order curve through the box of all,
    2^16 cells a side.
    """
    low = points.min(axis=0)
    size = max(float((points.max(axis=0) - low).max()), np.finfo(np.float32).tiny)
    cells = ((points - low).astype(np.float64) / size * (2**16 - 1)).astype(np.int64)
    codes = np.zeros(len(points), np.int64)
    for bit in range(16):
        for axis in range(3):
            codes |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return codes
