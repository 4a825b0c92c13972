"""Scores a trained model on its test views, and its mesh if the true surface is known; writes the
numbers and a report.

python -m cosurfgs_jax.evaluate --workdir=DIR [--gt_points=FILE.ply]
"""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "gt_points",
        "",
        "point cloud (PLY) of the true surface, in the dataset's frame",
        flag_values=values,
    )


def main(options: program.Options) -> None:
    """Evaluates the run."""
    from cosurfgs_jax.outputs import commands

    commands.evaluate(options.settings, options.workdir, options.flags.gt_points)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
