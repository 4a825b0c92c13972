"""Points where structure from motion found none: plain ground, roads and roofs, on the planes
between its points.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial import Delaunay, QhullError, cKDTree

from cosurfgs_jax.geometry.views import PointCloud, Views

# Lengths in a picture are counted in the spacing that the points seen there would have, were they
# spread evenly.
_GAP = 1.5  # where the nearest point is farther away is a gap
_LATTICE = 1.0  # between the points that fill it
_COARSER = 1.5  # and where that makes too many: both times this, once or more
# The corners of a triangle count as one surface where their depths differ by less than this factor:
# at 1.1 every second point in a town hung between a roof and the ground.
_MAX_DEPTH_RATIO = 1.02
_LEAST_POINTS = 4  # a view with fewer has no triangles to speak of


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
        self,
        pose: Float[np.ndarray, "4 4"],
        intrinsics: Float[np.ndarray, "3 3"],
        size: tuple[int, int],
        points: Float[np.ndarray, "p 3"],
        colors: UInt8[np.ndarray, "p 3"],
    ):
        self._pose = pose
        self._intrinsics = intrinsics
        self._size = size
        self._pixels, self._depths, is_inside = self._project(points)
        self._pixels, self._depths = self._pixels[is_inside], self._depths[is_inside]
        self._colors = colors[is_inside]

    @staticmethod
    def of(cloud: PointCloud, is_chosen: np.ndarray, views: Views, view: int) -> "_Picture | None":
        """None: there are too few points in it, or they lie in a line."""
        if cloud.has_tracks:
            sightings = cloud.sightings
            seen = sightings.points[sightings.offsets[view] : sightings.offsets[view + 1]]
            seen = seen[is_chosen[seen]]
        else:
            seen = np.flatnonzero(is_chosen)
        height, width = views.image_sizes[view]
        picture = _Picture(
            pose=views.camera_from_dataset[view],
            intrinsics=views.intrinsics[view],
            size=(int(height), int(width)),
            points=cloud.points[seen],
            colors=cloud.colors[seen],
        )
        return picture if picture._triangulate() else None

    def _triangulate(self) -> bool:
        if len(self._pixels) < _LEAST_POINTS:
            return False
        try:
            self._triangles = Delaunay(self._pixels)
        except QhullError:
            return False
        height, width = self._size
        self._spacing = float(np.sqrt(height * width / len(self._pixels)))
        return True

    def _project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [P,2], depths [P], and which of the points lie in the picture, [P]."""
        in_camera = points @ self._pose[:3, :3].T + self._pose[:3, 3]
        depths = in_camera[:, 2]
        is_before = depths > 0
        pixels = (in_camera / np.where(is_before, depths, 1.0)[:, None]) @ self._intrinsics.T
        height, width = self._size
        is_inside = is_before & (pixels[:, :2] >= 0).all(axis=1)
        is_inside &= (pixels[:, 0] < width) & (pixels[:, 1] < height)
        return pixels[:, :2], depths, is_inside

    def fill(self, others: np.ndarray, coarseness: float) -> tuple[np.ndarray, np.ndarray]:
        """Points for its gaps and their colours.

        Args:
            others: f64[K,3], points besides the cloud's that leave no gap where they are.
            coarseness: 1 or more.
        """
        pixels, of_others, is_inside = self._project(others)
        lattice = self._gaps(np.concatenate([self._pixels, pixels[is_inside]]), coarseness)
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
        rays = np.concatenate([lattice, np.ones((len(lattice), 1))], axis=1)
        in_camera = rays @ np.linalg.inv(self._intrinsics).T * depths[:, None]
        points = (in_camera - self._pose[:3, 3]) @ self._pose[:3, :3]
        colors = np.einsum("mk,mkc->mc", weights, self._colors[corners].astype(np.float64))
        return points, np.clip(np.round(colors), 0, 255).astype(np.uint8)

    def _gaps(self, taken: np.ndarray, coarseness: float) -> np.ndarray:
        """Pixels of a lattice that are far from all those taken, f64[M,2]."""
        height, width = self._size
        step = _LATTICE * coarseness * self._spacing
        across, down = np.meshgrid(
            np.arange(step / 2, width, step), np.arange(step / 2, height, step)
        )
        lattice = np.stack([across.ravel(), down.ravel()], axis=1)
        distances, _ = cKDTree(taken).query(lattice)
        return lattice[distances > _GAP * coarseness * self._spacing]
