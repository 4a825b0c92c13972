"""What several test files need."""

import os
from pathlib import Path

import numpy as np
import pytest

from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.geometry.views import PointCloud, Views


def real_scene(name: str) -> Path:
    """The folder of a real dataset, or a skip with the reason where it is not on this machine."""
    root = os.environ.get("COSURFGS_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / name / "sparse").is_dir():
        pytest.skip(
            f"no real dataset {name} in {folder}; set COSURFGS_DATA to the folder that has it"
        )
    return folder / name


def bare_scene(views: Views, points=(), **changes) -> Scene:
    """A scene of views and points f64[P,3] alone, +z up; no photograph of it is on disk."""
    num_views = len(views)
    fields = dict(
        name="bare",
        path="bare",
        image_names=[f"a/{view}.jpg" for view in range(num_views)],
        image_paths=[""] * num_views,
        views=views,
        distortion=[None] * num_views,
        photo_sizes=views.image_sizes,
        shrink_factors=np.ones(num_views, np.int64),
        mask_paths=[None] * num_views,
        has_masks=False,
        cloud=PointCloud.without_tracks(np.reshape(np.array(points, np.float64), (-1, 3))),
        is_test=np.zeros(num_views, bool),
        up=np.array([0, 0, 1.0]),
    )
    return Scene(**(fields | changes))
