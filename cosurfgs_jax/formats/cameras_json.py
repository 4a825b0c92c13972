"""cameras.json, as the viewers of 3DGS models read it."""

from pathlib import Path

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.geometry.views import Views


def write_cameras_json(path: Path, names: list[str], views: Views) -> None:
    """Writes views, in the dataset's frame.

    Args:
        path: the file.
        names: V, of the photographs.
        views: V.
    """
    rows = []
    for view, (name, center) in enumerate(zip(names, views.centers, strict=True)):
        intrinsics = views.intrinsics[view]
        height, width = views.image_sizes[view]
        rows.append(
            {
                "id": view,
                "img_name": name,
                "width": int(width),
                "height": int(height),
                "position": center.tolist(),
                "rotation": np.transpose(views.camera_from_dataset[view, :3, :3]).tolist(),
                "fx": float(intrinsics[0, 0]),
                "fy": float(intrinsics[1, 1]),
            }
        )
    files.write_json(path, rows)
