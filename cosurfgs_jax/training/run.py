"""What every stage of a run works with, and how it is told to stop."""

from typing import NamedTuple

import jax

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.errors import InputError
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
    config: bytes | None = None  # of config.json when the run began; None: it is not looked at


def run_config(workdir: Workdir) -> bytes:
    """What config.json holds now.

    Raises:
        InputError: it is gone.
    """
    try:
        return workdir.config.read_bytes()
    except OSError as error:
        raise InputError(
            f"{workdir.config}: expected the settings of this run, but the file cannot be read any "
            f"more ({error.strerror}): the workdir was moved, deleted or taken away while the run "
            "used it; put it back, or give the same command again to begin anew"
        ) from error


def check_config(run: Run) -> None:
    """Checks that the workdir is still that of the run, before something is saved there; all
    processes call it.

    Raises:
        InputError: in every process: config.json is gone, or another one than when the run began.
    """
    if run.config is None:
        return
    error = None
    if processes.is_first():
        try:
            if run_config(run.workdir) != run.config:
                error = InputError(
                    f"{run.workdir.config}: expected the settings that the run began with, but "
                    "they were changed while it ran; what was saved before is as it was: give the "
                    "same command again to see what differs"
                )
        except InputError as found:
            error = found
    processes.raise_everywhere(error)


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


def asked_to_stop(run: Run, step: int) -> bool:
    """Whether to stop after this step; the same answer in all processes."""
    if jax.process_count() == 1:
        return bool(run.stop)
    return step % _STEPS_BETWEEN_AGREEMENTS == 0 and processes.any_process(bool(run.stop))
