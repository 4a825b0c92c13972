"""What is said of photographs that are not opened, or are read otherwise than they may be meant."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import photo_files
from cosurfgs_jax.data.checks import some_of
from cosurfgs_jax.data.lookup import CONVERTED, RAW, walk
from cosurfgs_jax.errors import InputError

# Values of cameras' 12 bits in files of 16 end at 4095, which is 15 or 16 of 255.
_LARGEST_OF_TWELVE_BITS = 16
_NUM_LOOKED_AT = 3  # photographs that are decoded to find that out
_log = logging.getLogger(__name__)


def unopened_in(folder: Path) -> list[str]:
    """Photographs in a folder and below whose format this package does not open, relative."""
    return [
        f"{place}/{file}" if place else file
        for place, _, _, files in walk(folder)
        for file in files
        if Path(file).suffix.lower() in CONVERTED
    ]


def how_to_convert(names: Iterable[str]) -> str:
    """What to do with photographs whose format this package does not open: a clause, with a
    command.
    """
    endings = sorted({Path(name).suffix for name in names})
    files = " and ".join(endings)
    if any(ending.lower() in RAW for ending in endings):
        return (
            f"convert the {files} files to JPEG first, raw ones with darktable or RawTherapee for "
            "example: rawtherapee-cli -j95 -c FOLDER"
        )
    patterns = " ".join(f"*{ending}" for ending in endings)
    return (
        f"convert the {files} files to JPEG first, with ImageMagick for example: magick mogrify "
        f"-format jpg {patterns}"
    )


def say_unopened(folder: Path, source: str) -> None:
    """Says in the log which photographs in a folder and below are of formats that this package does
    not open, and what to do with them.
    """
    names = unopened_in(folder)
    if names:
        _log.warning(
            "%s: %d photographs in %s are of formats that are not read: %s; %s",
            source,
            len(names),
            folder,
            some_of(names),
            how_to_convert(names),
        )


def say_pages(headers: dict[str, photo_files.PhotoHeader], source: str) -> None:
    """Says in the log which files have several pages, of which the first is read.

    Args:
        headers: of the photographs, by name.
        source: where their names are from.
    """
    names = [name for name, header in headers.items() if header.num_pages > 1]
    if names:
        _log.warning(
            "%s: %d photographs are TIFF files of several pages, of which the first is read: %s",
            source,
            len(names),
            some_of(names),
        )


def say_dark(paths: list[str], source: str) -> None:
    """Says in the log that photographs of 16 bits a value use only the lowest 12: they are read as
    nearly black.

    Some are decoded, up to the first that is not.

    Args:
        paths: of the photographs of 16 bits a value.
        source: where their names are from.
    """
    largest = 0
    places = np.linspace(0, len(paths) - 1, _NUM_LOOKED_AT).round().astype(int)
    for path in [paths[place] for place in dict.fromkeys(places)] if paths else []:
        try:
            picture = photo_files.read_photograph(path)[0]
        except InputError:  # who needs the photograph finds the damage
            return
        largest = max(largest, int(np.asarray(picture).max()))
        if largest > _LARGEST_OF_TWELVE_BITS:
            return
    if 0 < largest:
        _log.warning(
            "%s: photographs of 16 bits a value are nearly black (no value of those looked at is "
            "above %d of 255), %s for example: they seem to hold values of 12 bits or fewer; "
            "spread them over all 16, with ImageMagick for example: magick mogrify -evaluate "
            "multiply 16 *%s",
            source,
            largest,
            paths[0],
            Path(paths[0]).suffix,
        )
