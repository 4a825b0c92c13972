"""The plane depth that each view showed when it was drawn last: what MV-Reg compares a view with,
without drawing its neighbour.

Ways that were considered: drawing the neighbour in every step (exact, and a third of the step);
drawing it at fewer pixels (a projection and a sort of all surfels all the same); remembering
(chosen). A view is drawn once an epoch, in an order of its own for each: what is remembered is less
than two epochs old. The term takes no gradient through it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cosurfgs_jax.geometry.lattice import Lattice
from cosurfgs_jax.types import image_size_of

STRIDE = 2  # every second pixel of a view: depth between them is interpolated


class DepthMemory(NamedTuple):
    """Of V views of one block; a pytree."""

    depths: Float[Array, "v h w"]  # camera z of the blended plane; 0 = invalid, or not seen yet
    origins: Int[Array, "v 2"]  # of the lattice of each view


def memory_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of what is remembered of an image."""
    return image_size[0] // STRIDE, image_size[1] // STRIDE


def init(num_views: int, size: tuple[int, int]) -> DepthMemory:
    """Nothing seen yet.

    Args:
        num_views: V.
        size: of the largest view's map, from `memory_size`.
    """
    return DepthMemory(
        jnp.zeros((num_views, *size), jnp.float32), jnp.zeros((num_views, 2), jnp.int32)
    )


def recall(
    memory: DepthMemory, view: Int[Array, ""], image_size: tuple[int, int]
) -> tuple[Float[Array, "h w"], Lattice]:
    """What a view of this size showed, and at which of its pixels."""
    height, width = memory_size(image_size)
    return memory.depths[view][:height, :width], Lattice(STRIDE, memory.origins[view])


def remember(
    memory: DepthMemory,
    view: Int[Array, ""],
    depth: Float[Array, "h w"],
    drawn: Lattice,
) -> DepthMemory:
    """The memory after a view was drawn.

    Args:
        memory: changed in place where it is donated.
        view: number of the view.
        depth: its plane depth, 0 = invalid.
        drawn: the pixels of the view that it has: all, or every STRIDE-th.
    """
    if drawn.stride not in (1, STRIDE):
        raise ValueError(f"drawn: expected a stride of 1 or {STRIDE}, got {drawn.stride}")
    depth = jax.lax.stop_gradient(depth)
    if drawn.stride < STRIDE:
        drawn = Lattice(STRIDE, drawn.origin)
        depth = drawn.of(depth)
    height, width = image_size_of(depth)
    room = memory.depths.shape[1:]
    depth = jnp.pad(depth, ((0, room[0] - height), (0, room[1] - width)))
    depths = jax.lax.dynamic_update_index_in_dim(memory.depths, depth, view, 0)
    origins = jax.lax.dynamic_update_index_in_dim(memory.origins, drawn.origin, view, 0)
    return DepthMemory(depths, origins)
