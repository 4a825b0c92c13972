"""Photographs as training sees them: decoded, masked, shrunk, undistorted, and kept in memory
within a budget.
"""

import collections
import concurrent.futures
import functools
import os
import threading

import numpy as np
from PIL import Image

from cosurfgs_jax import photograph
from cosurfgs_jax.data.masks import read_mask
from cosurfgs_jax.data.photo_files import read_photograph, turned
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.geometry.distortion import source_pixels

_MIN_THREADS = 2
_MAX_THREADS = 16  # one thread decodes 4 photographs of 16 megapixels a second
_THREADS_FRACTION = (
    0.25  # of the budget, for what all threads hold of the images that they decode, ...
)
_BYTES_PER_PIXEL = 12  # ... each: 8 to 12 were measured with a JPEG of 16 megapixels
_STRIP_ROWS = (
    64  # of an image that is resampled at once: temporaries stay within the cache of a core
)


def resample(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of an image at given places.

    Args:
        image: u8[h,w,C].
        positions: f32[H,W,2], (x, y) in pixels, x+0.5 is the centre of pixel x; places outside take
            the border's value.
    Returns:
        u8[H,W,C], rounded to the nearest.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    result = np.empty((*positions.shape[:2], channels), np.uint8)
    for first in range(0, len(positions), _STRIP_ROWS):
        part = positions[first : first + _STRIP_ROWS] - np.float32(0.5)
        x = np.clip(part[..., 0], 0, width - 1)
        y = np.clip(part[..., 1], 0, height - 1)
        left = x.astype(np.int64)
        top = y.astype(np.int64)
        right = np.minimum(left + 1, width - 1)
        below = np.minimum(top + 1, height - 1) * width
        weight_x = (x - left)[..., None].astype(np.float32)
        weight_y = (y - top)[..., None].astype(np.float32)
        top = top * width
        upper = flat[top + left] * (1 - weight_x) + flat[top + right] * weight_x
        lower = flat[below + left] * (1 - weight_x) + flat[below + right] * weight_x
        result[first : first + _STRIP_ROWS] = (
            upper * (1 - weight_y) + lower * weight_y + np.float32(0.5)
        )
    return result


def shrink(image: Image.Image, factor: int) -> np.ndarray:
    """Averages squares of factor x factor pixels; what is left over at the right and below is
    cropped.

    Cropping keeps the scale exactly 1/factor on both axes, so that principal point and focal
    lengths stay exact.

    Returns:
        u8[H // factor, W // factor, C], or without C for one channel; rounded to the nearest.
    """
    box = (0, 0, image.width // factor * factor, image.height // factor * factor)
    return np.asarray(image.reduce(factor, box=box) if factor > 1 else image)


def num_threads(scene: Scene, num_bytes: int) -> int:
    """How many threads decode: one for each core that the process may use, in so far as the memory
    lets them.

    Args:
        scene: whose photographs are decoded.
        num_bytes: of the budget for kept images; what is just being decoded takes memory besides.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    largest = _bytes_of_largest(scene)
    return max(
        _MIN_THREADS, min(cores, _MAX_THREADS, int(_THREADS_FRACTION * num_bytes) // largest)
    )


def decoding_bytes(scene: Scene, num_bytes: int) -> int:
    """What all threads together hold of the photographs that they decode; see `num_threads`."""
    return num_threads(scene, num_bytes) * _bytes_of_largest(scene)


def _bytes_of_largest(scene: Scene) -> int:
    return max(1, int(scene.photo_sizes.prod(axis=1).max())) * _BYTES_PER_PIXEL


class ImageStore:
    """Gives the photographs of a scene as they are trained on, from memory where they were read
    before.

    Decoded images are kept as uint8, the longest unused ones are dropped first. Besides the budget,
    the resampling maps of two lenses and the images that are just being decoded take memory. All
    methods may be called from any thread."""

    def __init__(self, scene: Scene, host_memory_mb: int):
        """
        Args:
            scene: whose photographs are kept.
            host_memory_mb: for kept images, MiB. An image that does not fit is read each time.
        """
        self._scene = scene
        self._budget = int(host_memory_mb) * 2**20
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._num_bytes = 0
        self._pending: dict[int, concurrent.futures.Future] = {}
        self.num_threads = num_threads(scene, self._budget)
        self._pool = concurrent.futures.ThreadPoolExecutor(
            self.num_threads, thread_name_prefix="images"
        )
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
            u8[H,W,3], or u8[H,W,4] where the scene has masks: the fourth is 255 where the pixel
            counts, else 0. Pixels that were averaged or interpolated from any ignored one are
            ignored. Read-only.
        Raises:
            InputError: unreadable file, or another size than the model says; names the file,
                expected and got.
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
        """Starts reading views in the background, in this order, as many as the budget holds;
        returns at once.
        """
        with self._lock:
            room = self._budget - sum(self._size(view) for view in self._pending)
            for view in dict.fromkeys(map(int, views)):
                if view in self._pending:
                    continue
                room -= self._size(
                    view
                )  # also of what is there: it must still be there when its turn comes
                if room < 0:
                    return
                if view in self._cache:
                    self._cache.move_to_end(view)
                else:
                    self._pending[view] = self._pool.submit(self._read_and_keep, view)

    def _size(self, view: int) -> int:
        num_channels = 4 if self._scene.has_masks else 3
        return int(np.prod(self._scene.views.image_sizes[view])) * num_channels

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
        scene = self._scene
        orientation = scene.orientation(view)
        size = tuple(scene.photo_sizes[view].tolist())
        image, alpha = read_photograph(
            scene.image_paths[view], size[::-1] if orientation >= 5 else size, scene.path
        )
        image = turned(image, orientation)
        factor = int(scene.shrink_factors[view])
        planes = [shrink(image, factor)]
        if scene.has_masks:
            keep = Image.fromarray(
                photo_mask(scene, view, alpha).astype(np.uint8) * photograph.COUNTS
            )
            planes.append(shrink(keep, factor)[..., None])
        result = np.concatenate(planes, axis=-1)
        lens = scene.distortion[view]
        if lens is not None:
            result = resample(result, self._positions(lens, scene.pinhole(view)))
        if scene.has_masks:
            result[..., 3] = np.where(result[..., 3] == photograph.COUNTS, photograph.COUNTS, 0)
        result.setflags(write=False)
        return result


def photo_mask(scene: Scene, view: int, alpha: np.ndarray | None) -> np.ndarray:
    """Which pixels of a photograph count, before it is shrunk: those of its mask file and its own
    alpha channel.

    Args:
        scene: that the view is of.
        view: its number.
        alpha: u8[H,W] as stored, or None.
    Returns:
        bool[H,W], turned as the photograph is.
    """
    height, width = map(int, scene.photo_sizes[view])
    orientation = scene.orientation(view)
    keep = np.ones((height, width), bool)
    if alpha is not None:
        keep = np.asarray(turned(Image.fromarray(photograph.alpha_counts(alpha)), orientation))
    if scene.mask_paths[view]:
        keep = keep & read_mask(scene.mask_paths[view], height, width, orientation)
    return keep
