"""Image files of others: their heads, their pixels, and what is refused before a pixel is decoded.

Formats: JPEG (also with further pictures behind the first, MPO), PNG, TIFF (its first page), BMP,
WebP, JPEG 2000, PPM. No other decoder of Pillow is ever tried: some of them start programs. 16-bit
images become 8-bit ones by v/257, grey ones RGB.

Pixels are given as they are stored. COLMAP's poses belong to them; programs that turn photographs
by the orientation of their EXIF data before they look at them are noticed by the sizes of their
cameras (`cosurfgs_jax.data.sizes`)."""

import dataclasses
import mmap
import os
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from cosurfgs_jax.data.sixteen_bits import eight_bit, has_sixteen_bits
from cosurfgs_jax.errors import InputError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM")
_JPEGS = ("JPEG", "MPO")  # what Pillow calls them
# Decoded they are 1.5 GB. The largest cameras of aircraft have 0.4 * 10^9 pixels.
MAX_PIXELS = 2**29
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    zlib.error,
    struct.error,
    RuntimeError,
)
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 274
_BITS = 258
_BANDS = 277
_PLANAR = 284
_KIND_OF_NUMBERS = 339  # tags of TIFF and EXIF
_SEPARATE_PLANES = 2
_REAL_NUMBERS = 3
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What undoes the turn that Pillow applies to a TIFF file with this orientation.
_UNTURN = _TURN | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@dataclasses.dataclass(frozen=True)
class PhotoHeader:
    """What the head of an image file says.

    | field             |                                                                          |
    |-------------------|--------------------------------------------------------------------------|
    | `height`, `width` | in pixels, as stored                                                     |
    | `has_alpha`       | whether there is an alpha channel                                        |
    | `orientation`     | of EXIF and TIFF, 1 to 8: how it is to be looked at; 1 = as stored       |
    | `seems_whole`     | it ends as such a file ends; where it does not, only decoding tells      |
    |                   | whether it is cut off                                                    |
    | `is_jpeg`         | it is a JPEG (or MPO), whatever its name                                 |
    | `num_pages`       | of a TIFF file, of which the first is read; 1 for the other formats      |
    | `is_deep`         | it has 16 bits a value                                                   |
    """

    height: int
    width: int
    has_alpha: bool
    orientation: int = 1
    seems_whole: bool = True
    is_jpeg: bool = False
    num_pages: int = 1
    is_deep: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether a viewer shows the height as the width."""
        return self.orientation >= 5


class ExifTables(NamedTuple):
    """The tables of EXIF data, tag -> value; {} where there is none."""

    main: dict[int, Any]
    photo: dict[int, Any]  # how it was taken
    gps: dict[int, Any]


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a viewer shows it that obeys the orientation of EXIF data, 1 to 8."""
    if orientation not in _TURN:
        return image
    return image.transpose(_TURN[orientation])


def _unreadable(path, error) -> InputError:
    text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        text = "no image of a known format"
    return InputError(
        f"{path}: expected a whole image (JPEG, PNG, TIFF, BMP, WebP, JPEG 2000 or PPM), got one "
        f"that cannot be read ({text}); restore or convert the file"
    )


def _tiff_tags(path):
    """The tags of a file that Pillow knows no pixel mode for; {} where it is no TIFF file."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] == b"II+\0" or head[:4] == b"MM\0+":
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return {tag: tags.get(tag) for tag in (_BITS, _BANDS, _PLANAR, _KIND_OF_NUMBERS)}
    except _DECODE_ERRORS:
        return {}


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _check_tiff(tags, path) -> None:
    """Refuses what Pillow would decode wrongly, or in words that mislead."""
    num_bands = tags.get(_BANDS) or 1
    bits = max(_as_tuple(tags.get(_BITS) or 1))
    got = ""
    if _REAL_NUMBERS in _as_tuple(tags.get(_KIND_OF_NUMBERS) or 1):
        got = "real numbers"
    elif num_bands > 4:
        got = f"{num_bands} bands"
    elif bits not in (1, 2, 4, 8, 16) and bits < 32:
        got = f"{bits} bits"
    elif tags.get(_PLANAR) == _SEPARATE_PLANES and bits == 16 and num_bands > 1:
        got = "16 bits in a plane for each colour"
    if got:
        raise InputError(
            f"{path}: expected an image of 8 or 16 bits with one, three or four bands, pixel by "
            f"pixel, got {got}; "
            "convert it, to 8-bit RGB for example"
        )


def _tags_of(image: Image.Image) -> Any:
    """The directory of a TIFF file's tags."""
    tiff: Any = image
    return tiff.tag_v2


def _open(path, file=None) -> Image.Image:
    # Aerial cameras exceed Pillow's limit of 89 megapixels. Sizes are compared with the camera's
    # before decoding, so a file that claims to be larger than it should be is refused all the same.
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(file or path, formats=FORMATS)
    except Image.UnidentifiedImageError:
        _check_tiff(_tiff_tags(path), path)
        raise
    try:
        if image.format == "TIFF":
            _check_tiff(_tags_of(image), path)
        if image.mode == "F":
            raise InputError(
                f"{path}: expected an image of 8 or 16 bits, got real numbers; convert it"
            )
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                f"{path}: expected an image of at most {MAX_PIXELS} pixels, got "
                f"{image.width}x{image.height}; "
                "cut it"
            )
    except InputError:
        image.close()
        raise
    return image


def _exif_orientation(raw: bytes) -> int:
    """The orientation in EXIF data, 1 where there is none. Pillow's own reader takes longer than
    the rest of the head.
    """
    start = 6 if raw.startswith(b"Exif\0\0") else 0
    order = {b"II": "<", b"MM": ">"}.get(raw[start : start + 2])
    if order is None or len(raw) < start + 8:
        return 1
    first = start + struct.unpack_from(order + "I", raw, start + 4)[0]
    if len(raw) < first + 2:
        return 1
    entries = raw[first + 2 : first + 2 + 12 * struct.unpack_from(order + "H", raw, first)[0]]
    for tag, _, _, value, _ in struct.iter_unpack(
        order + "HHIHH", entries[: len(entries) // 12 * 12]
    ):
        if tag == _ORIENTATION:
            return value
    return 1


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        value = _tags_of(image).get(_ORIENTATION, 1)
    else:  # never `getexif`, which decodes the pixels of a PNG file to look behind them
        value = _exif_orientation(image.info.get("exif", b""))
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_whole_jpeg(file) -> bool:
    """Whether the first picture of a JPEG file ends. In coded pixels no end marker can occur by
    chance.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = 2
        while place + 4 <= len(data) and data[place] == 0xFF:
            marker = data[place + 1]
            if marker == 0xFF:  # fill bytes
                place += 1
                continue
            if marker == 0xDA:  # pixels follow
                return data.rfind(b"\xff\xd9", place) >= 0
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _seems_whole(image: Image.Image, file) -> bool:
    size = os.fstat(file.fileno()).st_size
    if image.format == "TIFF":
        tags = _tags_of(image)
        starts = tags.get(273) or tags.get(324) or ()
        counts = tags.get(279) or tags.get(325) or ()
        return len(starts) > 0 and max(a + b for a, b in zip(starts, counts, strict=False)) <= size
    if image.format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    file.seek(max(0, size - 12))
    tail = file.read(12)
    if image.format in _JPEGS:
        return tail.endswith(b"\xff\xd9") or _has_whole_jpeg(file)
    return image.format == "PNG" and b"IEND" in tail


def _header_of(image: Image.Image, seems_whole: bool = True) -> PhotoHeader:
    width, height = image.size
    orientation = _orientation(image)
    if image.format == "TIFF" and orientation >= 5:  # Pillow gives the size after its turn
        width, height = height, width
    has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
    return PhotoHeader(
        height,
        width,
        has_alpha,
        orientation,
        seems_whole,
        is_jpeg=image.format in _JPEGS,
        num_pages=getattr(image, "n_frames", 1) if image.format == "TIFF" else 1,
        is_deep=has_sixteen_bits(image),
    )


def read_header(path) -> PhotoHeader:
    """Reads the head of an image file, and no pixels.

    Raises:
        InputError: no image of `FORMATS`, its head is cut off or damaged, it has more than
            `MAX_PIXELS`, real numbers or more than four bands.
    """
    try:
        # Thousands are read at every start: each is opened once, and one that ends properly was
        # written to its end.
        with open(path, "rb") as file, _open(path, file) as image:
            return _header_of(image, _seems_whole(image, file))
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def read_exif(path) -> ExifTables:
    """The EXIF data of an image file; empty tables where they are missing or damaged.

    Raises:
        InputError: as `read_header`.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of Pillow, about every damaged tag
            open(path, "rb") as file,
            _open(path, file) as image,
        ):
            data = Image.Exif()
            if image.format == "TIFF":
                data = image.getexif()
            else:  # never `getexif`, see `_orientation`
                data.load(image.info.get("exif", b""))
            tables = [data.get_ifd(kind) for kind in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)]
            return ExifTables(dict(data), *map(dict, tables))
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise _unreadable(path, error) from None
    except _DECODE_ERRORS:
        return ExifTables({}, {}, {})


def decode(path, check_header=lambda header: None, side: int = 0) -> Image.Image:
    """Decodes an image file as it is stored; a JPEG smaller, where `side` pixels a side are enough.

    Args:
        path: of the file.
        check_header: called with the `PhotoHeader` before pixels are decoded, to raise where they
            should not be.
        side: pixels a side that are enough, in RGB of 8 bits; 0: all are wanted, as stored.
    Raises:
        InputError: as `read_header`, and cut off or damaged.
    """
    try:
        with _open(path) as image:
            header = _header_of(image)
            check_header(header)
            if side:
                image.draft("RGB", (side, side))
            is_turned = image.format == "TIFF" and header.orientation in _UNTURN
            image.load()
            result = image.transpose(_UNTURN[header.orientation]) if is_turned else image.copy()
            result.format = image.format
            return eight_bit(result).convert("RGB") if side else result
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def read_photograph(
    path, size: tuple[int, int] | None = None, source: str = ""
) -> tuple[Image.Image, np.ndarray | None]:
    """Decodes a photograph.

    Args:
        path: of the file.
        size: (H, W) as stored that it must have, compared before it is decoded; None: any.
        source: what says so, for the message.
    Returns:
        RGB of 8 bits, and the alpha channel u8[H,W] or None. Colours are not multiplied with alpha.
    Raises:
        InputError: unreadable, cut off, of another size, or real-valued.
    """
    image = decode(
        path,
        lambda header: (
            size is None or check_size(path, (header.height, header.width), size, source)
        ),
    )
    try:
        image = eight_bit(image)
        alpha = None
        if image.mode in ALPHA_MODES or "transparency" in image.info:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
        return image.convert("RGB"), alpha
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def read_alpha(path, size: tuple[int, int], source: str) -> np.ndarray | None:
    """The alpha channel u8[H,W] of a photograph; otherwise as `read_photograph`."""
    image = decode(
        path, lambda header: check_size(path, (header.height, header.width), size, source)
    )
    try:
        if "transparency" in image.info or image.mode not in ("RGBA", "LA"):
            return read_photograph(path, size, source)[1]
        return np.asarray(image.getchannel("A"))
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None


def check_size(path, got: tuple[int, int], expected: tuple[int, int], source: str) -> None:
    """Raises InputError, naming file and both sizes, unless a photograph has the (H, W) that the
    model says.
    """
    if got != expected:
        raise InputError(
            f"{path}: expected {expected[1]}x{expected[0]} pixels as its camera in {source} says, "
            "got "
            f"{got[1]}x{got[0]}; use the images that the poses were made from"
        )
