"""Aerial photographs with poses, e.g. of a drone: downscaled to a quarter, with the exposure model, 30000 steps.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR
"""

from cosurfgs_jax.settings import DataSettings, Settings, TrainSettings


def get_config() -> Settings:
    """Photographs of 20 megapixels and more have no detail that a quarter of their width would lose for a surface."""
    return Settings(data=DataSettings(downscale=4), train=TrainSettings(steps=30000, checkpoint_every=1000, log_every=100))
