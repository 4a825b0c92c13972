"""Fuses the depth of a trained model into a mesh in the dataset's frame: DIR/mesh/mesh.ply.

python -m cosurfgs_jax.extract_mesh --workdir=DIR [--format=obj]
[--config.surface.voxel_size=LENGTH]

--shard=i/n fuses a part of the place alone, from the views that see it and the surfels that these
may show. Such processes need not run at the same time, nor on the same machine. The command without
--shard then joins their parts.
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
    program.declare_shard(values, "of the place")


def main(options: program.Options) -> None:
    """Extracts the mesh."""
    from cosurfgs_jax.outputs import commands

    commands.extract_mesh(
        options.settings,
        options.workdir,
        options.flags.format,
        program.shard_of(options.flags),
    )


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
