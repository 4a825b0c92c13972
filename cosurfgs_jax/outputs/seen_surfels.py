"""The surfels that some views may show, read cell by cell: who draws a corner of a place needs not
hold the rest of it.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.collab.merged_model import MergedModel, none_of
from cosurfgs_jax.raster.culling import Discs, may_be_seen
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.types import Camera, Surfels

_MIN_BUCKET = 4096  # surfels; programs are compiled for few sizes of cells
_ALIGNMENT = 64  # bytes


class Seen(NamedTuple):
    """What some views may show of a model."""

    surfels: Surfels  # on the device, world frame, all alive; none where nothing is seen
    num_all: int  # surfels of the whole model


@functools.partial(jax.jit, static_argnames=("near",))
def _any_may_see(
    discs: Discs, cameras: Camera, image_sizes: Float[Array, "v 2"], near: float
) -> Bool[Array, " n"]:
    def add(seen, view):
        camera, size = view
        return seen | may_be_seen(discs, camera, size, near), None

    nothing = jnp.zeros(discs.alive.shape, bool)
    return jax.lax.scan(add, nothing, (cameras, image_sizes))[0]


def _padded(cell: Discs) -> Discs:
    """A cell, with dead discs behind it."""
    count = len(cell.alive)
    size = max(_MIN_BUCKET, 1 << max(count - 1, 0).bit_length())
    fields = {}
    for name, values in cell._asdict().items():
        fields[name] = jnp.asarray(
            np.pad(values, [(0, size - count)] + [(0, 0)] * (values.ndim - 1))
        )
    return Discs(**fields)


def seen_surfels(
    model: MergedModel, views: WorldViews, chosen: Int[np.ndarray, " v"], near: float
) -> Seen:
    """The surfels of a model that at least one of some views may show, in the model's order.

    What these views show of them is what they show of the whole model, bit by bit: the others are
    in no view's frustum.

    Args:
        model: read cell by cell, each twice: first what tells who is seen, then what is seen.
        views: of the scene, world frame.
        chosen: numbers of views.
        near: world length, see `RasterOptions.near`.
    """
    rows = _rows_seen(model, views, chosen, near)
    count = sum(map(len, rows))
    fields: dict[str, np.ndarray] = {}
    start = 0
    for number, seen in enumerate(rows):
        if not number or len(seen):
            _put(fields, count, start, _chosen_of(model, number, seen))
        start += len(seen)
    whole: Any = fields
    whole = Surfels(**whole)
    # A CPU takes them where they are.
    surfels = jax.tree.map(lambda values: jax.device_put(values, may_alias=True), whole)
    return Seen(surfels, sum(model.lengths.values()))


def _chosen_of(model: MergedModel, number: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> values of some surfels of a cell."""

    def choose(discs: Discs) -> Bool[np.ndarray, " n"]:
        mask = np.zeros(len(discs.alive), bool)
        mask[rows] = True
        return mask

    cell = model.cell(number, choose)
    return cell.by_name() | {"alive": np.asarray(cell.alive)}


def _put(
    fields: dict[str, np.ndarray], count: int, start: int, found: dict[str, np.ndarray]
) -> None:
    """Puts what was read into the arrays of all, from `start` on."""
    for name, values in found.items():
        if name not in fields:
            fields[name] = _aligned((count, *values.shape[1:]), values.dtype)
        fields[name][start : start + len(values)] = values


def _rows_seen(
    model: MergedModel, views: WorldViews, chosen: Int[np.ndarray, " v"], near: float
) -> list[np.ndarray]:
    """Of each cell, the numbers of its surfels that these views may show, i32[n]."""
    rows: list[np.ndarray] = []
    if not len(chosen):
        for number in range(model.num_cells):
            model.count(number)
        return [np.zeros(0, np.int32)] * model.num_cells
    cameras = [views.camera_arrays(int(view)) for view in chosen]
    stacked: Camera = jax.tree.map(lambda *arrays: jnp.stack(arrays), *cameras)
    sizes = jnp.asarray([views.image_size(int(view)) for view in chosen], jnp.float32)

    def note(discs: Discs) -> Bool[np.ndarray, " n"]:
        seen = np.asarray(_any_may_see(_padded(discs), stacked, sizes, near))[: len(discs.alive)]
        rows.append(np.flatnonzero(seen).astype(np.int32))
        return none_of(discs)

    for number in range(model.num_cells):
        model.cell(number, note)
    return rows


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any content where JAX on a CPU can use it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
