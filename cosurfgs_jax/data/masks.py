"""Masks of photographs: found under the names that programs give them, and decoded whatever kind of
image they are.
"""

import concurrent.futures
import contextlib
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from cosurfgs_jax import files, photograph
from cosurfgs_jax.data.lookup import CONVERTED, IMAGE_ENDINGS, FileIndex, folded, without_ending
from cosurfgs_jax.data.photo_files import (
    ALPHA_MODES,
    MAX_PIXELS,
    PhotoHeader,
    decode,
    turned,
)
from cosurfgs_jax.data.sixteen_bits import SIXTEEN_BIT_MODES
from cosurfgs_jax.errors import InputError

_log = logging.getLogger(__name__)
FOLDERS = ("masks", "mask")
_MARKS = (".mask", "_mask", "-mask")  # behind the photograph's name, of RealityScan and Metashape
_LOSSY = ("JPEG", "MPO", "WEBP")
# A lossy file's black is not quite 0: values up to here are black there.
_LOSSY_BLACK = 16
_COLOURFUL = 16  # least difference of a pixel's channels that makes an image one of coloured labels
_MAX_ENLARGEMENT = 16  # of a mask's sides over the photograph's


def _keys_of(file: str) -> list[str]:
    """What photographs a mask file can belong to by its name: their whole names or their names
    without ending, best first.
    """
    stem = without_ending(folded(file))
    keys = [stem]
    for mark in _MARKS:
        if stem.endswith(mark) and len(stem) > len(mark):
            keys.append(stem[: -len(mark)])
    return keys


class MaskIndex:
    """The mask files of a dataset, found by the names of photographs."""

    def __init__(self, root: Path, folder: str = ""):
        """
        Args:
            root: the dataset's folder.
            folder: of the masks below it; "" = the one of `FOLDERS` that is there, in any case.
        """
        there = [
            path.name for path in root.iterdir() if path.is_dir() and path.name.lower() in FOLDERS
        ]
        usual = min(
            there,
            key=lambda name: (FOLDERS.index(name.lower()), name not in FOLDERS),
            default=FOLDERS[0],
        )
        self.folder = root / (folder or usual)
        self._index = FileIndex(self.folder)
        self._by_last: dict[str, list[tuple[int, str]]] = {}
        for file in self._index.names():
            for rank, key in enumerate(_keys_of(file)):
                self._by_last.setdefault(key.rpartition("/")[2], []).append((rank, file))

    def files(self) -> list[str]:
        """All mask files, relative."""
        return self._index.names()

    def find(self, name: str) -> str | None:
        """The mask file of a photograph, relative; None where there is none.

        Raises:
            InputError: several files fit equally well.
        """
        whole = folded(name)
        best: dict[str, tuple] = {}
        for order, wanted in enumerate(
            dict.fromkeys((whole, without_ending(whole, IMAGE_ENDINGS + CONVERTED)))
        ):
            for rank, file in self._by_last.get(wanted.rpartition("/")[2], ()):
                shared = _shared_end(wanted, _keys_of(file)[rank])
                if shared:
                    place = (-shared, order, rank, abs(file.count("/") - name.count("/")))
                    best[file] = min(best.get(file, place), place)
        best_place = min(best.values(), default=None)
        fitting = [file for file, place in best.items() if place == best_place]
        if len(fitting) > 1:
            raise InputError(
                f"{self.folder}: expected one mask for {name}, got {len(fitting)} that fit it: "
                f"{fitting[0]}, "
                f"{fitting[1]}; rename or remove one"
            )
        return next(iter(fitting), None)


def _shared_end(name: str, other: str) -> int:
    """How many last parts two paths share, if one ends in the other; else 0."""
    ours = name.split("/")
    theirs = other.split("/")
    shared = min(len(ours), len(theirs))
    return shared if ours[-shared:] == theirs[-shared:] else 0


def find_masks(root: Path, names: list[str], must_fit: bool = True) -> list[str | None]:
    """The mask files of photographs, below masks/.

    `x.jpg` has `x.jpg.png`, `x.png`, `x.jpg.mask.png`, `x.mask.png` or `x_mask.png`, with any
    ending of an image, in any case.

    Args:
        root: the dataset's folder.
        names: of all photographs.
        must_fit: a folder of masks none of which fits is a mistake.
    Raises:
        InputError: there is a masks folder with files and none of them fits an image, several fit
            one image, or one fits images of several folders.
    """
    index = MaskIndex(root)
    if must_fit and index.folder.is_dir() and not index.files():
        others = sorted(
            path.name for path in index.folder.iterdir() if not path.name.startswith(".")
        )
        if others:
            _log.warning(
                "%s: no image of a known format is in it, so that nothing is masked; it has %s",
                index.folder,
                others[0],
            )
    found = [None] * len(names)
    if index.files():
        found = [index.find(name) for name in names]
    # One beside which a photograph of the same path lies is of no photograph in a further folder.
    exact = {
        file
        for name, file in zip(names, found, strict=True)
        if file and file.count("/") == name.count("/")
    }
    found = [
        None if file is not None and file in exact and file.count("/") != name.count("/") else file
        for name, file in zip(names, found, strict=True)
    ]
    owners: dict[str, str] = {}
    for name, file in zip(names, found, strict=True):
        # Photographs of one name and two endings may share a mask, those of two folders may not.
        if file and without_ending(folded(owners.setdefault(file, name))) != without_ending(
            folded(name)
        ):
            raise InputError(
                f"{index.folder / file}: expected the mask of one photograph, got one that fits "
                f"{owners[file]} and "
                f"{name}; put masks into folders like the photographs'"
            )
    if must_fit and index.files() and not any(found):
        raise InputError(
            f"{index.folder}: expected masks named <image name>.png, such as {names[0]}.png, got "
            f"{len(index.files())} files "
            f"that fit no image, the first is {min(index.files())}; rename them or move the folder "
            "away"
        )
    return [str(index.folder / file) if file else None for file in found]


def is_same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (H, W) differ by one factor, within the rounding of a pixel."""
    scale = size[1] / other[1]
    return abs(size[0] - other[0] * scale) <= max(1.0, scale)


def _grey_and_alpha(image: Image.Image, is_lossy: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Values in which 0 is black, up to 255 or 65535, and the alpha channel, if it says
    anything.
    """
    if image.mode in SIXTEEN_BIT_MODES:
        return np.clip(np.asarray(image).astype(np.int64), 0, 65535), None
    alpha = None
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() == 255:
            alpha = None
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), alpha
    colors = np.asarray(image.convert("RGB"))
    brightest = colors.max(axis=-1)
    darkest = colors.min(axis=-1)
    # On white, colours are painted over what is to be ignored.
    has_ground = brightest.min() == 0 or darkest.max() < 255
    if not is_lossy and has_ground and (brightest - darkest).max() >= _COLOURFUL:
        # Labels in colours: what is not black counts, however dark its colour looks.
        return np.where(brightest > 0, 255, 0).astype(np.uint8), alpha
    return np.asarray(image.convert("L")), alpha


def keep_of(image: Image.Image) -> np.ndarray:
    """What a mask keeps, bool[H,W].

    Black is ignored, white is kept, greys from half of white on; where nothing is that bright the
    values are labels (also of 16 bits, or colours of a palette), of which all but 0 are kept. An
    alpha channel that is not 255 everywhere is a mask, too.

    Args:
        image: decoded, with its `format`: lossy ones have no labels.
    """
    is_lossy = image.format in _LOSSY
    grey, alpha = _grey_and_alpha(image, is_lossy)
    white = 65535 if grey.dtype == np.int64 else 255
    lowest = int(grey.min())
    highest = int(grey.max())
    if alpha is not None and lowest == highest:
        return photograph.alpha_counts(alpha)
    if highest > white // 2:
        keep = grey > white // 2
    elif is_lossy:
        keep = grey > max(highest // 2, _LOSSY_BLACK)
    else:
        keep = grey > 0
    if alpha is None:
        return keep
    return keep & photograph.alpha_counts(alpha)


def read_mask(path, height: int, width: int, orientation: int = 1) -> np.ndarray:
    """Decodes a mask and brings it to a photograph's size by taking the nearest pixel.

    Args:
        path: of the mask.
        height, width: of the photograph, as it is looked at.
        orientation: in which the photograph was turned (EXIF, 1 to 8); a mask that has the sides of
            the photograph as it is stored is turned likewise.
    Returns:
        bool[H,W], True = keep; see `keep_of`.
    Raises:
        InputError: unreadable, of another shape than the photograph, or more than 16 times its
            size.
    """

    def check(header: PhotoHeader) -> None:
        size = (header.height, header.width)
        is_stored = orientation >= 5 and is_same_shape(size[::-1], (height, width))
        if not is_same_shape(size, (height, width)) and not is_stored:
            raise InputError(
                f"{path}: expected a mask of the photograph's shape, {width}x{height} pixels, got "
                f"{header.width}x{header.height}; make it from the photograph again"
            )
        if (
            header.width > _MAX_ENLARGEMENT * max(width, height)
            or header.width * header.height > MAX_PIXELS // 2
        ):
            raise InputError(
                f"{path}: expected a mask of about {width}x{height} pixels, got "
                f"{header.width}x{header.height}; "
                "shrink it"
            )

    mask = Image.fromarray(keep_of(decode(path, check)))
    if not is_same_shape((mask.height, mask.width), (height, width)):
        mask = turned(mask, orientation)
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(mask)


def _read_notes(path: Path) -> dict[str, float]:
    try:
        notes = files.read_json_object(path) if path.is_file() else {}
    except InputError:  # they are made again
        return {}
    return {
        key: value for key, value in notes.items() if isinstance(value, float) and 0 <= value <= 1
    }


def state_of(path: str) -> str:
    """A text that changes when a file does."""
    return f"{path} {files.state_of(path)}"


def kept_fractions(
    load, states: dict[int, str], notes_path: Path, num_threads: int
) -> dict[int, float]:
    """What fraction of the pixels of some views counts.

    Masks are decoded for it, minutes where there are thousands, so that what was found is kept for
    the next start.

    Args:
        load: view -> bool[H,W], True = counts; called from several threads.
        states: of the views with a mask or an alpha channel: what changes when their files do.
        notes_path: the JSON file that it is kept in; where it cannot be written nothing is kept.
        num_threads: that decode at once.
    """
    notes = _read_notes(notes_path)
    new = [view for view, state in states.items() if state not in notes]
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        fractions = pool.map(lambda view: float(load(view).mean()), new)
        notes |= {states[view]: fraction for view, fraction in zip(new, fractions, strict=True)}
    if new:
        with contextlib.suppress(InputError):
            files.write_json(notes_path, {state: notes[state] for state in states.values()})
    return {view: notes[state] for view, state in states.items()}
