"""The built-in town, small: from photographs to a scored mesh in minutes on a laptop, on four
virtual devices.

scripts/quickstart.sh, or
python -m cosurfgs_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Four blocks in two edges: training on the devices, compression, distillation to the edges,
compression, distillation to the cloud.

60 photographs of 320x240: four minutes in all on one core of a busy machine, PSNR 31.3 dB, SSIM
0.933.
"""

from cosurfgs_jax.settings import (
    GeneratedSettings,
    MasSettings,
    MeshSettings,
    PartitionSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)


def get_config() -> Settings:
    """An eighth of the default's pixels and fewer steps."""
    return Settings(
        generated=GeneratedSettings(num_views=60, width=320, height=240, size_m=100.0),
        surfels=SurfelSettings(sh_degree=1),
        partition=PartitionSettings(num_blocks=4, num_edges=2),
        mesh=MeshSettings(num_devices=4),
        mas=MasSettings(steps=50),
        train=TrainSettings(steps=400, log_every=50, checkpoint_every=200, test_every=200),
    )
