"""A rasterizer around any way to blend lists of surfels into tiles: the backends that are not
native share it.

Projection and lists before, from tiles to images and back to the parameters after; see `portable`
and `pallas_tpu`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import binning, blending, projection
from cosurfgs_jax.raster.binning import Grid, Ordered
from cosurfgs_jax.raster.blending import EVERYTHING, GEOMETRY, Cotangents, Replay
from cosurfgs_jax.raster.projection import CENTER, Static

TILE = 16


class Blender(NamedTuple):
    """How one view's tiles go through their lists."""

    # (static, grid, ordered) -> Pixels [tiles, pixels], contributions [N + 1, 4] in order of depth
    # or None, windows taken
    blend: Callable
    # (static, grid, ordered, Replay, Cotangents, windows) -> gradient rows [N + 1, NUM_GRADIENTS]
    # in order of depth
    unblend: Callable


def like(value, reference):
    """The value, made to vary over the same mesh axes as the reference."""
    return ffi.match_varying(value, reference)[0]


def to_tiles(image, grid: Grid, fill=0):
    """[H,W] to [tiles, pixels of a tile], row by row."""
    height, width = image.shape
    padded = jnp.pad(
        image,
        ((0, grid.rows * grid.tile - height), (0, grid.columns * grid.tile - width)),
        constant_values=fill,
    )
    return (
        padded.reshape(grid.rows, grid.tile, grid.columns, grid.tile)
        .swapaxes(1, 2)
        .reshape(grid.num_tiles, -1)
    )


def to_image(tiles, grid: Grid, static: Static):
    """The inverse of `to_tiles`."""
    blocks = tiles.reshape(grid.rows, grid.columns, grid.tile, grid.tile).swapaxes(1, 2)
    return blocks.reshape(grid.rows * grid.tile, grid.columns * grid.tile)[
        : static.height, : static.width
    ]


def empty_rows(ordered: Ordered, size: int):
    """One row per surfel in order of depth, and one for what is none."""
    return like(jnp.zeros((ordered.ids.shape[0] + 1, size)), ordered.features)


def _forward_view(blender: Blender, static: Static, params, pose, intrinsics, background):
    """The maps of one view in the order of ops.draw, and the windows taken."""
    grid = binning.make_grid(static, TILE)
    projected = projection.project(params, pose, intrinsics, static)
    ordered = binning.order(projected, grid)
    state, sums, windows = blender.blend(static, grid, ordered)
    state = jax.tree.map(lambda tiles: to_image(tiles, grid, static), state)
    color = (
        jnp.stack(state.color, axis=-1) + state.transmittance[..., None] * background[None, None, :]
    )
    normal = jnp.stack(state.normal, axis=-1) if static.maps >= GEOMETRY else None
    contributions = _in_order_of_ids(sums, ordered) if static.with_contributions else None
    status = jnp.stack([projected.num_invalid + ordered.num_skipped, ordered.num_pairs])
    return (
        color,
        state.transmittance,
        state.depth,
        state.median,
        normal,
        state.plane,
        state.distortion,
        state.last,
        state.median_rank,
        contributions,
        status,
    ), windows


def _in_order_of_ids(rows, ordered: Ordered):
    rows = rows[:-1]
    return jnp.zeros_like(rows).at[ordered.ids].set(rows, unique_indices=True)


def _backward_view(
    blender: Blender, static: Static, params, pose, intrinsics, background, out, windows, cotangents
):
    """Gradients to the five float fields, to the pose, and rows of the probe [N,4]."""
    grid = binning.make_grid(static, TILE)
    *floats, alive = params
    projected = projection.project(params, pose, intrinsics, static)
    ordered = binning.order(projected, grid)
    _, transmittance, depth_sum, _, _, _, _, last, median_rank, _, _ = out
    color, by_transmittance, depth, median, normal, plane, distortion, *_ = cotangents
    tiled = functools.partial(to_tiles, grid=grid)

    def channels(image):
        return tuple(tiled(image[..., i]) for i in range(3))

    final = tiled(transmittance, fill=1)
    g = Cotangents(
        channels(color), None, None, None, None, None, tiled(last, fill=-1), None, None, None
    )
    if static.maps >= GEOMETRY:
        g = g._replace(
            depth=tiled(depth),
            median=tiled(median),
            normal=channels(normal),
            plane=tiled(plane),
            median_rank=tiled(median_rank, fill=-1),
        )
    if static.maps >= EVERYTHING:
        g = g._replace(
            distortion=tiled(distortion), final_transmittance=final, depth_total=tiled(depth_sum)
        )
    behind = transmittance * (by_transmittance + (color * background[None, None, :]).sum(axis=-1))
    state = Replay(
        final, tiled(behind), jnp.zeros_like(final) if static.maps >= EVERYTHING else None
    )
    rows = _in_order_of_ids(blender.unblend(static, grid, ordered, state, g, windows), ordered)
    opacity = jnp.maximum(
        projected.features[:, projection.OPACITY], projection.MIN_ALPHA
    )  # of drawn ones it is more
    by_features = rows[:, : projection.NUM_FEATURES].at[:, projection.OPACITY].divide(opacity)
    _, pullback = jax.vjp(
        lambda floats, pose: (
            projection.project((*floats, alive), pose, intrinsics, static).features
        ),
        floats,
        pose,
    )
    by_floats, by_pose = pullback(by_features)
    return (
        by_floats,
        by_pose,
        jnp.concatenate([rows[:, CENTER : CENTER + 2], rows[:, blending.ABSOLUTE :]], axis=1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(blender: Blender, static: Static, params, cameras, background):
    # A batch is a loop, too: lists of different lengths have little to gain from each other.
    @jax.custom_batching.sequential_vmap
    def run(params, cameras, background):
        return jax.lax.map(
            lambda camera: _forward_view(blender, static, params, *camera, background), cameras
        )

    return run(params, cameras, background)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(
    blender: Blender, static: Static, params, cameras, background, out, windows, cotangents
):
    @jax.custom_batching.sequential_vmap
    def run(params, cameras, background, out, windows, cotangents):
        def add_view(sums, view):
            camera, out, windows, cotangents = view
            by_floats, by_pose, probe = _backward_view(
                blender, static, params, *camera, background, out, windows, cotangents
            )
            return jax.tree.map(jnp.add, sums, (by_floats, probe)), by_pose

        zeros = (
            [jnp.zeros_like(x) for x in params[:5]],
            jnp.zeros_like(params[0], shape=(params[0].shape[0], 4)),
        )
        zeros = jax.tree.map(lambda x: like(x, params[0]), zeros)
        (by_floats, probe), by_poses = jax.lax.scan(
            add_view, zeros, (cameras, out, windows, cotangents)
        )
        by_background = jnp.einsum("vhw,vhwc->c", out[1], cotangents[0], precision="highest")
        return by_floats, by_poses, by_background, probe

    return run(params, cameras, background, out, windows, cotangents)


def make_draw(blender: Blender) -> Callable:
    """A function like `ops.draw` from a way to blend lists of surfels."""

    def draw(static: Static, params, cameras, background, probe):
        del probe  # exists for its cotangent
        return _forward(blender, static, params, cameras, background)[0]

    def forward(static, params, cameras, background, probe):
        out, windows = _forward(blender, static, params, cameras, background)
        return out, (params, cameras, background, probe, out, windows)

    def backward(static, residuals, cotangents):
        params, cameras, background, probe, out, windows = residuals
        by_floats, by_poses, by_background, by_probe = _backward(
            blender,
            static,
            params,
            cameras,
            background,
            out,
            windows,
            (*cotangents[:7], None, None, None, None),
        )
        return (
            (*by_floats, None),
            (by_poses, jnp.zeros_like(cameras[1])),
            by_background,
            by_probe if probe.size else probe,
        )

    draw = jax.custom_vjp(draw, nondiff_argnums=(0,))
    draw.defvjp(forward, backward)
    return draw
