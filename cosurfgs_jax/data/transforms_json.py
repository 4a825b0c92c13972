"""`transforms.json` of nerfstudio and its relatives: poses, cameras, and points from a PLY file or
a COLMAP model.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data import photo_files, point_ply
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.checks import COPY_OR_NAME, check_missing, some_of
from cosurfgs_jax.data.lookup import FileIndex, file_in, is_walked, say_outside
from cosurfgs_jax.data.opengl_poses import ROTATION_TOLERANCE, camera_from_opengl
from cosurfgs_jax.data.photo_search import pictures_in, with_most
from cosurfgs_jax.data.points_beside import find_points
from cosurfgs_jax.data.transforms_lens import lens_of, number_of
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import read_json, readable, reading, safe_name
from cosurfgs_jax.geometry.views import PointCloud

__all__ = ["FILE_NAME", "FORMAT", "detects", "find_files", "lens_of", "read_transforms"]
FORMAT = "transforms"
FILE_NAME = "transforms.json"
# Of datasets with a file for each part of their split, those of testing last.
_PART_NAMES = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
# Where ply_file_path is not given, in any case.
_POINT_FILES = (
    "sparse_pc.ply",
    "points3D.ply",
    "pointcloud.ply",
    "point_cloud.ply",
    "points.ply",
    "sparse.ply",
    "pcd.ply",
)
_log = logging.getLogger(__name__)
_PATHS = ("file_path", "mask_path")  # of a frame
_NO_PHOTOGRAPH = ("mask_path", "depth_file_path")  # of a frame, too
_NO_PHOTOGRAPHS = ("masks", "mask", "depth", "depths", "normals", "ground_truth")  # folders


class PoseFile(NamedTuple):
    """One JSON file: its object, what it did to the poses, and whether its photographs are for
    testing.
    """

    path: Path
    meta: dict
    applied: np.ndarray  # file from original, 4x4
    is_for_testing: bool


class _Frames(NamedTuple):
    """The frames of all files whose photograph is there; lists of equal length, but for `is_there`,
    which is of all frames.
    """

    is_there: list[bool]
    paths: list[Path]
    lenses: list
    poses: list[np.ndarray]
    masks: list[str | None]
    is_test: list[bool]


def find_files(root: Path) -> list[Path]:
    """The JSON files of a dataset: transforms.json, or one for each part of its split, in any case;
    empty where there is none.
    """
    whole = file_in(root, FILE_NAME)
    if whole is not None:
        return [whole]
    return [path for path in (file_in(root, name) for name in _PART_NAMES) if path is not None]


def _has_truth(value) -> bool:
    """Whether there is a true or false in lists."""
    if isinstance(value, list):
        return any(map(_has_truth, value))
    return isinstance(value, bool)


def _matrix(value, shape_rows: tuple[int, ...], where: str) -> np.ndarray:
    try:
        # NumPy takes words and truth for numbers.
        are_numbers = np.asarray(value).dtype.kind in "iuf" and not _has_truth(value)
        matrix = np.array(value if are_numbers else [], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty((0, 0))
    if matrix.ndim != 2 or matrix.shape[0] not in shape_rows or matrix.shape[1] != 4:
        rows = " or ".join(map(str, shape_rows))
        raise InputError(
            f"{where}: expected a matrix of {rows} rows of 4 numbers, got {repr(value)[:80]}"
        )
    if (
        len(matrix) == 4
        and not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6)
        and np.all(np.isfinite(matrix))
    ):
        raise InputError(
            f"{where}: expected a last row of 0 0 0 1, got {matrix[3].tolist()}; write the file "
            "again"
        )
    return np.concatenate([matrix[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _applied_similarity(meta: dict, source: str) -> np.ndarray:
    """file from original, 4x4: what the program that wrote the file did to the poses."""
    applied = np.eye(4)
    if meta.get("applied_transform") is not None:
        applied = _matrix(meta["applied_transform"], (3, 4), f"{source}: applied_transform")
    scale = number_of(meta, "applied_scale", source)
    if scale is not None:
        applied[:3] *= scale
    size = np.cbrt(np.linalg.det(applied[:3, :3]))
    if not size > 0 or np.any(
        np.abs(applied[:3, :3] @ applied[:3, :3].T / size**2 - np.eye(3)) > ROTATION_TOLERANCE
    ):
        raise InputError(
            f"{source}: expected applied_transform to be a rotation, a scale and a shift, got "
            f"{applied[:3].tolist()}; "
            "remove it to work in the frame of the file"
        )
    return applied


def _camera_from_dataset(frame: dict, applied: np.ndarray, where: str) -> np.ndarray:
    pose = _matrix(frame.get("transform_matrix"), (3, 4), f"{where}: transform_matrix")
    dataset_from_camera = np.linalg.inv(applied) @ pose
    rotation = dataset_from_camera[:3, :3] * np.cbrt(np.linalg.det(applied[:3, :3]))
    return camera_from_opengl(rotation, dataset_from_camera[:3, 3], where)


def _short_names(paths: list[str]) -> list[str]:
    """Names below the folders that all paths share, as in COLMAP datasets, where they are below
    images/.
    """
    parts = [safe_name(path).split("/") for path in paths]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _point_file(file: PoseFile, index: FileIndex) -> Path | None:
    """The PLY file that is named, or one of a usual name in the dataset's folder."""
    named = file.meta.get("ply_file_path")
    if named:
        if not isinstance(named, str):
            raise InputError(
                f"{file.path}: expected the path of a PLY file as ply_file_path, got "
                f"{str(named)[:60]!r}"
            )
        named = readable(named)
        found = index.find(named, str(file.path))
        if found is None:
            raise InputError(
                f"{file.path}: expected the points {named}, which it names, got no such file; copy "
                "it there"
            )
        return found
    beside = {name.casefold(): name for name in index.names() if "/" not in name}
    usual = next(
        (beside[name.casefold()] for name in _POINT_FILES if name.casefold() in beside), None
    )
    if usual is None:
        return None
    return index.folder / usual


def _points(
    root: Path, files: list[PoseFile], names: list[str], camera_from_dataset: np.ndarray
) -> PointCloud:
    index = FileIndex(root, endings=(".ply",))
    file = next((file for file in files if file.meta.get("ply_file_path")), files[0])
    path = _point_file(file, index)
    if path is None:
        known_as = [[name] for name in names]
        roots = (root, root / "colmap")
        return find_points(roots, known_as, camera_from_dataset, str(file.path))
    say_outside([path], root, str(file.path))
    in_file, colors = point_ply.read_points(path)
    points = (in_file - file.applied[:3, 3]) @ np.linalg.inv(file.applied[:3, :3]).T
    return PointCloud.without_tracks(points, colors)


def _listed_test_paths(file: PoseFile) -> set[str] | None:
    """The file's own test and validation images; None where it does not say."""
    lists = [file.meta[key] for key in ("test_filenames", "val_filenames") if file.meta.get(key)]
    if not all(
        isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in lists
    ):
        raise InputError(
            f"{file.path}: expected lists of image paths as test_filenames and val_filenames, got "
            "something else"
        )
    if not lists:
        return None
    return {readable(path) for paths in lists for path in paths}


def as_pose_file(path: Path, meta, is_for_testing: bool) -> PoseFile:
    """The content of a JSON file, checked for what all frames need.

    Raises:
        InputError: it has no list of frames, a frame has no file_path, or applied_transform makes
            no sense.
    """
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise InputError(f"{path}: expected an object with a list of frames, got something else")
    if not meta["frames"]:
        _log.warning("%s: it has no frames", path)
    for number, frame in enumerate(meta["frames"]):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise InputError(
                f"{path}: frame {number}: expected an object with file_path, got {repr(frame)[:80]}"
            )
        frame["file_path"] = readable(frame["file_path"])  # JSON can hold what is no text
    return PoseFile(path, meta, _applied_similarity(meta, str(path)), is_for_testing)


def _mask(index: FileIndex, frame: dict, where: str) -> str | None:
    if not frame.get("mask_path"):
        return None
    name = readable(str(frame["mask_path"]))
    path = index.find(name, where)
    if path is not None:
        return str(path)
    raise InputError(
        f"{where}: expected the mask {name[:200]}, got no such file; restore it or remove mask_path"
    )


def _size_of(path: Path) -> tuple[int, int]:
    header = photo_files.read_header(path)
    return header.height, header.width


def _say_without_frame(root: Path, files: list[PoseFile], frames: _Frames) -> None:
    """Says which pictures in the folders of those of frames no frame names, neither as a
    photograph nor as a mask or depth map. Lists these folders alone.
    """
    used = {os.path.abspath(path) for path in frames.paths}
    folders = {os.path.dirname(path) for path in used}
    used |= {os.path.abspath(path) for path in frames.masks if path}
    for file in files:
        for frame in file.meta["frames"]:
            named = [readable(str(frame[key])) for key in _NO_PHOTOGRAPH if frame.get(key)]
            used |= {os.path.abspath(root / name) for name in named}
    without = [
        safe_name(os.path.relpath(path, root))
        for folder in sorted(folders)
        for path in pictures_in(folder)
        if path not in used
    ]
    if without:
        _log.info(
            "%s: %d pictures beside the others have no frame and are not used: %s",
            files[0].path,
            len(without),
            some_of(without),
        )


def _add_frames(frames: _Frames, file: PoseFile, index: FileIndex, masks: FileIndex) -> None:
    """Appends the frames of a file whose photograph is there."""
    meta = file.meta
    source = str(file.path)
    paths = index.find_all([frame["file_path"] for frame in meta["frames"]], source)
    listed = _listed_test_paths(file)
    # The same photographs often serve for validation and for testing.
    again = {
        path
        for path, is_test in zip(frames.paths, frames.is_test, strict=True)
        if is_test and file.is_for_testing
    }
    for number, (frame, path) in enumerate(zip(meta["frames"], paths, strict=True)):
        frames.is_there.append(path is not None)
        if path is None or path in again:
            continue
        where = f"{source}: frame {number}"
        table = {**meta, **frame}
        size = (0, 0) if table.get("w") and table.get("h") else _size_of(path)
        frames.paths.append(path)
        frames.lenses.append(lens_of(table, size, where))
        frames.poses.append(_camera_from_dataset(frame, file.applied, where))
        frames.masks.append(_mask(masks, frame, where))
        is_listed = listed is not None and frame["file_path"] in listed
        frames.is_test.append(is_listed or file.is_for_testing)


def detects(source: Source) -> Path | None:
    """The dataset's folder, if there are files of poses in it."""
    if not find_files(source.root):
        return None
    return source.root


def read_transforms(root: Path, elsewhere: Path | None = None) -> Capture:
    """Reads `transforms.json` in a dataset's folder, or `transforms_train.json` and those of
    validation and testing.

    Output is in the frame from before `applied_transform` and `applied_scale`: both are undone for
    poses and points, as nerfstudio does when it exports to the world frame. Results then fit the
    model that the file was made from. Frames whose photograph is missing are left out, with a count
    in the log. Points come from `ply_file_path`, a PLY file of a usual name, or the COLMAP model in
    colmap/.

    Args:
        root: the dataset's folder.
        elsewhere: folder of the photographs, where it has more of them than the dataset's.
    Returns:
        A capture without tracks, and without points where there are none; `test_names` are the
        file's test_filenames and val_filenames, or the photographs of the files for validation and
        testing.
    Raises:
        InputError: damaged file, no frame with a photograph or few, points in another frame, or a
            field that makes no sense.
    Source: the data conventions of nerfstudio, instant-ngp and the original NeRF.
    """
    found = find_files(root)
    with reading(found[0], "a file of poses", "write it again"):
        files = [
            as_pose_file(path, read_json(path), path.name.lower() in _PART_NAMES[1:])
            for path in found
        ]
        folders = () if elsewhere is None else (root, elsewhere)
        return read_files(root, files, folders)


def read_file(path: Path, photographs: Path) -> Capture:
    """Reads one file of poses, of any name; its photographs are in another folder, points and masks
    beside it. See `read_transforms`.
    """
    with reading(path, "a file of poses", "write it again"):
        file = as_pose_file(path, read_json(path), False)
        return read_files(path.parent, [file], (photographs,))


def read_files(root: Path, files: list[PoseFile], folders: Sequence[Path] = ()) -> Capture:
    """The dataset of some files of poses; see `read_transforms`. Photographs are in the folder
    that has the most of them; none: in that of the dataset.
    """
    source = str(files[0].path)
    wanted = [frame["file_path"] for file in files for frame in file.meta["frames"]]
    indexes = [
        FileIndex(folder, prefer="images", leave_out=_NO_PHOTOGRAPHS)
        for folder in folders or [root]
    ]
    index = with_most(indexes, wanted, source)
    masks = FileIndex(root, prefer="masks")
    frames = _Frames([], [], [], [], [], [])
    for file in files:
        _add_frames(frames, file, index, masks)
    remedy = f"copy the images to {folders[-1]}, or give their folder" if folders else COPY_OR_NAME
    check_missing(wanted, frames.is_there, source, remedy)
    say_outside([path for path in frames.masks if path], root, source)
    _say_without_frame(root, files, frames)
    relative = [
        (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        for path in frames.paths
    ]
    names = _short_names(relative)
    camera_from_dataset = np.stack(frames.poses)
    test_names = None
    if len(files) > 1 or any(_listed_test_paths(file) for file in files):
        of_test = zip(names, frames.is_test, strict=True)
        test_names = sorted({name for name, is_test in of_test if is_test})
    return Capture(
        source=source,
        image_names=names,
        image_files=names,
        image_paths=[str(path) for path in frames.paths],
        lenses=frames.lenses,
        camera_from_dataset=camera_from_dataset,
        cloud=_points(root, files, relative, camera_from_dataset),
        mask_paths=frames.masks,
        left_out=tuple(
            safe_name(path)
            for path, is_there in zip(wanted, frames.is_there, strict=True)
            if not is_there
        ),
        test_names=test_names,
        outside=_outside(files),
    )


def _outside(files: list[PoseFile]) -> tuple[str, ...]:
    """The names in some files of poses of what is not below their folder, there or not."""
    names = []
    for file in files:
        names += [frame[key] for frame in file.meta["frames"] for key in _PATHS if frame.get(key)]
        names.append(file.meta.get("ply_file_path") or "")
    return tuple(name for name in map(str, names) if not is_walked(name))
