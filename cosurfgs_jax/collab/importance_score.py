"""What an importance score is: a way to rank the surfels of a block for compression (LMC)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from cosurfgs_jax import raster
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import Camera, RenderOutput, Surfels


class PhotographView(NamedTuple):
    """The view of one photograph: a function that draws surfels, with contributions."""

    camera: Camera
    image_size: tuple[int, int]
    options: RasterOptions

    def __call__(self, surfels: Surfels) -> RenderOutput:
        """Their colours."""
        return raster.render(
            surfels, self.camera, self.image_size, self.options, with_contributions=True
        )


class ImportanceScore(NamedTuple):
    """A way to rank the surfels of a block.

    | field     | content                                                                          |
    |-----------|----------------------------------------------------------------------------------|
    | `measure` | (`PhotographView`, surfels, random key) -> the statistic of that photograph      |
    |           | f32[N], 0 or more, and the sum of each surfel's blending weights f32[N]          |
    | `rank`    | (sum of statistics f32[N], log_scales f32[N,2], alive bool[N], settings) ->      |
    |           | score f32[N], 0 or more; its unit does not matter                                |
    """

    measure: Callable[
        [PhotographView, Surfels, jax.Array], tuple[Float[Array, " n"], Float[Array, " n"]]
    ]
    rank: Callable[
        [Float[Array, " n"], Float[Array, "n 2"], Bool[Array, " n"], Settings],
        Float[Array, " n"],
    ]


def rank_as_measured(
    statistic: Float[Array, " n"],
    log_scales: Float[Array, "n 2"],
    alive: Bool[Array, " n"],
    settings: Settings,
) -> Float[Array, " n"]:
    """The statistic itself."""
    del log_scales, alive, settings
    return statistic
