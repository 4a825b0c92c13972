"""A run as jobs: parts of its blocks, which know nothing of each other, and then the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax.run_status import blocks_left
from cosurfgs_jax.workdir import BLOCK, TRAINING, Output, Workdir

_MASTER_FLAGS = ("coordinator_address", "num_processes", "process_id")


def log_file(workdir: Workdir, name: str) -> Path:
    """What a process of a job prints, in all of its tries.

    Args:
        workdir: of the run.
        name: `Job.log_name`.
    """
    return workdir.root / "logs" / f"{name}.log"


class Job(NamedTuple):
    """A call of `train`, in one process or in several that are connected."""

    name: str  # of its log, too
    flags: tuple[str, ...]  # of `train`
    num_processes: int = 1
    blocks: tuple[int, ...] = ()  # those it trains alone; none: it goes on with all

    def log_name(self, process: int) -> str:
        """Name of the log of one of its processes."""
        return self.name if self.num_processes == 1 else f"{self.name}-{process}"

    def flags_of(self, process: int, address: str) -> tuple[str, ...]:
        """The flags of one of its processes.

        Args:
            process: its number.
            address: host:port of process 0; not used where it is the only one.
        """
        if self.blocks:
            return self.flags
        if self.num_processes == 1:  # whatever the cluster says that started Ray
            return (*self.flags, "--num_processes=1")
        values = (address, self.num_processes, process)
        pairs = zip(_MASTER_FLAGS, values, strict=True)
        return (*self.flags, *(f"--{name}={value}" for name, value in pairs))

    def held_by(self, workdir: Workdir, process: int) -> list[tuple[Workdir, Output]]:
        """Whose locks a process takes: an earlier try on a lost node may still have them."""
        if process:
            return []
        if not self.blocks:
            return [(workdir, TRAINING)]
        return [(workdir.block(number), BLOCK) for number in self.blocks]


def block_jobs(
    workdir: Workdir, flags: Sequence[str], num_blocks: int, num_parts: int, is_compact: bool
) -> list[Job]:
    """The jobs of blocks that are left.

    Args:
        workdir: of the run.
        flags: of `train`.
        num_blocks: that the settings ask for; as many or fewer there will be.
        num_parts: that they are trained in.
        is_compact: `lmc.compact`.
    Returns:
        A job for each part that has a block to be trained.
    """
    left = blocks_left(workdir, is_compact)
    if left is None:
        left = list(range(num_blocks))
    jobs = []
    for part in range(num_parts):
        own = tuple(number for number in left if number % num_parts == part)
        if own:
            choice = f"--blocks={part}/{num_parts}"
            name = f"part-{part}"
            if num_parts >= num_blocks:
                name = f"block-{part}"
            jobs.append(Job(name, (*flags, choice), blocks=own))
    return jobs


def rest_job(flags: Sequence[str], num_processes: int) -> Job:
    """What comes after the blocks: the stages in which they exchange something, and the model.

    Args:
        flags: of `train`.
        num_processes: that it has, all at once.
    """
    return Job("rest", tuple(flags), num_processes)
