"""Jobs tried again where what ran them was lost: the course of a launch, whoever schedules it."""

import logging
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from cosurfgs_jax.engines.jobs import Job

# Exit codes of a program: done; a mistake that comes again.
DONE = 0
MISTAKE = 2
_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How a process of a job ended."""

    code: int | None  # None: its node or its worker was lost
    where: str  # the machine, if it is known
    text: str  # the last line that it printed, or how it was lost

    @property
    def is_done(self) -> bool:
        """Whether it did what it was asked for."""
        return self.code == DONE

    def __str__(self) -> str:
        place = f" on {self.where}" if self.where else ""
        if self.code is None:
            return f"lost{place} ({self.text})"
        return f"exit code {self.code}{place}: {self.text}"


@runtime_checkable
class Cluster(Protocol):
    """What schedules jobs."""

    def start(self, job: Job, number: int) -> list[Hashable]:
        """Asks for the processes of a job, all at once, for the try of a number; a handle each."""
        ...

    def wait(self, handles: Sequence[Hashable]) -> tuple[Hashable, Outcome]:
        """The first of some processes that has ended, and how."""
        ...

    def release(self, job: Job) -> None:
        """Gives back what the processes of a job occupied together, when all have ended."""
        ...


class _Try:
    """A job that is under way."""

    def __init__(self, job: Job, number: int):
        self.job = job
        self.number = number
        self.outcomes: list[Outcome] = []

    @property
    def has_ended(self) -> bool:
        return len(self.outcomes) == self.job.num_processes

    def verdict(self) -> Outcome:
        """That of the process that says most: where one was lost the others only say that it was,
        and where one names a mistake they give up.
        """
        bad = [outcome for outcome in self.outcomes if not outcome.is_done]
        lost = [outcome for outcome in bad if outcome.code is None or outcome.code < 0]
        mistakes = [outcome for outcome in bad if outcome.code == MISTAKE]
        return [*lost, *mistakes, *bad, *self.outcomes][0]


def run_jobs(cluster: Cluster, jobs: Sequence[Job], max_retries: int) -> dict[str, Outcome]:
    """Runs jobs side by side, as many as the cluster has room for. A job that ends otherwise than
    done is tried again, all of its processes together; the others go on meanwhile. One that names a
    mistake (exit code 2) is not: it would be told the same.

    Args:
        cluster: that has them.
        jobs: independent of each other.
        max_retries: of a job, after its first try; -1: without end.
    Returns:
        Name -> how the last try ended, of each job that failed.
    """
    running: dict[Hashable, _Try] = {}
    failed: dict[str, Outcome] = {}

    def begin(job: Job, number: int) -> None:
        attempt = _Try(job, number)
        for handle in cluster.start(job, number):
            running[handle] = attempt

    for job in jobs:
        begin(job, 1)
    while running:
        handle, outcome = cluster.wait(list(running))
        attempt = running.pop(handle)
        attempt.outcomes.append(outcome)
        if not attempt.has_ended:
            continue
        job = attempt.job
        cluster.release(job)
        verdict = attempt.verdict()
        if verdict.is_done:
            _log.info("%s: done", job.name)
        elif verdict.code == MISTAKE or 0 <= max_retries < attempt.number:
            _log.error("%s: failed at try %d, %s", job.name, attempt.number, verdict)
            failed[job.name] = verdict
        else:
            _log.warning("%s: %s; tried again", job.name, verdict)
            begin(job, attempt.number + 1)
    return failed
