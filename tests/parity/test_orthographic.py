"""Parallel rays: exact heights by hand, the limit of a far camera, and no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_cases as cases
from scipy.spatial.transform import Rotation

from cosurfgs_jax import rasterize
from cosurfgs_jax.errors import InputError

SCALES = (12.0, 9.0)  # pixels per world length
CENTER = (20.3, 17.6)  # where the camera's axis is


@pytest.fixture(params=(*cases.BACKENDS, "reference"))
def backend(request):
    cases.require(request.param)
    return request.param


def _render(case: cases.Case, backend: str, **more):
    options = {**case.options(), **more, "backend": backend}
    return jax.tree.map(
        np.asarray, jax.jit(lambda s, c: rasterize(s, c, **options))(case.surfels(), case.camera())
    )


def _seen_from_above(**fields) -> cases.Case:
    """Surfels that are given in the camera's own frame; all their colours are one."""
    count = len(fields["means"])
    case = cases.random_cloud(
        0,
        count,
        camera_from_world=np.eye(4),
        sh=np.full((count, 16, 3), 0.1),
        alive=np.ones(count, bool),
        background=np.zeros(3),
    )
    return cases.seen_in_parallel(case.replace(**fields), cases.intrinsics(*SCALES, *CENTER))


def _pixel_lengths(case):
    """Where the pixels' rays are: x [W] and y [H], world lengths."""
    return (
        (np.arange(n) + 0.5 - c) / s
        for n, c, s in zip(case.image_size[::-1], CENTER, SCALES, strict=True)
    )


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.4, -1.2), (-1.5, 1.7)])
def test_a_flat_disc_has_its_depth_wherever_it_is(backend, place):
    """With the shape, too: a Gaussian of its own size around its own place, the same everywhere in
    the image.
    """
    case = _seen_from_above(
        means=np.array([[*place, 3.7]]),
        quats=np.array([[1.0, 0, 0, 0]]),
        log_scales=np.log([[0.4, 0.5]]),
        logit_opacities=np.array([2.0]),
    )
    out = _render(case, backend)
    x, y = _pixel_lengths(case)
    squared = ((x[None, :] - place[0]) / 0.4) ** 2 + ((y[:, None] - place[1]) / 0.5) ** 2
    alpha = np.exp(-squared / 2) / (1 + np.exp(-2.0))
    alpha[alpha < 1 / 255] = 0
    np.testing.assert_allclose(out.alpha, alpha, atol=2e-6)
    hit = alpha > 0
    assert 100 < hit.sum() < hit.size
    for depth in (out.depth, out.median_depth):
        np.testing.assert_allclose(depth[hit], 3.7, rtol=1e-5)
    assert out.is_plane_depth_valid.sum() > 30
    np.testing.assert_allclose(out.plane_depth[out.is_plane_depth_valid], 3.7, rtol=1e-5)
    np.testing.assert_allclose(out.normal, alpha[..., None] * np.array([0, 0, -1.0]), atol=2e-6)


def test_a_tilted_plane_of_surfels_has_the_heights_of_the_plane(backend):
    """Expected, median and plane depth alike, whatever the opacities."""
    rng = np.random.default_rng(0)
    normal = np.array([0.3, -0.2, -0.93]) / np.linalg.norm([0.3, -0.2, -0.93])
    rotation = Rotation.align_vectors([normal], [[0, 0, 1]])[0]
    count = 500
    in_plane = np.concatenate([rng.uniform(-4, 4, (count, 2)), np.zeros((count, 1))], axis=1)
    case = _seen_from_above(
        means=rotation.apply(in_plane) + [0, 0, 5],
        logit_opacities=rng.uniform(-3, 0, count),
        quats=np.tile(rotation.as_quat()[[3, 0, 1, 2]], (count, 1)),
        log_scales=np.full((count, 2), np.log(0.4)),
    )
    out = _render(case, backend)
    x, y = _pixel_lengths(case)
    height = 5 - (normal[0] * x[None, :] + normal[1] * y[:, None]) / normal[2]
    assert np.ptp(height) > 1
    valid = out.is_plane_depth_valid
    assert valid.mean() > 0.95
    for depth in (out.depth, out.median_depth, out.plane_depth):
        np.testing.assert_allclose(depth[valid], height[valid], rtol=2e-5)
    np.testing.assert_allclose(
        out.normal[valid] / out.alpha[valid][:, None], np.tile(normal, (valid.sum(), 1)), atol=1e-5
    )
    # Seen along one direction, surfels of one set of coefficients have one colour.
    np.testing.assert_allclose(
        out.color[valid] / out.alpha[valid][:, None],
        np.tile(out.color[18, 20] / out.alpha[18, 20], (valid.sum(), 1)),
        atol=1e-5,
    )


def test_a_far_camera_sees_the_same(backend):
    """Perspective from a distance of 2,000: its rays are parallel to within a thousandth, so maps
    agree as well.
    """
    far = 2000.0
    parallel = cases.seen_in_parallel(cases.random_cloud(31))
    moved = np.float64(parallel.camera_from_world)
    moved[2, 3] += far
    matrix = parallel.intrinsics.copy()
    matrix[:2, :2] *= far + 2.6
    case = parallel.replace(camera_from_world=moved, intrinsics=matrix)
    near_side = cases.dataclasses.replace(case, projection="perspective", near=far + parallel.near)
    got = _render(parallel, backend)
    want = _render(near_side, backend)
    _, margins = cases.reference_maps(parallel)
    safe = margins > 0.02  # pixels whose decisions the last bits of the rays do not turn
    assert safe.mean() > 0.5
    # A thousandth of tilt matters most to surfels that are seen nearly edge-on.
    for name in ("alpha", "color", "normal", "distortion"):
        error = np.abs(getattr(got, name) - getattr(want, name))[safe]
        assert error.mean() < 1e-3 and error.max() < 0.05, name
    hit = safe & (got.alpha > 0.02)
    np.testing.assert_allclose(got.median_depth[hit], want.median_depth[hit] - far, atol=2e-2)


def test_hits_above_the_near_plane_are_skipped(backend):
    case = _seen_from_above(
        means=np.array([[0.0, 0, 1], [0, 0, 3]]),
        quats=np.tile([1.0, 0, 0, 0], (2, 1)),
        log_scales=np.zeros((2, 2)),
        logit_opacities=np.array([4.0, 4.0]),
    )
    column = int(CENTER[0])
    row = int(CENTER[1])
    for near, depth in ((0.5, 1.0), (1.5, 3.0)):
        out = _render(cases.dataclasses.replace(case, near=near), backend)
        np.testing.assert_allclose(out.median_depth[row, column], depth, rtol=1e-5)


def test_a_batch_of_tiles_is_one_picture(backend):
    """Cameras of one direction that differ in their principal points: tiles of one map, without a
    seam.
    """
    case = cases.build("parallel_cloud")
    whole = _render(case, backend)
    shift = np.zeros((2, 3, 3), np.float32)
    shift[1, 0, 2] = -16
    tiles = _render(
        cases.dataclasses.replace(
            case.replace(
                camera_from_world=np.tile(case.camera_from_world, (2, 1, 1)),
                intrinsics=case.intrinsics + shift,
            ),
            image_size=(37, 16),
        ),
        backend,
    )
    for name in ("color", "alpha", "depth", "median_depth", "normal"):
        joined = np.concatenate(getattr(tiles, name), axis=1)
        off = np.abs(joined - getattr(whole, name)[:, :32]) > 1e-4
        assert off.mean() < 2e-3, name


def test_there_is_no_gradient(backend):
    case = cases.build("parallel_cloud")
    options = {**case.options(), "backend": backend}

    def loss(surfels, camera, **more):
        return rasterize(surfels, camera, **options, **more).color.sum()

    for argument in (0, 1):
        with pytest.raises(InputError, match="orthographic.*no gradient"):
            jax.grad(loss, argnums=argument, allow_int=True)(case.surfels(), case.camera())
    with pytest.raises(InputError, match="orthographic.*no gradient"):
        jax.grad(lambda probe: loss(case.surfels(), case.camera(), gradient_probe=probe))(
            jnp.zeros((cases.COUNT, 4))
        )
    # In a larger program that is differentiated elsewhere it may stand.
    still = jax.lax.stop_gradient
    value, gradient = jax.value_and_grad(
        lambda x: (
            x * x
            + loss(still(case.surfels().replace(means=case.surfels().means * x)), case.camera())
        )
    )(jnp.float32(1))
    assert np.isfinite(value) and gradient == 2


def test_an_unknown_projection_is_named():
    case = cases.random_cloud()
    with pytest.raises(
        InputError, match="projection: expected one of perspective, orthographic, got 'fisheye'"
    ):
        rasterize(case.surfels(), case.camera(), **{**case.options(), "projection": "fisheye"})
