"""Where the photographs of a capture are: in the folder that the settings or the files name."""

import os
from collections.abc import Sequence
from pathlib import Path

from cosurfgs_jax.data import photo_words
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.data.lookup import IMAGE_ENDINGS, FileIndex, say_outside, subfolder
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.settings import DataSettings


def _image_folder(root: Path, data: DataSettings) -> tuple[Path, bool]:
    """The folder that is read, and whether its images must have the cameras' own size."""
    if data.images:
        folder = root / data.images
        is_full = data.images.strip("/") == "images"
        if not folder.is_dir():
            raise InputError(
                f"config.data.images: expected a folder inside the dataset, got {folder}, which is "
                "none"
            )
        return folder, is_full
    reduced = subfolder(root, f"images_{data.downscale}") if data.downscale > 1 else None
    if reduced is not None:
        return reduced, False
    folder = subfolder(root, "images")
    if folder is None:
        raise InputError(
            f"{root / 'images'}: expected the photographs there, got no such folder; copy them or "
            "give their folder, "
            "relative to the dataset, as config.data.images"
        )
    return folder, True


def find_photographs(
    root: Path, capture: Capture, data: DataSettings
) -> tuple[list[Path | None], Path, bool]:
    """Paths (None where there is none), the folder that they are in, and whether the files are the
    cameras' own, not a reduction of them."""
    source = capture.source
    found: list[Path | None]
    if capture.image_paths[0] is None or data.images:
        folder, is_full = _image_folder(root, data)
        found = FileIndex(folder).find_all(capture.image_files, source)
    else:
        named = [Path(required(path, "Capture.image_paths")) for path in capture.image_paths]
        found = [*named]
        folder = named[0].parent
        is_full = True
        reduced = folder.with_name(f"{folder.name}_{data.downscale}")
        if data.downscale > 1 and reduced.is_dir():
            folder = reduced
            is_full = False
            names = [
                path.name if path.parent == named[0].parent else name
                for path, name in zip(named, capture.image_names, strict=True)
            ]
            found = FileIndex(folder).find_all(names, source)
    say_outside([path for path in found if path is not None], root, source)
    if None in found:
        photo_words.say_unopened(folder, source)
    return found, folder, is_full


def with_most(indexes: Sequence[FileIndex], names: list[str], source: str) -> FileIndex:
    """The index that finds the most of some names; of several the first.

    Raises:
        InputError: see `FileIndex.find_all`.
    """
    if len(indexes) == 1:
        return indexes[0]
    counts = []
    for index in indexes:
        counts.append(sum(path is not None for path in index.find_all(names, source)))
        if counts[-1] == len(names):
            break
    return indexes[counts.index(max(counts))]


def pictures_in(folder: str) -> list[str]:
    """Paths of the pictures that lie in a folder, sorted, without hidden ones."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [
        os.path.join(folder, name)
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
    ]
