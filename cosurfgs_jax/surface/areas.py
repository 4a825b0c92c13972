"""The areas of a mesh and which views may touch them, from poses and depth limits alone: who makes
some areas draws their views, and no others.
"""

from typing import NamedTuple

import numpy as np

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.surface.integration import FieldGrid
from cosurfgs_jax.surface.voxel_blocks import AREA, BLOCK, box_of_area

_SLACK = 1e-3  # blocks, for rounding
_INDEX_BITS = 16  # of the lattice: blocks have numbers of 20 bits


class Area(NamedTuple):
    """A cell of the lattice that a mesh is cut into.

    | field   | shape  | content                                                               |
    |---------|--------|-----------------------------------------------------------------------|
    | `index` | 3 ints | of the lattice (`voxel_blocks.area_of`)                               |
    | `views` | i64[n] | those that may touch its blocks or their halo, and more, ascending    |
    """

    index: tuple[int, int, int]
    views: np.ndarray

    @property
    def name(self) -> str:
        """Names sort along a Z-order curve, which does not depend on what other areas there are."""
        code = 0
        for bit in range(_INDEX_BITS):
            for axis, number in enumerate(self.index):
                code |= ((number + (1 << (_INDEX_BITS - 1))) >> bit & 1) << (3 * bit + axis)
        return f"{code:016x}"


def index_of(row: np.ndarray) -> tuple[int, int, int]:
    """The index of an area, from i64[3]."""
    x, y, z = map(int, row)
    return x, y, z


def plan_areas(views: Views, limits: np.ndarray, grid: FieldGrid) -> list[Area]:
    """All areas that a view may touch, in the order of their names.

    Args:
        views: V that are fused.
        limits: f64[V,2], nearest and farthest depth that is fused, finite.
        grid: of the field.
    """
    seen: dict[tuple[int, int, int], list[int]] = {}
    for view in range(len(views)):
        for index in _areas_of_view(views, view, limits[view], grid):
            seen.setdefault(index, []).append(view)
    areas = [Area(index, np.array(members, np.int64)) for index, members in seen.items()]
    return sorted(areas, key=lambda area: area.name)


def _areas_of_view(
    views: Views, view: int, limits: np.ndarray, grid: FieldGrid
) -> list[tuple[int, int, int]]:
    """The areas whose boxes, with their halo, meet what a view sees within its limits."""
    corners = _corners(views, view, limits, grid)
    low = np.floor((corners.min(axis=0) - AREA // 2 - 1 - _SLACK) / AREA).astype(np.int64)
    high = np.floor((corners.max(axis=0) + AREA // 2 + _SLACK) / AREA).astype(np.int64)
    ranges = (range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    index = np.stack(np.meshgrid(*(np.array(r) for r in ranges), indexing="ij"), axis=-1)
    index = index.reshape(-1, 3)
    first, last = box_of_area(index)
    middle = (first + last + 1) / 2  # with the halo
    half = (AREA + 1) / 2 + _SLACK
    keep = np.ones(len(index), bool)
    for normal in _side_normals(corners):
        # Apart where all of the box is farther along the normal than all corners.
        nearest = middle @ normal - half * np.abs(normal).sum()
        keep &= nearest <= (corners @ normal).max()
    return [index_of(row) for row in index[keep]]


def _corners(views: Views, view: int, limits: np.ndarray, grid: FieldGrid) -> np.ndarray:
    """The corners f64[8,3] of what a view sees within its limits, widened by the truncation, in
    blocks: first those of the near side, then those of the far one, around the picture.
    """
    height, width = views.image_sizes[view]
    pixels = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    depths = np.array([limits[0] - grid.truncation, limits[1] + grid.truncation])
    points = [
        cameras.back_project(pixels, np.full(4, depth), views.intrinsics[view]) for depth in depths
    ]
    dataset_from_camera = cameras.invert_rigid(views.camera_from_dataset[view])
    places = np.concatenate(points) @ dataset_from_camera[:3, :3].T + dataset_from_camera[:3, 3]
    return (places - grid.origin) / (BLOCK * grid.voxel_size)


def _side_normals(corners: np.ndarray) -> list[np.ndarray]:
    """Normals of the six sides of a cut pyramid, outwards or inwards: both ways are tried."""
    near = corners[:4]
    far = corners[4:]
    around = [
        np.cross(far[side] - near[side], far[(side + 1) % 4] - near[(side + 1) % 4])
        for side in range(4)
    ]
    across = np.cross(far[1] - far[0], far[2] - far[0])
    normals = [*around, across]
    lengths = [np.linalg.norm(normal) for normal in normals]
    units = [n / length for n, length in zip(normals, lengths, strict=True) if length > 0]
    return [sign * unit for unit in units for sign in (1, -1)]
