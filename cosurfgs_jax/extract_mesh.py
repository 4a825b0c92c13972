"""Fuses the depth of a trained model into a mesh in the dataset's frame: DIR/mesh/mesh.ply.

python -m cosurfgs_jax.extract_mesh --workdir=DIR [--format=obj]
[--config.surface.voxel_size=LENGTH]
"""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "format",
        "ply",
        "ply, obj or glb; those two are written beside mesh.ply",
        flag_values=values,
    )


def main(options: program.Options) -> None:
    """Extracts the mesh."""
    from cosurfgs_jax.outputs import commands

    commands.extract_mesh(options.settings, options.workdir, options.flags.format)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
