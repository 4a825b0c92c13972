"""COLMAP models, binary and text. NumPy only; files of rigs and frames (`rigs.bin`, `frames.bin`)
are not needed.

Poses, cameras and tracks are all that is kept: the 2-D positions of features are skipped.
"""

import logging
import mmap
import struct
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import colmap_text, point_ply
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.lookup import subfolder
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.files import readable, reading, safe_name
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params, num_params
from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.geometry.views import PointCloud

EXPECTED = (
    "a COLMAP model (cameras and images files, .bin or .txt, in sparse/0, sparse/<n>, sparse, "
    "colmap/sparse/0 or the folder itself)"
)
# Numbers in binary files, up to COLMAP 4.2.
_MODEL_NAMES = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "EUCM",
    "EQUIRECTANGULAR",
)
_POINT_HEADER_BYTES = 51  # id u64, xyz 3 f64, rgb 3 u8, error f64, length of the track u64
_WHOLE = ("a whole COLMAP file", "export the model again")
_QUAT_TOLERANCE = 1e-2  # far above rounding to four digits
_log = logging.getLogger(__name__)
_TRACK_CHUNK = 4_000_000  # track entries gathered at once: about 100 MB of temporary indices


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


def _num_images(folder: Path) -> int:
    path = required(_table(folder, "images"), "images of a COLMAP model")
    with reading(path, "a COLMAP file", "export the model again"):
        if path.suffix.lower() == ".bin":
            with open(path, "rb") as file:
                head = file.read(8)
            return struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        return sum(1 for _ in colmap_text.read_images(path))


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
    sparse = subfolder(root, "sparse") if root.is_dir() else None
    candidates = (
        []
        if sparse is None
        else [path for path in sorted(sparse.iterdir()) if path.is_dir() and _is_model(path)]
    )
    if candidates:
        return max(candidates, key=_num_images) if len(candidates) > 1 else candidates[0]
    return next((path for path in (sparse, root) if path is not None and _is_model(path)), None)


def detects(source: Source) -> Path | None:
    """The folder of a dataset's COLMAP model.

    Raises:
        InputError: `config.data.model` names another folder.
    """
    return find_model(source.root, source.data.model) if source.root.is_dir() else None


def detects_below(source: Source) -> Path | None:
    """The folder of the COLMAP model in colmap/, where nerfstudio puts it."""
    below = subfolder(source.root, "colmap") if source.root.is_dir() else None
    return None if below is None else find_model(below)


class _End:
    """Checks that a binary file ends where its last entry does."""

    def __init__(self, data, count: int, least: int, what: str):
        if count * least > len(data):
            raise struct.error(f"{count} {what} do not fit into {len(data)} bytes")
        self._data = data
        self._count = count
        self._what = what

    def check(self, offset: int) -> None:
        """Raises struct.error unless the file ends at `offset`."""
        if offset > len(self._data):
            raise struct.error(f"its {self._what} are cut off")
        if offset < len(self._data):
            raise struct.error(
                f"{len(self._data) - offset} bytes follow after the {self._count} {self._what} "
                "that its head "
                "declares"
            )


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


def _binary_cameras(path: Path) -> dict[int, Lens]:
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data)[0]
    make_lens = _lens_maker(path)
    lenses: dict[int, Lens] = {}
    offset = 8
    end = _End(data, count, 24, "cameras")
    for _ in range(count):
        camera_id, model_id, width, height = struct.unpack_from("<IiQQ", data, offset)
        if not 0 <= model_id < len(_MODEL_NAMES):
            raise InputError(
                f"{path}: camera {camera_id}: expected a camera model number from 0 to "
                f"{len(_MODEL_NAMES) - 1}, "
                f"got {model_id}; convert the model to one that is known, such as OPENCV, or "
                "undistort the images"
            )
        name = _MODEL_NAMES[model_id]
        try:
            num = num_params(name)
        except InputError as error:
            raise InputError(f"{path}: camera {camera_id}: {error}") from None
        params = struct.unpack_from(f"<{num}d", data, offset + 24)
        if camera_id in lenses:
            raise ValueError(f"camera {camera_id} is there twice")
        lenses[camera_id] = make_lens(name, width, height, params, camera_id)
        offset += 24 + 8 * num
    end.check(offset)
    return lenses


def _mapped(path: Path) -> mmap.mmap:
    # Features are most of images.bin (gigabytes in large models) and are jumped over: only touched
    # pages are read.
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _binary_images(path: Path) -> list[tuple[int, list[float], int, str]]:
    data = _mapped(path)
    count = struct.unpack_from("<Q", data)[0]
    images = []
    offset = 8
    ending = _End(data, count, 73, "images")
    for _ in range(count):
        image_id, *pose, camera_id = struct.unpack_from("<I7dI", data, offset)
        end = data.find(b"\0", offset + 64)
        if end < 0:
            raise struct.error("a name is cut off")
        name = data[offset + 64 : end].decode("utf-8", "surrogateescape")
        offset = end + 9 + 24 * struct.unpack_from("<Q", data, end + 1)[0]
        if offset > len(data):
            raise struct.error("the features are cut off")
        images.append((image_id, pose, camera_id, name))
    ending.check(offset)
    return images


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+8, ..., starts[1], ... with counts[i] numbers from each start."""
    ends = np.cumsum(counts)
    return 8 * np.arange(ends[-1] if ends.size else 0) + np.repeat(
        starts - 8 * (ends - counts), counts
    )


def _gather_u32(raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The little-endian numbers that begin at some bytes, which need not be multiples of four."""
    result = np.empty(len(places), "<u4")
    for phase in range(4):
        words = raw[phase : phase + (len(raw) - phase) // 4 * 4].view("<u4")
        is_here = places % 4 == phase
        result[is_here] = words[places[is_here] // 4]
    return result


def _binary_points(path: Path):
    data = _mapped(path)
    num_points = struct.unpack_from("<Q", data)[0]
    end = _End(data, num_points, _POINT_HEADER_BYTES, "points")
    starts = np.empty(num_points, np.int64)
    lengths = np.empty(num_points, np.int64)
    offset = 8
    read_length = struct.Struct("<Q").unpack_from
    for point in range(num_points):
        starts[point] = offset
        lengths[point] = length = read_length(data, offset + _POINT_HEADER_BYTES - 8)[0]
        offset += _POINT_HEADER_BYTES + 8 * length
    end.check(offset)
    raw = np.frombuffer(data, np.uint8)
    ids = raw[starts[:, None] + np.arange(8)].view("<u8").reshape(-1)
    points = raw[starts[:, None] + np.arange(8, 32)].view("<f8")
    colors = raw[starts[:, None] + np.arange(32, 35)]
    track_ids = np.empty(int(lengths.sum()), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    step = max(1, int(_TRACK_CHUNK / max(1.0, lengths.mean()))) if num_points else 1
    for first in range(0, num_points, step):
        part = slice(first, first + step)
        places = _ranges(starts[part] + _POINT_HEADER_BYTES, lengths[part])
        track_ids[offsets[first] : offsets[min(first + step, num_points)]] = _gather_u32(
            raw, places
        )
    return ids, points.reshape(-1, 3), colors, lengths, track_ids


def _ply_points(path: Path):
    points, colors = point_ply.read_points(path)
    return (
        np.arange(len(points)),
        points,
        colors,
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
    place = np.minimum(np.searchsorted(image_ids, track_ids, sorter=order), len(order) - 1)
    views = order[place]
    points = np.repeat(np.arange(len(lengths)), lengths)
    is_known = image_ids[views] == track_ids
    if not is_known.all():
        missing = np.unique(track_ids[~is_known])
        _log.warning(
            "%s: points name %d images that the model does not have, the first is number %d; is it "
            "whole?",
            source,
            len(missing),
            missing[0],
        )
    keys = np.sort(points[is_known] * len(image_ids) + views[is_known])
    keys = keys[np.diff(keys, prepend=-1) > 0]
    counts = np.bincount(keys // len(image_ids), minlength=len(lengths))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), (
        keys % len(image_ids)
    ).astype(np.int32)


def _read_images(
    path: Path, lenses: dict[int, Lens], cameras_path: Path
) -> list[tuple[int, list[float], int, str]]:
    is_binary = path.suffix.lower() == ".bin"
    images = _binary_images(path) if is_binary else list(colmap_text.read_images(path))
    for _, _, camera_id, name in images:
        if camera_id not in lenses:
            raise InputError(
                f"{path}: image {readable(name)}: expected one of the {len(lenses)} cameras of "
                f"{cameras_path.name}, "
                f"got camera {camera_id}; export the model again"
            )
    _once([image[0] for image in images], "image")
    num_foreign = sum(name != readable(name) for *_, name in images)
    if num_foreign:
        _log.warning("%s: %d names are no UTF-8; read as Windows-1252", path, num_foreign)
    return images


def _read_points(path: Path):
    match path.suffix.lower():
        case ".bin":
            ids, *rest = _binary_points(path)
        case ".txt":
            ids, *rest = colmap_text.read_points(path)
        case _:
            ids, *rest = _ply_points(path)
    _once(ids, "point")
    return rest


def _poses(images: list, path: Path) -> np.ndarray:
    """camera_from_dataset f64[V,4,4]; what is no rotation becomes NaN, which is refused by name
    later.
    """
    poses = np.array([image[1] for image in images], np.float64).reshape(-1, 7)
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
            readable(images[first][3]),
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
        is_binary = cameras_path.suffix.lower() == ".bin"
        lenses = (
            _binary_cameras(cameras_path)
            if is_binary
            else colmap_text.read_cameras(cameras_path, _lens_maker(cameras_path))
        )
    with reading(images_path, *_WHOLE):
        images = _read_images(images_path, lenses, cameras_path)
        camera_from_dataset = _poses(images, images_path)
    cloud = PointCloud.without_tracks(np.empty((0, 3)))
    if points_path:
        with reading(points_path, *_WHOLE):
            points, colors, lengths, track_ids = _read_points(points_path)
            cloud = PointCloud.without_tracks(points, colors)
            if len(images) and len(points):
                image_ids = np.array([image[0] for image in images], np.int64)
                cloud = PointCloud(points, colors, *_tracks(lengths, track_ids, image_ids, folder))
    files = [readable(image[3]) for image in images]
    return Capture(
        source=str(folder),
        image_names=short_names(files),
        image_files=files,
        image_paths=[None] * len(images),
        lenses=[lenses[image[2]] for image in images],
        camera_from_dataset=camera_from_dataset,
        cloud=cloud,
        mask_paths=[None] * len(images),
    )


def short_names(files: list[str]) -> list[str]:
    """Names of images by the files that they are said to be: as they are, if they are relative
    paths.

    Where some are of another machine, or lead out of their folder, all are shortened to what is
    below the folders that they
    share: files are named after them.
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
