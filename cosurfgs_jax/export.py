"""Writes a trained model to DIR/export/, in a format that other programs read.

python -m cosurfgs_jax.export --workdir=DIR [--format=NAME]

NAME is ply, html, spz, sog, textured, dsm, dtm, contours, las, laz or points. las, laz, dsm, dtm
and contours are in map coordinates, by --config.geo.offset and --config.geo.epsg; html, spz and sog
are upright around the middle of the ground; textured.glb is turned so that y is up; the others are
in the dataset's frame. export/place.json says of each file how it goes to map coordinates.
"""

import sys

from absl import flags

from cosurfgs_jax import host_memory, program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    from cosurfgs_jax.outputs.exports import FORMATS

    lines = [f"\n      {form.name:<10}{form.help}" for form in FORMATS]
    meaning = f"what is written, one of{''.join(lines)}\n     "
    flags.DEFINE_string("format", "ply", meaning, flag_values=values)
    program.declare_shard(values, "of the model")


def main(options: program.Options) -> None:
    """Exports the model."""
    from cosurfgs_jax.outputs import commands

    part = program.shard_of(options.flags)
    if part is not None:
        host_memory.give_back_at_once()
    commands.export(options.settings, options.workdir, options.flags.format, part)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
