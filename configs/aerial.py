"""Aerial photographs with poses, e.g. of a drone, at their full size: 7000 steps with the exposure
model.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR

65 photographs of 1000x751 (caliterra): 62 minutes on 2 shared cores, 2.8 GB, PSNR 31.7 dB (33.9
with colours fitted), SSIM 0.914.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """For photographs of a megapixel; larger ones want --config.data.downscale=2 or 4 on a CPU."""
    return Settings(train=TrainSettings(steps=7000, checkpoint_every=1000, log_every=100))
