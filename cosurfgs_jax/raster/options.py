"""How surfels are drawn: the maps that can be asked for, the options of a run, and what a compiled
program is specialised to.
"""

import dataclasses
import enum
from typing import NamedTuple

from cosurfgs_jax.settings import RasterSettings

PROJECTIONS = ("perspective", "orthographic")
# The screen-space filter: sigma = LOW_PASS * squared pixel distance, so sqrt(1/2) px wide.
LOW_PASS = 2.0


class Maps(enum.IntEnum):
    """Which maps of `RenderOutput` are drawn; each level has those of the levels before it, and
    takes longer.
    """

    # The numbers are those of native/csrc/raster/raster.h.
    COLOR = 0  # color and alpha
    GEOMETRY = 1  # also depths, normals and planes
    ALL = 2  # also distortion


@dataclasses.dataclass(frozen=True)
class RasterOptions:
    """What all draws of a run have in common; hashable, so that it can be static."""

    near: float = 0.01  # world length; hits nearer to the camera plane are skipped
    background: float = 0.0  # grey level behind the surfels
    backend: str = ""  # of `backends.BACKENDS`; "" = the best for the device
    low_pass: float = LOW_PASS

    @classmethod
    def from_settings(cls, settings: RasterSettings) -> "RasterOptions":
        """The options that `config.raster` names."""
        return cls(settings.near, settings.background, settings.backend)

    def dilated(self, stride: int) -> "RasterOptions":
        """The same for an image of every `stride`-th pixel: the screen-space filter stays as wide
        as in the whole image.
        """
        return dataclasses.replace(self, low_pass=self.low_pass * stride * stride)

    def on_black(self) -> "RasterOptions":
        """The same without background."""
        return dataclasses.replace(self, background=0.0)


class Static(NamedTuple):
    """What a compiled draw is specialised to."""

    height: int
    width: int
    near: float
    sh_degree: int
    maps: Maps
    with_contributions: bool
    orthographic: bool
    deterministic: bool = True
    low_pass: float = LOW_PASS
    targets: str = "cosurfgs_raster"  # prefix of the native targets; plain JAX has none
    # Of what a native forward call leaves for the backward call; None = what suits the targets.
    kept_bytes: int | None = None

    @property
    def has_geometry(self) -> bool:
        """Depths, normals and planes are asked for."""
        return self.maps >= Maps.GEOMETRY

    @property
    def has_distortion(self) -> bool:
        """Distortion is asked for."""
        return self.maps >= Maps.ALL
