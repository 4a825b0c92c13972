"""The rasterizer with Pallas kernels for TPUs: one program per tile, whose 16 x 16 pixels lie in
two rows of 128 lanes.

It is verified against the definition in Pallas' interpreter, and it lowers for TPUs; it has never
run on one. Projection and binning are plain JAX (see `tile_backend` and `binning`); the arithmetic
is `blending`. A program reads its list in chunks of 128 pairs from the memory of the device into
scalar memory. A chunk at the border of two tiles is read by both, and both write their own columns
of its results: this needs the programs of a TPU core to run one after the other, which the kernels
request.

It is not optimised: a tile fills 2 of the 8 rows of a register, each pair of the backward pass
makes 22 sums over the tile, and copies do not overlap with computation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import binning, blending, projection
from cosurfgs_jax.raster.binning import Grid, Ordered
from cosurfgs_jax.raster.blending import NUM_GRADIENTS, Cotangents, Pixels, Replay
from cosurfgs_jax.raster.drawing import make_renderer
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.tile_backend import TILE, Blender, empty_rows, like, make_draw, to_tiles

CHUNK = 128  # pairs
_LANES = 128
_SHAPE = (TILE * TILE // _LANES, _LANES)
_RANK = projection.NUM_FEATURES  # row of a chunk that holds the rank, as a float
_MAX_SURFELS = 2**24  # ranks up to it are exact floats
_ROWS = 24  # of a chunk: features and rank, or results
# Where each list begins and how long it is lies in scalar memory, beside two chunks: 1 MiB a core,
# some of it the compiler's. Without this limit it refuses pictures of 8K, in words about its
# memory.
_MAX_TILES = (2**20 - 2 * _ROWS * CHUNK * 4 - 2**16) // 8


def _pixel_centers(columns: int):
    """x and y f32[2,128] of the pixels of this program's tile."""
    tile = pl.program_id(0)
    pixel = jax.lax.broadcasted_iota(jnp.int32, _SHAPE, 0) * _LANES + jax.lax.broadcasted_iota(
        jnp.int32, _SHAPE, 1
    )
    x = jax.lax.rem(tile, columns) * TILE + pixel % TILE
    y = jax.lax.div(tile, columns) * TILE + pixel // TILE
    return x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5


def _copy(source, target, semaphore):
    copy = pltpu.make_async_copy(source, target, semaphore)
    copy.start()
    copy.wait()


def _column(buffer, i):
    """Features and rank of a pair, scalars."""
    return [buffer[row, i] for row in range(projection.NUM_FEATURES)], buffer[_RANK, i]


def _row_refs(refs, place: int, with_rows: bool) -> tuple[Any, Any]:
    """The result of a row a pair, and its scratch memory; None where it is not asked for."""
    return (refs[place], refs[-3]) if with_rows else (None, None)


def _blend_kernel(static: Static, columns: int, tree, begin_ref, count_ref, pairs_ref, *refs):
    num = tree.num_leaves
    inputs = refs[:num]
    refs = refs[num:]
    with_rows = static.with_contributions
    outputs = refs[with_rows : with_rows + num]
    (buffer, semaphore) = refs[-2:]
    rows_ref, rows = _row_refs(refs, with_rows + num, with_rows)
    x, y = _pixel_centers(columns)
    begin = begin_ref[pl.program_id(0)]
    end = begin + count_ref[pl.program_id(0)]

    def is_going(carry):
        chunk, leaves = carry
        state = jax.tree.unflatten(tree, leaves)
        return (chunk * CHUNK < end) & (jnp.max(state.is_open) > 0)

    def step(carry):
        chunk, leaves = carry
        _copy(pairs_ref.at[chunk], buffer, semaphore)
        if with_rows:
            _copy(rows_ref.at[chunk], rows, semaphore)

        def blend(i, leaves):
            state = jax.tree.unflatten(tree, leaves)
            features, rank = _column(buffer, i)
            before = state.transmittance
            state, weight = blending.blend(state, features, x, y, rank, True, static)
            if with_rows:
                is_blended = weight > 0
                rows[0, i] = jnp.sum(weight)
                rows[1, i] = jnp.max(weight)
                rows[2, i] = jnp.sum(jnp.where(is_blended, 1.0, 0.0))
                rows[3, i] = jnp.sum(jnp.where(is_blended & (before > 0.5), 1.0, 0.0))
            return tuple(jax.tree.leaves(state))

        first = jnp.maximum(begin - chunk * CHUNK, 0)
        last = jnp.minimum(end - chunk * CHUNK, CHUNK)
        leaves = jax.lax.fori_loop(first, last, blend, leaves)
        if with_rows:
            _copy(rows, rows_ref.at[chunk], semaphore)
        return chunk + 1, leaves

    _, leaves = jax.lax.while_loop(
        is_going, step, (jax.lax.div(begin, CHUNK), tuple(ref[0] for ref in inputs))
    )
    for ref, leaf in zip(outputs, leaves, strict=True):
        ref[0] = leaf


def _unblend_kernel(static: Static, columns: int, trees, begin_ref, count_ref, pairs_ref, *refs):
    state_tree, ct_tree = trees
    num = state_tree.num_leaves
    inputs = refs[: num + ct_tree.num_leaves]
    refs = refs[num + ct_tree.num_leaves :]
    outputs = refs[1 : 1 + num]
    rows_ref = refs[1 + num]
    (rows, buffer, semaphore) = refs[-3:]
    g = jax.tree.unflatten(ct_tree, [ref[0] for ref in inputs[num:]])
    x, y = _pixel_centers(columns)
    begin = begin_ref[pl.program_id(0)]
    end = begin + count_ref[pl.program_id(0)]
    last_rank = jnp.max(g.last)
    first_chunk = jax.lax.div(begin, CHUNK)

    def step(carry):
        chunk, leaves = carry
        _copy(pairs_ref.at[chunk], buffer, semaphore)
        first = jnp.maximum(begin - chunk * CHUNK, 0)
        last = jnp.minimum(end - chunk * CHUNK, CHUNK)

        def unblend_one(i, leaves):
            state = jax.tree.unflatten(state_tree, leaves)
            features, rank = _column(buffer, i)
            state, grads, (u, v) = blending.unblend(state, g, features, x, y, rank, True, static)
            for row, term in enumerate(blending.terms(grads, g, features, x, y, u, v)):
                if term is not None:
                    rows[row, i] = jnp.sum(term)
            return tuple(jax.tree.leaves(state))

        def unblend_all(leaves):
            _copy(rows_ref.at[chunk], rows, semaphore)
            leaves = jax.lax.fori_loop(
                0, last - first, lambda i, leaves: unblend_one(last - 1 - i, leaves), leaves
            )
            _copy(rows, rows_ref.at[chunk], semaphore)
            return leaves

        # Nothing behind the last blended surfel of the tile matters.
        leaves = jax.lax.cond(
            buffer[_RANK, first] <= last_rank, unblend_all, lambda leaves: leaves, leaves
        )
        return chunk - 1, leaves

    start = jnp.where(end > begin, jax.lax.div(end - 1, CHUNK), first_chunk - 1)
    _, leaves = jax.lax.while_loop(
        lambda carry: carry[0] >= first_chunk, step, (start, tuple(ref[0] for ref in inputs[:num]))
    )
    for ref, leaf in zip(outputs, leaves, strict=True):
        ref[0] = leaf


def _call(kernel, grid: Grid, window: binning.Window, chunks, maps, results: int, rows):
    """Runs a kernel over the tiles of a window.

    Args:
        kernel: takes begin, count, chunks, the maps, the rows, then results, rows and scratch.
        chunks: f32[chunks, _ROWS, CHUNK]. maps: f32[tiles, 2, 128] each. results: how many maps
            come out, shaped as the first.
        rows: like `chunks`, zeros, or None: results by pair.
    """
    block = pl.BlockSpec((1, *_SHAPE), lambda tile, *_: (tile, 0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    by_pair = [] if rows is None else [rows]
    scalars = pltpu.SMEM((_ROWS, CHUNK), jnp.float32)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(grid.num_tiles,),
        in_specs=[anywhere, *[block] * len(maps), *[anywhere] * len(by_pair)],
        out_specs=[*[block] * results, *[anywhere] * len(by_pair)],
        scratch_shapes=[*[scalars] * (1 + len(by_pair)), pltpu.SemaphoreType.DMA],
    )
    in_order = pltpu.CompilerParams(dimension_semantics=("arbitrary",))
    shapes = [ffi.result_like(x, x.shape, x.dtype) for x in (*maps[:results], *by_pair)]
    operands = (window.begin, window.count, chunks, *maps, *by_pair)
    aliases = {len(operands) - 1: results} if by_pair else {}

    def run(*operands, interpret):
        return pl.pallas_call(
            kernel,
            grid_spec=spec,
            out_shape=shapes,
            input_output_aliases=aliases,
            interpret=interpret,
            compiler_params=in_order,
        )(*operands)

    out = jax.lax.platform_dependent(
        *operands,
        tpu=functools.partial(run, interpret=False),
        default=functools.partial(run, interpret=True),
    )
    return (out[:-1], out[-1]) if by_pair else (out, None)


def _chunked(ordered: Ordered, ranks):
    """The features of a window's pairs, chunk by chunk: f32[chunks, _ROWS, CHUNK]."""
    columns = jnp.concatenate(
        [
            ordered.features[ranks],
            ranks.astype(jnp.float32)[:, None],
            jnp.zeros((ranks.shape[0], _ROWS - _RANK - 1)),
        ],
        axis=1,
    )
    return columns.reshape(-1, CHUNK, _ROWS).swapaxes(1, 2)


def _by_pair(rows, size: int):
    return rows.swapaxes(1, 2).reshape(-1, _ROWS)[:, :size]


def _laid_out(tree):
    """[tiles, 256] to f32[tiles, 2, 128]."""
    return [x.reshape(x.shape[0], *_SHAPE).astype(jnp.float32) for x in jax.tree.leaves(tree)]


def _blend_view(static: Static, grid: Grid, ordered: Ordered):
    """See `Blender.blend`."""
    if ordered.ids.shape[0] > _MAX_SURFELS:
        raise InputError(
            f'backend "tpu": expected at most {_MAX_SURFELS:,d} surfels on a device, got '
            f"{ordered.ids.shape[0]:,d}; "
            "train more blocks (config.partition.num_blocks) on more devices"
        )
    if grid.num_tiles > _MAX_TILES:
        raise InputError(
            f'backend "tpu": expected an image of at most {_MAX_TILES:,d} tiles of {TILE} x {TILE} '
            "pixels, got "
            f"{static.width} x {static.height} pixels, {grid.num_tiles:,d} tiles; set a larger "
            'config.data.downscale, or config.raster.backend="portable"'
        )
    size = binning.window_size(ordered.ids.shape[0], grid)
    inside = like(to_tiles(jnp.ones((static.height, static.width)), grid), ordered.features)
    state = blending.empty(inside * 0, static.maps)._replace(is_open=inside)
    sums = empty_rows(ordered, 4) if static.with_contributions else None
    kinds = [x.dtype for x in jax.tree.leaves(state)]
    tree = jax.tree.structure(state)
    maps = _laid_out(state)
    if ordered.ids.shape[0] == 0:
        return state, sums, like(jnp.int32(0), ordered.features)
    total = binning.num_windows(ordered, size)

    def step(carry):
        index, maps, sums = carry
        window = binning.make_window(ordered, index, size, grid)
        chunks = _chunked(ordered, window.ranks)
        kernel = functools.partial(_blend_kernel, static, grid.columns, tree)
        rows = None if sums is None else jnp.zeros_like(chunks)
        maps, rows = _call(kernel, grid, window, chunks, maps, len(maps), rows)
        if sums is not None:
            rows = _by_pair(rows, 4)
            largest = sums[:, 1].at[window.ranks].max(rows[:, 1])
            sums = sums.at[window.ranks].add(rows).at[:, 1].set(largest)
        return index + 1, list(maps), sums

    place_of_open = jax.tree.leaves(jax.tree.unflatten(tree, range(len(maps))).is_open)[0]
    index, maps, sums = jax.lax.while_loop(
        lambda carry: (carry[0] < total) & (carry[1][place_of_open] > 0).any(),
        step,
        (like(jnp.int32(0), total), maps, sums),
    )
    leaves = [
        x.reshape(grid.num_tiles, -1).astype(kind) for x, kind in zip(maps, kinds, strict=True)
    ]
    return Pixels(*jax.tree.unflatten(tree, leaves)), sums, index


def _unblend_view(
    static: Static, grid: Grid, ordered: Ordered, state: Replay, g: Cotangents, windows
):
    """See `Blender.unblend`."""
    gradient = empty_rows(ordered, NUM_GRADIENTS)
    if ordered.ids.shape[0] == 0:
        return gradient
    size = binning.window_size(ordered.ids.shape[0], grid)
    trees = (jax.tree.structure(state), jax.tree.structure(g))
    cotangents = _laid_out(g)

    def step(carry):
        index, maps, gradient = carry
        window = binning.make_window(ordered, index, size, grid)
        chunks = _chunked(ordered, window.ranks)
        kernel = functools.partial(_unblend_kernel, static, grid.columns, trees)
        maps, rows = _call(
            kernel, grid, window, chunks, [*maps, *cotangents], len(maps), jnp.zeros_like(chunks)
        )
        return index - 1, list(maps), gradient.at[window.ranks].add(_by_pair(rows, NUM_GRADIENTS))

    return jax.lax.while_loop(
        lambda carry: carry[0] >= 0, step, (windows - 1, _laid_out(state), gradient)
    )[2]


draw = make_draw(Blender(_blend_view, _unblend_view))
render_views = make_renderer(draw)
