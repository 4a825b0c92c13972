"""What every stage of a run works with, and how it is told to stop."""

from typing import NamedTuple

import jax

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.workdir import Workdir

# Of several processes: whether one was asked to stop, and whether all are still there.
_STEPS_BETWEEN_AGREEMENTS = 20


class Run(NamedTuple):
    """What every stage of a run works with."""

    settings: Settings
    workdir: Workdir
    partitioned: PartitionedScene
    layout: Layout
    images: ImageStore
    stop: StopRequest
    log: Log
    own_terms: tuple[LossTerm, ...] = ()  # of the loss, given by a user


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


def asked_to_stop(run: Run, step: int) -> bool:
    """Whether to stop after this step; the same answer in all processes."""
    if jax.process_count() == 1:
        return bool(run.stop)
    return step % _STEPS_BETWEEN_AGREEMENTS == 0 and processes.any_process(bool(run.stop))
