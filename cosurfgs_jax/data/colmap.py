"""COLMAP models, binary and text. NumPy only; files of rigs and frames (`rigs.bin`, `frames.bin`)
are not needed.

Poses, cameras and tracks are all that is kept: the 2-D positions of features are compared with the
points (`feature_checks`) and forgotten.
"""

import dataclasses
import logging
import struct
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import (
    colmap_binary,
    colmap_text,
    compared_features,
    feature_checks,
    model_agreement,
    point_ply,
)
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.compared_features import Image
from cosurfgs_jax.data.lookup import is_walked, subfolder
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.files import readable, reading, safe_name
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params
from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.geometry.views import PointCloud

EXPECTED = (
    "a COLMAP model (cameras and images files, .bin or .txt, in sparse/0, sparse/<n>, sparse, "
    "colmap/sparse/0 or the folder itself)"
)
_WHOLE = ("a whole COLMAP file", "export the model again")
_QUAT_TOLERANCE = 1e-2  # far above rounding to four digits
_CHUNK = 2**16  # points whose tracks are sorted at once
_log = logging.getLogger(__name__)


def _table(folder: Path, stem: str, endings: tuple[str, ...] = (".bin", ".txt")) -> Path | None:
    """The file of a table, in any case (points3d.txt)."""
    if not folder.is_dir():
        return None
    files = {
        path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_file()
    }
    return next(
        (files[name] for ending in endings if (name := stem.lower() + ending) in files), None
    )


def _is_model(folder: Path) -> bool:
    return all(_table(folder, stem) for stem in ("cameras", "images"))


def _if_model(folder: Path) -> Path | None:
    if _is_model(folder):
        return folder
    return None


def _num_images(folder: Path) -> int:
    path = required(_table(folder, "images"), "images of a COLMAP model")
    with reading(path, "a COLMAP file", "export the model again"):
        if path.suffix.lower() == ".bin":
            with open(path, "rb") as file:
                head = file.read(8)
            if len(head) < 8:
                return 0
            return struct.unpack("<Q", head)[0]
        return colmap_text.num_images(path)


def find_model(root: Path, model: str = "") -> Path | None:
    """The folder of the COLMAP model of a dataset.

    Args:
        root: the dataset's folder.
        model: folder inside it, or "" to look in sparse/<any>, sparse and the root. Of several
            sub-folders of sparse the one with most images is taken, of equals the first by name.
    Returns:
        None where there is no model.
    Raises:
        InputError: `model` is given and has no cameras and images files.
    """
    if model:
        if not _is_model(root / model):
            raise InputError(
                "config.data.model: expected a folder with COLMAP's cameras and images files "
                "(.bin or .txt), "
                f"got {root / model}; give the folder relative to the dataset, such as sparse/1"
            )
        return root / model
    if not root.is_dir():
        return None
    sparse = subfolder(root, "sparse")
    if sparse is None:
        return _if_model(root)
    candidates = [path for path in sorted(sparse.iterdir()) if path.is_dir() and _is_model(path)]
    if len(candidates) > 1:
        return max(candidates, key=_num_images)
    return next(iter(candidates), None) or _if_model(sparse) or _if_model(root)


def detects(source: Source) -> Path | None:
    """The folder of a dataset's COLMAP model.

    Raises:
        InputError: `config.data.model` names another folder.
    """
    if not source.root.is_dir():
        return None
    return find_model(source.root, source.data.model)


def detects_below(source: Source) -> Path | None:
    """The folder of the COLMAP model in colmap/, where nerfstudio puts it."""
    if not source.root.is_dir():
        return None
    below = subfolder(source.root, "colmap")
    if below is None:
        return None
    return find_model(below)


def _once(ids, what: str) -> None:
    """Raises ValueError where two things have one number."""
    numbers, counts = np.unique(np.asarray(ids), return_counts=True)
    if len(numbers) and counts.max() > 1:
        raise ValueError(f"{what} {numbers[counts.argmax()]} is there {counts.max()} times")


def _lens_maker(path: Path):
    def lens(model: str, width: int, height: int, params, camera_id) -> Lens:
        try:
            return lens_from_params(model, height, width, params)
        except (InputError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: camera {camera_id}: {error}") from None

    return lens


def _ply_points(path: Path):
    points, colors = point_ply.read_points(path)
    return (
        np.arange(len(points)),
        points,
        colors,
        np.full(len(points), np.nan, np.float32),
        np.zeros(len(points), np.int64),
        np.empty(0, np.int64),
    )


def _tracks(
    lengths: np.ndarray, track_ids: np.ndarray, image_ids: np.ndarray, source: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and views, ascending and without repetition; image numbers that the model does not
    have are dropped.
    """
    order = np.argsort(image_ids)
    ends = np.cumsum(lengths)
    counts = [np.zeros(0, np.int64)]
    views = [np.zeros(0, np.int32)]
    unknown = [np.zeros(0, np.int64)]
    for first in range(0, len(lengths), _CHUNK):
        part = slice(first, first + _CHUNK)
        ids = track_ids[ends[first] - lengths[first] : ends[part][-1]]
        place = np.minimum(np.searchsorted(image_ids, ids, sorter=order), len(order) - 1)
        found = order[place]
        is_known = image_ids[found] == ids
        unknown.append(np.unique(ids[~is_known]).astype(np.int64))
        points = np.repeat(np.arange(len(lengths[part])), lengths[part])
        keys = np.sort(points[is_known] * len(image_ids) + found[is_known])
        keys = keys[np.diff(keys, prepend=-1) > 0]
        counts.append(np.bincount(keys // len(image_ids), minlength=len(lengths[part])))
        views.append((keys % len(image_ids)).astype(np.int32))
    missing = np.unique(np.concatenate(unknown))
    if len(missing):
        _log.warning(
            "%s: points name %d images that the model does not have, the first is number %d; is it "
            "whole?",
            source,
            len(missing),
            missing[0],
        )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return offsets, np.concatenate(views)


def _read_cameras(path: Path) -> dict[int, Lens]:
    make_lens = _lens_maker(path)
    if path.suffix.lower() == ".bin":
        return colmap_binary.read_cameras(path, make_lens)
    return colmap_text.read_cameras(path, make_lens)


def _read_images(path: Path, lenses: dict[int, Lens], cameras_path: Path) -> list[Image]:
    if path.suffix.lower() == ".bin":
        images = colmap_binary.read_images(path)
    else:
        images = list(colmap_text.read_images(path))
    for image in images:
        if image.camera_id not in lenses:
            raise InputError(
                f"{path}: image {readable(image.name)}: expected one of the {len(lenses)} cameras "
                f"of {cameras_path.name}, got camera {image.camera_id}; export the model again"
            )
    _once([image.image_id for image in images], "image")
    num_foreign = sum(image.name != readable(image.name) for image in images)
    if num_foreign:
        _log.warning("%s: %d names are no UTF-8; read as Windows-1252", path, num_foreign)
    return images


def _read_points(path: Path):
    match path.suffix.lower():
        case ".bin":
            ids, *rest = colmap_binary.read_points(path)
        case ".txt":
            ids, *rest = colmap_text.read_points(path)
        case _:
            ids, *rest = _ply_points(path)
    _once(ids, "point")
    return ids, *rest


def _poses(images: list[Image], path: Path) -> np.ndarray:
    """camera_from_dataset f64[V,4,4]; what is no rotation becomes NaN, which is refused by name
    later.
    """
    poses = np.array([image.pose for image in images], np.float64).reshape(-1, 7)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(poses[:, :4], axis=1)
        is_odd = np.isfinite(lengths) & (np.abs(lengths - 1) > _QUAT_TOLERANCE)
        camera_from_dataset = np.tile(np.eye(4), (len(images), 1, 1))
        camera_from_dataset[:, :3, :3] = matrix_from_quat(poses[:, :4])
    if is_odd.any():
        first = int(np.flatnonzero(is_odd)[0])
        _log.warning(
            "%s: %d quaternions are not of length 1 and were scaled to it, the first is that of "
            "%s, of length %.4g",
            path,
            is_odd.sum(),
            readable(images[first].name),
            lengths[first],
        )
    camera_from_dataset[:, :3, 3] = poses[:, 4:]
    return camera_from_dataset


def read_model(folder: Path) -> Capture:
    """Reads a COLMAP model.

    Args:
        folder: with cameras, images and points3D files, binary (preferred where both are there) or
            text; points may also be a PLY file, which has no tracks.
    Returns:
        Views in the order of the file. Image names are safe to write files by. Points without
        tracks are kept.
    Raises:
        InputError: a file that is damaged, has more or less in it than its head declares, or one
            number twice; an unknown camera model, or an image whose camera is not listed.
    Source: the format description of COLMAP.
    """
    cameras_path = required(_table(folder, "cameras"), "cameras of a COLMAP model")
    images_path = required(_table(folder, "images"), "images of a COLMAP model")
    points_path = _table(folder, "points3D", (".bin", ".txt", ".ply"))
    with reading(cameras_path, *_WHOLE):
        lenses = _read_cameras(cameras_path)
    with reading(images_path, *_WHOLE):
        images = _read_images(images_path, lenses, cameras_path)
        camera_from_dataset = _poses(images, images_path)
    files = [readable(image.name) for image in images]
    capture = Capture(
        source=str(folder),
        image_names=short_names(files),
        image_files=files,
        image_paths=[None] * len(images),
        lenses=[lenses[image.camera_id] for image in images],
        camera_from_dataset=camera_from_dataset,
        cloud=PointCloud.without_tracks(np.empty((0, 3))),
        mask_paths=[None] * len(images),
        outside=() if is_walked(folder.name) else (str(folder),),
    )
    if points_path is None:
        return capture
    with reading(points_path, *_WHOLE):
        cloud, rows, ids, errors = _read_cloud(points_path, images, folder)
    capture = dataclasses.replace(capture, cloud=cloud)
    feature_checks.check(
        feature_checks.SeenPoints(
            source=capture.source,
            names=capture.image_names,
            lenses=capture.lenses,
            camera_from_dataset=camera_from_dataset,
            features=[image.features for image in images],
            point_ids=ids,
            points=cloud.points[rows],
            errors=errors,
            lengths=np.diff(cloud.track_offsets)[rows],
        )
    )
    return capture


def _read_cloud(
    path: Path, images: list[Image], source: Path
) -> tuple[PointCloud, np.ndarray, np.ndarray, np.ndarray]:
    """The points; of those that features name, which are compared: rows, the numbers by which they
    are named, i64[N] each, and errors, f32[N].

    Points without a track may be of another program, whose numbers are not those that features
    name: theirs are -1.
    """
    ids, points, colors, errors, lengths, track_ids = _read_points(path)
    features = [image.features for image in images]
    names, places = compared_features.named(features, ids.view(np.int64))
    rows = np.unique(places[places >= 0])
    ids = ids[rows].view(np.int64)  # those of all points are no longer needed
    errors = errors[rows]
    cloud = PointCloud.without_tracks(points, colors)
    if len(images) and len(points):
        image_ids = np.array([image.image_id for image in images], np.int64)
        cloud = PointCloud(points, colors, *_tracks(lengths, track_ids, image_ids, source))
    lengths = np.diff(cloud.track_offsets)
    ids[lengths[rows] == 0] = -1
    model_agreement.check_names(
        str(source),
        names,
        has_track=np.append(lengths, 0)[places] > 0,
        num_tracked=int(np.count_nonzero(lengths)),
        is_whole=compared_features.are_all_compared(features),
    )
    return cloud, rows, ids, errors


def short_names(files: list[str]) -> list[str]:
    """Names of images by the files that they are said to be: as they are, if they are relative
    paths.

    Where some are of another machine, or lead out of their folder, all are shortened to what is
    below the folders that they share: files are named after them.
    """
    parts = [safe_name(file).split("/") for file in files]
    if all(
        "/".join(part) == file.replace("\\", "/").removeprefix("./")
        for part, file in zip(parts, files, strict=True)
    ):
        return ["/".join(part) for part in parts]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]
