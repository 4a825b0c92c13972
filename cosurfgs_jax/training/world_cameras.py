"""The views of a scene in the world frame of training, and the maps of a model in the dataset's
frame.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.geometry.z_order import z_order
from cosurfgs_jax.raster import Maps, RasterOptions, render
from cosurfgs_jax.types import Camera, Surfels


class WorldViews:
    """Cameras of a scene, moved to the training world in float64 and rounded once."""

    def __init__(self, views: Views, frame: SceneFrame):
        """
        Args:
            views: V, of the scene.
            frame: the similarity from the dataset's frame to the world.
        """
        self._poses = frame.camera_to_world_frame(views.camera_from_dataset).astype(np.float32)
        self._intrinsics = views.intrinsics.astype(np.float32)
        self._sizes = views.image_sizes

    def camera(self, view: int) -> Camera:
        """One view's camera, world frame."""
        return Camera(jnp.asarray(self._poses[view]), jnp.asarray(self._intrinsics[view]))

    def camera_arrays(self, view: int) -> Camera:
        """The same as NumPy arrays, for input that is put onto chosen devices."""
        return Camera(self._poses[view], self._intrinsics[view])

    def image_size(self, view: int) -> tuple[int, int]:
        """(H, W) of the view's loaded image."""
        height, width = self._sizes[view]
        return int(height), int(width)

    def in_space(self, chosen: np.ndarray) -> np.ndarray:
        """Views i64[n] in an order in which what stands near together shows the same ground.

        Returns:
            i64[n], places in `chosen`.
        """
        poses = self._poses[chosen]
        centers = camera_center(poses)
        ahead = poses[:, 2, :3]
        # Where the middle of the picture is on the ground, which is near z = 0, or at most two
        # lengths of the place ahead.
        reach = np.clip(centers[:, 2] / np.maximum(-ahead[:, 2], 0.05), 0, 2)
        return np.argsort(z_order(centers + reach[:, None] * ahead), kind="stable")

    def centers(self) -> np.ndarray:
        """Where the cameras stand, f32[V,3], world."""
        return camera_center(self._poses)


# Compiled once for a size, whoever draws.
render_compiled = jax.jit(render, static_argnames=("image_size", "options", "maps"))


def make_render_fn(
    surfels: Surfels,
    views: WorldViews,
    frame: SceneFrame,
    options: RasterOptions,
    maps: Maps = Maps.GEOMETRY,
) -> Callable[[int], dict[str, np.ndarray]]:
    """A function from view number to maps in the dataset's frame and unit.

    Args:
        surfels: the model, world frame.
        views, frame: of the scene.
        options: backend, near plane, background.
        maps: which maps are made.
    Returns:
        view -> {"color" f32[H,W,3], "alpha" f32[H,W], and with maps above COLOR: "depth",
        "median_depth", "plane_depth" f32[H,W] (0 = nothing), "normal" f32[H,W,3] (dataset axes)}.
    """

    def render_view(view: int) -> dict[str, np.ndarray]:
        size = views.image_size(view)
        out = render_compiled(surfels, views.camera(view), size, options, maps=maps)
        result = {"color": np.asarray(out.color), "alpha": np.asarray(out.alpha)}
        if maps >= Maps.GEOMETRY:
            for name in ("depth", "median_depth", "plane_depth"):
                result[name] = frame.depth_to_dataset(np.asarray(getattr(out, name))).astype(
                    np.float32
                )
            result["normal"] = frame.directions_to_dataset(np.asarray(out.normal)).astype(
                np.float32
            )
        return result

    return render_view
