"""`transforms.json` of nerfstudio and its relatives: poses, cameras, and points from a PLY file or a COLMAP model."""

import logging
import math
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import colmap
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import read_json
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params
from cosurfgs_jax.ply_file import columns, read_ply

FILE_NAME = "transforms.json"
_CAMERA_KEYS = ("camera_model", "fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h", "k1", "k2",
                "k3", "k4", "p1", "p2")  # fmt: skip
_POINT_FILES = ("sparse_pc.ply", "points3D.ply")  # where ply_file_path is not given
_ENDINGS = (".png", ".jpg", ".jpeg", ".JPG", ".PNG")  # for names without one
# Rotations are written with 6 to 17 digits; beyond this a matrix is none.
_ROTATION_TOLERANCE = 1e-3
# Of the reach of the cameras, and of a rotation's entries: far above rounding, far below any change of frame.
_POSE_TOLERANCE = 1e-2


def _number(table: dict, key: str, where: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: expected a number as {key}, got {value!r}")
    return float(value)


def lens_of(table: dict, size: tuple[int, int], where: str) -> Lens:
    """The lens of a frame.

    Args:
        table: its camera fields; those of the file where the frame has none of its own.
        size: (H, W) of the photograph on disk, used where `h` and `w` are missing.
        where: file and frame, for messages.
    Raises:
        InputError: no focal length, an unknown camera model, or a coefficient that has no agreed meaning.
    """
    values = {key: _number(table, key, where) for key in _CAMERA_KEYS if key != "camera_model"}
    height, width = int(values["h"] or size[0]), int(values["w"] or size[1])
    focal_x, focal_y = values["fl_x"], values["fl_y"]
    if focal_x is None and values["camera_angle_x"]:
        focal_x = width / 2 / math.tan(values["camera_angle_x"] / 2)
    if focal_y is None and values["camera_angle_y"] and values["fl_x"] is None:
        focal_y = height / 2 / math.tan(values["camera_angle_y"] / 2)
    if focal_x is None:
        raise InputError(f"{where}: expected fl_x (the focal length in pixels) or camera_angle_x, got neither")
    centre_x, centre_y = values["cx"], values["cy"]
    params = [focal_x, focal_x if focal_y is None else focal_y]
    params += [width / 2 if centre_x is None else centre_x, height / 2 if centre_y is None else centre_y]
    k1, k2, k3, k4, p1, p2 = (values[key] or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = table.get("camera_model", "OPENCV")
    if model in ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV"):
        if k4:
            # nerfstudio multiplies it with r^8, OpenCV divides by 1 + k4 r^2: the file does not say which is meant.
            raise InputError(f"{where}: expected no k4 with camera_model {model}, got {k4}; undistort the images first")
        model, params = ("FULL_OPENCV", [*params, k1, k2, p1, p2, k3, 0, 0, 0]) if k3 else (
            "OPENCV", [*params, k1, k2, p1, p2])  # fmt: skip
    elif model == "OPENCV_FISHEYE":
        params += [k1, k2, k3, k4]
    elif model in ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        model = "PINHOLE"
    else:
        raise InputError(f"{where}: expected camera_model OPENCV, OPENCV_FISHEYE or PINHOLE, got {model!r}")
    try:
        return lens_from_params(model, height, width, params)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _matrix(value, shape_rows: tuple[int, ...], where: str) -> np.ndarray:
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.shape[0] not in shape_rows or matrix.shape[1] != 4:
        rows = " or ".join(map(str, shape_rows))
        raise InputError(f"{where}: expected a matrix of {rows} rows of 4 numbers, got {repr(value)[:80]}")
    return np.concatenate([matrix[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _nearest_rotation(matrix: np.ndarray, where: str) -> np.ndarray:
    if not np.all(np.isfinite(matrix)):
        return matrix  # refused later, with the view's name, as any pose that is not finite
    left, scales, right = np.linalg.svd(matrix)
    if np.any(np.abs(scales - 1) > _ROTATION_TOLERANCE) or np.linalg.det(matrix) < 0:
        raise InputError(f"{where}: expected a rotation in the upper left of the matrix, got {matrix.tolist()}")
    return left @ right


def _applied_similarity(meta: dict, source: str) -> np.ndarray:
    """file from original, 4x4: what the program that wrote the file did to the poses."""
    applied = np.eye(4)
    if meta.get("applied_transform") is not None:
        applied = _matrix(meta["applied_transform"], (3, 4), f"{source}: applied_transform")
    scale = _number(meta, "applied_scale", source)
    applied[:3] *= 1.0 if scale is None else scale
    size = np.cbrt(np.linalg.det(applied[:3, :3]))
    if not size > 0 or np.any(np.abs(applied[:3, :3] @ applied[:3, :3].T / size**2 - np.eye(3)) > _ROTATION_TOLERANCE):
        raise InputError(
            f"{source}: expected applied_transform to be a rotation, a scale and a shift, got {applied[:3].tolist()}; "
            "remove it to work in the frame of the file"
        )
    return applied


def _camera_from_world(frame: dict, applied: np.ndarray, where: str) -> np.ndarray:
    pose = _matrix(frame.get("transform_matrix"), (3, 4), f"{where}: transform_matrix")
    world_from_camera = np.linalg.inv(applied) @ pose
    # OpenGL cameras look along -z with y up.
    rotation = world_from_camera[:3, :3] * np.cbrt(np.linalg.det(applied[:3, :3])) * np.array([1.0, -1.0, -1.0])
    rotation = _nearest_rotation(rotation, where)
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = rotation.T
    camera_from_world[:3, 3] = -rotation.T @ world_from_camera[:3, 3]
    return camera_from_world


def _existing(root: Path, file_path: str) -> Path | None:
    path = root / file_path.replace("\\", "/")
    candidates = [path] if path.suffix else [path.with_name(path.name + ending) for ending in _ENDINGS]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _short_names(paths: list[str]) -> list[str]:
    """Names below the folders that all paths share, as in COLMAP datasets, where they are below images/."""
    parts = [[part for part in path.split("/") if part not in ("", ".", "..")] for path in paths]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _is_other_frame(camera_from_world: np.ndarray, all_expected: np.ndarray, views: list[int]) -> bool:
    """Whether poses differ from `all_expected[views]`. Those that are not finite do not: they are refused later, by name."""
    centers, expected = (-np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
                         for poses in (camera_from_world, all_expected))
    reach = np.linalg.norm(expected - expected.mean(axis=0), axis=1).max()
    is_moved = np.linalg.norm(centers - expected[views], axis=1) > _POSE_TOLERANCE * reach
    is_turned = np.abs(camera_from_world[:, :3, :3] - all_expected[views, :3, :3]) > _POSE_TOLERANCE
    return bool(is_moved.any() or is_turned.any())


def _colmap_points(root: Path, names: list[str], camera_from_world: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Points and colours of the COLMAP model that the file was made from, or None where there is no model.

    Whether the model has the frame of the poses is not said anywhere (some programs move the poses and do not write
    applied_transform), so the poses of photographs that both name are compared.
    """
    folder = colmap.find_model(root) or colmap.find_model(root / "colmap")
    if folder is None:
        return None
    model = colmap.read_model(folder)
    views = {name.rpartition(".")[0]: view for view, name in enumerate(model.image_names)}
    pairs = []
    for ours, name in enumerate(names):
        parts = name.rpartition(".")[0].split("/")
        tails = ("/".join(parts[first:]) for first in range(len(parts)))
        pairs += [(ours, views[tail]) for tail in tails if tail in views][:1]
    what = "no photograph that both name"
    if pairs:
        ours, theirs = (list(numbers) for numbers in zip(*pairs, strict=True))
        what = "other poses there" if _is_other_frame(camera_from_world[ours], model.camera_from_world, theirs) else ""
    if what:
        raise InputError(
            f"{root / FILE_NAME}: expected ply_file_path, or the poses of the COLMAP model in {folder}, whose points would "
            f"be taken; got neither ({what}); write the file again with its point cloud or with applied_transform"
        )
    return model.points, model.point_colors


def _points(root: Path, meta: dict, applied: np.ndarray, names: list[str],
            camera_from_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    named = meta.get("ply_file_path")
    path = root / named if named else next((root / name for name in _POINT_FILES if (root / name).is_file()), None)
    if path is None:
        found = _colmap_points(root, names, camera_from_world)
        if found is not None:
            return found
        raise InputError(
            f"{root / FILE_NAME}: expected ply_file_path with the points of the reconstruction, or a COLMAP model in "
            "colmap/sparse/0, got neither; training starts from points: write the file again with its point cloud, or add "
            "the COLMAP model that it was made from"
        )
    table = read_ply(path)[0].get("vertex", np.empty(0))
    if not len(table):
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    in_file = columns(table, ("x", "y", "z"), path)
    points = (in_file - applied[:3, 3]) @ np.linalg.inv(applied[:3, :3]).T
    colors = np.full((len(points), 3), 128, np.uint8)
    if {"red", "green", "blue"} <= set(table.dtype.names):
        colors = columns(table, ("red", "green", "blue"), path)
        # Colours in real numbers are shares of one.
        is_share = table.dtype["red"].kind == "f"
        colors = np.clip(np.round(colors * 255 if is_share else colors), 0, 255).astype(np.uint8)
    return points, colors


def _test_names(meta: dict, known: dict[str, str]) -> list[str] | None:
    """Names of the file's own test and validation images that are there; None where it does not say."""
    lists = [meta[key] for key in ("test_filenames", "val_filenames") if meta.get(key)]
    if not lists:
        return None
    return sorted({known[path] for paths in lists for path in paths if path in known})


def read_transforms(root: Path, size_of) -> Capture:
    """Reads `transforms.json` in a dataset's folder.

    Output is in the frame from before `applied_transform` and `applied_scale`: both are undone for poses and points, as
    nerfstudio does when it exports to the world frame. Results then fit the model that the file was made from.
    Frames whose photograph is missing are left out, with a count in the log. Points come from `ply_file_path`, a PLY file
    of a usual name, or the COLMAP model in colmap/.

    Args:
        root: the dataset's folder.
        size_of: function from a path to the (H, W) of a photograph; called only where `w` or `h` are missing.
    Returns:
        A capture without tracks; `test_names` are the file's test_filenames and val_filenames.
    Raises:
        InputError: damaged file, no frame with a photograph, no points, or a field that makes no sense.
    Source: the data conventions of nerfstudio.
    """
    source = str(root / FILE_NAME)
    meta = read_json(root / FILE_NAME)
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list):
        raise InputError(f"{source}: expected an object with a list of frames, got something else")
    applied = _applied_similarity(meta, source)
    file_paths, paths, lenses, poses, masks = [], [], [], [], []
    for number, frame in enumerate(meta["frames"]):
        where = f"{source}: frame {number}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise InputError(f"{where}: expected an object with file_path, got {repr(frame)[:80]}")
        path = _existing(root, frame["file_path"])
        if path is None:
            continue
        table = {**meta, **frame}
        size = (0, 0) if table.get("w") and table.get("h") else size_of(path)
        file_paths.append(frame["file_path"])
        paths.append(path)
        lenses.append(lens_of(table, size, where))
        poses.append(_camera_from_world(frame, applied, where))
        masks.append(_mask(root, frame, where))
    num_missing = len(meta["frames"]) - len(paths)
    if not paths:
        raise InputError(
            f"{source}: expected photographs beside it, got none of {num_missing} (file_path of the first frame: "
            f"{meta['frames'][0]['file_path'] if meta['frames'] else 'no frames'}); copy the images there"
        )
    if num_missing:
        logging.getLogger(__name__).warning("%s: %d frames left out: no such photograph", source, num_missing)
    relative = [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]
    names, camera_from_world = _short_names(relative), np.stack(poses)
    points, colors = _points(root, meta, applied, relative, camera_from_world)
    return Capture(
        source=source,
        image_names=names,
        image_paths=[str(path) for path in paths],
        lenses=lenses,
        camera_from_world=camera_from_world,
        points=points,
        point_colors=colors,
        track_offsets=np.zeros(len(points) + 1, np.int64),
        track_views=np.empty(0, np.int32),
        mask_paths=masks,
        test_names=_test_names(meta, dict(zip(file_paths, names, strict=True))),
    )


def _mask(root: Path, frame: dict, where: str) -> str | None:
    if not frame.get("mask_path"):
        return None
    path = root / str(frame["mask_path"]).replace("\\", "/")
    if not path.is_file():
        raise InputError(f"{where}: expected the mask {path}, got no such file; restore it or remove mask_path")
    return str(path)
