"""How results of published scenes are measured, where several scenes share it."""

from cosurfgs_jax.settings.all_settings import Settings
from cosurfgs_jax.settings.blocks import PartitionSettings
from cosurfgs_jax.settings.data import DataSettings
from cosurfgs_jax.settings.training import TrainSettings

_BLOCKS_OF_AN_EDGE = 4  # our choice


def mega_nerf_protocol(num_blocks: int) -> Settings:
    """Settings of a scene in the layout of Mega-NeRF: a quarter of the size, tested on val/, 30,000
    steps.

    Args:
        num_blocks: of the place, a multiple of 4.
    """
    return Settings(
        data=DataSettings(downscale=4, split="folders"),
        partition=PartitionSettings(
            num_blocks=num_blocks, num_edges=num_blocks // _BLOCKS_OF_AN_EDGE
        ),
        train=TrainSettings(steps=30_000, checkpoint_every=5000, log_every=100),
    )
