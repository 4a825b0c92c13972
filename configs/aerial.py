"""Aerial photographs with poses, e.g. of a drone, at their full size: 5000 steps with the exposure
model.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR

65 photographs of 1000x751 (caliterra): 18 minutes on 2 cores that were busy with other work, 1,268
s of processor time, 3.4 GB, PSNR 31.5 dB (33.8 with colours fitted), SSIM 0.911.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """For photographs of a megapixel; larger ones want --config.data.downscale=2 or 4 on a CPU."""
    return Settings(train=TrainSettings(steps=5000, checkpoint_every=1000, log_every=100))
