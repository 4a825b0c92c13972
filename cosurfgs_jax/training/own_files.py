"""Which files of a checkpoint hold what this process restores: a place has many blocks, and each
process needs its own.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from jax.sharding import NamedSharding

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.training import checkpoint_files
from cosurfgs_jax.training.checkpoint_files import DamagedCheckpoint
from cosurfgs_jax.training.saved_blocks import named_leaves

_OF_A_PROCESS = "ocdbt.process_"  # folder of what a process has saved

Rows = dict[str, set[int]]  # name of an array -> places along its first axis


def rows_apart(tree: Any) -> Any:
    """How orbax is to save a pytree: arrays whose first axis is laid over devices in a piece for
    each row, so that who restores on other devices, or reads block by block, reads no more than
    that.
    """

    def arguments(leaf: Any) -> ocp.SaveArgs:
        sharding = getattr(leaf, "sharding", None)
        is_laid_out = isinstance(sharding, NamedSharding) and any(sharding.spec[:1])
        if is_laid_out and leaf.ndim > 1:
            return ocp.SaveArgs(shard_axes=(0,))
        return ocp.SaveArgs()

    return jax.tree.map(arguments, tree)


def verify(folder: Path, items: Sequence[str], abstract: Any, *, is_alone: bool) -> bool:
    """`checkpoint_files.verify` of what this process restores of a step. What one process finds
    damaged, or cannot read, all do; all must call it. Each reads the meta data before that, which
    it has to find as the others do.

    Args:
        folder: of the step.
        items: of it, those that are restored.
        abstract: pytree of `jax.ShapeDtypeStruct`s that is restored.
        is_alone: the others do not restore.
    Raises:
        DamagedCheckpoint: see there; of several processes, also a file cannot be read.
    """
    if processes.count() == 1 or is_alone:
        return checkpoint_files.verify(folder, items)
    is_verified = False
    damage = ""
    try:
        others = files_of_others(folder, items, own_rows(abstract))
        is_verified = checkpoint_files.verify(folder, items, left_out=others)
    except DamagedCheckpoint as error:
        damage = str(error)
    except OSError as error:  # the others wait for what this process says
        damage = checkpoint_files.first_line(error)
    for found in filter(None, processes.gather_texts(damage)):
        raise DamagedCheckpoint(found)
    return is_verified


def own_rows(abstract: Any) -> Rows:
    """What this process restores of each array.

    Args:
        abstract: pytree of `jax.ShapeDtypeStruct`s. Leaves without a first axis or a sharding, and
            PRNG keys, are left out: all of them is restored.
    """
    rows: Rows = {}
    for name, leaf in named_leaves(abstract):
        is_plain = isinstance(leaf, jax.ShapeDtypeStruct) and leaf.shape and leaf.sharding
        if is_plain and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            shards = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
            own = [range(leaf.shape[0])[index[0]] for index in shards if index is not None]
            rows[name] = {row for run in own for row in run}
    return rows


def files_of_others(folder: Path, items: Sequence[str], rows: Rows) -> set[str]:
    """The files of a step that a process need not read: those that hold only other rows than its
    own, and what other processes have saved besides, where none of their files is needed.

    Args:
        folder: of the step.
        items: of it, those that are restored.
        rows: what is restored of each array (`own_rows`).
    Returns:
        Paths relative to the step's folder. None of an item whose files are not understood.
    """
    return {f"{item}/{name}" for item in items for name in _others(folder / item, rows)}


def _others(item: Path, rows: Rows) -> set[str]:
    needed: set[str] = set()
    others: set[str] = set()
    try:
        for is_needed, file in _pieces(item, rows):
            (needed if is_needed else others).add(file)
    except Exception:  # whatever tensorstore raises; who reads the files finds the damage
        return set()
    saved_by = {Path(file).parts[0] for file in needed}
    for path in item.glob(f"{_OF_A_PROCESS}*/**/*"):
        name = str(path.relative_to(item))
        if path.is_file() and Path(name).parts[0] not in saved_by:
            others.add(name)
    return others - needed


def _pieces(item: Path, rows: Rows) -> Iterator[tuple[bool, str]]:
    """Of each piece of an array, whether it is needed, and the file that holds it."""
    base = tensorstore.KvStore.open({"driver": "file", "path": f"{item}/"}).result()
    manifest: Any = tensorstore.ocdbt.dump(base).result()
    node: Any = tensorstore.ocdbt.dump(base, manifest["versions"][-1]["root"]["location"]).result()
    if node["height"]:
        raise ValueError("expected one list of all pieces")  # orbax makes one up to 100 MB
    lengths: dict[str, int] = {}  # of a piece along the first axis
    for entry in node["entries"]:
        name, _, place = entry["key"].decode().rpartition("/")
        if place == ".zarray":  # comes before the pieces
            chunks = json.loads(entry["inline_value"])["chunks"]
            lengths[name] = (chunks or [1])[0]  # a number has no axis
        elif "indirect_value" in entry:
            first = int(place.split(".")[0]) * lengths[name]
            own = rows.get(name)
            is_needed = own is None or not own.isdisjoint(range(first, first + lengths[name]))
            _, folder, file, *_ = entry["indirect_value"].split(":")
            yield is_needed, f"{folder}{file}"
