"""Cameras, and what of a mesh the middle of their pixels shows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface.mesh import Mesh

_FOUND = ("t_hit", "geometry_ids", "primitive_ids", "primitive_uvs")  # of Open3D


class Window(NamedTuple):
    """Pixels of a picture."""

    column: int
    row: int
    width: int
    height: int


class Camera:
    """A view, and what of the mesh it sees."""

    def __init__(self, views: Views, view: int, middle: Float[np.ndarray, "3"]):
        """Places are relative to `middle`, dataset axes."""
        pose = views.camera_from_dataset[view]
        self.rotation = pose[:3, :3].astype(np.float32)
        self.shift = (pose[:3, 3] + pose[:3, :3] @ middle).astype(np.float32)
        self.center = -(self.rotation.T @ self.shift)
        self.intrinsics = views.intrinsics[view].astype(np.float32)
        self.focal_px = float(np.sqrt(self.intrinsics[0, 0] * self.intrinsics[1, 1]))
        self.height, self.width = map(int, views.image_sizes[view])

    def project(self, places: Float[np.ndarray, "*n 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels f32[...,2] and depths f32[...]; pixels mean nothing where the depth is not
        positive.
        """
        seen = places @ self.rotation.T + self.shift
        depth = seen[..., 2]
        near = np.maximum(depth, np.float32(1e-20))[..., None]
        focal = self.intrinsics[[0, 1], [0, 1]]
        return seen[..., :2] / near * focal + self.intrinsics[:2, 2], depth

    @property
    def picture(self) -> "Window":
        """All of its pixels."""
        return Window(0, 0, self.width, self.height)

    def window(self, pixels: Float[np.ndarray, "n 2"], margin: int) -> "Window":
        """The pixels of the picture around some places in it, with a margin."""
        size = [self.width, self.height]
        first = np.clip(np.floor(pixels.min(axis=0)).astype(int) - margin, 0, size)
        end = np.clip(np.floor(pixels.max(axis=0)).astype(int) + 1 + margin, 0, size)
        return Window(int(first[0]), int(first[1]), *(end - first).tolist())

    def rays(self, window: "Window") -> Float[np.ndarray, "h w 6"]:
        """Origin and direction through the middle of every pixel of a window; a step along it is
        one of depth.
        """
        columns = np.arange(window.column, window.column + window.width)
        rows = np.arange(window.row, window.row + window.height)
        x = (columns + 0.5 - self.intrinsics[0, 2]) / self.intrinsics[0, 0]
        y = (rows + 0.5 - self.intrinsics[1, 2]) / self.intrinsics[1, 1]
        directions = np.ones((window.height, window.width, 3), np.float32)
        directions[..., 0] = x
        directions[..., 1] = y[:, None]
        rays = np.empty((window.height, window.width, 6), np.float32)
        rays[..., :3] = self.center
        rays[..., 3:] = directions @ self.rotation
        return rays

    def box_window(self, places: Float[np.ndarray, "8 3"]) -> "Window | None":
        """The pixels that may show something of a box, given by its corners; None where no pixel
        does.
        """
        seen = places @ self.rotation.T + self.shift
        depth = seen[:, 2]
        size = np.array([self.width, self.height])
        # Times the depth: such sides of the picture are planes through the camera.
        scaled = seen[:, :2] * self.intrinsics[[0, 1], [0, 1]]
        scaled += depth[:, None] * self.intrinsics[:2, 2]
        is_aside = (scaled < 0).all(axis=0) | (scaled > size * depth[:, None]).all(axis=0)
        if (depth <= 0).all() or is_aside.any():
            return None
        if (depth <= 0).any():
            return self.picture
        found = self.window(scaled / depth[:, None], margin=1)
        return found if found.width and found.height else None

    def may_see(self, corners: Float[np.ndarray, "f 3 3"], normals: Float[np.ndarray, "f 3"]):
        """bool[F], triangles that face the camera and whose box touches the picture."""
        pixels, depth = self.project(corners)
        is_before = depth > 0
        size = np.array([self.width, self.height])
        is_within = ((pixels.max(axis=1) > 0) & (pixels.min(axis=1) < size)).all(axis=1)
        # Of one that reaches behind the camera the box is not known.
        is_within |= is_before.any(axis=1) & ~is_before.all(axis=1)
        faces = ((self.center - corners[:, 0]) * normals).sum(axis=1) > 0
        return is_within & faces & is_before.any(axis=1)


class RayScene:
    """A mesh that rays are cast at, and others that hide it."""

    def __init__(self, mesh: Mesh, others: Sequence[Mesh] = ()):
        """
        Args:
            mesh: dataset frame.
            others: what is around it, dataset frame.
        Raises:
            InputError: open3d is missing.
        """
        open3d = import_open3d()
        self._tensor = open3d.core.Tensor
        self.middle = mesh.middle
        self.places = (mesh.vertices - self.middle).astype(np.float32)
        # One thread builds it, always in the same way; rays are cast by all cores.
        self._scene = open3d.t.geometry.RaycastingScene(nthreads=1)
        for each in (mesh, *others):
            places = (each.vertices - self.middle).astype(np.float32)
            self._scene.add_triangles(
                self._tensor(places), self._tensor(each.triangles.astype(np.uint32))
            )

    def camera(self, views: Views, view: int) -> Camera:
        """A view's camera."""
        return Camera(views, view, self.middle)

    def hits(self, camera: Camera, window: Window | None = None) -> dict[str, np.ndarray]:
        """What the middle of every pixel of a window shows (None: of the picture): "t_hit"
        f32[H,W], the depth, infinite where there is nothing; "geometry_ids" u32[H,W], 0 for the
        mesh; "primitive_ids" u32[H,W]; "primitive_uvs" f32[H,W,2], weights of the second and the
        third corner.
        """
        found = self._scene.cast_rays(self._tensor(camera.rays(window or camera.picture)))
        return {name: found[name].numpy() for name in _FOUND}
