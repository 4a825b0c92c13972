"""How many photographs a place of the fused surface is from: its confidence.

The signed distance field counts the views whose depth, confirmed by others, it has taken at a
voxel. A vertex lies between two voxels, and has the lesser of their counts. On the generated town
its distance to the exact surface falls with that count up to about six, and not beyond.
"""

from collections.abc import Iterable

import numpy as np

from cosurfgs_jax.surface.voxel_blocks import BLOCK, pack_keys

_STEPS = (3, 6)  # photographs: those that the flight must give, and that more do not better
_AT_VOXEL = 1 / 64  # voxels: nearer to one, rounding may say any of its edges


def views_of_vertices(
    vertices: np.ndarray,
    voxel_size: float,
    *,
    keys: np.ndarray,
    weight: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """The views that the field had at vertices of its surface.

    Args:
        vertices: f32[n,3], relative to the origin of the field, each on an edge between two
            neighbouring voxels.
        voxel_size: unit of the vertices.
        keys: i64[K] of the blocks of the field, sorted.
        weight: f32[B,512], of `integration.Field`.
        rows: i64[K] of these blocks in it.
    Returns:
        f32[n], whole numbers: the lesser of the two voxels. It depends on the vertex and on the
        field alone, so that tiles agree about the vertices that they share.
    """
    place = vertices.astype(np.float64) / voxel_size
    voxel = np.rint(place)
    away = np.abs(place - voxel)
    is_between = (away == away.max(axis=1, keepdims=True)) & (away > _AT_VOXEL)
    ends = [np.where(is_between, side, voxel) for side in (np.floor(place), np.ceil(place))]
    return np.minimum(*(_weight_at(end, keys, weight, rows) for end in ends))


def confidence_fractions(parts: Iterable[np.ndarray]) -> dict[str, float]:
    """How much of a mesh is from few photographs.

    Args:
        parts: f32[m] each, of all vertices.
    Returns:
        {"below_3", "below_6"}: fractions of the vertices. JSON data.
    """
    num_below = np.zeros(len(_STEPS), np.int64)
    num_vertices = 0
    for confidence in parts:
        num_below += [np.count_nonzero(confidence < step) for step in _STEPS]
        num_vertices += len(confidence)
    fractions = num_below / max(1, num_vertices)
    return {
        f"below_{step}": float(fraction) for step, fraction in zip(_STEPS, fractions, strict=True)
    }


def _weight_at(
    voxel: np.ndarray, keys: np.ndarray, weight: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """f32[n], of voxels f64[n,3]; infinite where the field has none."""
    block = np.floor(voxel / BLOCK)
    within = (voxel - block * BLOCK).astype(np.int64)
    wanted = pack_keys(block)
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    number = within @ np.array([1, BLOCK, BLOCK * BLOCK])
    return np.where(keys[found] == wanted, weight[rows[found], number], np.inf).astype(np.float32)
