"""Says how far a run is: its stages and blocks, what is missing, who is at work. Only reads.

python -m cosurfgs_jax.status --workdir=DIR
"""

import sys
from pathlib import Path

from absl import flags

from cosurfgs_jax import program
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.run_status import status_lines
from cosurfgs_jax.workdir import Workdir


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string("workdir", None, "folder of a run", flag_values=values)


def main(options: program.Options) -> None:
    """Prints the status."""
    if not options.flags.workdir:
        raise InputError("--workdir: expected the folder of a run, got none; give --workdir=DIR")
    folder = Path(options.flags.workdir).expanduser().absolute()
    print("\n".join(status_lines(Workdir(folder))))


if __name__ == "__main__":
    sys.exit(program.run(main, declare))
