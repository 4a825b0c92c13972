"""All settings together; what a config file returns."""

import dataclasses

from cosurfgs_jax.settings.blocks import (
    LmcSettings,
    MasSettings,
    MeshSettings,
    PartitionSettings,
)
from cosurfgs_jax.settings.data import MAX_SEED, DataSettings, GeneratedSettings
from cosurfgs_jax.settings.declaration import SettingsGroup, not_negative, require, setting
from cosurfgs_jax.settings.model import AppearanceSettings, RasterSettings, SurfelSettings
from cosurfgs_jax.settings.outputs import (
    GeoSettings,
    PointsSettings,
    SurfaceSettings,
    TerrainSettings,
    TextureSettings,
)
from cosurfgs_jax.settings.training import (
    DensitySettings,
    LossSettings,
    MaskSettings,
    OptimSettings,
    TrainSettings,
)


@dataclasses.dataclass
class Settings(SettingsGroup):
    """All settings of a run, in groups; a config file returns one."""

    seed: int = setting(
        0,
        "Seed of all randomness in training: the order of photographs, and splits of surfels.",
        not_negative(),
        largest=MAX_SEED,
        is_main=True,
    )
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    generated: GeneratedSettings = dataclasses.field(default_factory=GeneratedSettings)
    surfels: SurfelSettings = dataclasses.field(default_factory=SurfelSettings)
    raster: RasterSettings = dataclasses.field(default_factory=RasterSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    appearance: AppearanceSettings = dataclasses.field(default_factory=AppearanceSettings)
    optim: OptimSettings = dataclasses.field(default_factory=OptimSettings)
    density: DensitySettings = dataclasses.field(default_factory=DensitySettings)
    mask: MaskSettings = dataclasses.field(default_factory=MaskSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    partition: PartitionSettings = dataclasses.field(default_factory=PartitionSettings)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    lmc: LmcSettings = dataclasses.field(default_factory=LmcSettings)
    mas: MasSettings = dataclasses.field(default_factory=MasSettings)
    surface: SurfaceSettings = dataclasses.field(default_factory=SurfaceSettings)
    geo: GeoSettings = dataclasses.field(default_factory=GeoSettings)
    points: PointsSettings = dataclasses.field(default_factory=PointsSettings)
    terrain: TerrainSettings = dataclasses.field(default_factory=TerrainSettings)
    texture: TextureSettings = dataclasses.field(default_factory=TextureSettings)

    def check_together(self) -> None:
        """Masks begin when density control has ended: while they are learned no slot changes its
        surfel.
        """
        require(
            not self.mask.weight
            or not self.density.enabled
            or self.mask.start >= self.density.stop,
            "mask.start",
            f"at least density.stop ({self.density.stop:g}), as masks need surfels that stay",
            self.mask.start,
        )
        first, last = (round(part * self.train.steps) for part in (self.mask.start, self.mask.stop))
        require(
            not self.mask.weight or first < last,
            "mask.start, stop",
            f"at least one of train.steps ({self.train.steps}) between them",
            (self.mask.start, self.mask.stop),
        )
