"""Aerial photographs with poses, e.g. of a drone, at their full size: 4000 steps with the exposure
model.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR

65 photographs of 1000x751 (caliterra): 23 minutes on one core with the other one busy, 1,321 s of
processor time, PSNR 31.7 dB (33.8 with colours fitted), SSIM 0.918.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """For photographs of a megapixel; larger ones want --config.data.downscale=2 or 4 on a CPU."""
    return Settings(train=TrainSettings(steps=4000, checkpoint_every=1000, log_every=100))
