"""Pictures of a mesh, and of points, without a graphics library: an orthographic
z-buffer in NumPy.
"""

from collections.abc import Sequence

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.surface.mesh import Mesh

_LARGEST = 8  # pixels; larger triangles are cut into four until they fit
_CHUNK = 500_000  # triangles at a time: bounds the memory
_SUPERSAMPLING = 2


def _view_axes(
    up: Sequence[float] | np.ndarray, azimuth_deg: float, elevation_deg: float
) -> np.ndarray:
    """Rows right, up and towards the viewer of an orthographic camera, for a scene with the given
    up axis.
    """
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    # For an up axis of z this is x, so that azimuth 0 looks from +x and -90 degrees from -y, with x
    # to the right.
    east = np.eye(3)[np.argmin(np.abs(up))]
    east = east - (east @ up) * up
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    azimuth = np.radians(azimuth_deg)
    elevation = np.radians(elevation_deg)
    level = np.cos(azimuth) * east + np.sin(azimuth) * north
    towards = np.cos(elevation) * level + np.sin(elevation) * up
    right = -np.sin(azimuth) * east + np.cos(azimuth) * north
    return np.stack([right, np.cross(towards, right), towards])


class _ZBuffer:
    """Which corners' blend is nearest in each pixel: weights of three vertices per pixel."""

    def __init__(self, height: int, width: int, num_channels: int = 3):
        self.shape = (height, width)
        self.nearest = np.full(height * width, -np.inf)
        self.color = np.zeros((height * width, num_channels), np.float32)

    def add(self, corners: np.ndarray, colors: np.ndarray) -> None:
        """Draws triangles: corners f64[T,3,3] as (column, row, nearness) in pixels, colours
        f32[T,3,C].
        """
        height, width = self.shape
        while len(corners):
            # Also drops what is not finite, which no cut would ever make small.
            inside = (
                np.isfinite(corners).all(axis=(1, 2))
                & (corners[:, :, :2].max(axis=1) > 0).all(axis=1)
                & (corners[:, :, :2].min(axis=1) < np.array([width, height])).all(axis=1)
            )
            corners = corners[inside]
            colors = colors[inside]
            low = np.ceil(
                corners[:, :, :2].min(axis=1) - 0.5
            )  # the first pixel centre inside the box
            size = (np.floor(corners[:, :, :2].max(axis=1) - 0.5) - low + 1).max(axis=1)
            is_small = size <= _LARGEST
            for number in range(1, _LARGEST + 1):
                group = is_small & (size == number)
                if group.any():
                    self._add_group(corners[group], colors[group], low[group], number)
            corners, colors = (_cut_in_four(values[~is_small]) for values in (corners, colors))

    def _add_group(
        self, corners: np.ndarray, colors: np.ndarray, low: np.ndarray, size: int
    ) -> None:
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (corners[:, i].T for i in range(3))
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        inverse = 1 / np.where(np.abs(area) > 1e-12, area, np.inf)
        height, width = self.shape
        for row in range(size):
            for column in range(size):
                x = low[:, 0] + column + 0.5
                y = low[:, 1] + row + 0.5
                weight_b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
                weight_c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) * inverse
                hit = np.flatnonzero(
                    (weight_b >= 0)
                    & (weight_c >= 0)
                    & (weight_b + weight_c <= 1)
                    & (inverse != 0)
                    & (x > 0)
                    & (x < width)
                    & (y > 0)
                    & (y < height)
                )
                if not len(hit):
                    continue
                b = weight_b[hit]
                c = weight_c[hit]
                nearness = az[hit] + b * (bz - az)[hit] + c * (cz - az)[hit]
                pixel = y[hit].astype(np.int64) * width + x[hit].astype(np.int64)
                np.maximum.at(self.nearest, pixel, nearness)
                wins = nearness == self.nearest[pixel]
                hit = hit[wins]
                pixel = pixel[wins]
                b = b[wins, None]
                c = c[wins, None]
                self.color[pixel] = (
                    (1 - b - c) * colors[hit, 0] + b * colors[hit, 1] + c * colors[hit, 2]
                )

    def add_squares(self, places: np.ndarray, colors: np.ndarray, size: int) -> None:
        """Draws squares of `size` pixels around f64[N,3] (column, row, nearness),
        colours f32[N,3].
        """
        height, width = self.shape
        corner = np.floor(places[:, :2] - 0.5 * size + 0.5).astype(np.int64)
        for row in range(size):
            for column in range(size):
                x = corner[:, 0] + column
                y = corner[:, 1] + row
                hit = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
                pixel = y[hit] * width + x[hit]
                nearness = places[hit, 2]
                np.maximum.at(self.nearest, pixel, nearness)
                wins = nearness == self.nearest[pixel]
                self.color[pixel[wins]] = colors[hit[wins]]

    def image(self) -> np.ndarray:
        """u8[h,w,C], white where nothing was drawn."""
        height, width = (size // _SUPERSAMPLING for size in self.shape)
        image = np.where(np.isfinite(self.nearest)[:, None], self.color, 1.0)
        image = image.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING, -1).mean(axis=(1, 3))
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _cut_in_four(triangles: np.ndarray) -> np.ndarray:
    """Each of T triangles [T,3,...] cut at the middles of its sides: [4T,3,...]."""
    a, b, c = (triangles[:, i] for i in range(3))
    ab = (a + b) / 2
    bc = (b + c) / 2
    ca = (c + a) / 2
    parts = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    return np.concatenate([np.stack(corners, axis=1) for corners in parts])


def _shade(normals: np.ndarray) -> np.ndarray:
    """Grey lit from the upper left; what turns its back to the viewer is reddish, so that flipped
    pieces show.
    """
    light = np.array([-0.45, 0.55, 0.7]) / np.linalg.norm([0.45, 0.55, 0.7])
    color = (0.22 + 0.72 * np.clip(normals @ light, 0, 1))[:, None] * np.array([0.93, 0.95, 1.0])
    color[normals[:, 2] < 0] *= np.array([0.9, 0.4, 0.4])
    return color


def draw_mesh(
    mesh: Mesh,
    *,
    up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0),
    azimuth_deg: float = -60.0,
    elevation_deg: float = 35.0,
    width: int = 720,
    fitting: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a mesh orthographically on white, in its colours and as a shape.

    Args:
        mesh: any frame.
        up: f64[3], which way is up in that frame.
        azimuth_deg: direction from which it is seen, around `up`.
        elevation_deg: 90 = from above, 0 = from the side.
        width: pixels; the height follows the mesh.
        fitting: f64[K,3], what must fit into the picture; None = the mesh. Pictures of the same
            view and points are in register.
    Returns:
        u8[h,width,3] with the vertex colours, and u8[h,width,3] in grey, lit by the normals.
    Raises:
        InputError: the mesh is empty.
    """
    if not len(mesh.triangles):
        raise InputError("mesh: expected triangles to draw, got none")
    axes = _view_axes(up, azimuth_deg, elevation_deg)
    shades = _shade(mesh.vertex_normals @ axes.T)
    colors = np.concatenate([mesh.vertex_colors / 255.0, shades], axis=1).astype(np.float32)
    placed, buffer = _partitioned(mesh.vertices, axes, width, fitting, num_channels=6)
    for start in range(0, len(mesh.triangles), _CHUNK):
        triangles = mesh.triangles[start : start + _CHUNK]
        buffer.add(placed[triangles], colors[triangles])
    image = buffer.image()
    return image[..., :3], image[..., 3:]


def draw_points(
    points: np.ndarray,
    colors: np.ndarray,
    *,
    up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0),
    azimuth_deg: float = -60.0,
    elevation_deg: float = 35.0,
    width: int = 720,
    fitting: np.ndarray | None = None,
) -> np.ndarray:
    """Draws points as squares, about as large as the gaps between them, orthographically on white.

    Args:
        points: f64[N,3], any frame. colors: u8[N,3].
        up, azimuth_deg, elevation_deg, width, fitting: see `draw_mesh`.
    Returns:
        u8[h,width,3].
    Raises:
        InputError: there is no point.
    """
    if not len(points):
        raise InputError("points: expected some to draw, got none")
    placed, buffer = _partitioned(
        points, _view_axes(up, azimuth_deg, elevation_deg), width, fitting
    )
    size = int(np.clip(round(1.5 * np.sqrt(np.prod(buffer.shape) / len(points))), 1, _LARGEST))
    buffer.add_squares(placed, (colors / 255.0).astype(np.float32), size)
    return buffer.image()


def _partitioned(
    points: np.ndarray,
    axes: np.ndarray,
    width: int,
    fitting: np.ndarray | None,
    num_channels: int = 3,
) -> tuple[np.ndarray, _ZBuffer]:
    """Points as (column, row, nearness) f64[N,3] in pixels of an empty picture that fits them, or
    other points.
    """
    center = points.mean(axis=0)
    seen = (points - center) @ axes.T
    bounds = seen if fitting is None else (fitting - center) @ axes.T
    # A few stray pieces must not make the rest tiny.
    low, high = np.percentile(bounds[:, :2], [0.1, 99.9], axis=0)
    margin = 0.02 * (high - low).max()
    low = low - margin
    high = high + margin
    height = int(
        np.clip(round(width * (high[1] - low[1]) / (high[0] - low[0])), width // 4, 2 * width)
    )
    scale = _SUPERSAMPLING * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
    size = _SUPERSAMPLING * np.array([width, height])
    placed = (seen[:, :2] - (low + high) / 2) * scale * np.array([1, -1]) + size / 2
    buffer = _ZBuffer(int(size[1]), int(size[0]), num_channels)
    return np.concatenate([placed, seen[:, 2:] * scale], axis=1), buffer
