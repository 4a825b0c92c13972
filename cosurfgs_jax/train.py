"""Trains a surfel model from a folder of posed photographs. The same command again resumes, or says that it is finished.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR
"""

import sys

from cosurfgs_jax import program


def main(options: program.Options) -> None:
    """Flags -> settings -> one call."""
    from cosurfgs_jax.collab import pipeline

    pipeline.train(options.settings, options.workdir)


if __name__ == "__main__":
    sys.exit(program.run(main, workdir="create"))
