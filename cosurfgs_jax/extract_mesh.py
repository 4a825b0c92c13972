"""Fuses the depth of a trained model into a mesh in the dataset's frame: DIR/mesh/mesh.ply.

python -m cosurfgs_jax.extract_mesh --workdir=DIR [--config.surface.voxel_size=LENGTH]
"""

import sys

from cosurfgs_jax import program


def main(options: program.Options) -> None:
    """Flags -> settings -> one call."""
    from cosurfgs_jax.training import results

    results.extract_mesh(options.settings, options.workdir)


if __name__ == "__main__":
    sys.exit(program.run(main, workdir="trained"))
