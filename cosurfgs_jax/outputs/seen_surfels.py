"""The surfels that some views may show, read cell by cell: who draws a corner of a place needs not
hold the rest of it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.collab.merged_model import MergedModel, joined
from cosurfgs_jax.raster.culling import Discs, may_be_seen
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.types import Camera, Surfels

_MIN_BUCKET = 4096  # surfels; programs are compiled for few sizes of cells


class Seen(NamedTuple):
    """What some views may show of a model."""

    surfels: Surfels  # world frame, all alive; none where nothing is seen
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


def _padded(cell: Surfels) -> Discs:
    """A cell, with dead discs behind it."""
    count = len(cell.alive)
    size = max(_MIN_BUCKET, 1 << max(count - 1, 0).bit_length())
    fields = {}
    for name in Discs._fields:
        values = np.asarray(getattr(cell, name))
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
        model: read cell by cell.
        views: of the scene, world frame.
        chosen: numbers of views.
        near: world length, see `RasterOptions.near`.
    """
    if not len(chosen):
        nothing = jax.tree.map(lambda values: values[:0].copy(), model.cell(0))
        for number in range(1, model.num_cells):
            model.cell(number)  # is counted
        return Seen(nothing, sum(model.lengths.values()))
    cameras = [views.camera_arrays(int(view)) for view in chosen]
    stacked: Camera = jax.tree.map(lambda *arrays: jnp.stack(arrays), *cameras)
    sizes = jnp.asarray([views.image_size(int(view)) for view in chosen], jnp.float32)
    parts = []
    for cell in model.cells():
        seen = np.asarray(_any_may_see(_padded(cell), stacked, sizes, near))[: len(cell.alive)]
        parts.append(jax.tree.map(lambda values, seen=seen: values[seen], cell))
    return Seen(joined(parts), sum(model.lengths.values()))
