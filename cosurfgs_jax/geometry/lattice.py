"""Every d-th pixel of every d-th row of an image: what a dilated step draws, and where MV-Reg
compares.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from cosurfgs_jax.types import Camera, image_size_of


class Lattice(NamedTuple):
    """Pixels (origin[0] + i stride, origin[1] + j stride) of an image, as (row, column)."""

    stride: int  # static
    origin: Int[Array, "2"]  # each in [0, stride)

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the lattice in an image, whatever its origin."""
        return image_size[0] // self.stride, image_size[1] // self.stride

    def pixels(self, image_size: tuple[int, int]) -> Float[Array, "n m 2"]:
        """Centres (x, y) of its pixels in the image, pixels."""
        rows, columns = self.size(image_size)
        y = jnp.arange(rows, dtype=jnp.int32) * self.stride + self.origin[0]
        x = jnp.arange(columns, dtype=jnp.int32) * self.stride + self.origin[1]
        x, y = (at.astype(jnp.float32) + 0.5 for at in (x, y))
        return jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)

    def of(self, image: Shaped[Array, "h w *c"]) -> Shaped[Array, "n m *c"]:
        """The pixels of the lattice. Takes gradient."""
        if self.stride == 1:
            return image
        rows, columns = self.size(image_size_of(image))
        # A slice of every stride-th pixel from a moving start, so that its gradient is a pad and
        # not a scatter.
        moved = jax.lax.dynamic_slice(
            image,
            (self.origin[0], self.origin[1], *(0,) * (image.ndim - 2)),
            ((rows - 1) * self.stride + 1, (columns - 1) * self.stride + 1, *image.shape[2:]),
        )
        return moved[:: self.stride, :: self.stride]

    def intrinsics(self, intrinsics: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
        """Those of the image that the lattice is: its pixel centres see along the same rays."""
        if self.stride == 1:
            return intrinsics
        # x = stride x' + shift takes pixel centres of the lattice's image to the whole one.
        shift = self.origin[::-1].astype(intrinsics.dtype) + (0.5 - 0.5 * self.stride)
        return jnp.concatenate(
            [
                (intrinsics[:2] - jnp.zeros((2, 3), intrinsics.dtype).at[:, 2].set(shift))
                / self.stride,
                intrinsics[2:],
            ]
        )

    def camera(self, camera: Camera) -> Camera:
        """The camera that sees the lattice's pixels."""
        return Camera(camera.camera_from_world, self.intrinsics(camera.intrinsics))

    def finer(self, inner: "Lattice") -> "Lattice":
        """The lattice in the whole image of a lattice in this one's image."""
        return Lattice(self.stride * inner.stride, self.origin + self.stride * inner.origin)


def whole() -> Lattice:
    """All pixels."""
    return Lattice(1, jnp.zeros(2, jnp.int32))
