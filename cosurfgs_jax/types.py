"""Surfels, cameras and rendered maps: the pytrees that every other file passes around.

Legend, used in every docstring of the package:

    N surfels   V views   H, W image height and width in pixels   K spherical-harmonics coefficients
    B blocks

Frames: *dataset* is the frame of the input model, *world* is the normalised training frame (the
dataset frame moved by `geometry.scene_frame.SceneFrame`), *camera* is x right, y down, z forward.
Pixel x covers [x, x+1) and its centre is x+0.5. Quaternions are wxyz. Lengths in the world frame
are in units of the scene scale. The words of the package are in docs/architecture.md, "Words".
"""

import dataclasses
from typing import Any, TypeVar, cast, dataclass_transform

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.errors import required

# Of functions for both kinds of arrays: the result is of the kind of the argument.
AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)

_Class = TypeVar("_Class")


def trained(blank: float | tuple[float, ...] = 0.0, is_drawn: bool = True) -> Any:
    """What there is to say of a trained field of surfels, beside its name and shape.

    Args:
        blank: the numbers of a slot that no surfel has been in. A first surfel, and one of a file
            that lacks the field, begins with them, too, unless the program knows better.
        is_drawn: whether it is an operand of the native rasterizer, which then names it in
            native/csrc/raster/surfel_types.h.
    """
    return dataclasses.field(metadata={"blank": blank, "is_drawn": is_drawn})


@dataclass_transform(frozen_default=True, field_specifiers=(trained,))
def _pytree(cls: type[_Class]) -> type[_Class]:
    """A frozen dataclass whose fields are all leaves or subtrees."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


def on_host(value: np.ndarray | np.generic) -> Any:
    """A NumPy value in a field that says Array, of a pytree that is made on the host: the whole
    pytree goes to a device later.
    """
    return value


def drawn(map_or_none: Array | None) -> Array:
    """A map of a `RenderOutput` that was asked for, and so is not None.

    Raises:
        ValueError: it was not asked for.
    """
    return required(map_or_none, "a map of RenderOutput that the rasterizer was asked for")


def image_size_of(image: np.ndarray | Array) -> tuple[int, int]:
    """(H, W) of an image or a map [H,W,...]."""
    height, width = image.shape[:2]
    return height, width


@_pytree
class SurfelParams:
    """The trained fields of `Surfels`, and the one list of them. Their gradients and Adam moments
    have the same form, and `OptimSettings` has a learning rate under the name of each.

    The spherical harmonics stay one array though they learn at two rates: cutting and joining them
    would move 80 % of the parameters through memory at every step.
    """

    means: Float[Array, "n 3"] = trained()
    quats: Float[Array, "n 4"] = trained(blank=(1.0, 0.0, 0.0, 0.0))
    log_scales: Float[Array, "n 2"] = trained()
    logit_opacities: Float[Array, " n"] = trained()
    sh: Float[Array, "n k 3"] = trained()

    def by_name(self) -> dict[str, Any]:
        """The arrays under the names of the fields, in their order."""
        return {name: getattr(self, name) for name in PARAM_NAMES}

    def replace(self, **changes):
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


PARAM_NAMES = tuple(field.name for field in dataclasses.fields(SurfelParams))
DRAWN_NAMES = tuple(
    field.name for field in dataclasses.fields(SurfelParams) if field.metadata["is_drawn"]
)


def param_shapes(num_slots: int | str, num_sh: int | str) -> dict[str, tuple]:
    """The shape of each field of `SurfelParams`, as its annotation says.

    Args:
        num_slots, num_sh: what stands for N and K, a number or a letter.
    """
    letters = {"n": num_slots, "k": num_sh}
    shapes = {}
    for field in dataclasses.fields(SurfelParams):
        axes = cast(Any, field.type).dim_str.split()
        shapes[field.name] = tuple(letters[axis] if axis in letters else int(axis) for axis in axes)
    return shapes


def blank_params(num_slots: int, num_sh: int) -> SurfelParams:
    """The fields of slots that no surfel has been in, f32, as NumPy arrays."""
    shapes = param_shapes(num_slots, num_sh)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(SurfelParams):
        fields[field.name] = np.empty(shapes[field.name], np.float32)
        fields[field.name][...] = field.metadata["blank"]
    return SurfelParams(**fields)


@_pytree
class Surfels(SurfelParams):
    """A fixed number of slots for oriented discs with a Gaussian falloff; `alive` says which are in
    use.

    | field             | shape      | unit, frame                                                 |
    |-------------------|------------|-------------------------------------------------------------|
    | `means`           | f32[N,3]   | centres, world                                              |
    | `quats`           | f32[N,4]   | wxyz, surfel to world, any length but zero; third axis is   |
    |                   |            | the normal                                                  |
    | `log_scales`      | f32[N,2]   | natural log of the two standard deviations, world lengths   |
    | `logit_opacities` | f32[N]     | opacity before the sigmoid                                  |
    | `sh`              | f32[N,K,3] | RGB coefficients, K = (degree+1)^2, basis and signs of 3DGS |
    |                   |            | files                                                       |
    | `alive`           | bool[N]    | dead slots are never drawn and take no gradient             |
    """

    alive: Bool[Array, " n"]

    @classmethod
    def of(cls, params: SurfelParams, alive: Bool[Array | np.ndarray, " n"]) -> "Surfels":
        """The surfels of these trained fields. Differentiable."""
        return cls(**params.by_name(), alive=cast(Array, alive))

    @property
    def params(self) -> SurfelParams:
        """The trained fields."""
        return SurfelParams(**self.by_name())


@_pytree
class Camera:
    """One pinhole camera, or V of them with a leading axis on both fields.

    | field               | shape    | unit, frame                                                 |
    |---------------------|----------|-------------------------------------------------------------|
    | `camera_from_world` | f32[4,4] | rigid, last row 0 0 0 1                                     |
    | `intrinsics`        | f32[3,3] | [[fx,0,cx],[0,fy,cy],[0,0,1]] in pixels, x+0.5 is the       |
    |                     |          | centre of pixel x                                           |
    """

    camera_from_world: Float[Array, "*views 4 4"]
    intrinsics: Float[Array, "*views 3 3"]


@_pytree
class RenderOutput:
    """The maps of one view, or of V views with a leading axis. A map that was not asked for is
    None.

    | field                  | shape      | unit, frame                                            |
    |------------------------|------------|--------------------------------------------------------|
    | `color`                | f32[H,W,3] | linear in the trained values, background included      |
    | `alpha`                | f32[H,W]   | 1 - transmittance, in [0,1]                            |
    | `depth`                | f32[H,W]   | expected camera z of the hits, 0 where nothing was hit |
    | `median_depth`         | f32[H,W]   | camera z of the last hit in front of which more than   |
    |                        |            | half the light is left                                 |
    | `plane_depth`          | f32[H,W]   | camera z of the blended plane along the pixel's ray, 0 |
    |                        |            | where invalid                                          |
    | `is_plane_depth_valid` | bool[H,W]  | alpha >= 0.5 and the plane not grazing                 |
    | `normal`               | f32[H,W,3] | blended normals towards the camera, world frame,       |
    |                        |            | length <= alpha                                        |
    | `distortion`           | f32[H,W]   | sum over pairs of hits of w_i w_j |z_i - z_j|, world   |
    |                        |            | length                                                 |
    | `contributions`        | f32[N,4]   | per surfel: sum of weights, largest weight, pixels,    |
    |                        |            | pixels with T > 0.5                                    |
    | `num_invalid`          | i32[]      | living surfels that were skipped because a field is    |
    |                        |            | not finite                                             |
    """

    color: Float[Array, "*views h w 3"]
    alpha: Float[Array, "*views h w"]
    depth: Float[Array, "*views h w"] | None
    median_depth: Float[Array, "*views h w"] | None
    plane_depth: Float[Array, "*views h w"] | None
    is_plane_depth_valid: Bool[Array, "*views h w"] | None
    normal: Float[Array, "*views h w 3"] | None
    distortion: Float[Array, "*views h w"] | None
    contributions: Float[Array, "*views n 4"] | None
    num_invalid: Int[Array, "*views"]
