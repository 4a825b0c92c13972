"""The draw function of a tile blender: what the backends that are not native share.

Projection and binning come before the blender, images and gradients of the surfels after it; see
`portable` and `pallas_tpu`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import binning, blending, projection
from cosurfgs_jax.raster.binning import Grid, Ordered
from cosurfgs_jax.raster.blending import Cotangents, Replay
from cosurfgs_jax.raster.options import Static
from cosurfgs_jax.raster.outputs import Drawn
from cosurfgs_jax.raster.projection import CENTER
from cosurfgs_jax.types import Camera, Surfels

TILE = 16


class Blender(NamedTuple):
    """Blends the tiles of one view, forward and backward."""

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


def _forward_view(blender: Blender, static: Static, surfels: Surfels, camera: Camera, background):
    """`Drawn` of one view, and the windows taken."""
    grid = binning.make_grid(static, TILE)
    projected = projection.project(surfels, camera, static)
    ordered = binning.order(projected, grid)
    state, sums, windows = blender.blend(static, grid, ordered)
    state = jax.tree.map(lambda tiles: to_image(tiles, grid, static), state)
    drawn = Drawn(
        color=jnp.stack(state.color, axis=-1)
        + state.transmittance[..., None] * background[None, None, :],
        transmittance=state.transmittance,
        depth_sum=state.depth,
        median_depth=state.median,
        normal_sum=None,
        plane_sum=state.plane,
        distortion=state.distortion,
        last_rank=state.last,
        median_rank=state.median_rank,
        contributions=None,
        status=jnp.stack([projected.num_invalid + ordered.num_skipped, ordered.num_pairs]),
    )
    if static.has_geometry:
        drawn = drawn._replace(normal_sum=jnp.stack(state.normal, axis=-1))
    if static.with_contributions:
        drawn = drawn._replace(contributions=_in_order_of_ids(sums, ordered))
    return drawn, windows


def _in_order_of_ids(rows, ordered: Ordered):
    rows = rows[:-1]
    return jnp.zeros_like(rows).at[ordered.ids].set(rows, unique_indices=True)


def _tiled_cotangents(static: Static, grid: Grid, drawn: Drawn, cotangents: Drawn) -> Cotangents:
    tiled = functools.partial(to_tiles, grid=grid)

    def channels(image):
        return tuple(tiled(image[..., i]) for i in range(3))

    g = Cotangents(
        color=channels(cotangents.color),
        depth=None,
        median=None,
        normal=None,
        plane=None,
        distortion=None,
        last=tiled(drawn.last_rank, fill=-1),
        median_rank=None,
        final_transmittance=None,
        depth_total=None,
    )
    if static.has_geometry:
        g = g._replace(
            depth=tiled(cotangents.depth_sum),
            median=tiled(cotangents.median_depth),
            normal=channels(cotangents.normal_sum),
            plane=tiled(cotangents.plane_sum),
            median_rank=tiled(drawn.median_rank, fill=-1),
        )
    if static.has_distortion:
        g = g._replace(
            distortion=tiled(cotangents.distortion),
            final_transmittance=tiled(drawn.transmittance, fill=1),
            depth_total=tiled(drawn.depth_sum),
        )
    return g


def _last_states(static: Static, grid: Grid, drawn: Drawn, cotangents: Drawn, background) -> Replay:
    """The pixels behind their last surfel."""
    by_background = (cotangents.color * background[None, None, :]).sum(axis=-1)
    behind = drawn.transmittance * (cotangents.transmittance + by_background)
    state = Replay(
        transmittance=to_tiles(drawn.transmittance, grid, fill=1),
        behind=to_tiles(behind, grid),
        depth_behind=None,
    )
    if static.has_distortion:
        state = state._replace(depth_behind=jnp.zeros_like(state.transmittance))
    return state


def _backward_view(blender: Blender, static: Static, operands, drawn: Drawn, windows, cotangents):
    """Gradients of one view to the float fields of the surfels (with `alive` None), to the pose,
    and the probe's [N,4].
    """
    surfels, camera, background = operands
    grid = binning.make_grid(static, TILE)
    projected = projection.project(surfels, camera, static)
    ordered = binning.order(projected, grid)
    g = _tiled_cotangents(static, grid, drawn, cotangents)
    state = _last_states(static, grid, drawn, cotangents, background)
    rows = _in_order_of_ids(blender.unblend(static, grid, ordered, state, g, windows), ordered)
    # Of drawn ones it is at least MIN_ALPHA.
    opacity = jnp.maximum(projected.features[:, projection.OPACITY], projection.MIN_ALPHA)
    grad_features = rows[:, : projection.NUM_FEATURES].at[:, projection.OPACITY].divide(opacity)

    def features(floats: Surfels, pose):
        moved = Camera(pose, camera.intrinsics)
        return projection.project(floats.replace(alive=surfels.alive), moved, static).features

    _, pullback = jax.vjp(features, surfels.replace(alive=None), camera.camera_from_world)
    grad_surfels, grad_pose = pullback(grad_features)
    grad_probe = jnp.concatenate(
        [rows[:, CENTER : CENTER + 2], rows[:, blending.ABSOLUTE :]], axis=1
    )
    return grad_surfels, grad_pose, grad_probe


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(blender: Blender, static: Static, surfels: Surfels, cameras: Camera, background):
    # A batch is a loop, too: lists of different lengths have little to gain from each other.
    @jax.custom_batching.sequential_vmap
    def run(surfels, cameras, background):
        return jax.lax.map(
            lambda camera: _forward_view(blender, static, surfels, camera, background), cameras
        )

    return run(surfels, cameras, background)


class _Residuals(NamedTuple):
    """What the backward pass needs of the forward pass."""

    surfels: Surfels
    cameras: Camera
    background: jax.Array
    probe: jax.Array
    drawn: Drawn
    windows: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(blender: Blender, static: Static, residuals: _Residuals, cotangents: Drawn):
    @jax.custom_batching.sequential_vmap
    def run(residuals, cotangents):
        surfels = residuals.surfels
        background = residuals.background

        def add_view(sums, view):
            camera, drawn, windows, cotangents = view
            grad_surfels, grad_pose, grad_probe = _backward_view(
                blender, static, (surfels, camera, background), drawn, windows, cotangents
            )
            return jax.tree.map(jnp.add, sums, (grad_surfels, grad_probe)), grad_pose

        zeros = (
            jax.tree.map(jnp.zeros_like, surfels.replace(alive=None)),
            jnp.zeros_like(surfels.means, shape=(surfels.means.shape[0], 4)),
        )
        zeros = jax.tree.map(lambda x: like(x, surfels.means), zeros)
        views = (residuals.cameras, residuals.drawn, residuals.windows, cotangents)
        (grad_surfels, grad_probe), grad_poses = jax.lax.scan(add_view, zeros, views)
        grad_background = jnp.einsum(
            "vhw,vhwc->c",
            residuals.drawn.transmittance,
            cotangents.color,
            precision="highest",
        )
        return grad_surfels, grad_poses, grad_background, grad_probe

    return run(residuals, cotangents)


def make_draw(blender: Blender) -> Callable:
    """A function like `native.draw` from a blender."""

    def primal(static: Static, surfels: Surfels, cameras: Camera, background, probe) -> Drawn:
        del probe  # exists for its cotangent
        return _forward(blender, static, surfels, cameras, background)[0]

    def forward(static, surfels, cameras, background, probe):
        drawn, windows = _forward(blender, static, surfels, cameras, background)
        return drawn, _Residuals(surfels, cameras, background, probe, drawn, windows)

    def backward(static, residuals, cotangents):
        # Integers and contributions have no cotangents that matter.
        cotangents = cotangents._replace(
            last_rank=None, median_rank=None, contributions=None, status=None
        )
        grad_surfels, grad_poses, grad_background, grad_probe = _backward(
            blender, static, residuals, cotangents
        )
        if not residuals.probe.size:
            grad_probe = residuals.probe
        grad_cameras = Camera(grad_poses, jnp.zeros_like(residuals.cameras.intrinsics))
        return grad_surfels, grad_cameras, grad_background, grad_probe

    draw = jax.custom_vjp(primal, nondiff_argnums=(0,))
    draw.defvjp(forward, backward)
    return draw
