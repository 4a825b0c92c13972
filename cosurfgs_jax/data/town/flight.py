"""The flight over the generated town: a lawn-mower pattern that looks down, and a ring of oblique
views.
"""

import dataclasses

import numpy as np

from cosurfgs_jax.data.town.terrain import Terrain
from cosurfgs_jax.geometry.cameras import camera_center

HEIGHT_M = 75.0  # above the ground
OBLIQUE_FRACTION = 0.2  # of all views
# The focal length over the diagonal of the image: 500 pixels at 640 x 480, that is 0.15 m on the
# ground per pixel.
FOCAL_OVER_DIAGONAL = 0.625


@dataclasses.dataclass(frozen=True)
class Flight:
    """The cameras.

    | field               | shape      | unit, frame                                              |
    |---------------------|------------|----------------------------------------------------------|
    | `camera_from_local` | f64[V,4,4] | rigid; camera x right, y down, z forward; local frame of |
    |                     |            | the town                                                 |
    | `intrinsics`        | f64[3,3]   | pixels, x+0.5 is the centre of pixel x; the same for all |
    |                     |            | views                                                    |
    | `width, height`     | int        | pixels                                                   |
    | `ground_pixel_m`    | float      | size of a pixel on the ground below, m                   |
    """

    camera_from_local: np.ndarray
    intrinsics: np.ndarray
    width: int
    height: int
    ground_pixel_m: float

    @property
    def centers(self) -> np.ndarray:
        """Camera centres f64[V,3], local frame."""
        return camera_center(self.camera_from_local)

    @property
    def reach(self) -> float:
        """Half side, m, of the square around the origin that holds all the ground that is seen,
        with some margin.
        """
        corners = np.array([[u, v, 1.0] for u in (0, self.width) for v in (0, self.height)])
        rays = corners @ np.linalg.inv(self.intrinsics).T
        rays = np.einsum("vji,cj->vci", self.camera_from_local[:, :3, :3], rays)
        lowest = -8.0  # no ground is lower
        seen = self.centers[:, None] + rays * ((lowest - self.centers[:, None, 2:]) / rays[..., 2:])
        return float(np.abs(seen[..., :2]).max()) + 2.0


def plan_flight(
    num_views: int, width: int, height: int, size: float, terrain: Terrain, seed: int
) -> Flight:
    """Cameras of a flight that covers the town's square.

    Args:
        num_views: photographs; a fifth of them are oblique.
        width, height: of a photograph, pixels.
        size: side of the town's square, m.
        terrain: the flight keeps its height above it, as drones with terrain following do.
        seed: of the small deviations from the plan.
    """
    rng = np.random.default_rng([seed, 2])
    num_oblique = round(OBLIQUE_FRACTION * num_views)
    poses = _mow(num_views - num_oblique, width, height, size, rng) + _ring(num_oblique, size, rng)
    matrices = []
    for (x, y), heading, tilt, roll in poses:
        # A wide mean of the ground's height: the drone does not follow single bumps.
        around = 25.0 * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
        ground = terrain.heights(x + around[:, 0], y + around[:, 1]).mean()
        center = np.array([x, y, ground + HEIGHT_M + rng.normal(0, 0.6)])
        matrices.append(_camera_from_local(center, heading, tilt, roll))
    focal = FOCAL_OVER_DIAGONAL * np.hypot(width, height)
    # The principal point lies a little off the middle, as in real cameras.
    intrinsics = np.array([[focal, 0, 0.506 * width], [0, focal, 0.491 * height], [0, 0, 1]])
    return Flight(
        camera_from_local=np.array(matrices),
        intrinsics=intrinsics,
        width=width,
        height=height,
        ground_pixel_m=HEIGHT_M / focal,
    )


def _spread(count: int) -> np.ndarray:
    """Even positions f64[count] from -0.5 to 0.5; a single one is in the middle."""
    if count < 2:
        return np.zeros(1)
    return np.linspace(-0.5, 0.5, count)


def _mow(num_views, width, height, size, rng) -> list:
    """Views along parallel lines, back and forth: ((x, y), heading, tilt, roll), m and radians."""
    # Half a footprint beyond the last camera still covers the border.
    side = max(size - 26.0, 0.5 * size)
    # Lines run along the short side of the footprint. A side overlap of 75 % and a forward one of
    # 80 % want this ratio of the two spacings.
    aspect = (1 - 0.75) * width / ((1 - 0.80) * height)
    num_lines = max(1, min(num_views, round(np.sqrt(num_views / aspect))))
    counts = np.full(num_lines, num_views // num_lines) + (
        np.arange(num_lines) < num_views % num_lines
    )
    across = _spread(num_lines) * side
    views = []
    for line, count in enumerate(counts.tolist()):
        steps = _spread(count) * side
        direction = 0.0
        if line % 2 == 1:
            steps = steps[::-1]
            direction = np.pi
        for step in steps:
            position = np.array([across[line], step]) + rng.normal(0, 0.7, 2)
            heading = direction + rng.normal(0, 0.04)
            tilt = abs(rng.normal(0.05, 0.035))
            views.append((position, heading, tilt, rng.normal(0, 0.02)))
    return views


def _ring(num_views, size, rng) -> list:
    """Oblique views from around the border to the inside, two heights of tilt."""
    views = []
    for i in range(num_views):
        angle = 2 * np.pi * (i + rng.uniform(-0.2, 0.2)) / max(num_views, 1)
        # Every third view is from nearer the centre, so that walls in the middle are seen from all
        # sides as well.
        radius = size * (0.5 if i % 3 else 0.25) * rng.uniform(0.95, 1.08)
        position = radius * np.array([np.sin(angle), np.cos(angle)])
        tilt = np.radians(rng.uniform(28, 35))
        views.append((position, angle + np.pi + rng.normal(0, 0.15), tilt, rng.normal(0, 0.02)))
    return views


def _camera_from_local(center, heading, tilt, roll) -> np.ndarray:
    """Pose f64[4,4] of a camera that looks down, tilted forwards.

    Args:
        center: f64[3], m.
        heading: clockwise from north, radians: where the top of the picture points.
        tilt: away from straight down towards the heading, radians.
        roll: about the viewing direction, radians.
    """
    ahead = np.array([np.sin(heading), np.cos(heading), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    forward = np.cos(tilt) * down + np.sin(tilt) * ahead
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]) if tilt > 1e-3 else ahead)
    right /= np.linalg.norm(right)
    below = np.cross(forward, right)
    cos = np.cos(roll)
    sin = np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = [cos * right + sin * below, cos * below - sin * right, forward]
    pose[:3, 3] = -pose[:3, :3] @ center
    return pose
