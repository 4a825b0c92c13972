"""Photographs: checked by their headers, decoded, masked, shrunk, undistorted, and kept in memory within a budget.

The orientation that EXIF or TIFF tags give is not applied, as COLMAP's poses belong to the pixels as they are stored.
Formats: what Pillow reads. 16-bit images become 8-bit ones by v/257, grey ones RGB; real-valued ones are refused.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import source_pixels

_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, zlib.error, struct.error)
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION_TAG = 274
# What undoes the turn that Pillow applies to a TIFF file with this orientation.
_UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_MASK_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_MIN_THREADS, _MAX_THREADS = 2, 16  # one thread decodes 4 photographs of 16 megapixels a second
_THREADS_SHARE = 0.25  # of the budget, for what all threads hold of the images that they decode, ...
_BYTES_PER_PIXEL = 12  # ... each: 8 to 12 were measured with a JPEG of 16 megapixels
_STRIP_ROWS = 64  # of an image that is resampled at once: temporaries stay within the cache of a core


@dataclasses.dataclass(frozen=True)
class PhotoHeader:
    """What the head of an image file says: size in pixels as stored, and whether it has an alpha channel."""

    height: int
    width: int
    has_alpha: bool


def _unreadable(path, error) -> InputError:
    return InputError(f"{path}: expected a whole image, got one that cannot be read ({error}); restore the file")


def _open(path) -> Image.Image:
    # Aerial cameras exceed Pillow's limit of 89 megapixels. Sizes are compared with the camera's before decoding, so a
    # file that claims to be larger than it should be is refused all the same.
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(path)


def _tiff_orientation(image: Image.Image) -> int:
    return image.tag_v2.get(_ORIENTATION_TAG, 1) if image.format == "TIFF" else 1


def _seems_whole(image: Image.Image, path) -> bool:
    size = os.path.getsize(path)
    if image.format == "TIFF":
        tags = image.tag_v2
        starts, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
        return len(starts) > 0 and max(a + b for a, b in zip(starts, counts, strict=False)) <= size
    with open(path, "rb") as file:
        file.seek(max(0, size - 12))
        tail = file.read()
    return tail.endswith(b"\xff\xd9") if image.format == "JPEG" else image.format == "PNG" and b"IEND" in tail


def read_header(path) -> PhotoHeader:
    """Reads the head of an image file, and all of it where the end is not as it should be.

    Raises:
        InputError: not an image, cut off or damaged.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
            if _tiff_orientation(image) >= 5:
                width, height = height, width
            # A file that ends properly was written to its end; decoding thousands of them here would take minutes.
            if not _seems_whole(image, path):
                image.load()
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None
    return PhotoHeader(height, width, has_alpha)


def _decode(path) -> Image.Image:
    try:
        with _open(path) as image:
            orientation = _tiff_orientation(image)
            image.load()
            return image.transpose(_UNTURN[orientation]) if orientation in _UNTURN else image.copy()
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def _eight_bit(image: Image.Image, path) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path}: expected an image of 8 or 16 bits, got real numbers; convert it")
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image


def read_photograph(path) -> tuple[Image.Image, np.ndarray | None]:
    """Decodes a photograph.

    Returns:
        RGB of 8 bits, and the alpha channel u8[H,W] or None. Colours are not multiplied with alpha.
    Raises:
        InputError: unreadable, cut off, or real-valued.
    """
    image = _eight_bit(_decode(path), path)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    return image.convert("RGB"), alpha


def read_mask(path, height: int, width: int) -> np.ndarray:
    """Decodes a mask, white = keep, and brings it to a photograph's size by taking the nearest pixel.

    Returns:
        bool[H,W], True = keep. The threshold is half of white; files whose only values are 0 and 1 mean them as labels.
    Raises:
        InputError: unreadable, or of another shape than the photograph.
    """
    image = _eight_bit(_decode(path), path).convert("L")
    if not _is_same_shape((image.height, image.width), (height, width)):
        raise InputError(
            f"{path}: expected a mask of the photograph's shape, {width}x{height} pixels, got "
            f"{image.width}x{image.height}; make it from the photograph again"
        )
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.NEAREST)
    values = np.asarray(image)
    return values >= (128 if values.max() > 1 else 1)


def _is_same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    scale = size[1] / other[1]
    return abs(size[0] - other[0] * scale) <= max(1.0, scale)


def resample(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of an image at given places.

    Args:
        image: u8[h,w,C].
        positions: f32[H,W,2], (x, y) in pixels, x+0.5 is the centre of pixel x; places outside take the border's value.
    Returns:
        u8[H,W,C], rounded to the nearest.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    result = np.empty((*positions.shape[:2], channels), np.uint8)
    for first in range(0, len(positions), _STRIP_ROWS):
        part = positions[first : first + _STRIP_ROWS] - np.float32(0.5)
        x, y = np.clip(part[..., 0], 0, width - 1), np.clip(part[..., 1], 0, height - 1)
        left, top = x.astype(np.int64), y.astype(np.int64)
        right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1) * width
        share_x, share_y = (x - left)[..., None].astype(np.float32), (y - top)[..., None].astype(np.float32)
        top = top * width
        upper = flat[top + left] * (1 - share_x) + flat[top + right] * share_x
        lower = flat[below + left] * (1 - share_x) + flat[below + right] * share_x
        result[first : first + _STRIP_ROWS] = upper * (1 - share_y) + lower * share_y + np.float32(0.5)
    return result


def shrink(image: Image.Image, factor: int) -> np.ndarray:
    """Averages squares of factor x factor pixels; what is left over at the right and below is cropped.

    Cropping keeps the scale exactly 1/factor on both axes, so that principal point and focal lengths stay exact.

    Returns:
        u8[H // factor, W // factor, C], or without C for one channel; rounded to the nearest.
    """
    box = (0, 0, image.width // factor * factor, image.height // factor * factor)
    return np.asarray(image.reduce(factor, box=box) if factor > 1 else image)


def num_threads(scene, num_bytes: int) -> int:
    """How many threads decode: one for each core that the process may use, in so far as the memory lets them.

    Args:
        scene: a Scene.
        num_bytes: of the budget for kept images; what is just being decoded takes memory besides.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    largest = max(1, int(scene.photo_sizes.prod(axis=1).max())) * _BYTES_PER_PIXEL
    return max(_MIN_THREADS, min(cores, _MAX_THREADS, int(_THREADS_SHARE * num_bytes) // largest))


class ImageStore:
    """Gives the photographs of a scene as they are trained on, from memory where they were read before.

    Decoded images are kept as uint8, the longest unused ones are dropped first. Besides the budget, the resampling maps
    of two lenses and the images that are just being decoded take memory. All methods may be called from any thread.
    """

    def __init__(self, scene, host_memory_mb: int):
        """
        Args:
            scene: a Scene.
            host_memory_mb: for kept images, MiB. An image that does not fit is read each time.
        """
        self._scene = scene
        self._budget = int(host_memory_mb) * 2**20
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._num_bytes = 0
        self._pending: dict[int, concurrent.futures.Future] = {}
        self.num_threads = num_threads(scene, self._budget)
        self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads, thread_name_prefix="images")
        self._positions = functools.lru_cache(maxsize=2)(source_pixels)

    def __enter__(self) -> "ImageStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the background threads; what they were asked for and had not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def load(self, view: int | np.integer) -> np.ndarray:
        """The photograph of a view.

        Returns:
            u8[H,W,3], or u8[H,W,4] where the scene has masks: the fourth is 255 where the pixel counts, else 0. Pixels
            that were averaged or interpolated from any ignored one are ignored. Read-only.
        Raises:
            InputError: unreadable file, or another size than the model says; names the file, expected and got.
        """
        view = int(view)
        with self._lock:
            if view in self._cache:
                self._cache.move_to_end(view)
                return self._cache[view]
            future = self._pending.get(view)
            # A picture that waits in the queue is read here, at once, instead of behind the others.
            is_mine = future is None or future.cancel()
            if is_mine:
                future = self._pending[view] = concurrent.futures.Future()
                future.set_running_or_notify_cancel()
        if not is_mine:
            return future.result()
        try:
            image = self._read_and_keep(view)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(image)
        return image

    def prefetch(self, views) -> None:
        """Starts reading views in the background, in this order, as many as the budget holds; returns at once."""
        with self._lock:
            room = self._budget - sum(self._size(view) for view in self._pending)
            for view in dict.fromkeys(map(int, views)):
                if view in self._pending:
                    continue
                room -= self._size(view)  # also of what is there: it must still be there when its turn comes
                if room < 0:
                    return
                if view in self._cache:
                    self._cache.move_to_end(view)
                else:
                    self._pending[view] = self._pool.submit(self._read_and_keep, view)

    def _size(self, view: int) -> int:
        return int(np.prod(self._scene.image_sizes[view])) * (4 if self._scene.has_masks else 3)

    def _read_and_keep(self, view: int) -> np.ndarray:
        try:
            image = self._read(view)
        except BaseException:
            with self._lock:
                self._pending.pop(view, None)
            raise
        with self._lock:
            self._pending.pop(view, None)
            if image.nbytes <= self._budget and view not in self._cache:
                self._cache[view] = image
                self._num_bytes += image.nbytes
                while self._num_bytes > self._budget:
                    self._num_bytes -= self._cache.popitem(last=False)[1].nbytes
        return image

    def _read(self, view: int) -> np.ndarray:
        scene, path = self._scene, self._scene.image_paths[view]
        image, alpha = read_photograph(path)
        check_size(path, (image.height, image.width), tuple(scene.photo_sizes[view].tolist()), scene.path)
        factor = int(scene.shrink_factors[view])
        planes = [shrink(image, factor)]
        if scene.has_masks:
            keep = np.ones((image.height, image.width), bool) if alpha is None else alpha >= 128
            if scene.mask_paths[view]:
                keep &= read_mask(scene.mask_paths[view], image.height, image.width)
            planes.append(shrink(Image.fromarray(keep.astype(np.uint8) * 255), factor)[..., None])
        result = np.concatenate(planes, axis=-1)
        lens = scene.distortion[view]
        if lens is not None:
            result = resample(result, self._positions(lens, scene.pinhole(view)))
        if scene.has_masks:
            result[..., 3] = np.where(result[..., 3] == 255, 255, 0)
        result.setflags(write=False)
        return result


def check_size(path, got: tuple[int, int], expected: tuple[int, int], source: str) -> None:
    """Raises InputError, naming file and both sizes, unless a photograph has the (H, W) that the model says."""
    if got != expected:
        raise InputError(
            f"{path}: expected {expected[1]}x{expected[0]} pixels as its camera in {source} says, got "
            f"{got[1]}x{got[0]}; use the images that the poses were made from"
        )


def find_masks(root: Path, names: list[str]) -> list[str | None]:
    """The mask files of images: masks/<name>.png with or without the image's own ending.

    Raises:
        InputError: there is a masks folder with files and none of them fits an image.
    """
    folder = root / "masks"
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in _MASK_ENDINGS]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    found = []
    for name in names:
        candidates = (f"{name}.png", f"{Path(name).with_suffix('').as_posix()}.png", name)
        found.append(next((str(files[candidate]) for candidate in candidates if candidate in files), None))
    if files and not any(found):
        raise InputError(
            f"{folder}: expected masks named <image name>.png, such as {names[0]}.png, got {len(files)} files that "
            f"fit no image, the first is {min(files)}; rename them or move the folder away"
        )
    return found
