"""A dataset as the rest of the package sees it, whatever its format."""

import dataclasses

import numpy as np

from cosurfgs_jax.data.ground_truth import GroundTruth
from cosurfgs_jax.files import check_name
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.views import PointCloud, Views


@dataclasses.dataclass(frozen=True)
class Scene:
    """Views sorted by name, in the dataset's frame and unit, with the images that training sees.

    | field            | shape    | unit, frame                                                    |
    |------------------|----------|----------------------------------------------------------------|
    | `name`, `path`   |          | of the dataset folder                                          |
    | `image_names`    | V names  | relative, with sub-folders; safe to name files after           |
    | `image_paths`    | V paths  | of the files that are read; "" where another process of the    |
    |                  |          | run has it                                                     |
    | `views`          | V        | poses, dataset; intrinsics and sizes of the loaded images:     |
    |                  |          | shrunk and undistorted                                         |
    | `distortion`     | V        | the lens of the shrunk photograph, undone on loading; None: it |
    |                  |          | is a pinhole                                                   |
    | `photo_sizes`    | i64[V,2] | (H, W) of the photograph, after it was turned                  |
    | `shrink_factors` | i64[V]   | by which the file is shrunk on loading                         |
    | `mask_paths`     | V paths  | or None                                                        |
    | `has_masks`      |          | whether any view has a mask file or an alpha channel           |
    | `cloud`          |          | points of structure from motion, dataset                       |
    | `is_test`        | bool[V]  | kept for testing                                               |
    | `up`             | f64[3]   | unit vector, dataset                                           |
    | `ground_truth`   |          | or None                                                        |
    | `orientations`   | V        | of EXIF, 1 to 8, by which files are turned on loading; empty:  |
    |                  |          | none is                                                        |
    | `left_out`       | names    | of the photographs of the dataset that are no views            |
    | `outside`        | names    | of files outside of the dataset's folder, or hidden in it, on  |
    |                  |          | which it depends; None: not known                              |
    """

    name: str
    path: str
    image_names: list[str]
    image_paths: list[str]
    views: Views
    distortion: list[Lens | None]
    photo_sizes: np.ndarray
    shrink_factors: np.ndarray
    mask_paths: list[str | None]
    has_masks: bool
    cloud: PointCloud
    is_test: np.ndarray
    up: np.ndarray
    ground_truth: GroundTruth | None = None
    orientations: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    outside: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in self.image_names:  # whatever reader they are from: files are named after them
            check_name(name, self.path)

    @property
    def num_views(self) -> int:
        """Training and test views together."""
        return len(self.image_names)

    @property
    def train_views(self) -> np.ndarray:
        """i64, ascending."""
        return np.flatnonzero(~self.is_test)

    @property
    def test_views(self) -> np.ndarray:
        """i64, ascending."""
        return np.flatnonzero(self.is_test)

    def with_masks(self, has_masks: bool) -> "Scene":
        """The same scene, its photographs with or without a channel for masks: all processes of a
        run load them alike.
        """
        return dataclasses.replace(self, has_masks=has_masks)

    def orientation(self, view: int | np.integer) -> int:
        """By which the file of a view is turned on loading, 1 to 8 as in EXIF; 1 = not at all."""
        return self.orientations[view] if self.orientations else 1

    def pinhole(self, view: int | np.integer) -> Lens:
        """The camera of a loaded image."""
        height, width = map(int, self.views.image_sizes[view])
        matrix = self.views.intrinsics[view].tolist()
        return Lens(
            model="PINHOLE",
            height=height,
            width=width,
            focal_px=(matrix[0][0], matrix[1][1]),
            principal_px=(matrix[0][2], matrix[1][2]),
        )
