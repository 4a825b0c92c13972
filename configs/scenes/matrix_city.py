"""An aerial split of MatrixCity, such as block A, 1920x1080: tested on its own test photographs.

python -m cosurfgs_jax.train --config=configs/scenes/matrix_city.py --config.data.path=DATASET
--workdir=DIR

DATASET has points: `prepare --poses` makes some. Others train on 1600x900: shrink the photographs
for that, as data.downscale is a whole number. Four blocks in two edges are our choice. Not measured
here.
"""

from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings, TrainSettings


def get_config() -> Settings:
    """The size as it is, the dataset's own split, 30,000 steps."""
    return Settings(
        data=DataSettings(split="folders"),
        partition=PartitionSettings(num_blocks=4, num_edges=2),
        train=TrainSettings(steps=30_000, checkpoint_every=5000, log_every=100),
    )
