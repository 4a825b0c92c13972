"""Trains a surfel model from a folder of posed photographs. The same command again resumes, or says
that it is finished.

python -m cosurfgs_jax.train --preset=aerial --config.data.path=DATASET --workdir=DIR

On several machines or in several processes: the same command in each, with --coordinator_address,
--num_processes and --process_id where the cluster (SLURM, Open MPI, Kubernetes, Cloud TPU) does not
set them, and one --workdir that all share. Each process reads only the photographs of its own
blocks; its --config.data.path may have others missing.

--blocks=0,3 or --blocks=0/4 (the first of four parts) trains some blocks alone, one after the other
on one device, and compresses them. Such jobs need not run at the same time, nor on the same
machine, and each needs the photographs and the memory of one block. The command without --blocks
then takes the finished blocks, trains those that are missing, and goes on with the stages in which
blocks exchange something.
"""

import sys

from absl import flags

from cosurfgs_jax import host_memory, program
from cosurfgs_jax.collab.block_choice import BlockChoice
from cosurfgs_jax.errors import InputError


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "host:port of process 0, for a run of several processes",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        0,
        "how many processes the run has; 1 alone: this one, whatever a cluster says",
        flag_values=values,
    )
    flags.DEFINE_integer("process_id", -1, "number of this process, from 0", flag_values=values)
    flags.DEFINE_integer(
        "start_timeout",
        45,
        "seconds to wait at the start for the other processes",
        flag_values=values,
    )

    flags.DEFINE_string(
        "blocks",
        "",
        "train these blocks alone: numbers, such as 0,3, or part i of n, such as 0/4",
        flag_values=values,
    )


def main(options: program.Options) -> None:
    """Starts devices and processes, and trains."""
    host_memory.keep_freed()
    if options.flags["blocks"].present:
        _train_blocks(options)
        return
    program.start_devices(
        options.settings.mesh.num_devices,
        options.flags.coordinator_address,
        options.flags.num_processes,
        options.flags.process_id,
        options.flags.start_timeout,
    )
    from cosurfgs_jax import planning
    from cosurfgs_jax.collab import pipeline

    pipeline.train(options.settings, options.workdir, when_timed=planning.FirstEstimate())


def _train_blocks(options: program.Options) -> None:
    for name in ("coordinator_address", "num_processes", "process_id"):
        if options.flags[name].present:
            raise InputError(
                f"--blocks, --{name}: expected one of the two, got both: blocks are trained by a "
                "process each, which need not know of each other"
            )
    choice = BlockChoice.parse(options.flags.blocks)
    program.start_devices(1, is_alone=True)
    from cosurfgs_jax.collab import block_jobs

    block_jobs.train_blocks(options.settings, options.workdir, choice)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="create"))
