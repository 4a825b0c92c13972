"""The files of checkpoints: their checksums, and what stays of a stage that is finished.

A checkpoint is a folder `<step>` with an item a folder: `state`, `training` and `meta`. `training`
holds what only the next steps of the same training read; without it the checkpoint is whole for
everybody else.
"""

import json
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.files import NO_JSON
from cosurfgs_jax.workdir import UNFINISHED_CHECKPOINT

STATE = "state"
TRAINING = "training"
META = "meta"
ITEMS = (STATE, TRAINING, META)
MODEL = (STATE, META)  # what stays of a finished stage
FORMAT_IN_ONE = 2  # of checkpoints that have all in `state`
CHECKSUMS = "checksums.json"

_log = logging.getLogger(__name__)


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written."""


def write_checksums(folder: Path) -> None:
    """Writes the checksums of a step's files beside them.

    Without them a flipped bit is restored as if it were a number, and a truncated file is found
    only half-way through.
    """
    sums = {name: files.checksum(folder / name) for name in sorted(_files_of(folder, ITEMS))}
    (folder / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")


def verify(folder: Path, items: Sequence[str], left_out: Collection[str] = ()) -> bool:
    """Whether the files of some items of a step were compared with their checksums; False where
    some have none.

    Args:
        folder: of the step.
        items: of it.
        left_out: files, relative to the step's folder, that are not looked at.
    Raises:
        DamagedCheckpoint: a file is missing, or not what was written.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, *NO_JSON) as error:
        raise DamagedCheckpoint(f"{CHECKSUMS}: {first_line(error)}") from error
    if not isinstance(sums, dict):
        raise DamagedCheckpoint(f"{CHECKSUMS}: expected an object, got {str(sums)[:60]!r}")
    for name, expected in sums.items():
        if name.partition("/")[0] not in items or name in left_out:
            continue
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if files.checksum(path) != expected:
            raise DamagedCheckpoint(f"{name} is not what was written")
    return sums.keys() >= _files_of(folder, items)


def keep_model_alone(folder: Path, step: int, copies: Sequence[Path] = ()) -> bool:
    """Deletes all of a finished stage's checkpoints but the model of its last one.

    Nothing is written anew: when the files that stay have been compared with their checksums, the
    others get the name of an unfinished checkpoint, each item at once, and are deleted. A process
    that is killed meanwhile leaves either what there was, or what is to stay; the next run deletes
    the rest.

    Args:
        folder: of the stage. Nobody saves there now.
        step: its last one.
        copies: folders of the same stage whose models are in this one, too: of their last
            checkpoint the meta data stays.
    Returns:
        Whether it is so now. Where the files are damaged, or cannot be compared, all stay.
    """
    doomed = _besides(folder, step, MODEL)
    for copy in copies:
        doomed += _besides(copy, step, (META,))
    return _delete_all(doomed, folder / str(step), MODEL)


def keep_meta_alone(folder: Path, step: int) -> bool:
    """The same where the model is kept elsewhere: the meta data says how far the stage is."""
    return _delete_all(_besides(folder, step, (META,)), folder / str(step), (META,))


def _delete_all(doomed: Sequence[Path], last: Path, items: Sequence[str]) -> bool:
    """Deletes what a step supersedes, if some items of it are what was written."""
    if not doomed:
        return last.is_dir()
    try:
        if not last.is_dir() or not verify(last, items):
            return False
        for path in doomed:
            _delete(path)
    except (DamagedCheckpoint, OSError) as error:
        _log.warning("%s: nothing more is deleted of this finished stage: %s", last, error)
        return False
    return True


def holds_more(folder: Path, step: int, items: Sequence[str]) -> bool:
    """Whether a finished stage's checkpoints hold more than some items of the last one, or what a
    killed process was deleting.

    Args:
        folder: of the stage. Nobody saves there now.
        step: its last one.
        items: what is to stay of it.
    """
    return bool(_besides(folder, step, items)) or is_unfinished(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether a killed process has left in a stage's folder what it was writing or deleting."""
    return any(folder.glob(f"*{UNFINISHED_CHECKPOINT}*"))


def is_model_alone(folder: Path) -> bool:
    """Whether a step, if it is there, lacks what going on with its training needs."""
    if (folder / TRAINING).is_dir():
        return False
    try:
        meta = json.loads((folder / META / "metadata").read_text(encoding="utf-8"))
    except (OSError, *NO_JSON):
        return False
    return not isinstance(meta, dict) or meta.get("format") != FORMAT_IN_ONE


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def first_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _besides(folder: Path, step: int, items: Sequence[str]) -> list[Path]:
    """What a stage's checkpoints have besides some items of one step."""
    steps = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    others = [path for path in steps if path.name != str(step)]
    rest = [folder / str(step) / item for item in ITEMS if item not in items]
    return others + [path for path in rest if path.is_dir()]


def _delete(path: Path) -> None:
    """Deletes a step, or an item of one, at once for whoever looks."""
    folder = path.parent
    name = path.name
    if not name.isdecimal():
        name = f"{folder.name}.{name}"
        folder = folder.parent
    doomed = folder / f"{name}{UNFINISHED_CHECKPOINT}-superseded"
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _files_of(folder: Path, items: Sequence[str]) -> set[str]:
    """The files of some items of a step, relative to its folder."""
    return {
        str(path.relative_to(folder))
        for item in items
        for path in (folder / item).rglob("*")
        if path.is_file()
    }
