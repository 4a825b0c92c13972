"""From the photographs as they are on disk to the images that training sees: turned, scaled,
shrunk, without distortion.

The pixels decide. A photograph may be of another size than the camera of the model says, by one
factor for both sides; its lens is scaled likewise. Where the sides are exchanged, the orientation
of its EXIF data says how it was turned before."""

import collections
import dataclasses
import logging
import math
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.photo_files import PhotoHeader, check_size
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.geometry.distortion import Lens, is_pinhole, undistorted_pinhole
from cosurfgs_jax.settings import DataSettings

_MIN_SIDE = 8  # pixels; smaller images are a downscale set by mistake
MAX_SIDE = 32_767  # pixels; the rasterizer counts tiles in 16 bits
# Sides of undistorted images are cropped to whole multiples of this fraction of the photograph's,
# where lenses differ.
_SIDE_STEP = 0.02
_WHOLE_TOLERANCE = 0.03  # of a reduction: 1/2.03 is taken for a half
_log = logging.getLogger(__name__)


class Photo(NamedTuple):
    """A photograph that is read, and what its camera in the model says of it."""

    name: str
    path: str  # "" for one that another process of the run has
    header: PhotoHeader | None  # None likewise
    lens: Lens


class LoadedCameras(NamedTuple):
    """Fields of `Scene` and its `Views`, of all V photographs; see there."""

    intrinsics: np.ndarray
    image_sizes: np.ndarray
    distortion: list[Lens | None]
    photo_sizes: np.ndarray
    shrink_factors: np.ndarray
    orientations: tuple[int, ...]


def _range_of(side: int, full: int, low: float, high: float) -> tuple[float, float]:
    return (side + low) / full, (side + high) / full


def is_scaled(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether an (H, W) is another one times a factor, both sides rounded alike: down, up or to the
    nearest.
    """
    if size == full:
        return True
    if size[0] == full[0] or size[1] == full[1]:  # cut or stretched along one side
        return False
    for low, high in ((0.0, 1.0), (-1.0, 0.0), (-0.5, 0.5)):
        ranges = [_range_of(side, whole, low, high) for side, whole in zip(size, full, strict=True)]
        if max(first for first, _ in ranges) <= min(last for _, last in ranges):
            return True
    return False


def _stored(header: PhotoHeader) -> tuple[int, int]:
    return header.height, header.width


def _fits(header: PhotoHeader, lens: Lens, is_turned: bool) -> bool:
    size = _stored(header)
    return is_scaled(size[::-1] if is_turned else size, (lens.height, lens.width))


def choose_orientations(photos: list[Photo], source: str) -> np.ndarray:
    """How each photograph is turned on loading: the orientation of its EXIF data if the cameras are
    those of turned ones.

    COLMAP's poses belong to the pixels as they are stored, other programs turn them first. Only
    photographs whose sides are exchanged tell; where all of them say so, those that are upside down
    or mirrored are turned, too.

    Returns:
        i64[V], 1 = as stored.
    Raises:
        InputError: some photographs fit as stored only and some turned only.
    """
    as_stored = []
    as_turned = []
    for view, photo in enumerate(photos):
        if photo.header is not None and photo.header.swaps_sides:
            fits = [_fits(photo.header, photo.lens, is_turned) for is_turned in (False, True)]
            if fits == [True, False]:
                as_stored.append(view)
            if fits == [False, True]:
                as_turned.append(view)
    orientations = np.ones(len(photos), np.int64)
    if not as_turned:
        return orientations
    if as_stored:
        raise InputError(
            f"{source}: expected all photographs turned by their EXIF orientation or none, got "
            "cameras for "
            f"{photos[as_turned[0]].path} turned and for {photos[as_stored[0]].path} as it is "
            "stored; write the "
            "photographs again without the orientation, as the poses want them"
        )
    for view, photo in enumerate(photos):
        if photo.header is not None:
            orientations[view] = photo.header.orientation
    _log.info(
        "%s: the cameras are those of photographs turned by their EXIF orientation: %d are turned "
        "on loading",
        source,
        (orientations > 1).sum(),
    )
    return orientations


def _check_shape(photo: Photo, size: tuple[int, int], reduction: float, source: str) -> None:
    lens = photo.lens
    if is_scaled(size, (lens.height, lens.width)):
        return
    if abs(reduction - 1) <= _WHOLE_TOLERANCE:
        reduction = 1.0
    expected = (round(lens.height / reduction), round(lens.width / reduction))
    if is_scaled(size[::-1], (lens.height, lens.width)):
        orientation = required(photo.header, "Photo.header").orientation
        turn = f"has EXIF orientation {orientation}"
        if orientation == 1:
            turn = "has no EXIF orientation that says how"
        raise InputError(
            f"{photo.path}: expected {expected[1]}x{expected[0]} pixels as its camera in {source} "
            f"says, got {size[1]}x{size[0]}: it is turned by a quarter and {turn}; turn the "
            "photographs as the poses want them"
        )
    check_size(photo.path, size, expected, source)


def _shrink_factor(
    folder, reduction: float, lens: Lens, size: tuple[int, int], data: DataSettings
) -> int:
    """By what the files of a folder other than images/ are still to be shrunk on loading."""
    reduced = max(1, round(reduction))
    is_whole = abs(reduction / reduced - 1) <= _WHOLE_TOLERANCE
    if not data.images and not (is_whole and reduced == data.downscale):
        raise InputError(
            f"{folder}: expected images of 1/{data.downscale} of the cameras' size, "
            f"{lens.width // data.downscale}x"
            f"{lens.height // data.downscale} pixels, got {size[1]}x{size[0]}; make the folder "
            "again or "
            "remove it"
        )
    if is_whole and data.downscale > reduced and data.downscale % reduced:
        raise InputError(
            f"config.data.downscale: expected a multiple of {reduced}, the reduction of the images "
            f"in {folder}, "
            f"got {data.downscale}"
        )
    return max(1, data.downscale // reduced if is_whole else round(data.downscale / reduction))


def _resized_lens(lens: Lens, size: tuple[int, int], factor: int) -> Lens:
    """The lens of a photograph as it is on disk and after it was shrunk by a whole factor."""
    height, width = size
    on_disk = lens.resized(height, width, height / lens.height, width / lens.width)
    return on_disk.resized(height // factor, width // factor, 1 / factor, 1 / factor)


def _in_few_sizes(pinholes: list[Lens], lenses: list[Lens | None]) -> list[Lens]:
    """The pinhole cameras, cropped at the right and below where undistorted images of one camera
    differ a little in size.

    Each image size compiles the training step anew, a second or more. A camera that was calibrated
    for every photograph separately would give every photograph a size of its own.
    """
    sizes_of = collections.defaultdict(set)
    for pinhole, lens in zip(pinholes, lenses, strict=True):
        if lens is not None:
            sizes_of[lens.height, lens.width].add((pinhole.height, pinhole.width))

    def crop(pinhole: Lens, lens: Lens | None) -> Lens:
        if lens is None or len(sizes_of[lens.height, lens.width]) == 1:
            return pinhole
        step_y, step_x = (max(1, round(side * _SIDE_STEP)) for side in (lens.height, lens.width))
        return dataclasses.replace(
            pinhole,
            height=pinhole.height // step_y * step_y,
            width=pinhole.width // step_x * step_x,
        )

    return [crop(pinhole, lens) for pinhole, lens in zip(pinholes, lenses, strict=True)]


def _sizes(photos: list[Photo], orientations: np.ndarray) -> tuple[list[tuple[int, int]], float]:
    """(H, W) of the turned photographs, and the usual reduction of the cameras' sizes to them; a
    photograph that another process has is taken to be reduced by that."""
    sizes: list[tuple[int, int] | None] = []
    for photo, orientation in zip(photos, orientations, strict=True):
        size = None
        if photo.header is not None:
            size = _stored(photo.header)
            if orientation >= 5:
                size = size[::-1]
        sizes.append(size)
    here = [(photo, size) for photo, size in zip(photos, sizes, strict=True) if size is not None]
    usual = float(np.median([photo.lens.width / size[1] for photo, size in here]))
    return [
        size or (round(photo.lens.height / usual), round(photo.lens.width / usual))
        for size, photo in zip(sizes, photos, strict=True)
    ], usual


def _say_scales(photos: list[Photo], sizes: list[tuple[int, int]], source: str) -> None:
    scales = [size[1] / photo.lens.width for size, photo in zip(sizes, photos, strict=True)]
    scaled = [
        view
        for view, (size, photo) in enumerate(zip(sizes, photos, strict=True))
        if size != (photo.lens.height, photo.lens.width)
    ]
    if scaled:
        min_scale = min(scales[view] for view in scaled)
        max_scale = max(scales[view] for view in scaled)
        factor = f"{min_scale:.4g}"
        if not math.isclose(min_scale, max_scale, rel_tol=_WHOLE_TOLERANCE):
            factor = f"{min_scale:.4g} to {max_scale:.4g}"
        _log.info(
            "%s: %d of %d photographs are of %s times the size that their cameras say, %s for "
            "example of %dx%d pixels; the cameras are scaled to them",
            source,
            len(scaled),
            len(photos),
            factor,
            photos[scaled[0]].name,
            *sizes[scaled[0]][::-1],
        )


def load_cameras(
    photos: list[Photo], folder, is_full: bool, data: DataSettings, source: str
) -> LoadedCameras:
    """How photographs become the images that training sees.

    Args:
        photos: of all views; at least one is here.
        folder: that the photographs are in, for messages.
        is_full: they are the cameras' own, to be shrunk by `data.downscale`; else a ready-made
            reduction of them.
        data: settings.
        source: the model, for messages.
    Raises:
        InputError: a photograph of another shape than its camera, a downscale that fits no such
            folder or leaves too little or too much, or a lens that no pinhole can replace.
    """
    orientations = choose_orientations(photos, source)
    sizes, reduction = _sizes(photos, orientations)
    factor = data.downscale
    if not is_full:
        first = next(view for view, photo in enumerate(photos) if photo.header is not None)
        lens = photos[first].lens
        factor = _shrink_factor(folder, lens.width / sizes[first][1], lens, sizes[first], data)
    for photo, size in zip(photos, sizes, strict=True):
        if photo.header is not None:
            _check_shape(photo, size, reduction, source)
    _say_scales(photos, sizes, source)
    lenses = []
    pinholes = []
    for photo, size in zip(photos, sizes, strict=True):
        resized = _resized_lens(photo.lens, size, factor)
        if (
            min(resized.height, resized.width) < _MIN_SIDE
            or max(resized.height, resized.width) > MAX_SIDE
        ):
            raise InputError(
                f"config.data.downscale: expected a factor that leaves {_MIN_SIDE} to {MAX_SIDE} "
                "pixels a side, got "
                f"{data.downscale}, which leaves {resized.width}x{resized.height} of {photo.name}"
            )
        if is_pinhole(resized):
            lenses.append(None)
            pinholes.append(resized)
            continue
        lenses.append(resized)
        try:
            pinholes.append(undistorted_pinhole(resized))
        except InputError as error:
            raise InputError(f"{source}: image {photo.name}: {error}") from None
    pinholes = _in_few_sizes(pinholes, lenses)
    return LoadedCameras(
        intrinsics=np.stack([pinhole.intrinsics for pinhole in pinholes]),
        image_sizes=np.array([(pinhole.height, pinhole.width) for pinhole in pinholes], np.int64),
        distortion=lenses,
        photo_sizes=np.array(sizes, np.int64),
        shrink_factors=np.full(len(photos), factor, np.int64),
        orientations=tuple(orientations.tolist()),
    )
