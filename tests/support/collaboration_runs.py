"""Runs of several blocks as a user starts them, and what their checkpoints hold."""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from fast_compiling import QUICK_ENVIRONMENT
from program_starter import ProgramStarter, Started

from cosurfgs_jax.settings import GeneratedSettings

TOWN = GeneratedSettings(num_views=20, width=96, height=72, size_m=60.0)
STEPS = 40
RECOVERY = 6
MAS_STEPS = 4
FLAGS = [
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=10",
    "--config.surfels.sh_degree=1",
    "--config.density.min_slots=1",
    # Few: blocks shrink once, to the smallest number of slots, and each number compiles anew.
    "--config.surfels.capacity=1700",
    "--config.partition.num_blocks=4",
    "--config.partition.num_edges=2",
    f"--config.mas.steps={MAS_STEPS}",
]
LAST = STEPS + RECOVERY + 2 * MAS_STEPS

# Runs on as many devices compile the same programs: what one has compiled, the others read.
_compiled = tempfile.TemporaryDirectory(prefix="cosurfgs-compiled-")


def command(workdir: Path, dataset: Path, *flags: str) -> list[str]:
    """The module and the flags of a run."""
    return [
        "cosurfgs_jax.train",
        f"--workdir={workdir}",
        f"--config.data.path={dataset}",
        *FLAGS,
        *flags,
    ]


def environment() -> dict[str, str]:
    """The tests' own devices are not those of the programs. They are compiled quickly: what their
    bits depend on as users compile them, component tests compare.
    """
    own = {
        key: value
        for key, value in os.environ.items()
        if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PJRT_NPROC")
    }
    return (
        own
        | QUICK_ENVIRONMENT
        | {
            "JAX_COMPILATION_CACHE_DIR": _compiled.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    )


STARTER = ProgramStarter(environment())


def run(workdir: Path, dataset: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs it in a process that has imported already."""
    return STARTER.run(*command(workdir, dataset, *flags), timeout=400)


def start(workdir: Path, dataset: Path, *flags: str) -> Started:
    """Starts it in such a process."""
    return STARTER.start(*command(workdir, dataset, *flags))


def saved_arrays(workdir: Path, stage: str, step: int) -> dict[str, np.ndarray]:
    """Everything that the checkpoint of a finished stage holds, in the order of blocks."""
    import tensorstore

    folder = workdir / "checkpoints" / stage / str(step) / "state"
    base = {"driver": "ocdbt", "base": f"file://{folder}/"}
    store = tensorstore.KvStore.open(base).result()
    names = sorted(
        {
            key.decode().rsplit("/.zarray", 1)[0]
            for key in store.list().result()
            if key.endswith(b".zarray")
        }
    )
    arrays = {
        name: tensorstore.open({"driver": "zarr", "kvstore": base | {"path": f"{name}/"}}).result()
        for name in names
    }
    return {name: np.asarray(array.read().result()) for name, array in arrays.items()}


def assert_same_stage(workdir: Path, other: Path, stage: str = "device", step: int = STEPS) -> None:
    """Checks that a stage's four blocks have the same bits in two runs."""
    expected = saved_arrays(other, stage, step)
    got = saved_arrays(workdir, stage, step)
    assert expected.keys() == got.keys() and len(expected) > 10
    for name, value in expected.items():
        assert got[name].shape[1:] == value.shape[1:], name
        assert got[name][:4].tobytes() == value[:4].tobytes(), name
