"""Every setting of the package, declared once: default, help and check. No JAX here.

A config file (`configs/*.py`) returns a `Settings`; flags `--config.a.b=value` change single
settings. To add one, declare a field with `setting` in the group of its consumer: it is then
checked, saved, listed by `--helpfull` and part of `settings_reference`; `is_main` adds it to the
few of `--help`. Where the help says that a special value means "from the data", the consumer
replaces it and logs what it chose.
"""

from cosurfgs_jax.settings.all_settings import Settings
from cosurfgs_jax.settings.blocks import (
    LmcSettings,
    MasSettings,
    MeshSettings,
    PartitionSettings,
)
from cosurfgs_jax.settings.data import DataSettings, GeneratedSettings
from cosurfgs_jax.settings.declaration import SettingsGroup, declaration_of, type_of
from cosurfgs_jax.settings.model import AppearanceSettings, RasterSettings, SurfelSettings
from cosurfgs_jax.settings.outputs import (
    GeoSettings,
    PointsSettings,
    SurfaceSettings,
    TerrainSettings,
    TextureSettings,
)
from cosurfgs_jax.settings.prepare import PrepareSettings
from cosurfgs_jax.settings.reference import SettingHelp, iter_help, settings_reference
from cosurfgs_jax.settings.training import (
    DensitySettings,
    LossSettings,
    MaskSettings,
    OptimSettings,
    TrainSettings,
)

__all__ = [
    "AppearanceSettings",
    "DataSettings",
    "DensitySettings",
    "GeneratedSettings",
    "GeoSettings",
    "LmcSettings",
    "LossSettings",
    "MasSettings",
    "MeshSettings",
    "OptimSettings",
    "PartitionSettings",
    "PointsSettings",
    "PrepareSettings",
    "RasterSettings",
    "SettingHelp",
    "Settings",
    "SettingsGroup",
    "SurfaceSettings",
    "SurfelSettings",
    "MaskSettings",
    "TerrainSettings",
    "TextureSettings",
    "TrainSettings",
    "declaration_of",
    "iter_help",
    "settings_reference",
    "type_of",
]
