"""What every reader of a dataset format hands over: photographs with lenses and poses, and points."""

import dataclasses

import numpy as np

from cosurfgs_jax.geometry.distortion import Lens


@dataclasses.dataclass(frozen=True)
class Capture:
    """A dataset as its files say it, before images are opened; views in any order.

    | field               | shape        | unit, frame                                                               |
    |---------------------|--------------|---------------------------------------------------------------------------|
    | `source`            |              | the file or folder that was read, for messages                            |
    | `image_names`       | V names      | relative, with sub-folders, unique                                        |
    | `image_paths`       | V paths      | of full-sized photographs; None: the name, in the image folder            |
    | `lenses`            | V            | of the full-sized photographs                                             |
    | `camera_from_world` | f64[V,4,4]   | rigid, dataset frame; camera x right, y down, z forward                   |
    | `points`            | f64[P,3]     | dataset                                                                   |
    | `point_colors`      | u8[P,3]      | RGB                                                                       |
    | `track_offsets`     | i64[P+1]     | the views of point p are `track_views[track_offsets[p]:track_offsets[p+1]]` |
    | `track_views`       | i32[T]       | indices of views, ascending within a point                                |
    | `mask_paths`        | V paths      | or None for those without one that is named in the files                  |
    | `test_names`        | names        | that the files themselves call test or validation images; None: no word   |
    """

    source: str
    image_names: list[str]
    image_paths: list[str | None]
    lenses: list[Lens]
    camera_from_world: np.ndarray
    points: np.ndarray
    point_colors: np.ndarray
    track_offsets: np.ndarray
    track_views: np.ndarray
    mask_paths: list[str | None]
    test_names: list[str] | None = None
