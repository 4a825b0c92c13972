"""Training state on disk: saved in the background, whole or not at all, restored on any devices,
checked before use.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.storage import storage_problem
from cosurfgs_jax.training import checkpoint_files, late_ends, own_files
from cosurfgs_jax.training.checkpoint_files import (
    FORMAT_IN_ONE,
    ITEMS,
    META,
    MODEL,
    STATE,
    TRAINING,
    DamagedCheckpoint,
    first_line,
)
from cosurfgs_jax.training.saved_blocks import SavedBlocks, named_leaves
from cosurfgs_jax.training.step_folders import StepFolders

FORMAT = 3  # of the layout; raised whenever older code cannot read what is written
KEPT = 2  # steps of a stage that stay, and one more while it is saved

Saved = TypeVar("Saved")

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: Any
    meta: dict


class Parts(NamedTuple):
    """What is read of a checkpoint, besides its state."""

    training: bool = True  # False: what only the next steps need is left where it is
    last_step: int | None = None  # of the stage, whose checkpoint does without


EVERYTHING = Parts()


class Checkpoints:
    """The last few checkpoints of one run.

    A checkpoint is a pytree (`state`) and JSON data (`meta`). `meta` is read first, since the
    shapes of the state depend on what it says. Use as a context manager, or call `close`: a save
    may still be under way."""

    def __init__(
        self,
        folder: Path | str,
        keep: int = KEPT,
        *,
        is_read_only: bool = False,
        is_alone: bool = False,
        when_first_saved: Callable[[], None] | None = None,
    ):
        """
        Args:
            folder: made if missing.
            keep: how many steps stay; at least 2, as the newest may turn out to be damaged.
            is_read_only: nothing is changed: a run may be saving there meanwhile.
            is_alone: of several processes this one reads, and the others do not.
            when_first_saved: called once, when the first save from here is on disk; `save` waits
                for that.
        """
        self._folder = Path(folder).absolute()
        self._saving_step = -1
        self._is_read_only = is_read_only
        self._is_alone = is_alone
        self._when_first_saved = when_first_saved
        self._report_late_ends: Callable[[], None] = late_ends.nothing  # of the present save
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            step_name_format=StepFolders(),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        if is_read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True,
                step_name_format=StepFolders(),
                multiprocessing_options=_processes_that_read(is_alone),
            )
        with self._storing("opened"):
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=ITEMS)

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

    def __exit__(self, _kind, error: BaseException | None, _trace) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as lost:  # what ended the run stays the error
            _log.warning("%s", str(lost).partition("\n")[0])

    def close(self) -> None:
        """Waits for the save that is under way; raises what went wrong with it."""
        try:
            self.wait()
        finally:
            with self._storing("written"):
                self._manager.close()

    def wait(self) -> None:
        """Waits for the save that is under way; raises what went wrong with it."""
        report_late_ends = self._report_late_ends
        self._report_late_ends = late_ends.nothing
        with self._storing("written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        report_late_ends()

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict, training: dict | None = None) -> None:
        """Starts to save; arrays may be donated right after. Does nothing if the step is there
        already.

        Args:
            step: number of finished training steps.
            state: pytree of arrays, PRNG keys and numbers.
            meta: JSON data; what the shapes of `state` follow from belongs in it.
            training: more fields of a state that is a dict: those which only the next steps need,
                and which a finished stage does without (`checkpoint_files.keep_model_alone`).
        """
        if step in self._manager.all_steps():
            return
        self.wait()  # the checksums' callback must see its own step
        self._saving_step = step
        meta = {**meta, "format": FORMAT}
        items: dict[str, Any] = {
            STATE: ocp.args.StandardSave(state, own_files.rows_apart(state)),
            META: ocp.args.JsonSave(json.loads(json.dumps(meta, allow_nan=False))),
        }
        if training:
            items[TRAINING] = ocp.args.StandardSave(training, own_files.rows_apart(training))
        report_late_ends = late_ends.drop()
        with self._storing("written"):
            self._manager.save(step, force=True, args=ocp.args.Composite(**items))
        self._report_late_ends = report_late_ends
        if self._when_first_saved is not None:
            self.wait()
            self._when_first_saved()
            self._when_first_saved = None

    def restore_latest(
        self, make_abstract: Callable[[dict], Any], parts: Parts = EVERYTHING
    ) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        A damaged newer one is set aside as `damaged-<step>` (if this may write) and a line is
        logged.

        Args:
            make_abstract: from meta to the state's pytree of `jax.ShapeDtypeStruct`
                (`jax.eval_shape`), with plain numbers where the state has them. A leaf without a
                sharding goes to the first device. A leaf may be longer or shorter along its first
                axis than what was saved: it is filled up with zeros, or cut.
            parts: whether fields that only the next steps need are read, too, and where they may
                be missing: then they are missing in the state that is given back.
        Returns:
            None if nothing was saved yet.
        Raises:
            InputError: the format is not known here, or every checkpoint is damaged.
        """
        return self._newest(lambda step: self._restore(step, make_abstract, parts))

    def open_latest(self, make_abstract: Callable[[dict], dict]) -> SavedBlocks | None:
        """The newest checkpoint that is not damaged, to be read block by block.

        Args:
            make_abstract: from meta to those fields of the state that will be asked for, as
                `jax.ShapeDtypeStruct`s of one block.
        Returns:
            None if nothing was saved yet.
        Raises:
            InputError: see `restore_latest`.
        """
        return self._newest(lambda step: self._open(step, make_abstract))

    def _newest(self, read: Callable[[int], Saved]) -> Saved | None:
        """What `read` makes of the newest step for which it finds no damage."""
        while True:
            tried = self.steps()
            try:
                return self._read_newest(read)
            except InputError:
                # A run that saves deletes the oldest steps, perhaps just while they are read.
                self._manager.reload()
                if not self._is_read_only or self.steps() == tried:
                    raise

    def _read_newest(self, read: Callable[[int], Saved]) -> Saved | None:
        self.wait()
        damage = []
        for step in reversed(self.steps()):
            try:
                found = read(step)
            except DamagedCheckpoint as error:
                damage.append((step, error))
                continue
            for newer, error in damage:
                _log.warning(
                    "checkpoint %d is damaged (%s); going on from step %d", newer, error, step
                )
                if not self._is_read_only:
                    self._set_aside(newer)
            return found
        if damage:
            step, error = damage[0]
            raise InputError(
                f"{self._folder}: expected a checkpoint that can be read, got only damaged ones "
                f"(step {step}: "
                f"{error}); restore the folder from a backup, or delete it to start again"
            )
        return None

    def _open(self, step: int, make_abstract: Callable[[dict], dict]) -> SavedBlocks:
        folder = self._folder / str(step)
        checkpoint_files.verify(folder, MODEL)
        meta = self._read_meta(step)
        saved = SavedBlocks(folder, step, meta)
        saved.check(_abstract_of(make_abstract, meta))
        return saved

    def _restore(self, step: int, make_abstract: Callable[[dict], Any], parts: Parts) -> Restored:
        folder = self._folder / str(step)
        checkpoint_files.verify(folder, (META,))
        meta = self._read_meta(step)
        abstract = jax.tree.map(_placed, _abstract_of(make_abstract, meta))
        has_training = parts.training and (folder / TRAINING).is_dir()
        items = (*MODEL, TRAINING) if has_training else MODEL
        is_verified = own_files.verify(folder, items, abstract, is_alone=self._is_alone)
        try:
            state, missing = self._read_item(step, STATE, abstract)
            if has_training:
                state |= self._read_item(step, TRAINING, missing)[0]
        except Exception as error:
            # the files are as they were written: the caller asks for the wrong shapes, or memory is
            # short
            if is_verified and folder.is_dir():
                raise
            raise DamagedCheckpoint(first_line(error)) from error
        if missing and parts.training and not has_training and step != parts.last_step:
            raise DamagedCheckpoint(
                "it holds a model without what going on with its training needs, as that of a "
                "finished stage does"
            )
        return Restored(step, state, meta)

    def _read_meta(self, step: int) -> dict:
        try:
            found: Any = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            meta = found.meta
        except (
            Exception
        ) as error:  # orbax raises whatever its parts raise: KeyError, ValueError, OSError
            raise DamagedCheckpoint(f"its meta data cannot be read: {first_line(error)}") from error
        if not isinstance(meta, dict):
            raise DamagedCheckpoint(f"its meta data is no object, but {str(meta)[:60]!r}")
        if meta.get("format") not in (FORMAT_IN_ONE, FORMAT):
            raise InputError(
                f"{self._folder / str(step)}: expected checkpoint format {FORMAT}, got "
                f"{meta.get('format')!r}; use the version of cosurfgs_jax that wrote it"
            )
        return meta

    def _read_item(self, step: int, item: str, abstract: Any) -> tuple[Any, dict]:
        """What an item holds of a state; and, of one that is a dict, the fields that it does not
        hold.
        """
        folder: Any = self._folder / str(step) / item  # orbax takes pathlib's paths, too
        saved = ocp.StandardCheckpointHandler().metadata(folder)
        missing = {}
        if isinstance(abstract, dict):
            missing = {name: leaf for name, leaf in abstract.items() if name not in saved.tree}
            abstract = {name: leaf for name, leaf in abstract.items() if name in saved.tree}
        _check_shapes(saved.tree, abstract)
        arguments = ocp.args.StandardRestore(abstract, strict=False)
        with late_ends.dropped():
            whole = self._manager.restore(step, args=ocp.args.Composite(**{item: arguments}))
        return whole[item], missing

    def _write_checksums(self) -> None:
        """Called in the saving thread when all files of a step are written, just before its folder
        gets its final name.
        """
        if jax.process_index() != 0:
            return
        for folder in self._folder.glob(f"{self._saving_step}.*tmp*"):
            checkpoint_files.write_checksums(folder)

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


def _abstract_of(make_abstract: Callable[[dict], Any], meta: dict) -> Any:
    """The shapes of what a checkpoint holds by its meta data."""
    try:
        return make_abstract(meta)
    except InputError:
        raise
    except Exception as error:  # a number is missing, or no number
        raise DamagedCheckpoint(f"its meta data is incomplete: {first_line(error)}") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array but PRNG keys, whose bits have an axis more in the file."""
    return {
        name: tuple(leaf.shape)
        for name, leaf in named_leaves(tree)
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
