"""Which points of a place some cameras could see: the crop of surface metrics."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cosurfgs_jax.geometry.views import Views

_MAX_HIDING = 300_000  # points that hide others: each camera looks at all of them


@dataclasses.dataclass(frozen=True)
class SeenRegion:
    """Which points some cameras could see: in enough images, in front, and (if depth maps are
    given) not hidden.

    Attributes:
        views: V.
        min_views: how many cameras must see a point.
        depth_of: function from view number to f32[H,W] (0 = nothing there), or None for no test of
            hiding.
        depth_tolerance: a point farther than the depth map by more than this fraction of the depth
            is hidden.
        hiding: what hides, in words, or why nothing is tested; for the reader of scores.
    """

    views: Views
    min_views: int = 2
    depth_of: Callable[[int], np.ndarray] | None = None
    depth_tolerance: float = 0.01
    hiding: str = "none is left out as hidden"

    def hidden_by(self, points: np.ndarray, spacing: float) -> "SeenRegion":
        """The same region with points that hide each other.

        Each camera gets the nearest points of a coarse image, whose pixels are two spacings wide,
        so that points of a surface in front leave no gap for those behind; what lies behind them by
        more than four such pixels (a surface seen at 76 degrees from its normal) and
        `depth_tolerance` is hidden. The rule looks at ground truth only: with the depth of the
        model that is judged, a sheet in front of the truth would hide what it fails to show, and
        score better for it.

        Args:
            points: f64[G,3]; some of them are used if there are very many.
            spacing: between neighbours.
        """
        every = -(-len(points) // _MAX_HIDING)
        chosen = points[::every]
        reach = 2 * spacing * np.sqrt(every)

        def depth_of(view: int) -> np.ndarray:
            x, y, z, inside = self._project(view, chosen)
            height, width = (int(size) for size in self.views.image_sizes[view])
            if not len(inside):
                return np.zeros((height, width), np.float32)
            focal = self.views.intrinsics[view, 0, 0]
            cell = max(1, int(np.ceil(reach * focal / np.median(z[inside]))))
            nearest = np.full((-(-height // cell), -(-width // cell)), np.inf)
            np.minimum.at(
                nearest,
                (y[inside].astype(np.int64) // cell, x[inside].astype(np.int64) // cell),
                z[inside],
            )
            farthest = np.where(np.isfinite(nearest), nearest * (1 + 4 * cell / focal), 0).astype(
                np.float32
            )
            return np.repeat(np.repeat(farthest, cell, axis=0), cell, axis=1)[:height, :width]

        return dataclasses.replace(
            self, depth_of=depth_of, hiding="what other ground truth hides is left out"
        )

    def _project(
        self, view: int, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pixels x and y, camera z (NaN behind the camera), and the numbers of the points inside
        the image.
        """
        pose = self.views.camera_from_dataset[view]
        (height, width) = self.views.image_sizes[view]
        camera = points @ pose[:3, :3].T + pose[:3, 3]
        z = np.where(camera[:, 2] > 0, camera[:, 2], np.nan)
        x = self.views.intrinsics[view, 0, 0] * camera[:, 0] / z + self.views.intrinsics[view, 0, 2]
        y = self.views.intrinsics[view, 1, 1] * camera[:, 1] / z + self.views.intrinsics[view, 1, 2]
        return x, y, z, np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))

    def contains(self, points: np.ndarray, is_hiding_tested: bool = True) -> np.ndarray:
        """Which of the points are seen.

        Args:
            points: f64[M,3], frame of the cameras.
            is_hiding_tested: False looks at the borders of the images only.
        Returns:
            bool[M].
        """
        num_views_of = np.zeros(len(points), np.int32)
        waiting = np.arange(len(points))
        for view in range(len(self.views)):
            if not len(waiting):
                break
            x, y, z, inside = self._project(view, points[waiting])
            if is_hiding_tested and self.depth_of is not None and len(inside):
                depth = self.depth_of(view)[y[inside].astype(np.int64), x[inside].astype(np.int64)]
                inside = inside[(depth > 0) & (z[inside] <= depth * (1 + self.depth_tolerance))]
            num_views_of[waiting[inside]] += 1
            waiting = waiting[num_views_of[waiting] < self.min_views]
        return num_views_of >= self.min_views
