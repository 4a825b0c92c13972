"""Training state on disk: saved in the background, whole or not at all, restored on any devices,
checked before use.
"""

import contextlib
import functools
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.storage import storage_problem

FORMAT = 2  # of the state's layout; raised whenever an older checkpoint can no longer be read
_CHECKSUMS = "checksums.json"
_LATE_READS = ("Event loop is closed", "Encountered error while reading array index")  # of orbax

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: Any
    meta: dict


class _Damaged(Exception):
    """A checkpoint that cannot be read back as it was written."""


class Checkpoints:
    """The last few checkpoints of one run.

    A checkpoint is a pytree (`state`) and JSON data (`meta`). `meta` is read first, since the
    shapes of the state depend on what it says. Use as a context manager, or call `close`: a save
    may still be under way."""

    def __init__(
        self,
        folder: Path | str,
        keep: int = 2,
        *,
        is_read_only: bool = False,
        is_alone: bool = False,
    ):
        """
        Args:
            folder: made if missing.
            keep: how many steps stay; at least 2, as the newest may turn out to be damaged.
            is_read_only: nothing is changed: a run may be saving there meanwhile.
            is_alone: of several processes this one reads, and the others do not.
        """
        self._folder = Path(folder).absolute()
        self._saving_step = -1
        self._is_read_only = is_read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        if is_read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, multiprocessing_options=_processes_that_read(is_alone)
            )
        with self._storing("opened"):
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=("state", "meta")
            )

    @contextlib.contextmanager
    def _storing(self, what: str) -> Iterator[None]:
        """Turns what the storage refuses into a sentence, however orbax and its parts wrap it."""
        try:
            yield
        except Exception as error:
            reason = storage_problem(error)
            if not reason:
                raise
            raise InputError(
                f"{self._folder}: the checkpoint could not be {what} ({reason}); the ones before "
                "are as they were. Make the folder writable and free some space, then give the "
                "same command again"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save that is under way."""
        self._manager.close()

    def wait(self) -> None:
        """Waits for the save that is under way; raises what went wrong with it."""
        with self._storing("written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts to save; arrays may be donated right after. Does nothing if the step is there
        already.

        Args:
            step: number of finished training steps.
            state: pytree of arrays, PRNG keys and numbers.
            meta: JSON data; what the shapes of `state` follow from belongs in it.
        """
        if step in self._manager.all_steps():
            return
        self.wait()  # the checksums' callback must see its own step
        self._saving_step = step
        meta = {**meta, "format": FORMAT}
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave(json.loads(json.dumps(meta, allow_nan=False))),
        )
        with self._storing("written"):
            self._manager.save(step, force=True, args=content)

    def restore_latest(self, make_abstract: Callable[[dict], Any]) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        A damaged newer one is set aside as `damaged-<step>` (if this may write) and a line is
        logged.

        Args:
            make_abstract: from meta to the state's pytree of `jax.ShapeDtypeStruct`
                (`jax.eval_shape`), with plain numbers where the state has them. A leaf without a
                sharding goes to the first device. A leaf may be longer or shorter along its first
                axis than what was saved: it is filled up with zeros, or cut.
        Returns:
            None if nothing was saved yet.
        Raises:
            InputError: the format is not known here, or every checkpoint is damaged.
        """
        while True:
            tried = self.steps()
            try:
                return self._restore_newest(make_abstract)
            except InputError:
                # A run that saves deletes the oldest steps, perhaps just while they are read.
                self._manager.reload()
                if not self._is_read_only or self.steps() == tried:
                    raise

    def _restore_newest(self, make_abstract: Callable[[dict], Any]) -> Restored | None:
        self._manager.wait_until_finished()
        damage = []
        for step in reversed(self.steps()):
            try:
                restored = self._restore(step, make_abstract)
            except _Damaged as error:
                damage.append((step, error))
                continue
            for newer, error in damage:
                _log.warning(
                    "checkpoint %d is damaged (%s); going on from step %d", newer, error, step
                )
                if not self._is_read_only:
                    self._set_aside(newer)
            return restored
        if damage:
            step, error = damage[0]
            raise InputError(
                f"{self._folder}: expected a checkpoint that can be read, got only damaged ones "
                f"(step {step}: "
                f"{error}); restore the folder from a backup, or delete it to start again"
            )
        return None

    def _restore(self, step: int, make_abstract: Callable[[dict], Any]) -> Restored:
        is_verified = self._verify(step)
        try:
            found: Any = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            meta = found.meta
        except (
            Exception
        ) as error:  # orbax raises whatever its parts raise: KeyError, ValueError, OSError
            raise _Damaged(f"its meta data cannot be read: {_first_line(error)}") from error
        if not isinstance(meta, dict):
            raise _Damaged(f"its meta data is no object, but {str(meta)[:60]!r}")
        if meta.get("format") != FORMAT:
            raise InputError(
                f"{self._folder / str(step)}: expected checkpoint format {FORMAT}, got "
                f"{meta.get('format')!r}; use the version of cosurfgs_jax that wrote it"
            )
        try:
            abstract = jax.tree.map(_placed, make_abstract(meta))
        except InputError:
            raise
        except Exception as error:  # a number is missing, or no number
            raise _Damaged(f"its meta data is incomplete: {_first_line(error)}") from error
        try:
            folder: Any = self._folder / str(step) / "state"  # orbax takes pathlib's paths, too
            saved = ocp.StandardCheckpointHandler().metadata(folder)
            _check_shapes(saved.tree, abstract)
            arguments = ocp.args.StandardRestore(abstract, strict=False)
            with _late_reads_dropped():
                whole: Any = self._manager.restore(step, args=ocp.args.Composite(state=arguments))
            state = whole.state
        except Exception as error:
            # the files are as they were written: the caller asks for the wrong shapes, or memory is
            # short
            if is_verified and (self._folder / str(step)).is_dir():
                raise
            raise _Damaged(_first_line(error)) from error
        return Restored(step, state, meta)

    def _write_checksums(self) -> None:
        """Called in the saving thread when all files of a step are written, just before its folder
        gets its final name.

        Without them a flipped bit is restored as if it were a number, and a truncated file is found
        only half-way through."""
        if jax.process_index() != 0:
            return
        for folder in self._folder.glob(f"{self._saving_step}.*tmp*"):
            sums = {name: _checksum(folder / name) for name in sorted(_files_of(folder))}
            (folder / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")

    def _verify(self, step: int) -> bool:
        """Whether all files were compared with their checksums; False where some have none."""
        folder = self._folder / str(step)
        try:
            sums = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise _Damaged(f"{_CHECKSUMS}: {_first_line(error)}") from error
        if not isinstance(sums, dict):
            raise _Damaged(f"{_CHECKSUMS}: expected an object, got {str(sums)[:60]!r}")
        for name, expected in sums.items():
            path = folder / name
            if not path.is_file():
                raise _Damaged(f"{name} is missing")
            if _checksum(path) != expected:
                raise _Damaged(f"{name} is not what was written")
        return sums.keys() >= _files_of(folder)

    def _set_aside(self, step: int) -> None:
        """Frees the step's name, so that training can save it again."""
        aside = self._folder / f"damaged-{step}"
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        processes.barrier("set-aside")
        self._manager.reload()


def _processes_that_read(is_alone: bool) -> ocp.options.MultiprocessingOptions:
    if not is_alone:
        return ocp.options.MultiprocessingOptions()
    own = processes.index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"alone-{own}"
    )


@contextlib.contextmanager
def _late_reads_dropped() -> Iterator[None]:
    """Keeps what happens after a failed restore off the terminal.

    orbax gives up at the first array that cannot be read and closes its event loop. The other reads
    end later, in TensorStore's threads or when their coroutines are collected, and each prints an
    error. So the filter stays where a restore has failed."""
    report = sys.unraisablehook
    if getattr(report, "func", None) is not _report_others:  # of an earlier failure
        sys.unraisablehook = functools.partial(_report_others, report)
    yield
    sys.unraisablehook = report


def _report_others(report: Callable[[Any], object], unraisable: Any) -> None:
    if not str(unraisable.exc_value).startswith(_LATE_READS):
        report(unraisable)


def _files_of(folder: Path) -> set[str]:
    """The files of a step, relative to its folder."""
    return {
        str(path.relative_to(folder))
        for item in ("state", "meta")
        for path in (folder / item).rglob("*")
        if path.is_file()
    }


def _checksum(path: Path) -> str:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array but PRNG keys, whose bits have an axis more in the file."""

    def name(key):
        return str(
            next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))
        )

    return {
        ".".join(map(name, path)): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(leaf, "shape") and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _check_shapes(saved: Any, wanted: Any) -> None:
    """Raises ValueError where more than the first axis differs: orbax would cut or fill up any."""
    saved = _shapes(saved)
    for name, shape in _shapes(wanted).items():
        if name in saved and (len(shape) != len(saved[name]) or shape[1:] != saved[name][1:]):
            raise ValueError(
                f"checkpoint: {name}: expected an array of shape {shape}, got one of "
                f"{saved[name]}; they are not "
                "compatible: only the first axis may differ"
            )


def _placed(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return leaf
