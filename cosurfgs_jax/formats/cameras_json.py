"""cameras.json, as the viewers of 3DGS models read it."""

from pathlib import Path

import numpy as np

from cosurfgs_jax import files


def write_cameras_json(path: Path, scene) -> None:
    """Writes all views of a scene.

    Args:
        path: the file.
        scene: image_names, camera_from_dataset, intrinsics and image_sizes are used.
    """
    rows = []
    for view, name in enumerate(scene.image_names):
        pose = scene.camera_from_dataset[view]
        intrinsics = scene.intrinsics[view]
        height, width = scene.image_sizes[view]
        rows.append(
            {
                "id": view,
                "img_name": name,
                "width": int(width),
                "height": int(height),
                "position": (-pose[:3, :3].T @ pose[:3, 3]).tolist(),
                "rotation": np.transpose(pose[:3, :3]).tolist(),
                "fx": float(intrinsics[0, 0]),
                "fy": float(intrinsics[1, 1]),
            }
        )
    files.write_json(path, rows)
