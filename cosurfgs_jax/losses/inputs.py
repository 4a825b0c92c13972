"""What the terms of the loss are given: the view that is drawn, its photograph, and what it is
compared with.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, UInt8

from cosurfgs_jax import photograph
from cosurfgs_jax.errors import required
from cosurfgs_jax.geometry.lattice import Lattice, whole
from cosurfgs_jax.types import Camera, RenderOutput, Surfels

IS_TEACHER_VALID = 1
IS_PHOTO_VALID = 2


class SecondView(NamedTuple):
    """A photograph from nearby, for MV-Reg."""

    camera: Camera
    photo: UInt8[Array, "h w c"]
    is_used: Bool[Array, ""]  # False: the view has no neighbour, this one stands in
    offset: Int[Array, "2"]  # of the lattice at which patches are compared
    index: Any = 0  # i32[], which of the block's views it is


class TeacherMaps(NamedTuple):
    """Of one photograph's view. About 15 bytes a pixel."""

    color: UInt8[Array, "h w 3"]
    flags: UInt8[
        Array, "h w"
    ]  # IS_TEACHER_VALID: a solid hit in the region that the teacher was trained on;
    # IS_PHOTO_VALID: what is seen there lies in a cell that takes part in the student's view
    depth: Float[Array, "h w"]  # expected camera z, world lengths; 0 = nothing
    plane_depth: Float[Array, "h w"]  # camera z of the blended plane; 0 = invalid
    normal: Int8[Array, "h w 3"]  # blended, times 127


class Source(NamedTuple):
    """The whole photograph, of which a dilated step draws some pixels."""

    camera: Camera
    photo: UInt8[Array, "h w c"]
    lattice: Lattice  # the pixels that are drawn


class LossView(NamedTuple):
    """One view in the course of a step, as a term sees it.

    | field            | what                                                                    |
    |------------------|-------------------------------------------------------------------------|
    | `out`            | the maps drawn; take gradient. Those that no term asked for are None;   |
    |                  | `distortion` is None in distillation, where views are composites        |
    | `surfels`        | of the block; take gradient. With `optim.lazy`, only those that the     |
    |                  | view may show are alive, and only they learn in the step                |
    | `camera`         | of the view                                                             |
    | `photo`          | u8[H,W,3], or with 255 in a fourth channel where the pixel counts       |
    | `is_photo_valid` | bool[H,W], where the photograph judges besides; None = everywhere       |
    | `transform`      | f32[3,4], exposure of the photograph; takes gradient. None = none       |
    | `exposure`       | parameters of the exposure model, or None                               |
    | `num_views`      | i32[], photographs of the block                                         |
    | `second`         | a photograph from nearby, where MV-Reg is on                            |
    | `second_depth`   | f32[h,w], plane depth there, 0 = invalid; without gradient              |
    | `second_lattice` | the second photograph's pixels that have a depth; None = all            |
    | `source`         | the photograph of which only every d-th pixel is drawn; None = all are  |
    | `teacher`        | maps of the frozen model in distillation, else None                     |
    """

    out: RenderOutput
    surfels: Surfels
    camera: Camera
    photo: UInt8[Array, "h w c"]
    is_photo_valid: Bool[Array, "h w"] | None = None
    transform: Float[Array, "3 4"] | None = None
    exposure: Any = None
    num_views: Int[Array, ""] | int = 1
    second: SecondView | None = None
    second_depth: Float[Array, "h2 w2"] | None = None
    second_lattice: Lattice | None = None
    source: Source | None = None
    teacher: TeacherMaps | None = None

    @property
    def whole(self) -> Source:
        """The whole photograph."""
        return self.source or Source(self.camera, self.photo, whole())

    @property
    def taught(self) -> TeacherMaps:
        """`teacher`, for a term that is on in distillation alone."""
        return required(self.teacher, "LossView.teacher")

    @property
    def target(self) -> Float[Array, "h w 3"]:
        """The photograph's colours f32[H,W,3] in [0, 1]."""
        return photograph.colors_of(self.photo)

    @property
    def pixel_weights(self) -> Float[Array, "h w"] | None:
        """f32[H,W], 0 = ignore the pixel; None = all count."""
        if self.is_photo_valid is None:
            return photograph.weights_of(self.photo)
        mask = self.is_photo_valid
        own_mask = photograph.mask_of(self.photo)
        if own_mask is not None:
            mask &= own_mask
        return mask.astype(jnp.float32)
