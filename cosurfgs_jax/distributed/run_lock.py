"""The lock of a training run: it belongs to the run, not to one of its processes."""

import contextlib
from collections.abc import Iterator

from cosurfgs_jax import locks
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.workdir import TRAINING, Workdir


@contextlib.contextmanager
def hold_run(workdir: Workdir) -> Iterator[None]:
    """Holds the workdir for the processes of this run; all call it.

    The first process has the lock. All hold a second one together: where a run lost its first
    process, the others may still write for seconds, until they notice, and the next run waits.

    Raises:
        InputError: in every process: another run is under way there, or jobs train blocks.
    """
    members = workdir.lock("processes")
    error = None
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            try:
                _check_no_jobs(workdir)
                is_ended = locks.has_last_ended(workdir.lock(TRAINING.name))
                stack.enter_context(workdir.writing(TRAINING))
                locks.wait_until_free(members, "the processes of an earlier run")
                workdir.clear_unfinished_training(is_ended)
            except InputError as found:
                error = found
        processes.raise_everywhere(error)
        stack.enter_context(locks.hold_shared(members))
        processes.barrier("locked")
        yield


def _check_no_jobs(workdir: Workdir) -> None:
    at_work = workdir.blocks_at_work()
    if at_work:
        raise InputError(
            f"{workdir}: jobs of their own train the blocks {', '.join(map(str, at_work))} there "
            "now; wait for their end or stop them, then give the same command again"
        )
