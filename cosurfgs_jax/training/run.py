"""What every stage of a run works with, and how it is told to stop."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.run_record import RunRecord
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run_log import Log, Pace
from cosurfgs_jax.workdir import Workdir

# Of several processes: whether one was asked to stop, and whether all are still there. Seldom where
# steps are quick, since each one waits for the slowest process.
_MAX_STEPS_BETWEEN_AGREEMENTS = 20
_SECONDS_BETWEEN_AGREEMENTS = 2.0


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
    record: RunRecord | None = None  # of this program in runs.json; None: stages are not noted
    # Told how fast a stage is, by its name, at each line of the log.
    when_timed: Callable[["Run", str, Pace], None] | None = None


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


class StopAgreement:
    """Whether to stop after a step: the same answer in all processes, within seconds."""

    def __init__(self, stop: StopRequest):
        """
        Args:
            stop: of this process.
        """
        self._stop = stop
        self._steps_left = 1
        self._began = time.monotonic()
        self._num_steps = 1

    def is_asked(self, is_last: bool) -> bool:
        """To be called after every step, by all processes.

        Args:
            is_last: of the stage: after it nobody asks for long.
        """
        if processes.count() == 1:
            return bool(self._stop)
        self._steps_left -= 1
        if self._steps_left and not is_last:
            return False
        seconds = (time.monotonic() - self._began) / self._num_steps
        # All compute the next number of steps from the same times.
        found = processes.gather(np.array([float(bool(self._stop)), seconds]))
        steps = int(_SECONDS_BETWEEN_AGREEMENTS / max(found[:, 1].max(), 1e-3))
        self._num_steps = self._steps_left = min(max(steps, 1), _MAX_STEPS_BETWEEN_AGREEMENTS)
        self._began = time.monotonic()
        return bool(found[:, 0].any())
