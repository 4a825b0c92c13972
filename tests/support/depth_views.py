"""Exact depth of planes and spheres, seen by a small camera."""

import numpy as np

from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.surface.depth_view import DepthView

HEIGHT = 96
WIDTH = 128
INTRINSICS = np.array([[115.0, 0, 67.3], [0, 120.0, 44.9], [0, 0, 1]])  # off-centre, not square
# Map coordinates: float32 has steps of half a metre there.
FAR = np.array([451_234.5, 5_212_345.25, 310.0])


def rays():
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    return np.stack(
        [
            (u - INTRINSICS[0, 2]) / INTRINSICS[0, 0],
            (v - INTRINSICS[1, 2]) / INTRINSICS[1, 1],
            np.ones_like(u),
        ],
        axis=-1,
    )


def look_at(center, target, up=(0.1, 0.2, 1.0)):
    z = (target - center) / np.linalg.norm(target - center)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, np.cross(z, x), z])
    pose[:3, 3] = -pose[:3, :3] @ center
    return pose


def views_of(poses):
    """Views of these poses f64[V,4,4]."""
    return Views(
        poses,
        np.tile(INTRINSICS, (len(poses), 1, 1)),
        np.full((len(poses), 2), (HEIGHT, WIDTH)),
    )


def plane_view(pose, normal, offset, color=(60, 120, 200)):
    """Exact depth of the plane normal . x = offset."""
    normal_camera = pose[:3, :3] @ normal
    depth = ((offset + normal_camera @ pose[:3, 3]) / (rays() @ normal_camera)).astype(np.float32)
    depth[(depth <= 0) | (depth > 12)] = 0
    return DepthView(
        depth, np.broadcast_to(np.array(color, np.uint8), (HEIGHT, WIDTH, 3)), INTRINSICS, pose
    )


def sphere_view(pose, center, radius):
    """Exact depth and normals of a sphere."""
    directions = rays()
    offset = pose[:3, :3] @ center + pose[:3, 3]
    a = (directions**2).sum(-1)
    b = directions @ offset
    c = offset @ offset - radius**2
    inside = b * b - a * c
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0).astype(np.float32)
    normal = (
        np.where(depth[..., None] > 0, (directions * depth[..., None] - offset) / radius, 0)
        @ pose[:3, :3]
    )
    return DepthView(
        depth, np.full((HEIGHT, WIDTH, 3), (10, 200, 90), np.uint8), INTRINSICS, pose
    ), normal


def ring_of_views(center=FAR, radius=1.5, num=12, distance=5.0, elevations=(0.5, -0.5, 1.4, -1.4)):
    """Views of a sphere in rows around it, with their normals."""
    views = []
    for elevation in elevations:
        for angle in np.linspace(0, 2 * np.pi, num, endpoint=False):
            place = np.array(
                [
                    np.cos(elevation) * np.cos(angle),
                    np.cos(elevation) * np.sin(angle),
                    np.sin(elevation),
                ]
            )
            views.append(sphere_view(look_at(center + distance * place, center), center, radius))
    return views
