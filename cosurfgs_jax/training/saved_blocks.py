"""A checkpoint that is read block by block: whoever needs the model of a place needs not hold the
states of all its blocks.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training.checkpoint_files import (
    CHECKSUMS,
    STATE,
    TRAINING,
    DamagedCheckpoint,
    first_line,
)


class SavedBlocks:
    """A saved step of a stage. Its arrays stay in its files until a block is asked for.

    Attributes:
        step: number of finished training steps.
        meta: JSON data of the checkpoint.
        identity: the same text for the same files.
    """

    def __init__(self, folder: Path, step: int, meta: dict):
        """
        Args:
            folder: of the step.
            step, meta: of the checkpoint.
        """
        self.step = step
        self.meta = meta
        self._folder = folder
        self.identity = _identity(folder)
        self._arrays: dict[str, Any] = {}

    @property
    def has_training(self) -> bool:
        """Whether what only the next steps need is there, too."""
        return (self._folder / TRAINING).is_dir()

    def check(self, abstract: dict) -> None:
        """Compares what is saved with what will be asked for.

        Args:
            abstract: name of a field of the state -> `jax.ShapeDtypeStruct`s of one block.
        Raises:
            DamagedCheckpoint: something is missing, or has another shape.
        """
        for name, leaf in named_leaves(abstract):
            saved = tuple(self._array(name).shape[1:])
            if saved != tuple(leaf.shape):
                raise DamagedCheckpoint(
                    f"{name}: expected an array of shape {tuple(leaf.shape)} for each block, got "
                    f"one of {saved}; they are not compatible"
                )

    def read(self, block: int, abstract: dict) -> dict:
        """Some fields of a block's state, as NumPy arrays.

        Args:
            block: number along the first axis of the arrays.
            abstract: as in `check`.
        Raises:
            InputError: the files went away meanwhile, or are damaged.
        """
        try:
            pending = [self._array(name)[block].read() for name, _ in named_leaves(abstract)]
            values = [np.asarray(one.result()) for one in pending]
        except (DamagedCheckpoint, ValueError, OSError) as error:
            raise InputError(
                f"{self._folder}: block {block} cannot be read ({first_line(error)}); if the run "
                "goes on, it has replaced this checkpoint: give the same command again"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(abstract), values)

    def _array(self, name: str) -> Any:
        """An array of all blocks, not read yet.

        Raises:
            DamagedCheckpoint: there is none of this name that can be opened.
        """
        if name not in self._arrays:
            self._arrays[name] = self._opened(name)
        return self._arrays[name]

    def _opened(self, name: str) -> Any:
        error: Exception = ValueError(f"{name} is missing")
        for item in (STATE, TRAINING):
            base = {"driver": "file", "path": f"{self._folder / item}/"}
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
            try:
                return tensorstore.open(
                    {"driver": "zarr", "kvstore": store}, open=True, read=True
                ).result()
            except ValueError as found:
                if item == STATE:
                    error = found
        raise DamagedCheckpoint(first_line(error))


def _identity(folder: Path) -> str:
    """Of the checksums of all files; of their names and lengths where there are none."""
    sums = folder / CHECKSUMS
    if sums.is_file():
        content = sums.read_bytes()
    else:
        files = sorted(path for path in (folder / STATE).rglob("*") if path.is_file())
        content = repr([(path.name, path.stat().st_size) for path in files]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Path, as files have it, and value of all leaves of a pytree, in the order of
    `jax.tree.leaves`.
    """

    def name(key) -> str:
        return str(
            next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))
        )

    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(".".join(map(name, path)), leaf) for path, leaf in found]
