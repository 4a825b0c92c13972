"""What the result of a stage weighs, in memory, on disk and in the compact form."""

import io
import math
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.model import compact
from cosurfgs_jax.training.checkpoint_files import MODEL, size_of
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import BlockModel, TrainState
from cosurfgs_jax.types import SurfelParams

_MOST = 100_000  # surfels of a block that are encoded to know its size: a second of processor time


class StageBytes(NamedTuple):
    """Bytes of a stage, as they are in metrics.json.

    | field                    | what                                                              |
    |--------------------------|-------------------------------------------------------------------|
    | `bytes_parameters`       | float32 parameters of the living surfels of all blocks            |
    | `bytes_compact`          | the same surfels in the compact form, compressed                  |
    | `bytes_checkpoint`       | the stage's last checkpoint on disk; 0 where it has none          |
    | `bytes_checkpoint_model` | of it what stays when the next stage has saved                    |
    | `bytes_handed_over`      | what jobs of single blocks handed over to the run; 0 without such |
    """

    bytes_parameters: int
    bytes_compact: int
    bytes_checkpoint: int
    bytes_checkpoint_model: int
    bytes_handed_over: int


def measure_bytes(run: Run, spec: StageSpec, stage: StageState, handed_over: int) -> StageBytes:
    """What a stage at its last step weighs. All processes call it; the checkpoint is that of the
    first, which sees the folder.

    Args:
        run, spec: of the run and the stage.
        stage: at its last step.
        handed_over: bytes that the run took from blocks of their own jobs.
    """
    own = np.zeros(2, np.int64)
    for device in run.layout.local_devices:  # one block at a time in the host's memory
        for row in range(len(run.layout.blocks_of(device))):
            state = stage.states[row]
            params, alive = run.layout.get((state.params, state.alive), device)
            own += (int(alive.sum()), compact_bytes(params, alive))
    num_surfels, num_compact = processes.gather(own).sum(axis=0).tolist()
    saved = run.workdir.checkpoints(spec.name) / str(stage.step)
    return StageBytes(
        bytes_parameters=num_surfels * surfel_bytes(stage.states[0]),
        bytes_compact=num_compact,
        bytes_checkpoint=size_of(saved),
        bytes_checkpoint_model=sum(size_of(saved / item) for item in MODEL),
        bytes_handed_over=handed_over,
    )


def compact_bytes(params: SurfelParams, alive: np.ndarray) -> int:
    """The size of a file of the compact form of one block's surfels; of more than `_MOST` it is
    that of every second, third ... one, times as much.

    Args:
        params: NumPy arrays of N slots.
        alive: bool[N].
    """
    every = -(-int(alive.sum()) // _MOST) or 1
    taken = np.flatnonzero(alive)[::every]
    living = SurfelParams(**{name: value[taken] for name, value in params.by_name().items()})
    file = io.BytesIO()
    arrays: dict[str, Any] = compact.encode(living)
    np.savez_compressed(file, **arrays)
    return every * file.tell()


def surfel_bytes(state: TrainState | BlockModel) -> int:
    """What one surfel takes of a model, without what only training needs."""
    leaves = state.params.by_name().values()
    return sum(math.prod(leaf.shape[2:]) * leaf.dtype.itemsize for leaf in leaves)


def summarize_bytes(sizes: StageBytes, bytes_sent: int) -> str:
    """The sizes in words."""
    parts = [f"{sizes.bytes_parameters / 2**20:.1f} MB of parameters"]
    parts.append(f"{sizes.bytes_compact / 2**20:.1f} MB in the compact form")
    if sizes.bytes_checkpoint:
        kept = sizes.bytes_checkpoint_model / 2**20
        parts.append(
            f"{sizes.bytes_checkpoint / 2**20:.1f} MB in its checkpoint, of which {kept:.1f} stay"
        )
    if sizes.bytes_handed_over:
        parts.append(f"{sizes.bytes_handed_over / 2**20:.1f} MB taken from blocks' own jobs")
    if bytes_sent:
        parts.append(f"{bytes_sent / 2**20:.1f} MB sent by a device")
    return "; ".join(parts)
