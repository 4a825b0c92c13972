"""The stages of a run of 20 steps, and its settings."""

from cosurfgs_jax.settings import LmcSettings, MasSettings, Settings, TrainSettings

ALL = ["device", "lmc_device", "edge", "lmc_edge", "cloud"]
NUM_STEPS = {"device": 20, "lmc_device": 4, "edge": 2, "lmc_edge": 0, "cloud": 2}


def stage_settings(lmc: bool = True, mas: bool = True) -> Settings:
    """With or without compression and distillation."""
    return Settings(
        train=TrainSettings(steps=20),
        lmc=LmcSettings(enabled=lmc, recovery=0.2),
        mas=MasSettings(enabled=mas),
    )
