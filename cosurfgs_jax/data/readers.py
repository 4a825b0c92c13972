"""The dataset formats, a line each: how one is recognised, and what reads it.

Another format is a file with its two functions and a line in `_READERS`; from outside of the
package, a call of `register_reader`.
"""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cosurfgs_jax.data import (
    colmap,
    generated,
    matrix_city,
    mega_nerf,
    mvsnet,
    photo_words,
    transforms_json,
)
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.lookup import FileIndex, subfolder
from cosurfgs_jax.errors import InputError


class Reader(NamedTuple):
    """A dataset format.

    | field     | what                                                                            |
    |-----------|---------------------------------------------------------------------------------|
    | `name`    | of the format; one name, one reader                                             |
    | `detects` | Source -> what `read` takes, such as the path of a file; None where the source  |
    |           | is of another format. Reads no more than it needs to tell                       |
    | `read`    | what `detects` gave -> Capture, in the dataset's frame and unit. Raises         |
    |           | `InputError` with the path and the place of what is wrong                       |
    | `expects` | what it looks for, for the message where no reader finds anything; "" = it is   |
    |           | not mentioned                                                                   |
    """

    name: str
    detects: Callable[[Source], Any | None]
    read: Callable[[Any], Capture]
    expects: str = ""


# Asked in this order. A COLMAP model beside poses of the next three is no dataset of its own: they
# take its points alone.
_READERS = [
    Reader("generated", generated.detects, generated.read),
    Reader("mega-nerf", mega_nerf.detects, mega_nerf.read_mega_nerf, mega_nerf.EXPECTED),
    Reader("matrixcity", matrix_city.detects, matrix_city.read_matrix_city),
    Reader("mvsnet", mvsnet.detects, mvsnet.read_mvsnet, mvsnet.EXPECTED),
    Reader("colmap", colmap.detects, colmap.read_model, colmap.EXPECTED),
    Reader(
        transforms_json.FORMAT,
        transforms_json.detects,
        transforms_json.read_transforms,
        transforms_json.FILE_NAME,
    ),
    Reader("colmap below colmap/", colmap.detects_below, colmap.read_model),
]


def register_reader(reader: Reader) -> None:
    """Adds a dataset format, for this process.

    Args:
        reader: asked before all others. It takes the place of one of the same name, also of one of
            the package's own.
    """
    unregister_reader(reader.name)
    _READERS.insert(0, reader)


def unregister_reader(name: str) -> None:
    """Removes a dataset format, if there is one of this name."""
    _READERS[:] = [reader for reader in _READERS if reader.name != name]


def reader_of(source: Source) -> str:
    """The name of the format that a dataset is of; "" where no reader recognises it."""
    return next((reader.name for reader in _READERS if reader.detects(source) is not None), "")


def read_dataset(source: Source) -> Capture:
    """Reads a dataset with the first reader that recognises it.

    Returns:
        A capture with `name` and `root`; nothing about it is checked yet.
    Raises:
        InputError: no such folder, nothing known in it, or what the reader says.
    """
    for reader in _READERS:
        found = reader.detects(source)
        if found is not None:
            capture = reader.read(found)
            root = capture.root or source.root
            return dataclasses.replace(capture, root=root, name=capture.name or root.resolve().name)
    root = source.root
    if not root.is_dir():
        raise InputError(
            f"config.data.path: expected a dataset folder, got {root}, which is not there"
        )
    expected = " or ".join(reader.expects for reader in _READERS if reader.expects)
    raise InputError(
        f"config.data.path: expected a dataset in {root}, that is {expected}, got {_content(root)}"
    )


def _content(root: Path) -> str:
    """What is in a folder that is no dataset; of bare photographs, the command that finds their
    poses.
    """
    folder = subfolder(root, "images") or root
    photographs = FileIndex(folder).names()
    if photographs:
        plural = "s" * (len(photographs) != 1)
        out = root if folder != root else f"{root.absolute().name}_dataset"
        return (
            f"{len(photographs)} photograph{plural} without poses; run `cosurfgs prepare "
            f"--images={shlex.quote(str(folder))} --out={shlex.quote(str(out))}`, then give "
            f"--config.data.path={shlex.quote(str(out))}"
        )
    unopened = photo_words.unopened_in(root) if root.is_dir() else []
    if unopened:
        return (
            f"{len(unopened)} photographs of formats that are not read; "
            f"{photo_words.how_to_convert(unopened)}"
        )
    content = sorted(path.name for path in root.iterdir())
    got = ", ".join(content[:8]) or "an empty folder"
    if len(content) > 8:
        got += ", ..."
    return got
