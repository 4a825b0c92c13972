"""Fuses the depth of a trained model into a mesh in the dataset's frame: DIR/mesh/mesh.ply. A mesh
that is there already, of this model and these settings, stays; --force fuses it anew.

python -m cosurfgs_jax.extract_mesh --workdir=DIR [--format=obj]
[--config.surface.voxel_size=LENGTH]

--shard=i/n fuses a part of the place alone, from the views that see it and the surfels that these
may show. Such processes need not run at the same time, nor on the same machine. The command without
--shard then joins their parts.
"""

import sys

from absl import flags

from cosurfgs_jax import host_memory, program
from cosurfgs_jax.errors import InputError


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "format",
        "ply",
        "ply, obj or glb; those two are written beside mesh.ply",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "force",
        False,
        "fuse anew, also where the mesh of this model and these settings is there already",
        flag_values=values,
    )
    program.declare_shard(values, "of the place")


def main(options: program.Options) -> None:
    """Extracts the mesh."""
    part = program.shard_of(options.flags)
    if part is not None and options.flags.force:
        raise InputError(
            "--force, --shard: expected one of the two, got both; delete DIR/shards to begin "
            "shards anew"
        )
    from cosurfgs_jax.outputs import commands

    if part is not None:
        host_memory.give_back_at_once()
    commands.extract_mesh(
        options.settings,
        options.workdir,
        options.flags.format,
        part,
        force=options.flags.force,
    )


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
