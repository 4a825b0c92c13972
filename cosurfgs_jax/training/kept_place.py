"""Opening a place: one process reads the dataset and keeps what it found in the workdir, all later
ones map these files.

Nothing is kept where another process might find something else: of datasets that are not all there,
or that depend on files which the state does not tell of. Then every process reads the dataset.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax import ended, files, locks
from cosurfgs_jax.data import generated, lookup
from cosurfgs_jax.data.dataset_state import DatasetState, state_of_dataset
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import (
    PartitionedScene,
    capacity_settings,
    open_partitioned_scene,
)
from cosurfgs_jax.training.place_files import TABLE, read_place, write_place
from cosurfgs_jax.workdir import Workdir

_FREE = ("path", "host_memory_mb", "device_memory_mb")  # of config.data: nothing is cut by them
_WHY_NOT = "not_kept.txt"  # in place of the files
_log = logging.getLogger(__name__)


class KeptPlace(NamedTuple):
    """Where a place is kept, or may be."""

    folder: Path | None = None
    dataset: DatasetState | None = None
    never: str = ""  # why it cannot be kept at all; "" where there is nothing to say

    @property
    def why_not(self) -> str:
        """Why nothing is kept there and nothing can be; "" where it is, or can be."""
        if self.folder is None:
            return self.never
        with contextlib.suppress(OSError):
            return (self.folder / _WHY_NOT).read_text(encoding="utf-8", errors="replace").strip()
        return ""

    @property
    def is_to_be_written(self) -> bool:
        """Whether it is not kept yet, but can be."""
        return self.folder is not None and not self.why_not and not (self.folder / TABLE).exists()


def kept_place(
    settings: Settings, workdir: Workdir, left_out: Collection[str] | None = None
) -> KeptPlace:
    """Where the place of a run is kept; looks at all files of the dataset, and opens none.

    Args:
        settings, workdir, left_out: see `open_partitioned_scene`.
    """
    data = settings.data
    root = Path(data.path).expanduser()
    if data.path == generated.PATH or not root.is_dir():
        return KeptPlace()
    if os.path.realpath(root) == os.path.realpath(workdir.root):
        return KeptPlace(never="the workdir is its folder")
    if left_out:
        return KeptPlace(never="photographs are left out, as the first job of the run found them")
    for name, value in (("model", data.model), ("images", data.images)):
        if not lookup.is_walked(value):
            return KeptPlace(never=f"config.data.{name}={value} is outside of it, or hidden")
    told = {
        "data": {name: value for name, value in vars(data).items() if name not in _FREE},
        "partition": dataclasses.asdict(settings.partition),
        "capacity": [settings.surfels.capacity, *capacity_settings(settings)],
        "seed": settings.seed,
        "program": processes.sources(),
    }
    digest = hashlib.sha256(files.to_json(told).encode())
    for split in (Path(data.split), root / data.split):
        with contextlib.suppress(OSError, ValueError):  # mostly it is the name of a rule
            digest.update(split.read_bytes())
    dataset = state_of_dataset(root, workdir)
    digest.update(dataset.text.encode())
    return KeptPlace(workdir.place / digest.hexdigest()[:16], dataset)


def open_place(
    settings: Settings,
    workdir: Workdir,
    allow_missing: bool = False,
    left_out: Collection[str] | None = None,
    keeps: bool = False,
    place: KeptPlace | None = None,
) -> PartitionedScene:
    """`open_partitioned_scene`, or the same from what is kept of it in the workdir.

    Args:
        settings, workdir, allow_missing, left_out: see there.
        keeps: whether what is read anew is kept for others, where nobody else is at it. Colours
            are compared (see `load_scene`) by who keeps the place, as its warnings are kept with
            it; where nothing can be kept, by who would, as long as training has not begun.
        place: `kept_place` of these; None: it is looked for.
    """
    if place is None:
        place = kept_place(settings, workdir, left_out)

    def read(compares_colors: bool) -> PartitionedScene:
        return open_partitioned_scene(
            settings, workdir, allow_missing, left_out, compares_colors=compares_colors
        )

    found = _mapped(settings, place)
    if found is not None:
        return found
    why_not = place.why_not
    if why_not:
        _log.info("%s: every process reads it: %s", settings.data.path, why_not)
    elif place.folder is not None and _is_of_another_state(workdir):
        _log.info(
            "%s: read, as what is kept in %s is of another state of its files, of the settings or "
            "of the program",
            settings.data.path,
            workdir.place,
        )
    if why_not or place.folder is None or not keeps:
        return read(keeps and not workdir.has_begun())
    with contextlib.ExitStack() as stack:
        is_first = False
        compares = False  # who was first has done so
        try:
            lock = workdir.lock(f"place-{place.folder.name}")  # other states are no matter
            held = locks.hold_first(lock, "reads the dataset and keeps it")
            is_first = stack.enter_context(held)
        except InputError as error:
            _log.warning("%s; what is read is not kept", error)
            compares = not workdir.has_begun()
        found = _mapped(settings, place)
        if found is not None:
            return found
        if is_first:
            return _read_and_keep(
                lambda: read(True), settings, workdir, place, is_as_found=left_out is None
            )
    return read(compares)  # beside all others that have waited


def delete_others(workdir: Workdir, place: KeptPlace) -> None:
    """Deletes what is kept of other states and was not used for an hour; for who holds the lock of
    training: a machine with a copy of the dataset has a state of its own.
    """
    with contextlib.suppress(OSError):
        for other in workdir.place.iterdir():
            if other != place.folder:
                ended.delete_folder(other, is_ended=False)


def _is_of_another_state(workdir: Workdir) -> bool:
    return any(workdir.place.glob(f"*/{TABLE}"))


def _mapped(settings: Settings, place: KeptPlace) -> PartitionedScene | None:
    """What is kept; None where there is nothing, or it is damaged."""
    if place.folder is None:
        return None
    try:
        found = read_place(settings, place.folder)
    except InputError as error:
        _log.warning("%s; the dataset is read", error)
        return None
    if found is None:
        return None
    with contextlib.suppress(OSError):
        os.utime(place.folder / TABLE)  # it is in use, see `delete_others`
    for warning in found.warnings:
        _log.warning("when it was read: %s", warning)
    return found.partitioned


class _Notes(logging.Handler):
    """The warnings of this package while it is among its handlers."""

    def __init__(self, other: logging.Handler | None):
        """
        Args:
            other: what they are given to as well.
        """
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._other = other

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        if self._other is not None:
            self._other.handle(record)


@contextlib.contextmanager
def _noting_warnings() -> Iterator[list[str]]:
    logger = logging.getLogger(__name__.partition(".")[0])
    # Where nobody has set up the logging, warnings are printed as long as there is no handler.
    notes = _Notes(None if logger.hasHandlers() else logging.lastResort)
    logger.addHandler(notes)
    try:
        yield notes.texts
    finally:
        logger.removeHandler(notes)


def _read_and_keep(
    read: Callable[[], PartitionedScene],
    settings: Settings,
    workdir: Workdir,
    place: KeptPlace,
    is_as_found: bool,
) -> PartitionedScene:
    """Reads a place and keeps it, unless others might find another one, the dataset has changed
    meanwhile, or the file system refuses; a line says so.

    Args:
        is_as_found: whether masks were asked which photographs are left out.
    """
    folder = place.folder
    if folder is None:
        return read()
    with _noting_warnings() as warnings:
        partitioned = read()
    why_not = _why_not(partitioned, place, is_as_found)
    if why_not:
        _log.info("%s: every process reads it: %s", settings.data.path, why_not)
        with contextlib.suppress(InputError):
            text = why_not.encode("utf-8", "backslashreplace").decode()
            files.write_text(folder / _WHY_NOT, text + "\n")
        return partitioned
    if kept_place(settings, workdir).folder != folder:
        _log.warning(
            "%s: files below it have changed while it was read; it is not kept, and the next "
            "process reads it again",
            settings.data.path,
        )
        return partitioned
    try:
        write_place(partitioned, settings, folder, warnings)
    except InputError as error:
        _log.warning("%s; every process reads the dataset", error)
        shutil.rmtree(folder, ignore_errors=True)
        return partitioned
    return partitioned._replace(kept_in=folder)


def _why_not(partitioned: PartitionedScene, place: KeptPlace, is_as_found: bool) -> str:
    """Why a place may be another one where others open it; "" where it is not."""
    scene = partitioned.scene
    if scene.left_out:
        return f"{len(scene.left_out)} photographs are left out, {scene.left_out[0]} for example"
    num_missing = scene.image_paths.count("")
    if num_missing:
        return f"{num_missing} photographs are not here"
    if scene.has_masks and not is_as_found:
        return "it was not asked what masks leave of photographs"
    if scene.outside is None:
        return "its reader does not say which files it reads"
    if scene.outside:
        return f"it depends on files outside of its folder or hidden ones, {scene.outside[0]}"
    paths = [*scene.image_paths, *filter(None, scene.mask_paths)]
    if place.dataset is None or not place.dataset.tells_of(paths):
        return "photographs or masks lie outside of its folder, or are hidden"
    return ""
