"""What a reader of a dataset format gets and gives: where to look; photographs with lenses and
poses, and points.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.views import PointCloud
from cosurfgs_jax.settings import DataSettings, GeneratedSettings


class Source(NamedTuple):
    """Where a dataset is looked for."""

    root: Path  # what config.data.path says; it need not be there
    data: DataSettings
    generated: GeneratedSettings
    cache_dir: Path  # for what is made from settings


@dataclasses.dataclass(frozen=True)
class Capture:
    """A dataset as its files say it, before images are opened; views in any order.

    | field                 | shape      | unit, frame                                            |
    |-----------------------|------------|--------------------------------------------------------|
    | `source`              |            | the file or folder that was read, for messages         |
    | `image_names`         | V names    | relative, with sub-folders, unique; files are named    |
    |                       |            | after them                                             |
    | `image_files`         | V names    | as the files of the dataset have them, to look for     |
    | `image_paths`         | V paths    | of full-sized photographs; None: to be looked for in   |
    |                       |            | the image folder                                       |
    | `lenses`              | V          | of the full-sized photographs                          |
    | `camera_from_dataset` | f64[V,4,4] | rigid; camera x right, y down, z forward               |
    | `cloud`               |            | of structure from motion, dataset                      |
    | `mask_paths`          | V paths    | None for a photograph whose mask the files do not name |
    | `test_names`          | names      | that the files themselves call test or validation      |
    |                       |            | images; None: they do not say                          |
    | `left_out`            | names      | of images that the files name, but that are not there  |
    |                       |            | and are no views                                       |
    | `name`                |            | of the dataset; "" = that of its folder                |
    | `root`                |            | the folder that images, masks and ground truth are     |
    |                       |            | looked for in; None = `Source.root`                    |
    | `outside`             | names      | of files outside of the dataset's folder, or hidden in |
    |                       |            | it, that were looked for; None: the reader does not    |
    |                       |            | say, and the dataset is read by every process anew     |
    """

    source: str
    image_names: list[str]
    image_files: list[str]
    image_paths: list[str | None]
    lenses: list[Lens]
    camera_from_dataset: np.ndarray
    cloud: PointCloud
    mask_paths: list[str | None]
    test_names: list[str] | None = None
    left_out: tuple[str, ...] = ()
    name: str = ""
    root: Path | None = None
    outside: tuple[str, ...] | None = None

    @property
    def num_views(self) -> int:
        """With and without a photograph that is there."""
        return len(self.image_names)

    def of_views(self, views: np.ndarray) -> "Capture":
        """The capture with some of its views, in this order; points that none of them sees stay."""
        names = set(self.image_names[view] for view in views)
        test_names = self.test_names
        if test_names is not None:
            test_names = [name for name in test_names if name in names]

        def pick(values):
            return [values[view] for view in views]

        return dataclasses.replace(
            self,
            image_names=pick(self.image_names),
            image_files=pick(self.image_files),
            image_paths=pick(self.image_paths),
            lenses=pick(self.lenses),
            mask_paths=pick(self.mask_paths),
            camera_from_dataset=self.camera_from_dataset[views],
            cloud=self.cloud.of_views(views, self.num_views),
            test_names=test_names,
        )

    def of_points(self, is_kept: np.ndarray) -> "Capture":
        """The capture with some of its points, bool[P]."""
        return dataclasses.replace(self, cloud=self.cloud.of_points(is_kept))
