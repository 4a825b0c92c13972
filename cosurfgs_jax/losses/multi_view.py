"""MV-Reg: what two neighbouring views show of a surface agrees, in depth and in the texture of
small patches.

Both terms are measured at the pixels of a lattice that moves from step to step: every `stride`-th
pixel of every `stride`-th row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.lattice import Lattice
from cosurfgs_jax.geometry.view_pairs import relative_pose, round_trip_reprojection
from cosurfgs_jax.types import Camera, RenderOutput, drawn, image_size_of

PATCH_RADIUS = 3  # pixels: patches of 7 x 7
NOISE_STD = (
    2 / 255
)  # of a photograph's brightness; weaker texture says little of where a patch belongs
MAX_REPROJECTION_PX = 1.0  # beyond it the two views see different things
# Brightness of what does not count in a neighbour's photograph. A sample that takes a
# two-thousandth of it is below MIN_GRAY.
MASKED_GRAY = -1000.0
MIN_GRAY = -0.5  # as in native/csrc/losses/patch_ncc.h
MIN_PATCH_WEIGHT = 10.0  # samples: as in native/csrc/losses/patch_ncc.h
# The plane of a depth map at a pixel, as in native/csrc/losses/patch_ncc.h.
SLOPE_REACH = 2  # pixels to either side
MAX_BEND = 0.5  # difference of the slopes of one surface, besides the smaller of them
MAX_DISSIMILARITY = 0.9  # of 1 - NCC^2: patches that do not match at all have no direction to go


class PatchSurface(NamedTuple):
    """What is drawn around the middles of patches: a patch across an edge of the surface is of two
    planes, and says nothing of either.
    """

    depth: Float[Array, "h3 w3"]  # camera z, 0 = nothing
    lattice: Lattice  # the photograph's pixels that have it, middles of patches among them
    sigma_px: float  # a sample counts exp(-(t / sigma)^2 / 2), t pixels off the plane drawn there


class Neighbor(NamedTuple):
    """The second view of a step."""

    camera: Camera
    gray: Float[Array, "h w"]  # its photograph; MASKED_GRAY where it does not count
    plane_depth: Float[Array, "h2 w2"]  # what the model shows there; 0 = invalid
    depth_lattice: Lattice  # the photograph's pixels that have a depth
    is_used: Bool[Array, ""]  # False: the view has no neighbour, this is a stand-in


class MultiViewLosses(NamedTuple):
    """Scalars; 0 where no pixel counts."""

    geometric: Float[Array, ""]
    photometric: Float[Array, ""]
    fraction_seen: Float[Array, ""]  # of the lattice's pixels that count in the geometric one


def _bilinear(image, x, y):
    height, width = image.shape
    x = x - 0.5
    y = y - 0.5
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    # What is far outside would have no finite gradient, and zero times that is none.
    x, y = (jnp.where(is_inside, at, 0.0) for at in (x, y))
    left = jnp.clip(jnp.floor(x), 0, width - 2).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, height - 2).astype(jnp.int32)
    right = x - left.astype(x.dtype)
    down = y - top.astype(y.dtype)
    above = image[top, left] + (image[top, left + 1] - image[top, left]) * right
    below = image[top + 1, left] + (image[top + 1, left + 1] - image[top + 1, left]) * right
    return above + (below - above) * down, is_inside


def _drawn_plane(
    surface: PatchSurface, middle: tuple[Array, ...], focal_px: Float[Array, ""]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"], Float[Array, "n m"]]:
    """The plane of the depth map in the middle of each patch: its inverse depth there, and what
    that gains by a pixel to the right and by one downwards.

    Along each axis by the pixels SLOPE_REACH to either side: both where they lie on one surface,
    else the one of the smaller slope, as of the two surfaces at an edge the middle is on one.
    """
    height, width = image_size_of(surface.depth)
    stride = surface.lattice.stride
    reach = max(SLOPE_REACH // stride, 1)

    def inverse(down, across):
        row = jnp.clip(middle[0] + down, 0, height - 1)
        column = jnp.clip(middle[1] + across, 0, width - 1)
        depth = surface.depth[row[:, None], column[None]]
        return jnp.where(depth > 0, 1 / jnp.where(depth > 0, depth, 1.0), 0.0)

    here = inverse(0, 0)
    # In pixels of depth by pixels of the image, so that one limit serves all cameras.
    unit = here / focal_px * (reach * stride)

    def slope(down, across):
        ahead = inverse(down, across) - here
        behind = here - inverse(-down, -across)
        smaller = jnp.minimum(jnp.abs(ahead), jnp.abs(behind))
        is_one = jnp.abs(ahead - behind) < smaller + MAX_BEND * unit
        nearer = jnp.where(jnp.abs(ahead) < jnp.abs(behind), ahead, behind)
        return jnp.where(is_one, 0.5 * (ahead + behind), nearer) / (reach * stride)

    return here, slope(0, reach), slope(reach, 0)


def _sample_weights(
    surface: PatchSurface,
    lattice: Lattice,
    image_size: tuple[int, int],
    intrinsics: Float[Array, "3 3"],
) -> Float[Array, "n m k"]:
    """How much each sample of a patch counts: by the distance of what is drawn there, at the
    nearest drawn pixel towards the middle, from the plane of the depth map in the middle.

    The plane that the term moves is the one of the rendered normal. Where that is wrong, only a
    line of the patch lies on it, and a line tells nothing of a rotation around itself.
    """
    height, width = image_size_of(surface.depth)
    stride = surface.lattice.stride
    reach = np.arange(-PATCH_RADIUS, PATCH_RADIUS + 1)
    across, down = (steps.reshape(-1) for steps in np.meshgrid(reach, reach))
    middle = tuple(
        (lattice.origin[axis] - surface.lattice.origin[axis]) // stride
        + jnp.arange(count, dtype=jnp.int32) * (lattice.stride // stride)
        for axis, count in enumerate(lattice.size(image_size))
    )
    here, gain_x, gain_y = _drawn_plane(surface, middle, intrinsics[0, 0])
    row, column = (
        jnp.clip(at[:, None] + np.trunc(steps / stride).astype(np.int32)[None], 0, size - 1)
        for at, steps, size in zip(middle, (down, across), (height, width), strict=True)
    )
    depth = surface.depth[row[:, None], column[None]]
    is_drawn = depth > 0
    inverse_depth = (
        here[..., None]
        + gain_x[..., None] * across.astype(np.float32)[None, None]
        + gain_y[..., None] * down.astype(np.float32)[None, None]
    )
    # |normal / (normal . point)|: the inverse of the plane's distance from the camera.
    pixels = lattice.pixels(image_size).astype(here.dtype)
    tilt_x = gain_x * intrinsics[0, 0]
    tilt_y = gain_y * intrinsics[1, 1]
    along = (
        here
        - gain_x * (pixels[..., 0] - intrinsics[0, 2])
        - gain_y * (pixels[..., 1] - intrinsics[1, 2])
    )
    length = jnp.sqrt(tilt_x * tilt_x + tilt_y * tilt_y + along * along)[..., None]
    apart = (depth * inverse_depth - 1) * intrinsics[0, 0] / jnp.where(is_drawn, depth, 1.0)
    apart = apart / (surface.sigma_px * jnp.maximum(length, 1e-30))
    return jax.lax.stop_gradient(jnp.where(is_drawn, jnp.exp(-0.5 * jnp.square(apart)), 0.0))


def patch_ncc(
    gray: Float[Array, "h w"],
    neighbor_gray: Float[Array, "h2 w2"],
    planes: Float[Array, "n m 3"],
    lattice: Lattice,
    intrinsics: Float[Array, "3 3"],
    neighbor_intrinsics: Float[Array, "3 3"],
    neighbor_from_view: Float[Array, "4 4"],
    surface: PatchSurface | None = None,
) -> tuple[Float[Array, "n m"], Bool[Array, "n m"]]:
    """Normalised cross-correlation of the patch around each lattice pixel with what its plane
    projects it to in a neighbour.

    Args:
        gray, neighbor_gray: [H,W] each, brightness in [0, 1]; MASKED_GRAY where the neighbour's
            does not count.
        planes: [n,m,3], camera frame: the inverse depth of a plane along the ray (x, y, 1) is
            planes . (x, y, 1), so planes = normal / (normal . point). Take gradient; nothing else
            does.
        lattice: of the own image's pixels in the middle of patches.
        intrinsics, neighbor_intrinsics: [3,3], pixels. neighbor_from_view: [4,4], rigid.
        surface: samples count by how near it lies to its plane in the middle of the patch, and a
            patch of less weight than ten samples is not valid; None = all count alike.
    Returns:
        NCC [n,m] in (-1, 1), with the noise of photographs in both variances, so that patches
        without texture score 0; and whether the patch lies inside both images, in front of the
        neighbour and where that counts. 0 where it does not.
    Source: plane-homography NCC of PGSR (Chen et al. 2024). A pixel's ray r meets the plane at r /
        w, with w its inverse depth there; the neighbour sees that point where it sees R r + w t.
        Coordinates are arrays of their own: as an axis of two or three, with products of matrices
        along it, they would go through memory a dozen times on a GPU.
    """
    gray, neighbor_gray, pose, intrinsics, neighbor_intrinsics = jax.lax.stop_gradient(
        tuple(
            map(
                jnp.asarray,
                (gray, neighbor_gray, neighbor_from_view, intrinsics, neighbor_intrinsics),
            )
        )
    )
    reach = np.arange(-PATCH_RADIUS, PATCH_RADIUS + 1)
    across, down = (
        jnp.asarray(steps.reshape(-1), planes.dtype)[None, None]
        for steps in np.meshgrid(reach, reach)
    )
    pixels = lattice.pixels(image_size_of(gray)).astype(planes.dtype)[..., None]
    x = pixels[:, :, 0] + across
    y = pixels[:, :, 1] + down
    ray_x, ray_y = ((at - intrinsics[i, 2]) / intrinsics[i, i] for i, at in enumerate((x, y)))
    inverse_depth = (
        ray_x * planes[..., 0, None] + ray_y * planes[..., 1, None] + planes[..., 2, None]
    )
    there_x, there_y, there_z = (
        row[0] * ray_x + row[1] * ray_y + row[2] + row[3] * inverse_depth for row in pose[:3]
    )
    is_front = there_z > 0
    scale = 1 / jnp.where(is_front, there_z, 1)
    there_x, there_y = (
        at * scale * neighbor_intrinsics[i, i] + neighbor_intrinsics[i, 2]
        for i, at in enumerate((there_x, there_y))
    )
    own, is_own_inside = _bilinear(gray, x, y)
    other, is_inside = _bilinear(neighbor_gray, there_x, there_y)
    is_valid = (
        is_own_inside & is_inside & is_front & (inverse_depth > 0) & (other >= MIN_GRAY)
    ).all(axis=-1)

    def mean(values):
        return values.mean(axis=-1)

    if surface is not None:
        weights = _sample_weights(surface, lattice, image_size_of(gray), intrinsics)
        total = weights.sum(axis=-1)
        is_valid &= total >= MIN_PATCH_WEIGHT

        def mean(values):
            return (weights * values).sum(axis=-1) / jnp.maximum(total, 1.0)

    own, other = (values - mean(values)[..., None] for values in (own, other))
    variances = (mean(own * own) + NOISE_STD**2) * (mean(other * other) + NOISE_STD**2)
    return jnp.where(is_valid, mean(own * other) / jnp.sqrt(variances), 0.0), is_valid


def _mean_where(values, is_counted):
    return jnp.where(is_counted, values, 0.0).sum() / jnp.maximum(
        is_counted.sum(dtype=jnp.int32), 1
    ).astype(values.dtype)


def multi_view_losses(
    out: RenderOutput,
    camera: Camera,
    gray: Float[Array, "h w"],
    mask: Float[Array, "n m"] | None,
    neighbor: Neighbor,
    drawn_lattice: Lattice,
    lattice: Lattice,
    plane_sigma_px: float = 0.0,
) -> MultiViewLosses:
    """How well a view and a neighbour agree about the surface.

    Geometric: a pixel goes to the neighbour by its plane depth and comes back by the neighbour's;
    phi is how far from itself it lands, in pixels. The mean of exp(-phi) phi, the factor without
    gradient, over the pixels with phi < 1: farther ones are hidden in one view. Photometric: at the
    same pixels 1 - NCC^2 of 7 x 7 patches that the rendered plane (plane depth and normal at the
    pixel) takes to the neighbour; the mean over those below 0.9.

    Args:
        out: maps [n,m] of the view with plane depth, its validity and normals. Take gradient.
        camera: that sees the whole photograph. Takes no gradient.
        gray: [H,W], the whole photograph, brightness in [0, 1].
        mask: [n,m], 0 = ignore the pixel; None = all count.
        neighbor: see `Neighbor`; takes no gradient: it has its own steps.
        drawn_lattice: which of the photograph's pixels `out` has.
        lattice: which of those are compared.
        plane_sigma_px: see `PatchSurface`; 0 = all pixels of a patch count alike.
    Source: PGSR (Chen et al. 2024), which takes all pixels for the first and a random choice for
        the second.
    """
    pose = jax.lax.stop_gradient(camera.camera_from_world)
    neighbor = neighbor._replace(
        camera=jax.lax.stop_gradient(neighbor.camera),
        plane_depth=jax.lax.stop_gradient(neighbor.plane_depth),
    )
    depth = lattice.of(drawn(out.plane_depth))  # 0 where invalid
    normal = cameras.turn(lattice.of(drawn(out.normal)), pose[:3, :3])
    of_photo = drawn_lattice.finer(lattice)
    pixels = of_photo.pixels(image_size_of(gray))
    neighbor_from_view = relative_pose(neighbor.camera.camera_from_world, pose)
    back, _, is_valid = round_trip_reprojection(
        pixels,
        depth,
        camera.intrinsics,
        neighbor.plane_depth,
        neighbor.depth_lattice.intrinsics(neighbor.camera.intrinsics),
        neighbor_from_view,
    )
    squared = ((back - pixels) ** 2).sum(axis=-1)
    is_apart = squared > 1e-8  # no gradient through the tip of the distance
    phi = jnp.sqrt(jnp.where(is_apart, squared, 1e-8))
    is_seen = is_valid & (phi < MAX_REPROJECTION_PX) & neighbor.is_used
    if mask is not None:
        is_seen &= lattice.of(mask) > 0.5
    geometric = _mean_where(jax.lax.stop_gradient(jnp.exp(-phi)) * phi, is_seen)

    points = cameras.back_project(pixels, jnp.where(is_seen, depth, 1.0), camera.intrinsics)
    distance = (normal * points).sum(axis=-1)  # negative: normals look at the camera
    planes = normal / jnp.where(is_seen & (distance != 0), distance, -1.0)[..., None]
    surface = None
    if plane_sigma_px > 0:
        surface = PatchSurface(drawn(out.plane_depth), drawn_lattice, plane_sigma_px)
    score, is_inside = patch_ncc(
        gray,
        neighbor.gray,
        planes,
        of_photo,
        camera.intrinsics,
        neighbor.camera.intrinsics,
        neighbor_from_view,
        surface,
    )
    dissimilarity = 1 - score * score
    photometric = _mean_where(
        dissimilarity, is_seen & is_inside & (score > 0) & (dissimilarity < MAX_DISSIMILARITY)
    )
    return MultiViewLosses(geometric, photometric, is_seen.mean(dtype=jnp.float32))
