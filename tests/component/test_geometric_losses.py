"""SV-Reg and MV-Reg: against plain definitions and differences, and on planes whose right geometry
is known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depth_views import views_of
from scipy import ndimage

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.lattice import Lattice, whole
from cosurfgs_jax.geometry.view_pairs import choose_neighbors, round_trip_reprojection
from cosurfgs_jax.losses import multi_view
from cosurfgs_jax.losses.geometric import Second, geometric_losses
from cosurfgs_jax.losses.inputs import SecondView, Source
from cosurfgs_jax.losses.multi_view import (
    Neighbor,
    PatchSurface,
    multi_view_losses,
    patch_ncc,
)
from cosurfgs_jax.losses.single_view import edge_weights, single_view_loss
from cosurfgs_jax.settings import LossSettings
from cosurfgs_jax.types import Camera, RenderOutput

SIZE = (60, 80)
INTRINSICS = np.array([[70.0, 0, 41], [0, 72.0, 29], [0, 0, 1]], np.float32)
STRIDE = 3
OFFSET = np.array([1, 2], np.int32)
LATTICE = Lattice(STRIDE, jnp.asarray(OFFSET))
EVERY_SECOND = Lattice(2, jnp.asarray([1, 0]))  # what a dilated step draws
OTHERS_SECOND = Lattice(2, jnp.asarray([0, 1]))  # what is remembered of its neighbour


def rotation(axis: int, angle: float) -> np.ndarray:
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    result = np.eye(3)
    result[i, i] = result[j, j] = np.cos(angle)
    result[i, j] = -np.sin(angle)
    result[j, i] = np.sin(angle)
    return result


def pose(angles=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    result = np.eye(4)
    for axis, angle in enumerate(angles):
        result[:3, :3] = rotation(axis, angle) @ result[:3, :3]
    result[:3, 3] = shift
    return result.astype(np.float32)


POSE = pose((0.04, -0.03, 0.2), (0.1, -0.05, 0.02))
OTHER = pose((0.02, 0.05, 0.15), (-0.25, 0.1, 0.05))
NORMAL = np.array([0.2, -0.1, -1.0]) / np.linalg.norm(
    [0.2, -0.1, -1.0]
)  # of a plane in the world: NORMAL . x = LEVEL
LEVEL = -3.0


def texture(points: np.ndarray) -> np.ndarray:
    """Brightness of the plane's points, smooth enough for bilinear sampling."""
    x = points[..., 0]
    y = points[..., 1]
    waves = np.sin(17 * x + 1) + np.cos(18 * y - 6 * x) + np.sin(12 * y + 9 * x)
    return (0.5 + 0.3 * waves).astype(np.float32)


def plane_view(
    camera_from_world: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and photograph of the plane NORMAL . x = level."""
    camera_from_world = camera_from_world.astype(np.float64)
    rays = cameras.pixel_rays(INTRINSICS.astype(np.float64), SIZE) @ camera_from_world[:3, :3]
    center = cameras.camera_center(camera_from_world)
    depth = (level - NORMAL @ center) / (rays @ NORMAL)
    return depth.astype(np.float32), texture(center + rays * depth[..., None])


def maps(depth, normal=NORMAL, alpha: float = 1.0) -> RenderOutput:
    normals = jnp.broadcast_to(jnp.asarray(normal, jnp.float32), (*SIZE, 3)) * alpha
    return RenderOutput(
        color=jnp.zeros((*SIZE, 3)),
        alpha=jnp.full(SIZE, alpha, jnp.float32),
        depth=None,
        median_depth=None,
        plane_depth=jnp.asarray(depth),
        is_plane_depth_valid=jnp.asarray(depth) > 0,
        normal=normals,
        distortion=None,
        contributions=None,
        num_invalid=jnp.zeros((), jnp.int32),
    )


def camera(matrix: np.ndarray) -> Camera:
    return Camera(jnp.asarray(matrix), jnp.asarray(INTRINSICS))


@jax.jit
def _compare(depth, normal, other_depth, mask, is_used):
    _, photo = plane_view(POSE)
    _, other_photo = plane_view(OTHER)
    neighbor = Neighbor(camera(OTHER), jnp.asarray(other_photo), other_depth, whole(), is_used)
    return multi_view_losses(
        maps(depth, normal), camera(POSE), jnp.asarray(photo), mask, neighbor, whole(), LATTICE
    )


def compare(
    depth=None, normal=NORMAL, neighbor_level: float = LEVEL, mask=None, is_used: bool = True
):
    if depth is None:
        depth, _ = plane_view(POSE)
    normal = jnp.asarray(normal, jnp.float32)
    other_depth, _ = plane_view(OTHER, neighbor_level)
    return _compare(depth, normal, other_depth, mask, np.bool_(is_used))


def test_the_right_plane_costs_nothing():
    losses = compare()
    assert losses.geometric < 2e-3  # float32: pixels come back within a thousandth of a pixel
    assert (
        losses.photometric < 4e-3
    )  # bilinear sampling, and the noise that photographs are taken to have
    assert losses.fraction_seen > 0.4


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_wrong_depth_costs_and_is_pulled_back(factor):
    depth, _ = plane_view(POSE)

    def cost(scale, term):
        return getattr(compare(depth * scale), term)

    for term in ("geometric", "photometric"):
        slope = jax.grad(cost)(jnp.float32(factor), term)
        assert cost(factor, term) > 3 * cost(1.0, term)
        assert np.sign(slope) == np.sign(factor - 1)


@pytest.mark.parametrize("tilt", [-0.8, 0.8])
def test_a_wrong_normal_is_turned_back_by_the_patches(tilt):
    def cost(angle):
        axis = jnp.asarray([1.0, 0, 0.2])
        turned = jnp.asarray(NORMAL, jnp.float32) + angle * axis
        return compare(normal=turned / jnp.linalg.norm(turned)).photometric

    assert cost(tilt) > 2 * cost(0.0)
    assert np.sign(jax.grad(cost)(jnp.float32(tilt))) == np.sign(tilt)


def test_what_only_one_view_sees_does_not_count():
    losses = compare(
        neighbor_level=LEVEL * 0.8
    )  # the neighbour shows another surface: pixels land far away
    assert losses == (0, 0, 0)
    assert compare(mask=jnp.zeros(SIZE)) == (0, 0, 0)
    assert compare(is_used=False) == (0, 0, 0)
    assert compare(depth=np.zeros(SIZE, np.float32)) == (0, 0, 0)


def _ncc_case(dtype=np.float32):
    depth, photo = plane_view(POSE)
    rng = np.random.default_rng(0)
    lattice = LATTICE.of(jnp.asarray(depth))
    normals = (POSE[:3, :3] @ NORMAL + rng.normal(0, 0.1, (*lattice.shape, 3))).astype(np.float32)
    points = cameras.back_project(
        LATTICE.pixels(SIZE),
        lattice,
        jnp.asarray(INTRINSICS),
    )
    planes = normals / (normals * np.asarray(points)).sum(-1, keepdims=True)
    neighbor_from_view = OTHER @ cameras.invert_rigid(POSE)
    arrays = [
        photo,
        plane_view(OTHER)[1],
        planes,
        INTRINSICS,
        INTRINSICS,
        neighbor_from_view,
    ]
    photo, other, planes, *rest = (jnp.asarray(a.astype(dtype)) for a in arrays)
    return [photo, other, planes, LATTICE, *rest]


def _kernel_case(
    single: float,
    geometric: float,
    photometric: float,
    seed: int = 0,
    drawn: Lattice | None = None,
    remembered: Lattice | None = None,
    plane_px: float = 0.0,
):
    """A rough surface with holes, and a neighbour that shows nearly the same."""
    drawn = drawn or whole()
    remembered = remembered or whole()
    rng = np.random.default_rng(seed)
    (depth, photo) = plane_view(POSE)
    (other_depth, other_photo) = plane_view(OTHER)
    depth = depth * (1 + 0.002 * rng.normal(0, 1, SIZE)).astype(np.float32)
    depth[10:20, 30:40] = 0
    normal = (0.9 * (NORMAL + rng.normal(0, 0.1, (*SIZE, 3)))).astype(np.float32)
    mask = np.ones(SIZE, np.float32)
    mask[40:, :20] = 0
    channels = np.array([1, 0.5, 1], np.float32)
    counts = np.full((*SIZE, 1), 255, np.uint8)
    counts[15:30, 20:35] = 0  # of the neighbour alone: something that moved
    as_photo = [
        jnp.asarray(
            np.concatenate(
                [(np.clip(255 * gray, 0, 255)[..., None] * channels).astype(np.uint8), fourth], -1
            )
        )
        for gray, fourth in ((photo, np.full_like(counts, 255)), (other_photo, counts))
    ]
    second = SecondView(camera(OTHER), as_photo[1], jnp.bool_(True), jnp.asarray(OFFSET))
    weights = LossSettings(
        single_view_weight=single,
        multi_view_geometric_weight=geometric,
        multi_view_photometric_weight=photometric,
        patch_stride=STRIDE,
        patch_plane_px=plane_px,
    )

    def run(depth, normal, backend, is_used=True):
        out = dataclasses.replace(maps(depth, alpha=0.9), normal=normal)
        out = dataclasses.replace(out, alpha=drawn.of(out.alpha))
        losses = geometric_losses(
            out,
            drawn.camera(camera(POSE)),
            Source(camera(POSE), as_photo[0], drawn),
            drawn.of(jnp.asarray(mask)),
            Second(
                second._replace(is_used=jnp.bool_(is_used)),
                remembered.of(jnp.asarray(other_depth)),
                remembered,
            ),
            weights,
            backend,
        )
        return losses.total, losses

    return run, drawn.of(jnp.asarray(depth)), drawn.of(jnp.asarray(normal))


@pytest.mark.parametrize(
    "lattices", [(None, None), (EVERY_SECOND, OTHERS_SECOND), (None, OTHERS_SECOND)]
)
@pytest.mark.parametrize(
    ("weights", "plane_px"),
    [
        ((1, 0, 0), 0.0),
        ((0, 1, 0), 0.0),
        ((0, 0, 1), 0.0),
        ((0.3, 0.5, 0.7), 0.0),
        ((0, 0, 1), 0.25),
        ((0.3, 0.5, 0.7), 1.0),
    ],
)
def test_the_kernel_is_the_definition_in_values_and_gradients(weights, plane_px, lattices):
    run, depth, normal = _kernel_case(*weights, 0, *lattices, plane_px)
    slopes = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True), static_argnums=2)
    (total, expected), by_definition = slopes(depth, normal, "reference")
    (kernel_total, losses), by_kernel = slopes(depth, normal, "cpu")
    np.testing.assert_allclose(kernel_total, total, rtol=1e-4)
    is_multi = weights[1] + weights[2] > 0
    for name, is_on in (
        ("single_view", weights[0] > 0),
        ("geometric", is_multi),
        ("photometric", is_multi),
    ):
        if is_on:
            assert getattr(expected, name) > 0
            np.testing.assert_allclose(getattr(losses, name), getattr(expected, name), rtol=2e-4)
    if is_multi:
        assert 0.2 < losses.fraction_seen < 0.9
        np.testing.assert_allclose(losses.fraction_seen, expected.fraction_seen, atol=2e-3)
    for gradient, slope in zip(by_kernel, by_definition, strict=True):
        # Samples within rounding of a pixel's border, and differences of about 0, take the slope of
        # the one or of the other side.
        error = np.abs(gradient - slope) / (np.abs(slope).max() + 1e-9)
        assert np.quantile(error, 0.98) < 3e-4 and error.max() < 0.1
        assert bool(np.any(gradient != 0)) == bool(np.any(slope != 0))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_is_masked_in_the_neighbour_does_not_count(backend):
    (depth, photo) = plane_view(POSE)
    (other_depth, other_photo) = plane_view(OTHER)
    weights = LossSettings(
        single_view_weight=0,
        multi_view_geometric_weight=0,
        multi_view_photometric_weight=1,
        patch_stride=STRIDE,
    )

    def run(is_masked, is_spoilt):
        shown = np.repeat(
            (255 * np.clip([photo, other_photo], 0, 1)).astype(np.uint8)[..., None], 4, axis=-1
        )
        shown[..., 3] = 255
        if is_spoilt:
            shown[1, 15:30, 20:35, :3] = np.random.default_rng(0).integers(0, 255, (15, 15, 1))
        if is_masked:
            shown[1, 15:30, 20:35, 3] = 0
        return photometric(*shown)

    @jax.jit
    def photometric(own, other):
        second = SecondView(camera(OTHER), other, jnp.bool_(True), jnp.asarray(OFFSET))
        return geometric_losses(
            maps(depth),
            camera(POSE),
            Source(camera(POSE), own, whole()),
            None,
            Second(second, jnp.asarray(other_depth), whole()),
            weights,
            backend,
        ).photometric

    assert run(False, True) > 2 * run(False, False)
    assert run(True, True) == run(True, False) > 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_dilated_view_compares_what_the_whole_one_would(backend):
    """At the same pixels of the photographs, with the same depths: the same terms of MV-Reg."""
    depth, photo = plane_view(POSE)
    other_depth, other_photo = plane_view(OTHER)
    shown = (255 * np.clip([photo, other_photo], 0, 1)).astype(np.uint8)
    shown = np.repeat(shown[..., None], 3, axis=-1)
    depth = depth * (1 + 0.002 * np.random.default_rng(0).normal(size=SIZE)).astype(np.float32)

    def run(depth, drawn: Lattice, patches: Lattice):
        out = maps(depth)
        out = dataclasses.replace(
            out,
            **{name: drawn.of(getattr(out, name)) for name in ("alpha", "plane_depth", "normal")},
        )
        second = SecondView(camera(OTHER), jnp.asarray(shown[1]), jnp.bool_(True), patches.origin)
        # Which pixels lie on a plane is read from those that are drawn.
        weights = LossSettings(single_view_weight=0, patch_stride=patches.stride, patch_plane_px=0)
        return geometric_losses(
            out,
            drawn.camera(camera(POSE)),
            Source(camera(POSE), jnp.asarray(shown[0]), drawn),
            None,
            Second(second, jnp.asarray(other_depth), whole()),
            weights,
            backend,
        )

    inner = Lattice(2, jnp.asarray([1, 1]))
    dilated = jax.jit(lambda depth: run(depth, EVERY_SECOND, inner))(depth)
    expected = jax.jit(lambda depth: run(depth, whole(), EVERY_SECOND.finer(inner)))(depth)
    assert dilated.fraction_seen > 0.3
    np.testing.assert_allclose(dilated, expected, rtol=1e-5)


def test_the_kernel_without_a_neighbour():
    run, depth, normal = _kernel_case(0.5, 1.0, 1.0)
    total, losses = run(depth, normal, "cpu", is_used=False)
    assert losses[2:] == (0, 0, 0)
    np.testing.assert_allclose(total, 0.5 * losses.single_view, rtol=1e-6)


def test_the_gradient_of_ncc_is_its_difference_quotient():
    with jax.enable_x64(True):
        photo, other, planes, *rest = _ncc_case(np.float64)

        @jax.jit
        def run(planes):
            return patch_ncc(photo, other, planes, *rest)[0].sum()

        direction = jnp.asarray(np.random.default_rng(1).normal(0, 1, planes.shape))
        step = 1e-7
        expected = (run(planes + step * direction) - run(planes - step * direction)) / (2 * step)
        np.testing.assert_allclose((jax.grad(run)(planes) * direction).sum(), expected, rtol=1e-4)


def test_the_score_of_a_patch_is_that_of_the_pixels_which_its_plane_shows():
    photo, other, planes, *rest = _ncc_case()
    score, is_valid = map(np.asarray, patch_ncc(photo, other, planes, *rest))
    photo, other, planes = (np.asarray(array, np.float64) for array in (photo, other, planes))
    intrinsics = INTRINSICS.astype(np.float64)
    neighbor_from_view = OTHER.astype(np.float64) @ cameras.invert_rigid(POSE)
    pixels = np.asarray(LATTICE.pixels(SIZE), np.float64)
    reach = np.stack(np.mgrid[-3:4, -3:4][::-1], axis=-1).reshape(-1, 2)
    for row, column in np.ndindex(score.shape):
        # The homography of the plane p . x = 1.
        homography = intrinsics @ (
            neighbor_from_view[:3, :3] + np.outer(neighbor_from_view[:3, 3], planes[row, column])
        )
        patch = np.column_stack([pixels[row, column] + reach, np.ones(len(reach))])
        there = patch @ (homography @ np.linalg.inv(intrinsics)).T
        there = there[:, :2] / there[:, 2:]
        is_inside = all(
            (at >= 0.5).all()
            and (at[:, 0] <= SIZE[1] - 0.5).all()
            and (at[:, 1] <= SIZE[0] - 0.5).all()
            for at in (patch, there)
        )
        assert is_inside == is_valid[row, column]
        if is_inside:
            own = photo[tuple(np.floor(patch[:, 1::-1]).astype(int).T)]
            seen = ndimage.map_coordinates(other, there.T[::-1] - 0.5, order=1)
            own = own - own.mean()
            seen = seen - seen.mean()
            noise = multi_view.NOISE_STD**2
            expected = (own * seen).mean() / np.sqrt(
                ((own**2).mean() + noise) * ((seen**2).mean() + noise)
            )
            np.testing.assert_allclose(score[row, column], expected, atol=2e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_geometric_term_is_its_definition_and_its_gradient_a_difference_quotient(backend):
    rng = np.random.default_rng(0)
    other_depth = plane_view(OTHER)[0]
    depth = plane_view(POSE)[0] * (1 + 0.003 * rng.normal(size=SIZE))
    direction = rng.normal(size=SIZE)
    intrinsics = INTRINSICS.astype(np.float64)

    def distances(depth):
        """Pixel by pixel, float64: how far each one of the lattice comes back from itself; infinity
        where it does not.
        """
        result = []
        for y in range(OFFSET[0], OFFSET[0] + SIZE[0] // STRIDE * STRIDE, STRIDE):
            for x in range(OFFSET[1], OFFSET[1] + SIZE[1] // STRIDE * STRIDE, STRIDE):
                point = np.linalg.inv(intrinsics) @ [x + 0.5, y + 0.5, 1] * depth[y, x]
                point = (
                    OTHER.astype(np.float64)
                    @ cameras.invert_rigid(POSE.astype(np.float64))
                    @ [*point, 1]
                )[:3]
                column, line, scale = intrinsics @ point
                column = column / scale
                line = line / scale
                if not (0.5 <= column <= SIZE[1] - 0.5 and 0.5 <= line <= SIZE[0] - 0.5):
                    result.append(np.inf)
                    continue
                inverse = ndimage.map_coordinates(
                    1 / other_depth.astype(np.float64), [[line - 0.5], [column - 0.5]], order=1
                )[0]
                point = np.linalg.inv(intrinsics) @ [column, line, 1] / inverse
                point = (
                    POSE.astype(np.float64)
                    @ cameras.invert_rigid(OTHER.astype(np.float64))
                    @ [*point, 1]
                )[:3]
                back = intrinsics @ point
                result.append(np.hypot(*(back[:2] / back[2] - [x + 0.5, y + 0.5])))
        return np.array(result)

    phi = distances(depth)
    is_seen = phi < 1
    weights = np.exp(-phi[is_seen])  # take no gradient
    expected = (weights * phi[is_seen]).mean()
    step = 1e-6
    ahead, behind = (distances(depth + sign * step * direction)[is_seen] for sign in (1, -1))
    slope = (weights * (ahead - behind)).mean() / (2 * step)

    def run(depth):
        second = SecondView(
            camera(OTHER), jnp.zeros((*SIZE, 3), jnp.uint8), jnp.bool_(True), jnp.asarray(OFFSET)
        )
        only = LossSettings(
            single_view_weight=0.0,
            multi_view_geometric_weight=1.0,
            multi_view_photometric_weight=0.0,
            patch_stride=STRIDE,
        )
        return geometric_losses(
            maps(depth),
            camera(POSE),
            Source(camera(POSE), jnp.zeros((*SIZE, 3), jnp.uint8), whole()),
            None,
            Second(second, jnp.asarray(other_depth), whole()),
            only,
            backend,
        ).total

    value, gradient = jax.jit(jax.value_and_grad(run))(jnp.asarray(depth, jnp.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    np.testing.assert_allclose(
        (np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=5e-3
    )


def _on_planes(planes) -> np.ndarray:
    """Depth that a map would show if all pixels lay in the plane of the lattice's middle pixel."""
    rays = np.asarray(cameras.pixel_rays(INTRINSICS, SIZE))
    return (1 / (rays @ np.asarray(planes))).astype(np.float32)


def test_on_its_plane_all_pixels_of_a_patch_count():
    photo, other, planes, *rest = _ncc_case()
    row, column = 5, 7
    surface = PatchSurface(jnp.asarray(_on_planes(planes[row, column])), whole(), 0.5)
    alike, is_inside = patch_ncc(photo, other, planes, *rest)
    score, is_valid = patch_ncc(photo, other, planes, *rest, surface)
    assert is_inside[row, column] and is_valid[row, column]
    np.testing.assert_allclose(score[row, column], alike[row, column], atol=1e-5)


@pytest.mark.parametrize("drawn", [whole(), Lattice(2, jnp.array([1, 0], jnp.int32))])
def test_a_wrong_normal_leaves_all_pixels_of_the_surface(drawn):
    """Else only those on a line would count, and a line says nothing of a rotation about it."""
    photo, other, planes, lattice, *rest = _ncc_case()
    lattice = Lattice(2 * lattice.stride, drawn.origin)
    planes = planes[: lattice.size(SIZE)[0], : lattice.size(SIZE)[1]]
    row, column = 3, 4
    surface = PatchSurface(drawn.of(jnp.asarray(_on_planes(planes[row, column]))), drawn, 0.5)
    x, y = np.asarray(lattice.pixels(SIZE)[row, column], np.float64)
    tilt = 2 * float(planes[row, column, 2])
    ray = (x - INTRINSICS[0, 2]) / INTRINSICS[0, 0]
    # The same depth in the middle.
    wrong = planes + jnp.array([[[tilt, 0, -tilt * ray]]], jnp.float32)
    alike, is_inside = patch_ncc(photo, other, wrong, lattice, *rest)
    score, is_valid = patch_ncc(photo, other, wrong, lattice, *rest, surface)
    assert is_inside[row, column] and is_valid[row, column]
    # At the drawn pixel towards the middle the depth is a little off the plane of a pixel between.
    np.testing.assert_allclose(score[row, column], alike[row, column], atol=0.02)


@pytest.mark.parametrize("drawn", [whole(), Lattice(2, jnp.array([1, 0], jnp.int32))])
def test_across_an_edge_the_pixels_of_the_middle_s_plane_count(drawn):
    photo, other, planes, lattice, *rest = _ncc_case()
    # Every patch has its middle among the pixels that are drawn.
    lattice = Lattice(2 * lattice.stride, drawn.origin)
    rows, columns = lattice.size(SIZE)
    planes = planes[:rows, :columns]
    row, column = 3, 4
    x, y = (int(at) for at in lattice.pixels(SIZE)[row, column])
    depth = _on_planes(planes[row, column])
    depth[:, x + 1 :] *= 1.2  # another surface behind an edge
    depth[y - 2] = 0  # nothing is drawn there
    surface = PatchSurface(drawn.of(jnp.asarray(depth)), drawn, 0.5)
    score, is_valid = patch_ncc(photo, other, planes, lattice, *rest, surface)

    def samples(values):
        """Those on the plane, at the drawn pixels that stand for them."""
        own = []
        for down in range(-3, 4):
            for across in range(-3, 4):
                step_y = int(np.trunc(down / drawn.stride)) * drawn.stride
                step_x = int(np.trunc(across / drawn.stride)) * drawn.stride
                if step_x <= 0 and step_y != -2:
                    own.append(values[y + down, x + across])
        return np.array(own, np.float64)

    # Where the plane takes the samples, by the photograph of a neighbour that shows its number.
    def warped(image):
        return samples(_warp(image, planes[row, column], rest))

    a, b = samples(np.asarray(photo)), warped(np.asarray(other))
    a, b = a - a.mean(), b - b.mean()
    expected = (a * b).mean() / np.sqrt(
        ((a * a).mean() + multi_view.NOISE_STD**2) * ((b * b).mean() + multi_view.NOISE_STD**2)
    )
    assert is_valid[row, column]
    np.testing.assert_allclose(score[row, column], expected, atol=1e-4)
    # Hardly anything on the plane is no patch.
    few = np.zeros_like(depth)
    few[y, x] = depth[y, x]
    alone = PatchSurface(drawn.of(jnp.asarray(few)), drawn, 0.5)
    assert not patch_ncc(photo, other, planes, lattice, *rest, alone)[1][row, column]


def _warp(image, plane, rest) -> np.ndarray:
    """A neighbour's photograph as one plane shows it in the own image; NaN outside."""
    own, theirs, there = (np.asarray(array, np.float64) for array in rest)
    homography = theirs @ (there[:3, :3] + np.outer(there[:3, 3], plane)) @ np.linalg.inv(own)
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    at = np.stack([x, y, np.ones_like(x)], axis=-1) @ homography.T
    places = np.stack([at[..., 1] / at[..., 2] - 0.5, at[..., 0] / at[..., 2] - 0.5])
    return ndimage.map_coordinates(
        np.asarray(image, np.float64), places, order=1, cval=np.nan, mode="constant"
    )


def test_ncc_ignores_exposure_and_needs_texture():
    photo, other, planes, *rest = _ncc_case()
    score, is_valid = patch_ncc(photo, other, planes, *rest)
    brighter, _ = patch_ncc(photo, 0.6 * other + 0.3, planes, *rest)
    np.testing.assert_allclose(score[is_valid], brighter[is_valid], atol=0.02)
    flat, _ = patch_ncc(photo, jnp.full_like(other, 0.5), planes, *rest)
    np.testing.assert_allclose(flat, 0, atol=1e-5)


def test_pixels_round_trip():
    depth, _ = plane_view(POSE)
    other, _ = plane_view(OTHER)
    pixels = LATTICE.pixels(SIZE)
    at = LATTICE.of(jnp.asarray(depth))
    back, z, is_valid = round_trip_reprojection(
        pixels,
        at,
        jnp.asarray(INTRINSICS),
        jnp.asarray(other),
        jnp.asarray(INTRINSICS),
        jnp.asarray(OTHER @ cameras.invert_rigid(POSE)),
    )
    assert 0.4 < is_valid.mean(dtype=jnp.float32) < 1
    np.testing.assert_allclose(back[is_valid], pixels[is_valid], atol=2e-3)
    np.testing.assert_allclose(z[is_valid], at[is_valid], rtol=1e-5)


def _plain_single_view(depth, normal, alpha, photo):
    """Pixel by pixel."""
    height, width = SIZE
    points = np.asarray(
        cameras.unproject(
            depth.astype(np.float64), INTRINSICS.astype(np.float64), POSE.astype(np.float64)
        )
    )
    slopes = np.zeros(SIZE)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            slopes[y, x] = np.hypot(
                photo[y, x + 1] - photo[y, x - 1], photo[y + 1, x] - photo[y - 1, x]
            )
    total = 0.0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if (depth[[y, y, y, y - 1, y + 1], [x, x - 1, x + 1, x, x]] > 0).all():
                cross = np.cross(
                    points[y + 1, x] - points[y - 1, x], points[y, x + 1] - points[y, x - 1]
                )
                cross /= np.linalg.norm(cross)
                total += (1 - slopes[y, x] / slopes.max()) ** 2 * np.abs(
                    alpha * cross - normal
                ).sum()
    return total / (height * width)


def test_single_view_is_its_definition():
    depth, photo = plane_view(POSE)
    depth = depth * (1 + 0.01 * np.sin(np.arange(SIZE[1], dtype=np.float32) / 3))
    depth[10:20, 30:40] = 0
    loss = single_view_loss(maps(depth, alpha=0.9), camera(POSE), jnp.asarray(photo))
    np.testing.assert_allclose(loss, _plain_single_view(depth, 0.9 * NORMAL, 0.9, photo), rtol=1e-3)
    half = jnp.zeros(SIZE).at[:, :40].set(1)
    assert (
        0 < single_view_loss(maps(depth, alpha=0.9), camera(POSE), jnp.asarray(photo), half) < loss
    )


def test_single_view_is_zero_on_the_right_plane_and_pulls_both_ways():
    depth, photo = plane_view(POSE)
    gray = jnp.asarray(photo)
    assert single_view_loss(maps(depth), camera(POSE), gray) < 1e-3
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        noisy = jnp.asarray(depth * (1 + 0.01 * rng.normal(0, 1, SIZE)))
        normal = jnp.asarray(NORMAL + [0.1, 0.05, 0.0])

        @jax.jit
        def cost(depth, normal):
            out = maps(depth)
            out = RenderOutput(**{**out.__dict__, "alpha": out.alpha.astype(jnp.float64)})
            normals = jnp.broadcast_to(normal, (*SIZE, 3))
            out = RenderOutput(**{**out.__dict__, "normal": normals})
            view = Camera(jnp.asarray(POSE, jnp.float64), jnp.asarray(INTRINSICS, jnp.float64))
            return single_view_loss(out, view, gray.astype(jnp.float64))

        by_depth, by_normal = jax.grad(cost, argnums=(0, 1))(noisy, normal)
        direction = jnp.asarray(rng.normal(0, 1, SIZE))
        step = 1e-8
        expected = (
            cost(noisy + step * direction, normal) - cost(noisy - step * direction, normal)
        ) / (2 * step)
        np.testing.assert_allclose((by_depth * direction).sum(), expected, rtol=1e-3)
        expected = (cost(noisy, normal + 1e-7) - cost(noisy, normal - 1e-7)) / 2e-7
        np.testing.assert_allclose(by_normal.sum(), expected, rtol=1e-3)
        assert by_normal[0] > 0  # turned too far along x


def test_edges_weigh_little_and_borders_nothing():
    step = np.zeros(SIZE, np.float32)
    step[:, 40:] = 1
    weights = np.asarray(edge_weights(jnp.asarray(step)))
    assert (weights[1:-1, 39:41] == 0).all() and (weights[1:-1, 1:38] == 1).all()
    assert not weights[0].any() and not weights[:, -1].any()


def test_neighbours_stand_off_by_a_share_of_the_depth():
    poses = np.stack([np.eye(4)] * 5)
    poses[:, 0, 3] = [0, -0.05, -0.5, -1.0, -30]
    views = views_of(poses)
    near = choose_neighbors(views)[0]
    np.testing.assert_array_equal(near, [1, 2, 3, 4])
    np.testing.assert_array_equal(choose_neighbors(views, depths=np.full(5, 5.0))[0], [2, 3])
    np.testing.assert_array_equal(choose_neighbors(views, depths=np.full(5, np.nan))[0], near)
