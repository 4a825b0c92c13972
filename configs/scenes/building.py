"""Building of Mill 19, 1,940 photographs of 4608x3456, in the
layout of Mega-NeRF: a quarter of the size, tested on val/.

python -m cosurfgs_jax.train --config=configs/scenes/building.py --config.data.path=DATASET
--workdir=DIR

DATASET has points: `prepare --poses` makes some. Blocks of about 240 photographs, four in an edge,
are our choice. Not measured here.
"""

from cosurfgs_jax.settings import Settings
from cosurfgs_jax.settings.protocols import mega_nerf_protocol


def get_config() -> Settings:
    """The protocol that is published for this scene: a quarter of the size, 30,000 steps."""
    return mega_nerf_protocol(num_blocks=8)
