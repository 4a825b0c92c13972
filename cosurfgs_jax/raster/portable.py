"""The rasterizer in plain JAX, for machines without the native library and for devices that have no
kernel.

Tiles of pixels go through their surfels front to back, one surfel of every tile at a time:
vectorised over the pixels of a group of tiles. A group holds tiles with lists of similar length,
and stops when its pixels have. The backward pass takes the same lists from the back. See `binning`
for the lists and `blending` for the arithmetic."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from cosurfgs_jax.raster import binning, blending, projection
from cosurfgs_jax.raster.binning import Grid, Ordered
from cosurfgs_jax.raster.blending import NUM_GRADIENTS, Cotangents, Pixels, Replay
from cosurfgs_jax.raster.drawing import make_renderer
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.tile_backend import Blender, empty_rows, like, make_draw, to_tiles

GROUP = 32
STRIDE = 4  # surfels between two looks at whether a group is done


class _Tiling(NamedTuple):
    """What is static about the tiles of an image."""

    grid: Grid
    group: int  # tiles that go through their lists together
    num_groups: int
    window: int  # pairs sorted at a time

    @property
    def num_slots(self) -> int:
        """Tiles, and some without pixels to fill the last group."""
        return self.group * self.num_groups


def _make_tiling(grid: Grid, num_surfels: int) -> _Tiling:
    group = min(GROUP, grid.num_tiles)
    return _Tiling(grid, group, -(-grid.num_tiles // group), binning.window_size(num_surfels, grid))


def _pixel_centers(tile, tiling: _Tiling):
    """x and y f32[G,P] of the pixels of tiles i32[G]."""
    size = tiling.grid.tile
    pixel = jnp.arange(size * size, dtype=jnp.int32)[None, :]
    x = (tile % tiling.grid.columns)[:, None] * size + pixel % size
    y = (tile // tiling.grid.columns)[:, None] * size + pixel // size
    return x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5


def noinline(function, *arguments):
    """Calls a function that XLA does not inline.

    For CPUs, for two reasons. What comes out of it is computed once: else XLA computes a hit anew
    for each of a dozen maps, four times slower. And a loop in it is one piece of code in one
    thread: else XLA cuts every operation of some microseconds into pieces for all threads, hundreds
    of times slower when they are more than cores (`PJRT_NPROC`). These are hints: without them,
    results are the same.
    """
    with set_xla_metadata(xla_cpu_small_call="true", inlineable="false"):
        return jax.jit(function)(*arguments)


class _Groups(NamedTuple):
    """The tiles of a window, the longest lists first; leaves [groups, tiles of a group]."""

    tile: jax.Array
    begin: jax.Array
    count: jax.Array


def _make_groups(begin, count, tiling: _Tiling) -> tuple[_Groups, jax.Array]:
    """The groups, and where each tile stands in them."""
    pad = (0, tiling.num_slots - tiling.grid.num_tiles)
    begin = jnp.pad(begin, pad)
    count = jnp.pad(count, pad)
    tile = jnp.argsort(-count).astype(jnp.int32)
    place = (
        jnp.zeros_like(tile)
        .at[tile]
        .set(jnp.arange(tile.shape[0], dtype=jnp.int32), unique_indices=True)
    )
    return jax.tree.map(
        lambda x: x.reshape(tiling.num_groups, tiling.group),
        _Groups(tile, begin[tile], count[tile]),
    ), place


def _columns(ordered: Ordered, rank):
    features = ordered.features[rank]
    return [features[:, i : i + 1] for i in range(projection.NUM_FEATURES)]


def _fold(function, values: list) -> list:
    """f32[G,P] to f32[G, sqrt P], by an elementwise function of slices."""
    width = round(values[0].shape[1] ** 0.5)
    return [
        functools.reduce(
            function, [value[:, i : i + width] for i in range(0, value.shape[1], width)]
        )
        for value in values
    ]


def _over_pixels(function, *values):
    """Reduces f32[G,P] to f32[G] by an elementwise function, in two steps.

    XLA's own sums go from pixel to pixel, ten times slower, or call a library, which `noinline`
    cannot."""
    columns = noinline(functools.partial(_fold, function), list(values))
    return noinline(
        lambda columns: [
            functools.reduce(function, [x[:, i] for i in range(x.shape[1])]) for x in columns
        ],
        columns,
    )


def _count(weight, before):
    is_blended = weight > 0
    parts = (
        weight,
        is_blended.astype(weight.dtype),
        (is_blended & (before > 0.5)).astype(weight.dtype),
    )
    total, pixels, front = _over_pixels(jnp.add, *parts)
    return jnp.stack([total, *_over_pixels(jnp.maximum, weight), pixels, front], axis=1)


def _update_rows(function, table, index, rows):
    """table[index[i]] = function(table[index[i]], rows[i]) one after the other; a scatter is no
    loop for XLA (see `noinline`).
    """

    def step(i, table):
        row = jax.lax.dynamic_index_in_dim(table, index[i], 0)
        return jax.lax.dynamic_update_index_in_dim(table, function(row, rows[i][None]), index[i], 0)

    return jax.lax.fori_loop(0, index.shape[0], step, table)


def _join_contributions(old, new):
    return jnp.where(jnp.arange(4)[None, :] == 1, jnp.maximum(old, new), old + new)


def _for_groups(function, sums, state, others, groups: _Groups):
    """Scans over groups: function(sums, state, others, group) -> sums, state."""

    def step(sums, inputs):
        return noinline(function, sums, *inputs)

    return jax.lax.scan(step, sums, (state, others, groups))


def _blend_group(static, tiling, ordered, ranks, sums, state: Pixels, _, group: _Groups):
    """Blends the lists of a group's tiles; returns the contributions so far, and the new state of
    the pixels.
    """
    x, y = _pixel_centers(group.tile, tiling)

    def is_going(carry):
        slot, state, _ = carry
        return ((state.is_open > 0) & (slot < group.count)[:, None]).any()

    def step(_, carry):
        slot, state, sums = carry
        is_there = slot < group.count
        rank = ranks[jnp.minimum(group.begin + slot, tiling.window - 1)]
        before = state.transmittance
        state, weight = blending.blend(
            state,
            _columns(ordered, rank),
            x,
            y,
            rank[:, None],
            is_there[:, None],
            static,
            noinline,
        )
        if static.with_contributions:
            row = jnp.where(is_there, rank, sums.shape[0] - 1)
            sums = _update_rows(_join_contributions, sums, row, _count(weight, before))
        return slot + 1, state, sums

    _, state, sums = jax.lax.while_loop(
        is_going,
        lambda carry: jax.lax.fori_loop(0, STRIDE, step, carry),
        (like(jnp.int32(0), ranks), state, sums),
    )
    return sums, state


def _padded(tree, tiling: _Tiling):
    """With tiles without pixels to fill the last group."""
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, tiling.num_slots - tiling.grid.num_tiles), (0, 0))), tree
    )


def _grouped(tree, groups, tiling):
    order = groups.tile.reshape(-1)
    return jax.tree.map(lambda x: x[order].reshape(tiling.num_groups, tiling.group, -1), tree)


def _ungrouped(tree, place):
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[place], tree)


def _blend_view(static: Static, grid: Grid, ordered: Ordered):
    """See `Blender.blend`."""
    tiling = _make_tiling(grid, ordered.ids.shape[0])
    inside = _padded(
        like(to_tiles(jnp.ones((static.height, static.width)), grid), ordered.features), tiling
    )
    state = blending.empty(inside * 0, static.maps)._replace(is_open=inside)
    sums = empty_rows(ordered, 4) if static.with_contributions else None
    if ordered.ids.shape[0] == 0:
        return (
            jax.tree.map(lambda x: x[: grid.num_tiles], state),
            sums,
            like(jnp.int32(0), ordered.features),
        )
    total = binning.num_windows(ordered, tiling.window)

    def step(carry):
        index, state, sums = carry
        window = binning.make_window(ordered, index, tiling.window, tiling.grid)
        groups, place = _make_groups(window.begin, window.count, tiling)
        sums, state = _for_groups(
            functools.partial(_blend_group, static, tiling, ordered, window.ranks),
            sums,
            _grouped(state, groups, tiling),
            None,
            groups,
        )
        return index + 1, _ungrouped(state, place), sums

    index, state, sums = jax.lax.while_loop(
        lambda carry: (carry[0] < total) & (carry[1].is_open > 0).any(),
        step,
        (like(jnp.int32(0), total), state, sums),
    )
    return jax.tree.map(lambda x: x[: grid.num_tiles], state), sums, index


def _unblend_group(
    static, tiling, ordered, ranks, gradient, state: Replay, g: Cotangents, group: _Groups
):
    """Adds the gradient rows of a group's lists; returns the sums so far, and the state of the
    pixels before the lists.
    """
    x, y = _pixel_centers(group.tile, tiling)
    # Nothing behind the last blended surfel of a tile matters.
    final = _num_until(ranks, group.begin, group.count, g.last.max(axis=1), tiling.window)

    def step(carry):
        slot, state, gradient = carry
        is_there = slot < final
        rank = ranks[jnp.minimum(group.begin + slot, tiling.window - 1)]
        f = _columns(ordered, rank)
        state, grads, (u, v) = blending.unblend(
            state, g, f, x, y, rank[:, None], is_there[:, None], static, noinline
        )
        terms = noinline(blending.terms, grads, g, f, x, y, u, v)
        sums = iter(_over_pixels(jnp.add, *(term for term in terms if term is not None)))
        row = jnp.stack(
            [jnp.zeros_like(x[:, 0]) if term is None else next(sums) for term in terms], axis=1
        )
        gradient = _update_rows(
            jnp.add, gradient, jnp.where(is_there, rank, gradient.shape[0] - 1), row
        )
        return slot - 1, state, gradient

    _, state, gradient = jax.lax.while_loop(
        lambda carry: carry[0] >= 0, step, (final.max() - 1, state, gradient)
    )
    return gradient, state


def _num_until(ranks, begin, count, last, size):
    """How many of each list's ranks (ascending) are at most `last`."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        is_low = (ranks[jnp.minimum(begin + middle, size - 1)] <= last) & (middle < high)
        return jnp.where(is_low, middle + 1, low), jnp.where(is_low, high, middle)

    return jax.lax.fori_loop(0, size.bit_length(), halve, (count * 0, count))[0]


def _unblend_view(
    static: Static, grid: Grid, ordered: Ordered, state: Replay, g: Cotangents, windows
):
    """See `Blender.unblend`."""
    tiling = _make_tiling(grid, ordered.ids.shape[0])
    state, g = _padded((state, g), tiling)
    gradient = empty_rows(ordered, NUM_GRADIENTS)
    if ordered.ids.shape[0] == 0:
        return gradient

    def step(carry):
        index, state, gradient = carry
        window = binning.make_window(ordered, index, tiling.window, tiling.grid)
        groups, place = _make_groups(window.begin, window.count, tiling)
        gradient, state = _for_groups(
            functools.partial(_unblend_group, static, tiling, ordered, window.ranks),
            gradient,
            *_grouped((state, g), groups, tiling),
            groups,
        )
        return index - 1, _ungrouped(state, place), gradient

    return jax.lax.while_loop(lambda carry: carry[0] >= 0, step, (windows - 1, state, gradient))[2]


draw = make_draw(Blender(_blend_view, _unblend_view))
render_views = make_renderer(draw)
