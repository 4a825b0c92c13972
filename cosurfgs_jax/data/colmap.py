"""COLMAP models, binary and text. NumPy only; files of rigs and frames (`rigs.bin`, `frames.bin`) are not needed.

Poses, cameras and tracks are all that is kept: the 2-D positions of features are skipped.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params, num_params
from cosurfgs_jax.geometry.rotations import matrix_from_quat

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
_TRACK_CHUNK = 4_000_000  # track entries gathered at once: about 100 MB of temporary indices


def _table(folder: Path, stem: str) -> Path | None:
    for suffix in (".bin", ".txt"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    return None


def _is_model(folder: Path) -> bool:
    return all(_table(folder, stem) for stem in ("cameras", "images"))


def _num_images(folder: Path) -> int:
    path = _table(folder, "images")
    if path.suffix == ".bin":
        with open(path, "rb") as file:
            head = file.read(8)
        return struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    with open(path, encoding="utf-8") as file:
        return sum(1 for _ in _text_images(file))


def find_model(root: Path, model: str = "") -> Path | None:
    """The folder of the COLMAP model of a dataset.

    Args:
        root: the dataset's folder.
        model: folder inside it, or "" to look in sparse/<any>, sparse and the root. Of several sub-folders of sparse
            the one with most images is taken, of equals the first by name.
    Returns:
        None where there is no model.
    Raises:
        InputError: `model` is given and has no cameras and images files.
    """
    if model:
        if not _is_model(root / model):
            raise InputError(
                f"config.data.model: expected a folder with COLMAP's cameras and images files (.bin or .txt), "
                f"got {root / model}; give the folder relative to the dataset, such as sparse/1"
            )
        return root / model
    candidates = [path for path in sorted(root.glob("sparse/*")) if path.is_dir() and _is_model(path)]
    if candidates:
        return max(candidates, key=_num_images)
    return next((path for path in (root / "sparse", root) if _is_model(path)), None)


def _lens(model: str, width, height, params, path: Path, camera_id) -> Lens:
    try:
        return lens_from_params(model, int(height), int(width), params)
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: camera {camera_id}: {error}") from None


def _binary_cameras(path: Path) -> dict[int, Lens]:
    data, offset, lenses = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        camera_id, model_id, width, height = struct.unpack_from("<IiQQ", data, offset)
        if not 0 <= model_id < len(_MODEL_NAMES):
            raise InputError(
                f"{path}: camera {camera_id}: expected a camera model number from 0 to {len(_MODEL_NAMES) - 1}, "
                f"got {model_id}; convert the model to one that is known, such as OPENCV, or undistort the images"
            )
        name = _MODEL_NAMES[model_id]
        try:
            count = num_params(name)
        except InputError as error:
            raise InputError(f"{path}: camera {camera_id}: {error}") from None
        params = struct.unpack_from(f"<{count}d", data, offset + 24)
        lenses[camera_id] = _lens(name, width, height, params, path, camera_id)
        offset += 24 + 8 * count
    return lenses


def _text_cameras(path: Path) -> dict[int, Lens]:
    lenses = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not line.lstrip().startswith("#"):
            params = [float(word) for word in words[4:]]
            lenses[int(words[0])] = _lens(words[1], words[2], words[3], params, path, words[0])
    return lenses


def _mapped(path: Path) -> mmap.mmap:
    # Features are most of images.bin (gigabytes in large models) and are jumped over: only touched pages are read.
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _binary_images(path: Path):
    data, offset = _mapped(path), 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        image_id, *pose, camera_id = struct.unpack_from("<I7dI", data, offset)
        end = data.find(b"\0", offset + 64)
        if end < 0:
            raise struct.error("a name is cut off")
        name = data[offset + 64 : end].decode("utf-8", "surrogateescape")
        offset = end + 9 + 24 * struct.unpack_from("<Q", data, end + 1)[0]
        if offset > len(data):
            raise struct.error("the features are cut off")
        yield image_id, pose, camera_id, name


def _is_feature_line(words: list[str]) -> bool:
    if not words:
        return True
    return len(words) % 3 == 0 and words[-1].lstrip("-").isdigit()


def _text_images(lines):
    is_pose_next = True
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        words = line.split()
        # Some programs leave out the line of features where there are none, others write an empty one.
        if not is_pose_next and _is_feature_line(words):
            is_pose_next = True
        elif words:
            name = line.split(None, 9)[9].rstrip("\r\n")
            yield int(words[0]), [float(word) for word in words[1:8]], int(words[8]), name
            is_pose_next = False


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+8, ..., starts[1], ... with counts[i] numbers from each start."""
    ends = np.cumsum(counts)
    return 8 * np.arange(ends[-1] if ends.size else 0) + np.repeat(starts - 8 * (ends - counts), counts)


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
    starts, lengths = np.empty(num_points, np.int64), np.empty(num_points, np.int64)
    offset, read_length = 8, struct.Struct("<Q").unpack_from
    for point in range(num_points):
        starts[point] = offset
        lengths[point] = length = read_length(data, offset + _POINT_HEADER_BYTES - 8)[0]
        offset += _POINT_HEADER_BYTES + 8 * length
    if offset > len(data):
        raise struct.error("the tracks are cut off")
    raw = np.frombuffer(data, np.uint8)
    points = raw[starts[:, None] + np.arange(8, 32)].view("<f8")
    colors = raw[starts[:, None] + np.arange(32, 35)]
    track_ids = np.empty(int(lengths.sum()), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    step = max(1, int(_TRACK_CHUNK / max(1.0, lengths.mean()))) if num_points else 1
    for first in range(0, num_points, step):
        part = slice(first, first + step)
        places = _ranges(starts[part] + _POINT_HEADER_BYTES, lengths[part])
        track_ids[offsets[first] : offsets[min(first + step, num_points)]] = _gather_u32(raw, places)
    return points.reshape(-1, 3), colors, lengths, track_ids


def _text_points(path: Path):
    points, colors, lengths, track_ids = [], [], [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            points.append([float(word) for word in words[1:4]])
            colors.append([int(word) for word in words[4:7]])
            track = [int(word) for word in words[8::2]]
            lengths.append(len(track))
            track_ids.extend(track)
    return (
        np.array(points, np.float64).reshape(-1, 3),
        np.array(colors, np.uint8).reshape(-1, 3),
        np.array(lengths, np.int64),
        np.array(track_ids, np.int64),
    )


def _tracks(lengths: np.ndarray, track_ids: np.ndarray, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and views, ascending and without repetition; image numbers that the model does not have are dropped."""
    order = np.argsort(image_ids)
    place = np.minimum(np.searchsorted(image_ids, track_ids, sorter=order), len(order) - 1)
    views = order[place]
    points = np.repeat(np.arange(len(lengths)), lengths)
    is_known = image_ids[views] == track_ids
    keys = np.sort(points[is_known] * len(image_ids) + views[is_known])
    keys = keys[np.diff(keys, prepend=-1) > 0]
    counts = np.bincount(keys // len(image_ids), minlength=len(lengths))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), (keys % len(image_ids)).astype(np.int32)


def _parse(path: Path, binary, text):
    try:
        if path.suffix == ".bin":
            return binary(path)
        return text(path)
    except InputError:
        raise
    except (struct.error, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path}: expected a whole COLMAP file, got one that is cut off or damaged ({error}); "
            "export the model again"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_model(folder: Path) -> Capture:
    """Reads a COLMAP model.

    Args:
        folder: with cameras, images and points3D files, binary (preferred where both are there) or text.
    Returns:
        Views in the order of the file. Image names have forward slashes. Points without tracks are kept.
    Raises:
        InputError: a damaged file, an unknown camera model, or an image whose camera is not listed.
    Source: the format description of COLMAP.
    """
    cameras_path, images_path, points_path = (_table(folder, stem) for stem in ("cameras", "images", "points3D"))
    lenses = _parse(cameras_path, _binary_cameras, _text_cameras)

    def text_images(path):
        with open(path, encoding="utf-8") as file:
            return list(_text_images(file))

    images = _parse(images_path, lambda path: list(_binary_images(path)), text_images)
    for _, _, camera_id, name in images:
        if camera_id not in lenses:
            raise InputError(
                f"{images_path}: image {name}: expected one of the {len(lenses)} cameras of {cameras_path.name}, "
                f"got camera {camera_id}; export the model again"
            )
    image_ids = np.array([image[0] for image in images], np.int64)
    camera_from_world = np.tile(np.eye(4), (len(images), 1, 1))
    poses = np.array([image[1] for image in images], np.float64).reshape(-1, 7)
    with np.errstate(invalid="ignore"):
        camera_from_world[:, :3, :3] = matrix_from_quat(poses[:, :4])
    camera_from_world[:, :3, 3] = poses[:, 4:]
    points, colors = np.empty((0, 3)), np.empty((0, 3), np.uint8)
    lengths, track_ids = np.empty(0, np.int64), np.empty(0, np.int64)
    if points_path:
        points, colors, lengths, track_ids = _parse(points_path, _binary_points, _text_points)
    offsets, views = np.zeros(len(points) + 1, np.int64), np.empty(0, np.int32)
    if len(images) and len(points):
        offsets, views = _tracks(lengths, track_ids, image_ids)
    return Capture(
        source=str(folder),
        image_names=[image[3].replace("\\", "/") for image in images],
        image_paths=[None] * len(images),
        lenses=[lenses[image[2]] for image in images],
        camera_from_world=camera_from_world,
        points=points,
        point_colors=colors,
        track_offsets=offsets,
        track_views=views,
        mask_paths=[None] * len(images),
    )
