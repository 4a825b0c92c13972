"""One of two processes that save a checkpoint together and restore it, the second time with a
damaged file: prints what each restore found and the bytes that it read.

python restart_of_two.py FOLDER COORDINATOR PROCESS
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import tensorstore

from cosurfgs_jax import files
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.training.checkpoints import Checkpoints

NUM_VALUES = 50_000  # of a block, 200 kB
NAMES = ("state", "training")


def _values(block: int) -> np.ndarray:
    return np.random.default_rng(block).standard_normal(NUM_VALUES).astype(np.float32)


def read_by_tensorstore() -> int:
    """Bytes of files; a restore reads with it."""
    name = "/tensorstore/kvstore/file/bytes_read"
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for metric in found for value in metric["values"])


def _counted(sizes: list[int]):
    """`files.checksum`, which notes the sizes of the files that it reads."""
    checksum = files.checksum

    def count(path: Path) -> str:
        sizes.append(path.stat().st_size)
        return checksum(path)

    return count


def _restored(folder: Path, abstract: jax.ShapeDtypeStruct) -> dict:
    before = read_by_tensorstore()
    sizes: list[int] = []
    checksum = files.checksum
    files.checksum = _counted(sizes)
    try:
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore_latest(lambda _: dict.fromkeys(NAMES, abstract))
    finally:
        files.checksum = checksum
    for name in NAMES:
        for shard in found.state[name].addressable_shards:
            block = shard.index[0].start
            np.testing.assert_array_equal(shard.data[0], _values(block) + found.step)
    read = {"restored": read_by_tensorstore() - before, "compared": sum(sizes)}
    return {"step": found.step} | read


def main(folder: Path, coordinator: str, process: int) -> None:
    """Saves twice, and restores twice."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, 2, process)
    mesh = jax.make_mesh((4,), ("block",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("block"))
    shape = (4, NUM_VALUES)
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            array = jax.make_array_from_callback(
                shape, sharding, lambda index, step=step: _values(index[0].start)[None] + step
            )
            checkpoints.save(step, {NAMES[0]: array}, {}, {NAMES[1]: array})
    abstract = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
    found = [_restored(folder, abstract)]
    if process:  # the other one does not read this file
        files = (folder / "2" / "training" / f"ocdbt.process_{process}" / "d").iterdir()
        file = max(files, key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    processes.barrier("damaged")
    found.append(_restored(folder, abstract))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
