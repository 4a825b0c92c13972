"""Ablation: one block on one device, which sees all photographs.

python -m cosurfgs_jax.train --config=configs/ablation/centralised.py --config.data.path=DATASET
--workdir=DIR

All of them at once, with their table: python scripts/ablation.py --data=DATASET --workdir=DIR
"""

from cosurfgs_jax.settings import PartitionSettings, Settings, TrainSettings


def get_config() -> Settings:
    """The baseline of the comparison."""
    return Settings(
        train=TrainSettings(steps=3000, checkpoint_every=1000, log_every=100),
        partition=PartitionSettings(num_blocks=1, num_edges=1),
    )
