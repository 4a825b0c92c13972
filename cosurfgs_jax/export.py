"""Writes a trained model to DIR/export/, in a format that other programs read.

python -m cosurfgs_jax.export --workdir=DIR [--format=ply|dsm|las|points]

ply: the surfels, for viewers of splats. points: their centres with colours and normals. las: the
    same for programs of laser
scans. dsm: a height map, a true orthophoto (GeoTIFF both) and how well the heights fit the SfM
    points (dsm.json). Only las and
dsm use --config.geo.offset and --config.geo.epsg, which make map coordinates of the dataset's; all
else is in its own frame."""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string("format", "ply", "ply, dsm, las or points", flag_values=values)


def main(options: program.Options) -> None:
    """Flags -> settings -> one call."""
    from cosurfgs_jax.outputs import commands

    commands.export(options.settings, options.workdir, options.flags.format)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
