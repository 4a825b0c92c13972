"""Points where structure from motion found none: plain ground, roads and roofs, on the planes
between its points.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial import Delaunay, QhullError, cKDTree

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.view_pairs import is_inside
from cosurfgs_jax.geometry.views import PointCloud, Views

# Lengths in a picture are counted in the spacing that the points seen there would have, were they
# spread evenly.
_GAP = 1.5  # where the nearest point is farther away is a gap
_LATTICE = 1.0  # between the points that fill it
_COARSER = 1.5  # and where that makes too many: both times this, once or more
# The corners of a triangle count as one surface where their depths differ by less than this factor:
# at 1.1 every second point in a town hung between a roof and the ground.
_MAX_DEPTH_RATIO = 1.02
_MIN_POINTS = 4  # a view with fewer has no triangles to speak of


def gap_points(
    cloud: PointCloud,
    chosen: Int[np.ndarray, " n"],
    views: Views,
    *,
    used: Int[np.ndarray, " m"],
    most: int,
) -> tuple[Float[np.ndarray, "k 3"], UInt8[np.ndarray, "k 3"]]:
    """Points on the planes between those of structure from motion, where views see none for a long
    way.

    In every view the points that it sees are triangulated (Delaunay). Where a pixel is far from all
    of them and lies in a triangle whose corners are about equally deep, a point is put on the
    triangle, in its corners' colours. What one view fills is no gap for the next.

    Args:
        cloud: its points, and which views see them; without tracks a view sees all that fall into
            its picture.
        chosen: the points that count.
        views: in the cloud's frame.
        used: indices of the M views, in their order.
        most: points to make. Where there would be more, gaps and what fills them are coarser.
    Returns:
        f64[K,3] in the cloud's frame, and their colours u8[K,3]; K <= most.
    Source: ours. Depth between the corners is that of the plane through them, whose inverse is
        linear in pixels.
    """
    is_chosen = np.zeros(len(cloud), bool)
    is_chosen[chosen] = True
    pictures = [
        picture
        for picture in (_Picture.of(cloud, is_chosen, views, view) for view in used.tolist())
        if picture is not None
    ]
    coarseness = 1.0
    while most > 0:
        points = np.zeros((0, 3))
        colors = np.zeros((0, 3), np.uint8)
        for picture in pictures:
            more, their_colors = picture.fill(points, coarseness)
            points = np.concatenate([points, more])
            colors = np.concatenate([colors, their_colors])
            if len(points) > most:
                break
        if len(points) <= most:
            return points, colors
        coarseness *= _COARSER
    return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)


class _Picture:
    """What a view sees of a cloud, triangulated."""

    def __init__(
        self, views: Views, view: int, points: np.ndarray, colors: UInt8[np.ndarray, "p 3"]
    ):
        """
        Args:
            views, view: which it is.
            points: f64[P,3], in the picture.
            colors: theirs.
        Raises:
            QhullError: the points lie in a line.
        """
        self._views = views
        self._view = view
        self._pose = views.camera_from_dataset[view]
        self._intrinsics = views.intrinsics[view]
        self._pixels, self._depths = cameras.project(points, self._pose, self._intrinsics)
        self._colors = colors
        self._triangles = Delaunay(self._pixels)
        self._spacing = float(np.sqrt(views.image_sizes[view].prod() / len(points)))

    @staticmethod
    def of(cloud: PointCloud, is_chosen: np.ndarray, views: Views, view: int) -> "_Picture | None":
        """None: there are too few points in it, or they lie in a line."""
        seen = np.arange(len(cloud))
        if cloud.has_tracks:
            seen = cloud.sightings.of(view)
        seen = seen[is_chosen[seen]]
        seen = seen[is_inside(views, view, cloud.points[seen])]
        if len(seen) < _MIN_POINTS:
            return None
        try:
            return _Picture(views, view, cloud.points[seen], cloud.colors[seen])
        except QhullError:
            return None

    def fill(self, others: np.ndarray, coarseness: float) -> tuple[np.ndarray, np.ndarray]:
        """Points for its gaps and their colours.

        Args:
            others: f64[K,3], points besides the cloud's that leave no gap where they are.
            coarseness: 1 or more.
        """
        others = others[is_inside(self._views, self._view, others)]
        pixels, _ = cameras.project(others, self._pose, self._intrinsics)
        lattice = self._gaps(np.concatenate([self._pixels, pixels]), coarseness)
        triangle = self._triangles.find_simplex(lattice)
        lattice = lattice[triangle >= 0]
        triangle = triangle[triangle >= 0]
        corners = self._triangles.simplices[triangle]
        corner_depths = self._depths[corners]
        is_flat = corner_depths.max(axis=1) < _MAX_DEPTH_RATIO * corner_depths.min(axis=1)
        lattice, triangle, corners = lattice[is_flat], triangle[is_flat], corners[is_flat]
        transforms = self._triangles.transform[triangle]
        weights = np.einsum("mij,mj->mi", transforms[:, :2], lattice - transforms[:, 2])
        weights = np.concatenate([weights, 1 - weights.sum(axis=1, keepdims=True)], axis=1)
        depths = 1 / (weights / self._depths[corners]).sum(axis=1)
        in_camera = cameras.back_project(lattice, depths, self._intrinsics)
        points = (in_camera - self._pose[:3, 3]) @ self._pose[:3, :3]
        colors = np.einsum("mk,mkc->mc", weights, self._colors[corners].astype(np.float64))
        return points, np.clip(np.round(colors), 0, 255).astype(np.uint8)

    def _gaps(self, taken: np.ndarray, coarseness: float) -> np.ndarray:
        """Pixels of a lattice that are far from all those taken, f64[M,2]."""
        height, width = self._views.image_sizes[self._view]
        step = _LATTICE * coarseness * self._spacing
        across, down = np.meshgrid(
            np.arange(step / 2, width, step), np.arange(step / 2, height, step)
        )
        lattice = np.stack([across.ravel(), down.ravel()], axis=1)
        distances, _ = cKDTree(taken).query(lattice)
        return lattice[distances > _GAP * coarseness * self._spacing]
