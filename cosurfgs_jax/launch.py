"""Trains a run as jobs of a cluster: its blocks as tasks of their own, then the rest. What fails is
tried again; the same command again does what is left.

python -m cosurfgs_jax.launch --engine=ray --preset=aerial --config.data.path=DATASET --workdir=DIR

The other flags are those of `train`, and are handed on. A task trains the blocks of a part (`train
--blocks=i/n`) on one device and compresses them, wherever the cluster has room; a task whose node
is lost, or that fails, is tried again elsewhere and goes on from its last checkpoint. When all
blocks are there, one more job distils them, in one process or in several that start together. What
they print is in DIR/logs. The dataset and the workdir lie on a file system that all nodes share.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags

from cosurfgs_jax import program
from cosurfgs_jax.engines.jobs import block_jobs, log_file, rest_job
from cosurfgs_jax.engines.ray_cluster import RayCluster, Resources
from cosurfgs_jax.engines.tries import MISTAKE, Outcome, run_jobs
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir

_FAILED = 1
_log = logging.getLogger("cosurfgs_jax.launch")


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_enum("engine", "ray", ["ray"], "what schedules the jobs", flag_values=values)
    flags.DEFINE_string(
        "address",
        "",
        "of the Ray cluster, as ray.init has it: auto, HOST:PORT, ray://HOST:PORT, local; without "
        "it RAY_ADDRESS, else a cluster that runs on this machine, else a new one of this machine",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "parts",
        0,
        "tasks that the blocks are trained in; 0: one for each block",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_workers",
        1,
        "processes of the job after the blocks; several start together, as a placement group",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "num_cpus",
        1,
        "CPUs of each process, for Ray's schedule",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "num_gpus",
        None,
        "GPUs of each process; without it one where the cluster has GPUs, else none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_retries",
        3,
        "how often a job is tried again after its node was lost or it failed; -1: without end",
        lower_bound=-1,
        flag_values=values,
    )


def handed_on(arguments: Sequence[str], settings: Settings, workdir: Workdir) -> list[str]:
    """The flags of `train` on any node: those of this command line but its own, paths absolute.

    Args:
        arguments: the command line without the program's name.
        settings: that it gives, with absolute paths.
        workdir: that it gives.
    """
    own = flags.FlagValues()
    declare(own)
    given: list[str] = []
    for argument in arguments:
        if re.match(r"--?[a-zA-Z]", argument):
            given.append(argument)
        else:  # the value of the flag before it
            given[-1] += f"={argument}"
    handed = []
    for flag in given:
        name, _, value = flag.lstrip("-").partition("=")
        if name == "config":
            handed.append(f"--config={Path(value).expanduser().absolute()}")
        elif name not in (*own, "workdir"):
            handed.append(flag)
    handed.append(f"--workdir={workdir}")
    handed.append(f"--config.data.path={settings.data.path}")
    handed.append(f"--config.data.split={settings.data.split}")
    return handed


def main(options: program.Options) -> None:
    """Runs the jobs of blocks, and then the rest."""
    settings = options.settings
    workdir = options.workdir
    asked = options.flags
    num_blocks = settings.partition.num_blocks
    handed = handed_on(sys.argv[1:], settings, workdir)
    num_parts = asked.parts or num_blocks
    jobs = block_jobs(
        workdir, handed, num_blocks, num_parts=num_parts, is_compact=settings.lmc.compact
    )
    cluster = RayCluster(workdir, asked.address, Resources(asked.num_cpus, asked.num_gpus))
    with contextlib.closing(cluster):
        _log.info("%s", cluster.describe())
        logs = log_file(workdir, "JOB")
        _log.info("%d job(s) of blocks, then the rest; logs in %s", len(jobs), logs)
        failed = run_jobs(cluster, jobs, asked.max_retries)
        if not failed:
            rest = rest_job(handed, asked.num_workers)
            failed = run_jobs(cluster, [rest], asked.max_retries)
    if failed:
        _end(failed, workdir)


def _end(failed: dict[str, Outcome], workdir: Workdir) -> NoReturn:
    """Ends the program, with the exit code of a mistake where each of the jobs names one."""
    logs = ", ".join(str(log_file(workdir, name)) for name in failed)
    print(
        f"error: {', '.join(failed)}: failed, as {logs} says; the same command again does what is "
        "left",
        file=sys.stderr,
    )
    code = _FAILED
    if all(outcome.code == MISTAKE for outcome in failed.values()):
        code = MISTAKE
    raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="create"))
