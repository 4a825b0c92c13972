"""One depth map with its camera and colours, as fusion takes it."""

from typing import NamedTuple

import numpy as np


class DepthView(NamedTuple):
    """One depth map to be fused.

    | field                 | shape                     | unit, frame                             |
    |-----------------------|---------------------------|-----------------------------------------|
    | `depth`               | f32[H,W]                  | camera z in the unit of the poses, 0 =  |
    |                       |                           | invalid                                 |
    | `color`               | u8[H,W,3] or f32 in [0,1] | RGB                                     |
    | `intrinsics`          | f64[3,3]                  | pixels, x+0.5 is the centre of pixel x  |
    | `camera_from_dataset` | f64[4,4]                  | rigid; the mesh is in the dataset frame |
    """

    depth: np.ndarray
    color: np.ndarray
    intrinsics: np.ndarray
    camera_from_dataset: np.ndarray
