"""Rows of a file in the folders of shards, until all are there."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cosurfgs_jax import files


def save_tables(tables: Iterable[np.ndarray], folder: Path) -> None:
    """Writes tables into the folder of a shard, a file each."""
    for number, table in enumerate(tables):
        with files.writing(folder):
            np.save(folder / f"{number:06d}.npy", table)


def saved_tables(folders: Iterable[Path]) -> Iterator[np.ndarray]:
    """The tables of shards, in their order."""
    for folder in folders:
        for path in sorted(folder.glob("*.npy")):
            with files.reading(path, "rows of a shard", "delete its shard.json, and run it again"):
                table = np.load(path)
            yield table
