"""A scene of GauU-Scene, a COLMAP dataset with a laser scan: tested on every eighth photograph.

python -m cosurfgs_jax.train --config=configs/scenes/gauu_scene.py --config.data.path=DATASET
--workdir=DIR
python -m cosurfgs_jax.evaluate --workdir=DIR --gt_points=SCAN.ply --gt_transform=TRANSFORM.txt

Others train on images_3.4175, 1600 pixels wide (--config.data.images); four blocks in two edges are
our choice. Not measured here.
"""

from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings, TrainSettings


def get_config() -> Settings:
    """A quarter of the size, 30,000 steps."""
    return Settings(
        data=DataSettings(downscale=4),
        partition=PartitionSettings(num_blocks=4, num_edges=2),
        train=TrainSettings(steps=30_000, checkpoint_every=5000, log_every=100),
    )
