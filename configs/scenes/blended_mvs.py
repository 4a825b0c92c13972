"""A scene of BlendedMVS in MVSNet's layout, 768x576: tested on every eighth photograph.

python -m cosurfgs_jax.train --config=configs/scenes/blended_mvs.py --config.data.path=DATASET
--workdir=DIR

DATASET has points: `prepare --poses` makes some. Not measured here.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """The size as it is, one block, 30,000 steps."""
    return Settings(train=TrainSettings(steps=30_000, checkpoint_every=5000, log_every=100))
