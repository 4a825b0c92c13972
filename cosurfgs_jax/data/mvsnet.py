"""The layout of MVSNet, in which BlendedMVS is distributed: a text file of each camera in cams/."""

from pathlib import Path

import numpy as np

from cosurfgs_jax.data import photo_files
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.checks import check_missing
from cosurfgs_jax.data.lookup import FileIndex
from cosurfgs_jax.data.opengl_poses import nearest_rotation
from cosurfgs_jax.data.points_beside import find_points
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import number, read_lines, reading, safe_name
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params

EXPECTED = "MVSNet's cams/<name>_cam.txt"
_ENDING = "_cam.txt"
_PHOTOGRAPHS = ("blended_images", "images")


def _photographs(root: Path) -> Path | None:
    return next((root / name for name in _PHOTOGRAPHS if (root / name).is_dir()), None)


def detects(source: Source) -> Path | None:
    """The dataset's folder, if it has this layout."""
    root = source.root
    if _photographs(root) is None or next((root / "cams").glob(f"*{_ENDING}"), None) is None:
        return None
    return root


def _read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """camera_from_dataset f64[4,4] and intrinsics f64[3,3] of a text file."""
    with reading(path, "a text file of a camera, extrinsic and intrinsic", "restore it"):
        words = " ".join(read_lines(path)).split()
        if words[:1] != ["extrinsic"] or words[17:18] != ["intrinsic"] or len(words) < 27:
            raise ValueError("it is not extrinsic, 16 numbers, intrinsic and 9 numbers")
        pose = np.array([number(word) for word in words[1:17]]).reshape(4, 4)
        intrinsics = np.array([number(word) for word in words[18:27]]).reshape(3, 3)
    if not np.array_equal(pose[3], [0, 0, 0, 1]):
        raise InputError(f"{path}: expected a last row of 0 0 0 1, got {pose[3].tolist()}")
    if np.any(intrinsics[[0, 1, 2, 2], [1, 0, 0, 1]]):
        raise InputError(
            f"{path}: expected a pinhole without skew, got {intrinsics.tolist()}; undistort the "
            "images first"
        )
    pose[:3, :3] = nearest_rotation(pose[:3, :3], str(path))
    return pose, intrinsics


def _lens(path: Path, intrinsics: np.ndarray, photograph: Path) -> Lens:
    header = photo_files.read_header(photograph)
    params = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
    try:
        return lens_from_params("PINHOLE", header.height, header.width, params)
    except (InputError, OverflowError) as error:
        raise InputError(f"{path}: {error}") from None


def read_mvsnet(root: Path) -> Capture:
    """Reads a dataset in the layout of MVSNet: cameras of cams/, photographs of blended_images/ or
    images/ (those with masked backgrounds beside them are not taken).

    Points come from a COLMAP model in sparse/ or colmap/sparse/, of any frame; the layout has none.

    Args:
        root: the dataset's folder.
    Returns:
        A capture without tracks and without a split. Photographs that are not there are left out,
        with a count in the log.
    Raises:
        InputError: a camera's file that is damaged; most photographs are missing; a COLMAP model of
            other poses.
    Source: the description of the input of MVSNet.
    """
    files = sorted((root / "cams").glob(f"*{_ENDING}"))
    stems = [path.name.removesuffix(_ENDING) for path in files]
    folder = _photographs(root)
    paths = FileIndex(folder or root).find_all(stems, str(root / "cams"))
    check_missing(stems, [path is not None for path in paths], str(root / "cams"))
    names = []
    lenses = []
    poses = []
    for file, path in zip(files, paths, strict=True):
        if path is not None:
            pose, intrinsics = _read_camera(file)
            names.append(path.name)
            lenses.append(_lens(file, intrinsics, path))
            poses.append(pose)
    known_as = [[name] for name in names]
    camera_from_dataset = np.stack(poses)
    return Capture(
        source=str(root / "cams"),
        image_names=names,
        image_files=names,
        image_paths=[str(path) for path in paths if path is not None],
        lenses=lenses,
        camera_from_dataset=camera_from_dataset,
        cloud=find_points((root, root / "colmap"), known_as, camera_from_dataset, str(root)),
        mask_paths=[None] * len(names),
        left_out=tuple(
            safe_name(stem) for stem, path in zip(stems, paths, strict=True) if path is None
        ),
        outside=(),
    )
