"""Aerial photographs with poses, e.g. of a drone, at their full size: 3200 steps with the exposure
model.

python -m cosurfgs_jax.train --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR

65 photographs of 1000x751 (caliterra): 804 s of processor time on one core of a busy machine, PSNR
31.8 dB (34.0 with colours fitted), SSIM 0.921.
"""

from cosurfgs_jax.settings import Settings, TrainSettings


def get_config() -> Settings:
    """For photographs of a megapixel; larger ones want --config.data.downscale=2 or 4 on a CPU."""
    return Settings(train=TrainSettings(steps=3200, checkpoint_every=800, log_every=100))
