"""Ablation: four blocks in two edges, with compression and distillation: the whole method.

python -m cosurfgs_jax.train --config=configs/ablation/full.py --config.data.path=DATASET
--workdir=DIR

All of them at once, with their table: python scripts/ablation.py --data=DATASET --workdir=DIR
"""

from cosurfgs_jax.settings import PartitionSettings, Settings, TrainSettings


def get_config() -> Settings:
    """The whole method."""
    return Settings(
        train=TrainSettings(steps=3000, checkpoint_every=1000, log_every=100),
        partition=PartitionSettings(num_blocks=4, num_edges=2),
    )
