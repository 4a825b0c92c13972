"""Writes a trained model to DIR/export/, in a format that other programs read.

python -m cosurfgs_jax.export --workdir=DIR [--format=ply|dsm|las|points]

ply: the surfels, for splat viewers. points: their centres with colours and normals. las: the same
for point cloud programs. dsm: a height map and a true orthophoto (both GeoTIFF), and how well the
heights fit the SfM points (dsm.json). Only las and dsm are in map coordinates, by
--config.geo.offset and --config.geo.epsg; all else is in the dataset's frame.
"""

import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string("format", "ply", "ply, dsm, las or points", flag_values=values)


def main(options: program.Options) -> None:
    """Exports the model."""
    from cosurfgs_jax.outputs import commands

    commands.export(options.settings, options.workdir, options.flags.format)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
