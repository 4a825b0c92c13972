"""What every reader of a dataset format hands over: photographs with lenses and poses,
and points.
"""

import dataclasses

import numpy as np

from cosurfgs_jax.geometry.distortion import Lens


@dataclasses.dataclass(frozen=True)
class Capture:
    """A dataset as its files say it, before images are opened; views in any order.

    | field                 | shape      | unit, frame                                             |
    |-----------------------|------------|---------------------------------------------------------|
    | `source`              |            | the file or folder that was read, for messages          |
    | `image_names`         | V names    | relative, with sub-folders, unique; files are named     |
    |                       |            | after them                                              |
    | `image_files`         | V names    | as the files of the dataset have them, to look for      |
    | `image_paths`         | V paths    | of full-sized photographs; None: to be looked for in    |
    |                       |            | the image folder                                        |
    | `lenses`              | V          | of the full-sized photographs                           |
    | `camera_from_dataset` | f64[V,4,4] | rigid, dataset frame; camera x right, y down, z forward |
    | `points`              | f64[P,3]   | dataset                                                 |
    | `point_colors`        | u8[P,3]    | RGB                                                     |
    | `track_offsets`       | i64[P+1]   | the views of point p are                                |
    |                       |            | `track_views[track_offsets[p]:track_offsets[p+1]]`      |
    | `track_views`         | i32[T]     | indices of views, ascending within a point              |
    | `mask_paths`          | V paths    | or None for those without one that is named in the      |
    |                       |            | files                                                   |
    | `test_names`          | names      | that the files themselves call test or validation       |
    |                       |            | images; None: no word                                   |
    | `left_out`            | names      | of images that the files name, but that are not there   |
    |                       |            | and are no views                                        |
    """

    source: str
    image_names: list[str]
    image_files: list[str]
    image_paths: list[str | None]
    lenses: list[Lens]
    camera_from_dataset: np.ndarray
    points: np.ndarray
    point_colors: np.ndarray
    track_offsets: np.ndarray
    track_views: np.ndarray
    mask_paths: list[str | None]
    test_names: list[str] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def num_views(self) -> int:
        """With and without a photograph that is there."""
        return len(self.image_names)

    def of_views(self, views: np.ndarray) -> "Capture":
        """The capture with some of its views, in this order; points that none of them sees stay."""
        rank = np.full(self.num_views, -1, np.int64)
        rank[views] = np.arange(len(views))
        points = np.repeat(np.arange(len(self.points)), np.diff(self.track_offsets))
        seen_by = rank[self.track_views]
        is_kept = seen_by >= 0
        points = points[is_kept]
        seen_by = seen_by[is_kept]
        counts = np.bincount(points, minlength=len(self.points))
        names = set(self.image_names[view] for view in views)

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
            track_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            track_views=seen_by[np.lexsort((seen_by, points))].astype(np.int32),
            test_names=None
            if self.test_names is None
            else [name for name in self.test_names if name in names],
        )

    def of_points(self, is_kept: np.ndarray) -> "Capture":
        """The capture with some of its points, bool[P]."""
        counts = np.diff(self.track_offsets)
        return dataclasses.replace(
            self,
            points=self.points[is_kept],
            point_colors=self.point_colors[is_kept],
            track_offsets=np.concatenate([[0], np.cumsum(counts[is_kept])]).astype(np.int64),
            track_views=self.track_views[np.repeat(is_kept, counts)],
        )
