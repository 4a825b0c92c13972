"""Writes a trained model, in the dataset's frame, to a file that viewers read.

python -m cosurfgs_jax.export --workdir=DIR [--format=ply]
"""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string("format", "ply", "file format", flag_values=values)


def main(options: program.Options) -> None:
    """Flags -> settings -> one call."""
    from cosurfgs_jax.training import results

    results.export(options.settings, options.workdir, options.flags.format)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
