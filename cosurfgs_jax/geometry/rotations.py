"""Quaternions (wxyz) and rotation matrices, for NumPy and JAX arrays alike."""

from jaxtyping import Float

from cosurfgs_jax.types import AnyArray


def matrix_from_quat(quats: Float[AnyArray, "*batch 4"]) -> Float[AnyArray, "*batch 3 3"]:
    """Rotation matrices of quaternions of any length.

    Args:
        quats: [...,4], wxyz, not zero. Takes gradient, which is orthogonal to the quaternion, as
            its length is free.
    Returns:
        [...,3,3], the columns are the rotated axes.
    Source: Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    xp = quats.__array_namespace__()
    unit = quats / xp.sqrt(xp.sum(quats * quats, axis=-1, keepdims=True))
    w = unit[..., 0]
    x = unit[..., 1]
    y = unit[..., 2]
    z = unit[..., 3]
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def quat_from_matrix(rotations: Float[AnyArray, "*batch 3 3"]) -> Float[AnyArray, "*batch 4"]:
    """Unit quaternions of rotation matrices.

    Args:
        rotations: [...,3,3], proper rotations. Takes gradient.
    Returns:
        [...,4], wxyz, length 1, w >= 0.
    Source: each row below is 4 q_i q for one component q_i; the row of the largest component is at
        least 1 long, so normalising it never divides by a small number (Bar-Itzhack's and
        Shepperd's observation).
    """
    xp = rotations.__array_namespace__()
    m = [[rotations[..., row, column] for column in range(3)] for row in range(3)]
    wx = m[2][1] - m[1][2]
    wy = m[0][2] - m[2][0]
    wz = m[1][0] - m[0][1]
    xy = m[0][1] + m[1][0]
    xz = m[0][2] + m[2][0]
    yz = m[1][2] + m[2][1]
    squares = [
        1 + m[0][0] + m[1][1] + m[2][2],
        1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2],
        1 - m[0][0] - m[1][1] + m[2][2],
    ]
    rows = [
        [squares[0], wx, wy, wz],
        [wx, squares[1], xy, xz],
        [wy, xy, squares[2], yz],
        [wz, xz, yz, squares[3]],
    ]
    candidates = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = xp.argmax(xp.stack(squares, axis=-1), axis=-1)
    quats = xp.take_along_axis(candidates, largest[..., None, None], axis=-2)[..., 0, :]
    quats = quats / xp.sqrt(xp.sum(quats * quats, axis=-1, keepdims=True))
    return xp.where(quats[..., :1] < 0, -quats, quats)


def quat_multiply(
    left: Float[AnyArray, "*batch 4"], right: Float[AnyArray, "*batch 4"]
) -> Float[AnyArray, "*batch 4"]:
    """The quaternion of "first right, then left".

    Args:
        left: [...,4], wxyz. Takes gradient.
        right: [...,4], wxyz, same shape. Takes gradient.
    Returns:
        [...,4], wxyz; its length is the product of the lengths.
    """
    xp = (left[..., 0] + right[..., 0]).__array_namespace__()
    aw, ax, ay, az = (left[..., i] for i in range(4))
    bw, bx, by, bz = (right[..., i] for i in range(4))
    return xp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )
