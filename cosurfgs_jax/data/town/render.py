"""Photographs of the generated town with exact depth and normals.

A pixel's depth and normal are those of the ray through its centre. Its colour is the mean of four
samples, each filtered to the size of a quarter pixel on the surface.
"""

import dataclasses
from typing import Any

import numpy as np

from cosurfgs_jax.data.town.facades import Faces
from cosurfgs_jax.data.town.flight import Flight
from cosurfgs_jax.data.town.ground import GroundPicture
from cosurfgs_jax.data.town.terrain import Terrain

_BAND_ROWS = 48  # rows of samples that are coloured together: their arrays stay in the cache
_COARSE_M = 1.2  # distance on the ground between the rays from which the others start


@dataclasses.dataclass(frozen=True)
class View:
    """One photograph and its exact geometry.

    | field    | shape      | unit, frame                                         |
    |----------|------------|-----------------------------------------------------|
    | `color`  | f32[H,W,3] | display values in [0, 1]                            |
    | `depth`  | f64[H,W]   | camera z of the surface at the pixel centres, m     |
    | `normal` | f32[H,W,3] | unit, outwards (towards the camera), local frame    |
    """

    color: np.ndarray
    depth: np.ndarray
    normal: np.ndarray


@dataclasses.dataclass(frozen=True)
class Renderer:
    """What all photographs share."""

    terrain: Terrain
    ground: GroundPicture
    faces: Faces
    flight: Flight

    def render(self, view: int) -> View:
        """Take a photograph."""
        flight = self.flight
        pose = flight.camera_from_local[view]
        center = flight.centers[view]
        # Ray of pixel coordinates (x, y), local frame, with camera z 1: base @ (x, y, 1).
        base = pose[:3, :3].T @ np.linalg.inv(flight.intrinsics)
        depth_ground = self._ground_depth(center, base)
        near_center = 1 / depth_ground
        near_sample = _double(near_center).astype(np.float32)
        face_center = np.full(near_center.shape, -1, np.int32)
        face_sample = np.full(near_sample.shape, -1, np.int32)
        self._draw_faces(
            view, center, [(1.0, near_center, face_center), (0.5, near_sample, face_sample)]
        )
        depth = np.where(face_center < 0, depth_ground, 1 / near_center)
        normal = self.faces.planes[:, :3].astype(np.float32)[face_center]
        x, y = _pixel_grid(flight, 1.0)
        is_ground = face_center < 0
        rays = [base[k, 0] * x + base[k, 1] * y + base[k, 2] for k in range(2)]
        hit = [(center[k] + (depth * rays[k])[is_ground]).astype(np.float32) for k in range(2)]
        normal[is_ground] = self.terrain.normals(*hit)
        return View(self._color(center, base, near_sample, face_sample), depth, normal)

    def _ground_depth(self, center, base) -> np.ndarray:
        """Camera z at which the ray of every pixel meets the ground: f64[H,W]."""
        flight = self.flight
        stride = int(np.clip(_COARSE_M / flight.ground_pixel_m, 1, 16))
        x = np.arange(0, flight.width + stride, stride) + 0.5
        y = np.arange(0, flight.height + stride, stride) + 0.5
        rays = [base[k, 0] * x[None, :] + base[k, 1] * y[:, None] + base[k, 2] for k in range(3)]
        near = _interpolate(
            1 / self.terrain.cut_rays(center, rays), flight.height, flight.width, stride
        )
        x, y = _pixel_grid(flight, 1.0)
        rays = [base[k, 0] * x + base[k, 1] * y + base[k, 2] for k in range(3)]
        # Inverse depth is linear in the image on planes: interpolated over a metre it is off by
        # some millimetres e, which one Newton step brings to max_curvature e^2, less than 1e-6 m.
        return self.terrain.newton_step(center, rays, 1 / near)

    def _draw_faces(self, view: int, center, layers) -> None:
        """Draw all faces into layers of samples: (step in pixels, inverse depth so far, face number
        so far).
        """
        flight = self.flight
        faces = self.faces
        pose = flight.camera_from_local[view]
        intrinsics = flight.intrinsics
        towards = faces.planes[:, :3] @ center + faces.planes[:, 3]
        points = faces.corners @ (intrinsics @ pose[:3, :3]).T + intrinsics @ pose[:3, 3]
        # Faces that reach behind the camera are far outside the picture: it looks down from well
        # above all roofs.
        is_seen = (towards > 0) & (points[..., 2].min(axis=1) > 1.0)
        numbers = np.flatnonzero(is_seen)
        pixels = points[numbers, :, :2] / points[numbers, :, 2:]
        low = pixels.min(axis=1)
        high = pixels.max(axis=1)
        is_inside = np.all((high > 0) & (low < (flight.width, flight.height)), axis=1)
        numbers = numbers[is_inside]
        pixels = pixels[is_inside]
        low = low[is_inside]
        high = high[is_inside]
        # On a plane, inverse depth is affine in the pixel: -(normal . ray) / (distance of the
        # camera to the plane).
        normals = faces.planes[numbers, :3] @ pose[:3, :3].T @ np.linalg.inv(intrinsics)
        near = -normals / towards[numbers, None]
        ends = np.roll(pixels, -1, axis=1)
        # Inside of each edge is where edge . (x, y, 1) >= 0; corners run clockwise in the image,
        # whose y points down.
        slopes = np.stack([ends[..., 1] - pixels[..., 1], pixels[..., 0] - ends[..., 0]], axis=-1)
        edges = np.concatenate([slopes, -np.sum(slopes * pixels, axis=-1, keepdims=True)], axis=-1)
        for row, number in enumerate(numbers.tolist()):
            for step, nearest, face in layers:
                _draw_face(
                    number,
                    near[row],
                    edges[row],
                    low[row] / step,
                    high[row] / step,
                    step,
                    nearest,
                    face,
                )

    def _color(self, center, base, near, face) -> np.ndarray:
        flight = self.flight
        color = np.empty((flight.height, flight.width, 3), np.float32)
        focal = np.float32(0.5 / flight.intrinsics[0, 0])
        x = _pixel_grid(flight, 0.5)[0].astype(np.float32)
        rays = base.astype(np.float32)
        origin = center.astype(np.float32)
        for start in range(0, 2 * flight.height, _BAND_ROWS):
            stop = min(start + _BAND_ROWS, 2 * flight.height)
            y = ((np.arange(start, stop) + 0.5) * 0.5).astype(np.float32)[:, None]
            depth = 1 / near[start:stop]
            directions = [rays[k, 0] * x + rays[k, 1] * y + rays[k, 2] for k in range(3)]
            position = [
                (start_k + depth * part).reshape(-1)
                for start_k, part in zip(origin, directions, strict=True)
            ]
            samples = self._sample(
                position, (depth * focal).reshape(-1), face[start:stop].reshape(-1)
            )
            for channel, values in enumerate(samples):
                grid = values.reshape(stop - start, -1)
                pairs = grid[0::2] + grid[1::2]
                color[start // 2 : stop // 2, :, channel] = (
                    pairs[:, 0::2] + pairs[:, 1::2]
                ) * np.float32(0.25 / 255)
        return color

    def _sample(self, position, pixel, face) -> list[np.ndarray]:
        """Colours of surface points (three arrays f32[n], 0 to 255) for samples of a size in
        metres.
        """
        texel = np.float32(self.ground.texture.texel)
        low = np.float32(self.ground.low)
        is_ground = face < 0
        if is_ground.all():
            return self.ground.texture.sample(
                (position[0] - low) / texel, (position[1] - low) / texel, pixel
            )
        result = [np.empty(len(face), np.float32) for _ in range(3)]
        chosen = np.flatnonzero(is_ground)
        x = position[0][chosen]
        y = position[1][chosen]
        parts = self.ground.texture.sample((x - low) / texel, (y - low) / texel, pixel[chosen])
        for whole, values in zip(result, parts, strict=True):
            whole[chosen] = values
        chosen = np.flatnonzero(~is_ground)
        numbers = face[chosen]
        x, y, z = (part[chosen] for part in position)
        table = self.faces.mapping[numbers]
        u, v = (
            table[:, k, 0] * x + table[:, k, 1] * y + table[:, k, 2] * z + table[:, k, 3]
            for k in range(2)
        )
        parts = self.faces.texture.sample(u, v, pixel[chosen])
        for channel, values in enumerate(parts):
            result[channel][chosen] = np.minimum(
                values * self.faces.gain[numbers, channel], np.float32(255)
            )
        return result


def _draw_face(number, near, edges, low, high, step, nearest, face) -> None:
    first_x = max(int(low[0] - 0.5), 0)
    first_y = max(int(low[1] - 0.5), 0)
    last_x = min(int(high[0] + 0.5) + 1, nearest.shape[1])
    last_y = min(int(high[1] + 0.5) + 1, nearest.shape[0])
    if first_x >= last_x or first_y >= last_y:
        return
    kind = nearest.dtype
    x = ((np.arange(first_x, last_x) + 0.5) * step)[None, :]
    y = ((np.arange(first_y, last_y) + 0.5) * step)[:, None]
    inside: Any = None
    for edge_x, edge_y, offset in edges.tolist():
        if edge_x == 0 and edge_y == 0:  # a repeated corner
            continue
        value = (edge_x * x).astype(kind) + (edge_y * y + offset).astype(kind)
        inside = value if inside is None else np.minimum(inside, value)
    value = (near[0] * x).astype(kind) + (near[1] * y + near[2]).astype(kind)
    part = nearest[first_y:last_y, first_x:last_x]
    is_front = (inside >= 0) & (value > part)
    np.copyto(part, value, where=is_front)
    np.copyto(face[first_y:last_y, first_x:last_x], np.int32(number), where=is_front)


def _pixel_grid(flight: Flight, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates of sample centres, `step` pixels apart: f64[1,w] and f64[h,1]."""
    x = (np.arange(round(flight.width / step)) + 0.5) * step
    y = (np.arange(round(flight.height / step)) + 0.5) * step
    return x[None, :], y[:, None]


def _interpolate(coarse, height: int, width: int, stride: int) -> np.ndarray:
    """Values at every pixel from those at every `stride`-th one, linear."""
    for count, axis in ((height, 0), (width, 1)):
        at = np.arange(count) / stride
        index = at.astype(int)
        weight = (at - index).reshape((-1, 1) if axis == 0 else (1, -1))
        low = np.take(coarse, index, axis)
        high = np.take(coarse, index + 1, axis)
        coarse = low + (high - low) * weight
    return coarse


def _double(values) -> np.ndarray:
    """Values at the centres of quarter pixels from those at pixel centres, linear, continued at the
    border.
    """
    for axis in (0, 1):
        values = np.moveaxis(values, axis, 0)
        padded = np.concatenate(
            [2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]]
        )
        result = np.empty((2 * len(values), *values.shape[1:]), values.dtype)
        result[0::2] = 0.75 * values + 0.25 * padded[:-2]
        result[1::2] = 0.75 * values + 0.25 * padded[2:]
        values = np.moveaxis(result, 0, axis)
    return values
