"""Aerial photographs with poses, e.g. of a drone, at their full size: 5000 steps with the exposure
model.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR

65 photographs of 1000x751 (caliterra): 11 minutes on 2 cores, 1,188 s of processor time, 3.0 GB,
PSNR 31.4 dB (33.9 with colours fitted), SSIM 0.911.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """For photographs of a megapixel; larger ones want --config.data.downscale=2 or 4 on a CPU."""
    return Settings(train=TrainSettings(steps=5000, checkpoint_every=1000, log_every=100))
