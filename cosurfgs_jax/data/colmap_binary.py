"""Binary files of COLMAP: cameras.bin, images.bin, points3D.bin."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cosurfgs_jax.data.compared_features import FEATURE, Image, chosen, max_features_of_view
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.lens_models import num_params

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
_CHUNK = 2**16  # points that are read at once
_IMAGES = 64  # whose pages are held at once


class _End:
    """Checks that a binary file ends where its last entry does."""

    def __init__(self, data, count: int, min_bytes: int, what: str):
        if count * min_bytes > len(data):
            raise struct.error(f"{count} {what} do not fit into {len(data)} bytes")
        self._data = data
        self._count = count
        self._what = what

    def check_within(self, offset: int) -> None:
        """Raises struct.error where the file ends before `offset`."""
        if offset > len(self._data):
            raise struct.error(f"its {self._what} are cut off")

    def check(self, offset: int) -> None:
        """Raises struct.error unless the file ends at `offset`."""
        self.check_within(offset)
        if offset < len(self._data):
            raise struct.error(
                f"{len(self._data) - offset} bytes follow after the {self._count} {self._what} "
                "that its head declares"
            )


def read_cameras(path: Path, make_lens: Callable[..., Lens]) -> dict[int, Lens]:
    """Lenses by camera ID.

    Args:
        path: cameras.bin.
        make_lens: (model, width, height, params, camera ID) to a lens.
    Raises:
        InputError: an unknown camera model.
        struct.error, ValueError: the file is damaged.
    """
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data)[0]
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
    # Features are most of images.bin (gigabytes in large models), and few of them are looked at:
    # only touched pages are read.
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_images(path: Path) -> list[Image]:
    """Images of images.bin, with the features that are compared.

    Raises:
        struct.error: the file is damaged.
    """
    data = _mapped(path)
    count = struct.unpack_from("<Q", data)[0]
    images = []
    offset = 8
    ending = _End(data, count, 73, "images")
    most = max_features_of_view(count)
    for number in range(count):
        image_id, *pose, camera_id = struct.unpack_from("<I7dI", data, offset)
        end = data.find(b"\0", offset + 64)
        if end < 0:
            raise struct.error("a name is cut off")
        name = data[offset + 64 : end].decode("utf-8", "surrogateescape")
        num_features = struct.unpack_from("<Q", data, end + 1)[0]
        offset = end + 9 + FEATURE.itemsize * num_features
        if offset > len(data):
            raise struct.error("the features are cut off")
        features = np.empty(0, FEATURE)
        if num_features:
            features = np.frombuffer(data, FEATURE, num_features, end + 9)
            features = features[chosen(num_features, most)]
        if number % _IMAGES == 0:  # pages that have been read count as memory of the process
            data.madvise(mmap.MADV_DONTNEED)
        images.append(Image(image_id, pose, camera_id, name=name, features=features))
    ending.check(offset)
    return images


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0]+8, ..., starts[1], ... with counts[i] numbers from each start."""
    ends = np.cumsum(counts)
    return 8 * np.arange(counts.sum()) + np.repeat(starts - 8 * (ends - counts), counts)


def _gather_u32(raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The little-endian numbers that begin at some bytes, which need not be multiples of four."""
    result = np.empty(len(places), "<u4")
    for phase in range(4):
        words = raw[phase : phase + (len(raw) - phase) // 4 * 4].view("<u4")
        is_here = places % 4 == phase
        result[is_here] = words[places[is_here] // 4]
    return result


def _places(data, offset: int, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Where the next points begin and how long their tracks are, i64[count] each, and where the
    last one ends.
    """
    starts = np.empty(count, np.int64)
    lengths = np.empty(count, np.int64)
    read_length = struct.Struct("<Q").unpack_from
    for point in range(count):
        starts[point] = offset
        lengths[point] = length = read_length(data, offset + _POINT_HEADER_BYTES - 8)[0]
        offset += _POINT_HEADER_BYTES + 8 * length
    return starts, lengths, offset


def read_points(path: Path):
    """Points of points3D.bin: IDs u64[P], positions f64[P,3], colours u8[P,3], errors f32[P],
    track lengths i64[P], and the image IDs of all tracks u32[T]. Besides these, few points at a
    time are held.

    Raises:
        struct.error: the file is damaged.
    """
    data = _mapped(path)
    num_points = struct.unpack_from("<Q", data)[0]
    end = _End(data, num_points, _POINT_HEADER_BYTES, "points")
    raw = np.frombuffer(data, np.uint8)
    offset = 8
    ids = np.empty(num_points, "<u8")
    points = np.empty((num_points, 3), "<f8")
    colors = np.empty((num_points, 3), np.uint8)
    errors = np.empty(num_points, np.float32)
    lengths = np.empty(num_points, np.int64)
    tracks = [np.empty(0, "<u4")]
    for first in range(0, num_points, _CHUNK):
        part = slice(first, min(first + _CHUNK, num_points))
        starts, lengths[part], offset = _places(data, offset, part.stop - first)
        end.check_within(offset)
        heads = raw[starts[:, None] + np.arange(43)]
        ids[part] = heads[:, :8].copy().view("<u8")[:, 0]
        points[part] = heads[:, 8:32].copy().view("<f8")
        colors[part] = heads[:, 32:35]
        with np.errstate(over="ignore", invalid="ignore"):
            errors[part] = heads[:, 35:].copy().view("<f8")[:, 0]
        tracks.append(_gather_u32(raw, _ranges(starts + _POINT_HEADER_BYTES, lengths[part])))
        # Pages that have been read would count as memory of the process.
        data.madvise(mmap.MADV_DONTNEED, 0, offset // mmap.PAGESIZE * mmap.PAGESIZE)
    end.check(offset)
    return ids, points, colors, errors, lengths, np.concatenate(tracks)
