"""Ablation: four blocks in two edges, compressed, cropped and put together; no distillation.

python -m cosurfgs_jax.train --config=configs/ablation/lmc.py --config.data.path=DATASET
--workdir=DIR

All of them at once, with their table: python scripts/ablation.py --data=DATASET --workdir=DIR
"""

from cosurfgs_jax.settings import MasSettings, PartitionSettings, Settings, TrainSettings


def get_config() -> Settings:
    """Compression, no distillation."""
    return Settings(
        train=TrainSettings(steps=3000, checkpoint_every=1000, log_every=100),
        partition=PartitionSettings(num_blocks=4, num_edges=2),
        mas=MasSettings(enabled=False),
    )
