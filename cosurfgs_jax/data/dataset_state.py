"""Whether a dataset is the one that something was found out of."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cosurfgs_jax.data import masks
from cosurfgs_jax.data.lookup import IMAGE_ENDINGS


def state_of_dataset(root: Path, workdir: Path) -> str:
    """A text that changes when a file of a dataset's folder is added, removed, renamed or replaced,
    or one other than a photograph is changed; no file is opened.

    Photographs are told by their names: their sizes are compared when they are decoded.

    Args:
        root: the dataset's folder.
        workdir: of the run; what lies there is not of the dataset.
    """
    digest = hashlib.sha256()
    for line in _lines(root, os.path.realpath(workdir), set()):
        digest.update(os.fsencode(f"{line}\n"))
    return digest.hexdigest()


def _lines(folder: str | Path, left_out: str, seen: set[str]) -> Iterator[str]:
    """A line for each file of a folder and those below; links to folders are followed once."""
    real = os.path.realpath(folder)
    if real == left_out or real in seen:
        return
    if seen:  # the root changes when a workdir is made in it
        yield f"{os.path.basename(real)}/ {os.stat(real).st_mtime_ns}"
    seen.add(real)
    is_told_by_names = os.path.basename(folder).lower() not in masks.FOLDERS
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _lines(entry.path, left_out, seen)
            elif is_told_by_names and entry.name.lower().endswith(IMAGE_ENDINGS):
                yield entry.name
            else:
                status = entry.stat()
                yield f"{entry.name} {status.st_size} {status.st_mtime_ns}"
