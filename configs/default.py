"""The defaults: 7000 steps on the built-in town, or on your own photographs.

python -m cosurfgs_jax.train --config=configs/default.py --config.data.path=DATASET --workdir=DIR
"""

from cosurfgs_jax.settings import Settings


def get_config() -> Settings:
    """All settings at their defaults."""
    return Settings()
