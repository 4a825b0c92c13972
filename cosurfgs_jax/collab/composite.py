"""Sort-last rendering: every device draws its own cells, and each camera's owner puts the parts
together, front to back.

Cells of a kd-tree can be ordered front to back from any viewpoint, so the composite of their
partial images is the image of the whole model, but for surfels that reach across a wall.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosurfgs_jax.collab.exchange import Exchange, Grouping
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.raster import Maps, RasterOptions, render_sums
from cosurfgs_jax.raster.outputs import RawMaps, finish
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.types import Camera, RenderOutput, Surfels, drawn, on_host

PARTIAL_IMAGE_BYTES = 4 * 9  # of a pixel of a PartialImage
_BEHIND = np.float32(-1e6)  # camera z of everything, for a camera that sees nothing


class PartialImage(NamedTuple):
    """Sums along rays over the surfels of one cell, with any leading axes. All zero is a cell that
    is not there.
    """

    color: Float[Array, "*parts h w 3"]  # without background
    alpha: Float[Array, "*parts h w"]
    depth: Float[Array, "*parts h w"]
    normal: Float[Array, "*parts h w 3"]
    plane: Float[Array, "*parts h w"]


class RenderRequests(NamedTuple):
    """What a device draws for others, and how it composites what it receives. Leaves of one device,
    without the device axis.

    | field         | shape       | content                                                        |
    |---------------|-------------|----------------------------------------------------------------|
    | `cameras`     | [b, S b]    | for each own cell the cameras to draw it for; `null_camera`    |
    |               |             | where it is not wanted                                         |
    | `own_cameras` | [b]         | cameras of the own blocks                                      |
    | `order`       | i32[b, S b] | received parts, slot by slot and cell by cell, front to back   |
    |               |             | for each own camera                                            |

    b cells and cameras a device, S slots of the exchange.
    """

    cameras: Camera
    own_cameras: Camera
    order: Int[Array, "b s"]


def null_camera(camera: Camera) -> Camera:
    """A camera that sees nothing: drawing for it costs no more than culling the surfels."""
    pose = np.eye(4, dtype=np.float32)
    pose[2, 3] = _BEHIND
    return Camera(on_host(pose), camera.intrinsics)


class RequestPlanner:
    """Makes the render requests of a step from the views that the blocks use."""

    def __init__(self, partitioned: PartitionedScene, layout: Layout, grouping: Grouping):
        """
        Args:
            partitioned, layout: of the run.
            grouping: a block's cameras see the cells of its own group.
        """
        self._partitioned = partitioned
        self._layout = layout
        self._exchange = grouping.exchange
        self._groups = grouping.group_of_block
        poses = partitioned.views.centers()
        self._orders = partitioned.partition.front_to_back(poses)  # [V, B]

    def partners(self, block: int) -> np.ndarray:
        """The blocks whose cells are drawn for a block's cameras."""
        device = self._layout.device_of(block)
        cells = [
            cell
            for other in self._exchange.receives_of[device]
            if other >= 0
            for cell in self._layout.blocks_of(other)
        ]
        return np.array(
            [cell for cell in sorted(cells) if self._groups[cell] == self._groups[block]]
        )

    def requests(self, views: Mapping[int, int | None]) -> RenderRequests:
        """The render requests of all devices, with the device axis in front.

        Args:
            views: for every block (of all processes) its view; None = none.
        """
        return self._layout.put(lambda device: self.requests_of(device, views))

    def _blocks_at(self, device: int) -> list[int | None]:
        num_rows = self._layout.blocks_per_device
        if device < 0:
            return [None] * num_rows
        return [self._layout.block_at(device, row) for row in range(num_rows)]

    def cells_received(self, device: int) -> list[int | None]:
        """The cells whose parts come to a device, in their order there: slot by slot, cell by cell;
        None where there is none.
        """
        return [
            cell for other in self._exchange.receives_of[device] for cell in self._blocks_at(other)
        ]

    def _camera(
        self, block: int | None, cell: int | None, views: Mapping[int, int | None]
    ) -> Camera:
        """The camera that a cell is drawn for; `null_camera` where there is no such cell, or it is
        not in the camera's group.
        """
        view = _view_of(block, views)
        if view is None or cell is None or self._groups[block] != self._groups[cell]:
            return null_camera(self._partitioned.views.camera_arrays(view or 0))
        return self._partitioned.views.camera_arrays(view)

    def requests_of(self, device: int, views: Mapping[int, int | None]) -> RenderRequests:
        """The render requests of one device, as NumPy arrays; see `requests`."""
        own = self._blocks_at(device)
        cells = self.cells_received(device)
        asked = [
            block for other in self._exchange.draws_for[device] for block in self._blocks_at(other)
        ]
        cameras = _stack(
            [_stack([self._camera(block, cell, views) for block in asked]) for cell in own]
        )
        own_cameras = _stack([self._camera(block, block, views) for block in own])
        orders = np.stack([self._order(block, cells, views) for block in own])
        return RenderRequests(cameras, own_cameras, on_host(orders))

    def _order(
        self, block: int | None, cells: list[int | None], views: Mapping[int, int | None]
    ) -> np.ndarray:
        view = _view_of(block, views)
        if view is None:
            return np.arange(len(cells), dtype=np.int32)
        rank_of = {block: rank for rank, block in enumerate(self._orders[view].tolist())}
        ranks = [rank_of.get(cell, len(self._layout.blocks)) for cell in cells]
        return np.argsort(ranks, kind="stable").astype(np.int32)


def _view_of(block: int | None, views: Mapping[int, int | None]) -> int | None:
    if block is None:
        return None
    return views[block]


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def draw_part(
    surfels: Surfels, cameras: Camera, image_size: tuple[int, int], options: RasterOptions
) -> PartialImage:
    """Draws the surfels of one cell for several cameras.

    Args:
        surfels: of the cell. cameras: [n, ...]. image_size: (H, W). options: near plane and
            backend.
    Returns:
        PartialImage with a leading axis of n.
    """
    raw = render_sums(surfels, cameras, image_size, options.on_black(), maps=Maps.GEOMETRY)
    return PartialImage(
        color=raw.color,
        alpha=1.0 - raw.transmittance,
        depth=drawn(raw.depth_sum),
        normal=drawn(raw.normal_sum),
        plane=drawn(raw.plane_sum),
    )


def composite(parts: PartialImage, order: Int[Array, " s"]) -> PartialImage:
    """Composites the parts of one view.

    Args:
        parts: [s, H, W, ...], of cells. Take gradient.
        order: i32[s], front to back.
    Returns:
        PartialImage without the leading axis: the sums over all cells.
    """
    ordered = jax.tree.map(lambda leaf: leaf[order], parts)
    total = jax.tree.map(lambda leaf: leaf[0], ordered)
    transmittance = 1.0 - total.alpha
    for i in range(1, order.shape[0]):
        part = jax.tree.map(lambda leaf, i=i: leaf[i], ordered)
        total = jax.tree.map(functools.partial(_add_behind, transmittance), total, part)
        transmittance = transmittance * (1.0 - part.alpha)
    return total


def _add_behind(
    transmittance: Float[Array, "h w"], total: Float[Array, "h w *c"], part: Float[Array, "h w *c"]
) -> Float[Array, "h w *c"]:
    if part.ndim == 3:
        transmittance = transmittance[..., None]
    return total + transmittance * part


def to_output(total: PartialImage, camera: Camera, background: float) -> RenderOutput:
    """The maps of a view from its sums. There is no median depth: sums of parts do not give it."""
    transmittance = 1.0 - total.alpha
    raw = RawMaps(
        color=total.color + background * transmittance[..., None],
        transmittance=transmittance,
        depth_sum=total.depth,
        median_depth=None,
        normal_sum=total.normal,
        plane_sum=total.plane,
        distortion=None,
        contributions=None,
        num_invalid=jnp.zeros((), jnp.int32),
    )
    return finish(raw, camera)


def receive_parts(
    cells: list[Surfels],
    requests: RenderRequests,
    exchange: Exchange,
    image_size: tuple[int, int],
    options: RasterOptions,
) -> list[PartialImage]:
    """Draws this device's cells for the cameras that ask for them, and receives the parts of its
    own cameras' views. Inside shard_map.

    Args:
        cells: b models, this device's own cells. Take gradient.
        requests: of this device.
        exchange, image_size, options: static.
    Returns:
        b PartialImages with a leading axis of S * b, one for each own camera;
        `RequestPlanner.cells_received` gives their cells.
    """
    num_cells = len(cells)
    num_slots = exchange.num_slots
    drawn = [
        draw_part(
            surfels, jax.tree.map(lambda leaf, i=i: leaf[i], requests.cameras), image_size, options
        )
        for i, surfels in enumerate(cells)
    ]

    def by_slot(*leaves):  # b of [S * b, H, W, ...] -> [S, b cells, b cameras, H, W, ...]
        return jnp.stack(
            [leaf.reshape(num_slots, num_cells, *leaf.shape[1:]) for leaf in leaves], axis=1
        )

    received = exchange.swap(jax.tree.map(by_slot, *drawn))
    return [
        jax.tree.map(
            lambda leaf, i=i: leaf[:, :, i].reshape(num_slots * num_cells, *leaf.shape[3:]),
            received,
        )
        for i in range(num_cells)
    ]


def render_views(
    cells: list[Surfels],
    requests: RenderRequests,
    exchange: Exchange,
    image_size: tuple[int, int],
    options: RasterOptions,
) -> list[RenderOutput]:
    """Renders the views of this device's cameras from the whole model. Inside shard_map;
    differentiable in the surfels.

    Args:
        cells, requests, exchange, image_size, options: see `receive_parts`.
    Returns:
        b outputs, one for each own camera.
    """
    outputs = []
    for i, parts in enumerate(receive_parts(cells, requests, exchange, image_size, options)):
        camera = jax.tree.map(lambda leaf, i=i: leaf[i], requests.own_cameras)
        outputs.append(to_output(composite(parts, requests.order[i]), camera, options.background))
    return outputs
