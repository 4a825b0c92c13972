"""Binning: the (surfel, tile) pairs of a view, front to back, in plain JAX with static shapes.

The (surfel, tile) pairs of a view, in order of depth, are taken in *windows* of a fixed number of
pairs. Blending one window after the other into the same image is what blending all at once would
be, since every pair of a window lies in front of those of the next: so no scene overflows, one with
many pairs takes more windows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.projection import Projected

# Pairs are counted in int32. What lies behind the first 2^31 (2.1 billion) pairs of a view is not
# drawn, but counted in `num_invalid`.
MAX_PAIRS = 2**31 - 2**24
_MIN_WINDOW = 2**14
_MAX_WINDOW = 2**21
_PAIRS_PER_SURFEL = 3
_MAX_KEY = 2**32


class Grid(NamedTuple):
    """Square tiles over an image."""

    tile: int  # pixels
    columns: int
    rows: int

    @property
    def num_tiles(self) -> int:
        """Rows times columns."""
        return self.columns * self.rows


class Ordered(NamedTuple):
    """The drawn surfels of one view, front to back; positions past their number hold others."""

    ids: Int[Array, " n"]
    features: Float[Array, "n f"]
    tiles: Int[Array, "n 4"]  # of its box: first column, first row, columns, rows
    ends: Int[Array, " n"]  # pairs up to and including this surfel
    num_pairs: Int[Array, ""]
    num_skipped: Int[Array, ""]  # surfels behind MAX_PAIRS


class Window(NamedTuple):
    """Some pairs, sorted by tile and depth."""

    ranks: Int[Array, " p"]  # rows of `Ordered`
    begin: Int[Array, " t"]  # where each tile's pairs begin in `ranks`
    count: Int[Array, " t"]


def make_grid(static: Static, tile: int) -> Grid:
    """The tiles of an image."""
    return Grid(tile, -(-static.width // tile), -(-static.height // tile))


def window_size(num_surfels: int, grid: Grid) -> int:
    """How many pairs are sorted at a time, for this many slots for surfels.

    Three per surfel, as in aerial scenes where half of the slots are in view, and one per tile:
    most views then take one window, at 8 bytes a pair and as much for the sort.
    """
    wanted = _PAIRS_PER_SURFEL * num_surfels + grid.num_tiles
    return int(min(max(-(-wanted // _MIN_WINDOW) * _MIN_WINDOW, _MIN_WINDOW), _MAX_WINDOW))


def order(projected: Projected, grid: Grid) -> Ordered:
    """Sorts the drawn surfels by depth; ties keep the order of the arrays."""
    num = projected.depth.shape[0]
    # Depths are compared in float32, as in the other backends.
    depth = jnp.where(projected.is_drawn, projected.depth, jnp.inf)
    _, ids = jax.lax.sort((depth, jnp.arange(num, dtype=jnp.int32)), num_keys=1, is_stable=True)
    first = projected.box[ids][:, ::2] // grid.tile
    last = projected.box[ids][:, 1::2] // grid.tile
    size = jnp.where(projected.is_drawn[ids][:, None], last - first + 1, 0)
    counts = size[:, 0] * size[:, 1]
    # In float32, too: the sum of integers would wrap around.
    is_counted = jnp.cumsum(counts.astype(jnp.float32)) < MAX_PAIRS
    size = jnp.where(is_counted[:, None], size, 0)
    ends = jnp.cumsum(size[:, 0] * size[:, 1], dtype=jnp.int32)
    num_pairs = jnp.zeros((), jnp.int32)
    if num:
        num_pairs = ends[-1]
    features = jnp.where(projected.is_drawn[:, None], projected.features, 0.0)
    return Ordered(
        ids=ids,
        features=features[ids],
        tiles=jnp.concatenate([first, size], axis=1),
        ends=ends,
        num_pairs=num_pairs,
        num_skipped=(~is_counted & projected.is_drawn[ids]).sum(dtype=jnp.int32),
    )


def make_window(ordered: Ordered, index: Int[Array, ""], size: int, grid: Grid) -> Window:
    """The pairs [index * size, (index + 1) * size) in order of depth.

    Args:
        ordered: from `order`, of at least one surfel.
        index: which window.
        size: see `window_size`; static.
        grid: static.
    """
    num = ordered.ends.shape[0]
    position = index * size + jnp.arange(size, dtype=jnp.int32)
    first = jnp.searchsorted(ordered.ends, index * size, side="right").astype(jnp.int32)
    # One mark where each surfel's pairs end; the sum of the marks before a pair is its surfel.
    ends = ordered.ends - index * size
    marks = jnp.zeros((size,), jnp.int32).at[jnp.where(ends > 0, ends, size)].add(1, mode="drop")
    rank = jnp.minimum(first + jnp.cumsum(marks, dtype=jnp.int32), num - 1)
    tiles = ordered.tiles[rank]
    end = ordered.ends[rank]
    local = position - (end - tiles[:, 2] * tiles[:, 3])
    columns = jnp.maximum(tiles[:, 2], 1)
    tile = (tiles[:, 1] + local // columns) * grid.columns + tiles[:, 0] + local % columns
    tile = jnp.where(position < ordered.num_pairs, tile, grid.num_tiles)
    if (grid.num_tiles + 1) * num < _MAX_KEY:
        # One key sorts faster than a key with a payload, and is as good.
        key = jax.lax.sort(tile.astype(jnp.uint32) * num + rank.astype(jnp.uint32), is_stable=False)
        tile = (key // num).astype(jnp.int32)
        rank = (key % num).astype(jnp.int32)
    else:
        tile, rank = jax.lax.sort((tile, rank), num_keys=1, is_stable=True)
    begin = jnp.searchsorted(tile, jnp.arange(grid.num_tiles + 1, dtype=jnp.int32)).astype(
        jnp.int32
    )
    return Window(rank, begin[:-1], begin[1:] - begin[:-1])


def num_windows(ordered: Ordered, size: int) -> Int[Array, ""]:
    """Windows until the last pair."""
    return (ordered.num_pairs + (size - 1)) // size
