"""Renders colour, depth and normals of a trained model for views of its dataset.

python -m cosurfgs_jax.render --workdir=DIR [--out=FOLDER] [--views=test]
"""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "out", "", "folder for the pictures; by default DIR/renders", flag_values=values
    )
    flags.DEFINE_string(
        "views", "test", "test, train, all, or image names with commas between", flag_values=values
    )


def main(options: program.Options) -> None:
    """Renders the views."""
    from cosurfgs_jax.outputs import commands

    commands.render(options.settings, options.workdir, options.flags.out, options.flags.views)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
