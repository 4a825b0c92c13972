"""Whether a dataset is the one that something was found out of."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax import files
from cosurfgs_jax.data import lookup
from cosurfgs_jax.workdir import Workdir

_NEVER_READ = (".log",)  # by no reader; where they are written, they change all the time


class DatasetState(NamedTuple):
    """The files of a dataset's folder as they are now."""

    text: str  # changes when a file is added, removed, renamed or written
    folders: frozenset[str]  # whose files it is of, without links

    def tells_of(self, paths: list[str]) -> bool:
        """Whether the text would change with each of these files."""
        real_of: dict[str, str] = {}
        for path in paths:
            folder, name = os.path.split(path)
            if folder not in real_of:
                real_of[folder] = os.path.realpath(folder)
            if real_of[folder] not in self.folders or name.startswith(".") or not _counts(name):
                return False
        return True


def state_of_dataset(root: Path, workdir: Workdir) -> DatasetState:
    """The state of a dataset's folder, by names, sizes and times of change; no file is opened. What
    cannot be looked at counts with the error number that the system gives.

    Hidden files do not count, nor folders of file servers, `*.log`, and what lies below workdirs of
    runs.

    Args:
        root: the dataset's folder.
        workdir: of the run.
    """
    digest = hashlib.sha256()
    own = os.path.realpath(workdir.root)
    read = set()

    def add(line: str) -> None:
        digest.update(os.fsencode(f"{line}\n"))

    def add_error(error: OSError) -> None:
        add(f"{os.path.relpath(error.filename or root, root)}: {error.errno}")

    for folder in lookup.walk(root, add_error):
        if folder.place and (folder.real == own or _is_of_run(folder, workdir)):
            folder.folders.clear()
            continue
        read.add(folder.real)
        add(f"{folder.place}/")
        path = os.path.join(root, folder.place)
        for name in filter(_counts, folder.files):
            try:
                add(f"{name} {files.state_of(os.path.join(path, name))}")
            except OSError as error:  # a link that leads nowhere, a file that was just deleted
                add(f"{name} {error.errno}")
    return DatasetState(digest.hexdigest(), frozenset(read))


def _counts(name: str) -> bool:
    return not name.lower().endswith(_NEVER_READ)


def _is_of_run(folder: lookup.Walked, workdir: Workdir) -> bool:
    """Whether a folder is the workdir of a run."""
    has_begun = workdir.made_with.parent.name in folder.folders
    return workdir.config.name in folder.files and (
        has_begun or workdir.partition.name in folder.files
    )
