"""The entry in runs.json of a program that computes."""

import contextlib

import jax

from cosurfgs_jax import run_record
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.run_record import RunRecord
from cosurfgs_jax.workdir import Workdir


def recording(workdir: Workdir, program: str) -> contextlib.AbstractContextManager[RunRecord]:
    """Notes what runs, from here to the end of the block; the first process of a run does it.

    Args:
        workdir: of the run.
        program: what it does, e.g. "train".
    Returns:
        A context manager that gives the entry.
    """
    if not processes.is_first():
        return run_record.no_record().ending()
    kinds = [device.device_kind for device in jax.devices()]
    names = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    record = run_record.begin(
        workdir,
        program,
        sources=f"{processes.sources():08x}",
        device=f"{names}; {run_record.processor()}",
        num_processes=processes.count(),
    )
    return record.ending()
