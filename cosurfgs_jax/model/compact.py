"""Surfels as whole numbers: a sixth (degree 1) to a twelfth (degree 3) of their float32 bytes, with
known errors.

Each number is divided by a step and rounded; what is near zero becomes zero, so that higher bands
of the spherical harmonics cost something only where they matter. Surfels that are near each other
stand together and the bytes of one significance too, which is what DEFLATE makes small
(`np.savez_compressed`).

| field             | step                                                                        |
|-------------------|-----------------------------------------------------------------------------|
| `means`           | of `_CHUNK` surfels together: a power of two, at most `MEAN_STEP` of the    |
|                   | larger standard deviation of the smallest of them                           |
| `quats`           | `QUAT_STEP` of the three smaller components of the unit quaternion          |
| `log_scales`      | `LOG_SCALE_STEP`                                                            |
| `logit_opacities` | `LOGIT_STEP`                                                                |
| `sh`              | `SH_STEP` of degree 0, `HIGHER_SH_STEP` above                               |
| others            | none: float32 as they are                                                   |

Source: the same parts as in SPZ and SOG files (chunks of positions, the three smaller components of
    a rotation), whose fixed steps are for viewers; here a position's step follows its surfel.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams, param_shapes

MEAN_STEP = 0.05
QUAT_STEP = 1 / (511 * math.sqrt(2))  # they are at most 1 / sqrt(2): ten bits with their sign
LOG_SCALE_STEP = 0.02
LOGIT_STEP = 1 / 16
SH_STEP = 0.016  # 1.2 of 255 grey levels, so that colours are off by 0.6 at most
HIGHER_SH_STEP = 0.01

_CHUNK = 64
_LARGEST = 2**30  # of the numbers that are stored; what is beyond is cut
_QUANTISED = ("means", "quats", "log_scales", "logit_opacities", "sh")
_OTHERS = tuple(name for name in PARAM_NAMES if name not in _QUANTISED)
_SH_PARTS = ("sh_first", "sh_rest")
ARRAY_NAMES = (
    "means",
    "chunk_origins",
    "chunk_exponents",
    "quats",
    "quat_largest",
    "log_scales",
    "logit_opacities",
    *_SH_PARTS,
    *_OTHERS,
)


def encode(params: SurfelParams) -> dict[str, np.ndarray]:
    """The surfels in whole numbers, in an order of their own. What is not finite is left out: it
    would not be drawn.

    Args:
        params: NumPy arrays of living surfels.
    Returns:
        The arrays `ARRAY_NAMES`; of float fields u8[bytes, numbers of a surfel, N].
    """
    fields = {name: np.asarray(value, np.float64) for name, value in params.by_name().items()}
    count = len(fields["means"])
    is_finite = np.ones(count, bool)
    for value in fields.values():
        is_finite &= np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
    order = np.flatnonzero(is_finite)
    order = order[np.argsort(_places(fields["means"][order]), kind="stable")]
    fields = {name: value[order] for name, value in fields.items()}
    arrays = _encode_means(fields["means"], fields["log_scales"])
    arrays |= _encode_quats(fields["quats"])
    arrays["log_scales"] = _to_planes(fields["log_scales"] / LOG_SCALE_STEP)
    arrays["logit_opacities"] = _to_planes(fields["logit_opacities"] / LOGIT_STEP)
    sh = fields["sh"].reshape(len(order), 3 * params.sh.shape[1])
    arrays["sh_first"] = _to_planes(sh[:, :3] / SH_STEP)
    arrays["sh_rest"] = _to_planes(sh[:, 3:] / HIGHER_SH_STEP)
    for name in _OTHERS:
        arrays[name] = fields[name].astype(np.float32)
    return arrays


def decode(arrays: dict[str, np.ndarray]) -> SurfelParams:
    """The surfels that were encoded, of unit quaternions, as float32 NumPy arrays.

    Args:
        arrays: `ARRAY_NAMES`, as `encode` gives them.
    Raises:
        ValueError: arrays of other forms, or numbers that no surfel has.
    """
    largest = arrays["quat_largest"]
    if largest.ndim != 1 or largest.dtype != np.uint8 or (largest > 3).any():
        raise ValueError("quat_largest: expected u8[N] of 0 to 3")
    count = len(largest)
    fields = {"means": _decode_means(arrays, count)}
    fields["quats"] = _decode_quats(_from_planes(arrays, "quats", count, 3), largest)
    fields["log_scales"] = _from_planes(arrays, "log_scales", count, 2) * LOG_SCALE_STEP
    fields["logit_opacities"] = _from_planes(arrays, "logit_opacities", count, 1)[:, 0] * LOGIT_STEP
    steps = (SH_STEP, HIGHER_SH_STEP)
    parts = [
        _from_planes(arrays, name, count) * step
        for name, step in zip(_SH_PARTS, steps, strict=True)
    ]
    num_sh = math.isqrt(1 + parts[1].shape[1] // 3) ** 2
    if parts[0].shape[1] != 3 or parts[1].shape[1] != 3 * (num_sh - 1):
        raise ValueError("sh: expected three colours of (degree + 1)^2 coefficients")
    fields["sh"] = np.concatenate(parts, axis=1).reshape(count, num_sh, 3)
    for name in _OTHERS:
        fields[name] = arrays[name]
    expected = param_shapes(count, num_sh)
    with np.errstate(over="ignore", invalid="ignore"):
        decoded: dict[str, Any] = {name: value.astype(np.float32) for name, value in fields.items()}
    for name, value in decoded.items():
        if value.shape != expected[name] or not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers of shape {expected[name]}")
    return SurfelParams(**decoded)


def write(path: Path, params: SurfelParams, others: dict[str, np.ndarray]) -> None:
    """Writes an `.npz` file, whole or not at all.

    Args:
        path: of the file.
        params: as `encode` takes them.
        others: more arrays, stored as they are, under names that are not in `ARRAY_NAMES`.
    """
    arrays: dict[str, Any] = encode(params) | others
    with files.atomic_path(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())  # what it stands for may be deleted next


def read(
    path: Path, others: tuple[str, ...], advice: str
) -> tuple[SurfelParams, dict[str, np.ndarray]]:
    """The surfels of a file, and its other arrays.

    Args:
        path: of the file.
        others: names of the other arrays.
        advice: what to do with a damaged file.
    Raises:
        InputError: the file is missing, damaged, or of something else.
    """
    arrays = files.read_arrays(path, (*ARRAY_NAMES, *others), advice=advice)
    try:
        return decode(arrays), {name: arrays[name] for name in others}
    except ValueError as error:
        raise InputError(
            f"{path}: expected surfels in the compact form, got other arrays ({error}); {advice}"
        ) from error


def mean_steps(means: np.ndarray, log_scales: np.ndarray) -> np.ndarray:
    """The step of the positions of each chunk, as the exponent of two: i8[chunks].

    Args:
        means: f64[N, 3], in the order in which they are stored.
        log_scales: f64[N, 2].
    """
    largest = np.exp(np.minimum(log_scales.max(axis=1), 60.0))
    exponents = [
        max(
            math.floor(math.log2(max(MEAN_STEP * largest[part].min(), 1e-30))),
            math.ceil(math.log2(max(np.ptp(means[part], axis=0).max() / _LARGEST, 1e-30))),
        )
        for part in _chunks(len(means))
    ]
    return np.array(exponents, np.int8).reshape(-1)


def _chunks(count: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, count, _CHUNK)]


def _encode_means(means: np.ndarray, log_scales: np.ndarray) -> dict[str, np.ndarray]:
    exponents = mean_steps(means, log_scales)
    origins = np.array([means[part].min(axis=0) for part in _chunks(len(means))], np.float32)
    origins = origins.reshape(-1, 3)
    chunk = np.arange(len(means)) // _CHUNK
    steps = np.exp2(exponents.astype(np.float64))[chunk, None]
    return {
        "means": _to_planes((means - origins[chunk]) / steps),
        "chunk_origins": origins,
        "chunk_exponents": exponents,
    }


def _decode_means(arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
    origins = arrays["chunk_origins"]
    exponents = arrays["chunk_exponents"]
    num_chunks = len(_chunks(count))
    if origins.shape != (num_chunks, 3) or origins.dtype != np.float32:
        raise ValueError(f"chunk_origins: expected f32[{num_chunks}, 3]")
    if exponents.shape != (num_chunks,) or exponents.dtype != np.int8:
        raise ValueError(f"chunk_exponents: expected i8[{num_chunks}]")
    chunk = np.arange(count) // _CHUNK
    steps = np.exp2(exponents.astype(np.float64))[chunk, None]
    return origins[chunk].astype(np.float64) + _from_planes(arrays, "means", count, 3) * steps


def _encode_quats(quats: np.ndarray) -> dict[str, np.ndarray]:
    """The three smaller components; the sign is that with which the largest is positive."""
    lengths = np.linalg.norm(quats, axis=1, keepdims=True)
    units = np.where(lengths > 0, quats, [1.0, 0.0, 0.0, 0.0]) / np.where(lengths > 0, lengths, 1)
    largest = np.abs(units).argmax(axis=1)
    top = np.take_along_axis(units, largest[:, None], axis=1)
    smaller = units[_is_smaller(largest)].reshape(-1, 3) * np.where(top < 0, -1.0, 1.0)
    return {"quats": _to_planes(smaller / QUAT_STEP), "quat_largest": largest.astype(np.uint8)}


def _decode_quats(smaller: np.ndarray, largest: np.ndarray) -> np.ndarray:
    smaller = smaller * QUAT_STEP
    quats = np.empty((len(largest), 4))
    is_smaller = _is_smaller(largest)
    quats[is_smaller] = smaller.reshape(-1)
    quats[~is_smaller] = np.sqrt(np.maximum(1 - (smaller**2).sum(axis=1), 0.0))
    return quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-30)


def _is_smaller(largest: np.ndarray) -> np.ndarray:
    return np.arange(4)[None] != largest[:, None]


def _to_planes(values: np.ndarray) -> np.ndarray:
    """u8[1 to 4, numbers of a surfel, N]: the bytes of whole numbers by significance. The sign is
    the lowest bit, so that the upper bytes of small numbers are zero.
    """
    whole = np.round(np.clip(values, -_LARGEST, _LARGEST)).astype(np.int64)
    folded = ((whole << 1) ^ (whole >> 63)).astype("<u4")
    folded = folded.reshape(len(whole), math.prod(whole.shape[1:]))
    planes = np.moveaxis(folded[..., None].view(np.uint8), (2, 1, 0), (0, 1, 2))
    num_used = max((plane + 1 for plane in range(4) if planes[plane].any()), default=1)
    return np.ascontiguousarray(planes[:num_used])


def _from_planes(
    arrays: dict[str, np.ndarray], name: str, count: int, width: int | None = None
) -> Int[np.ndarray, "n w"]:
    planes = arrays[name]
    is_valid = planes.dtype == np.uint8 and planes.ndim == 3 and 1 <= len(planes) <= 4
    if not is_valid or planes.shape[2] != count or width not in (None, planes.shape[1]):
        raise ValueError(f"{name}: expected u8[1 to 4, {width or 'numbers'}, {count}]")
    folded = np.zeros(planes.shape[1:], np.int64)
    for plane, values in enumerate(planes):
        folded |= values.astype(np.int64) << (8 * plane)
    return ((folded >> 1) ^ -(folded & 1)).T


def _places(means: np.ndarray) -> np.ndarray:
    """Where points are on a Z-order curve through them."""
    if not len(means):
        return np.zeros(0, np.uint64)
    low = means.min(axis=0)
    side = max(np.ptp(means, axis=0).max(), 1e-30)
    cells = np.minimum((means - low) / side * 2**21, 2**21 - 1).astype(np.uint64)
    place = np.zeros(len(means), np.uint64)
    for bit in range(21):
        for axis in range(3):
            place |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(
                3 * bit + axis
            )
    return place
