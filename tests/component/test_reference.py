"""The plain definition of the rasterizer: closed forms by hand, and its gradient by finite
differences in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.raster import reference
from cosurfgs_jax.types import Camera, Surfels

SIZE = (11, 17)
NEAR = 0.1
FOCAL = 16.0
CENTER = (8, 5)  # the pixel (x, y) that looks along the optical axis
FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh")
FLOAT_MAPS = 7


def _of_arrays(function):
    """The function of nine arrays instead of surfels, a camera and a background."""

    def call(*arrays, **options):
        return function(Surfels(*arrays[:6]), Camera(*arrays[6:8]), arrays[8], **options)

    # Compiled whole: of its many small operations each would be compiled alone.
    return jax.jit(call, static_argnames=("image_size", "near", "sh_degree", "projection"))


render = _of_arrays(reference.render)
decision_margins = _of_arrays(reference.decision_margins)


def _logit(opacity):
    return np.log(opacity / (1 - opacity))


def _surfel(mean=(0, 0, 2), quat=(1, 0, 0, 0), scales=(0.4, 0.4), opacity=0.8, gray=0.25):
    return {
        "means": mean,
        "quats": quat,
        "log_scales": np.log(scales),
        "logit_opacities": _logit(opacity),
        "sh": np.full((1, 3), (gray - 0.5) / spherical_harmonics.C0),
    }


def _arguments(surfels, dtype=np.float32):
    """Arguments of `render` for a list of surfels and a camera at the origin that looks
    along +z.
    """
    intrinsics = [[FOCAL, 0, CENTER[0] + 0.5], [0, FOCAL, CENTER[1] + 0.5], [0, 0, 1]]
    fields = [np.stack([np.asarray(s[name], dtype) for s in surfels]) for name in FIELDS]
    rest = [
        np.ones(len(surfels), bool),
        np.eye(4, dtype=dtype),
        np.asarray(intrinsics, dtype),
        np.asarray([0.1, 0.2, 0.3], dtype),
    ]
    return [jnp.asarray(x) for x in fields + rest]


@functools.cache
def _jitted(sh_degree=0, size=SIZE, near=NEAR):
    return jax.jit(functools.partial(render, image_size=size, near=near, sh_degree=sh_degree))


def _maps(*surfels):
    return jax.tree.map(np.asarray, _jitted()(*_arguments(surfels)))


def _at_center(image):
    return image[CENTER[1], CENTER[0]]


def test_one_facing_surfel():
    maps = _maps(_surfel())
    assert maps.num_invalid == 0
    np.testing.assert_allclose(1 - _at_center(maps.transmittance), 0.8, rtol=1e-6)
    x = np.arange(SIZE[1]) - CENTER[0]
    y = np.arange(SIZE[0]) - CENTER[1]
    squared = (x[None, :] ** 2 + y[:, None] ** 2) * (
        2 / FOCAL / 0.4
    ) ** 2  # pixels back to the disc's sigmas
    alpha = 0.8 * np.exp(-squared / 2)
    alpha[alpha < 1 / 255] = 0
    np.testing.assert_allclose(1 - maps.transmittance, alpha, atol=1e-6)
    np.testing.assert_allclose(maps.depth_sum, 2 * alpha, atol=3e-6)
    np.testing.assert_allclose(maps.plane_sum, 2 * alpha, atol=3e-6)
    np.testing.assert_allclose(
        maps.normal_sum, alpha[..., None] * np.array([0, 0, -1.0]), atol=1e-6
    )
    np.testing.assert_allclose(maps.median_depth, np.where(alpha > 0, 2, 0), atol=1e-6)
    color = alpha[..., None] * 0.25 + (1 - alpha[..., None]) * np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(maps.color, color, atol=1e-6)
    np.testing.assert_allclose(maps.distortion, 0, atol=1e-6)
    counts = [alpha.sum(), alpha.max(), (alpha > 0).sum(), (alpha > 0).sum()]
    np.testing.assert_allclose(maps.contributions, [counts], rtol=1e-6)


def test_a_tilted_surfel_has_the_depth_of_its_plane():
    angle = 0.7
    maps = _maps(
        _surfel(quat=(np.cos(angle / 2), 0, np.sin(angle / 2), 0), scales=(1, 1), opacity=0.9)
    )
    normal = np.array([np.sin(angle), 0, np.cos(angle)])
    x = (np.arange(SIZE[1]) - CENTER[0]) / FOCAL
    depth = 2 * normal[2] / (normal[0] * x + normal[2])
    hit = 1 - maps.transmittance[CENTER[1]]
    assert (hit > 0.05).all()
    np.testing.assert_allclose(maps.depth_sum[CENTER[1]] / hit, depth, rtol=1e-5)
    np.testing.assert_allclose(maps.median_depth[CENTER[1]], depth, rtol=1e-5)
    np.testing.assert_allclose(
        maps.normal_sum[CENTER[1]] / hit[:, None], np.tile(-normal, (SIZE[1], 1)), atol=1e-5
    )
    np.testing.assert_allclose(maps.plane_sum[CENTER[1]] / hit, 2 * np.cos(angle), rtol=1e-5)


def test_blending_depth_order_and_distortion():
    near = _surfel(opacity=0.6, gray=1.0)
    far = _surfel(mean=(0, 0, 3), opacity=0.5, gray=0.0)
    for order in ([near, far], [far, near]):
        maps = _maps(*order)
        np.testing.assert_allclose(_at_center(maps.transmittance), 0.4 * 0.5, rtol=1e-6)
        np.testing.assert_allclose(
            _at_center(maps.color), 0.6 + 0.2 * np.array([0.1, 0.2, 0.3]), rtol=1e-6
        )
        np.testing.assert_allclose(_at_center(maps.depth_sum), 0.6 * 2 + 0.4 * 0.5 * 3, rtol=1e-6)
        np.testing.assert_allclose(_at_center(maps.distortion), 2 * 0.6 * 0.2 * (3 - 2), rtol=1e-5)
        np.testing.assert_allclose(
            _at_center(maps.median_depth), 2
        )  # 0.4 of the light is left behind the first


def test_equal_depths_keep_the_order_of_the_arrays():
    white = _surfel(opacity=0.9, gray=1.0)
    black = _surfel(opacity=0.9, gray=0.0)
    behind = 0.01 * np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(_at_center(_maps(white, black).color), 0.9 + behind, rtol=1e-5)
    np.testing.assert_allclose(_at_center(_maps(black, white).color), 0.09 + behind, rtol=1e-5)


def test_small_surfels_are_low_passed():
    maps = _maps(_surfel(scales=(1e-4, 1e-4)))
    np.testing.assert_allclose(
        1 - maps.transmittance[CENTER[1], CENTER[0] + 1], 0.8 * np.exp(-1), rtol=1e-5
    )
    np.testing.assert_allclose(maps.median_depth[CENTER[1], CENTER[0] + 1], 2)


def test_edge_on_surfels_are_low_passed_at_the_depth_of_their_centre():
    quarter = np.sqrt(0.5)
    maps = _maps(_surfel(quat=(quarter, 0, quarter, 0)))  # its plane holds the optical axis
    np.testing.assert_allclose(1 - _at_center(maps.transmittance), 0.8, rtol=1e-6)
    np.testing.assert_allclose(_at_center(maps.depth_sum), 0.8 * 2, rtol=1e-6)


def test_the_stop_leaves_out_the_surfel_that_would_cross_it():
    opacities = [0.98, 0.98, 0.9, 0.5]
    stack = [
        _surfel(mean=(0, 0, 2 + i), opacity=opacity, scales=(1, 1))
        for i, opacity in enumerate(opacities)
    ]
    maps = _maps(*stack)
    # 0.02, 4e-4, then 4e-5 would be below: neither the third nor the weaker fourth is blended.
    np.testing.assert_allclose(_at_center(maps.transmittance), 4e-4, rtol=1e-4)
    assert maps.contributions[2, 2] < maps.contributions[1, 2]
    np.testing.assert_allclose(_at_center(maps.median_depth), 2)


def test_alpha_is_clamped_without_gradient():
    arguments = _arguments([_surfel(opacity=0.999, scales=(5, 5))])

    def center(logit):
        return _at_center(
            render(
                *arguments[:3], logit, *arguments[4:], image_size=SIZE, near=NEAR, sh_degree=0
            ).transmittance
        )

    value, gradient = jax.value_and_grad(center)(arguments[3])
    np.testing.assert_allclose(value, 0.01, rtol=1e-5)
    assert (np.asarray(gradient) == 0).all()


def test_what_is_too_weak_or_too_near_is_not_drawn():
    assert (_maps(_surfel(opacity=0.9 / 255)).transmittance == 1).all()
    assert (_maps(_surfel(mean=(0, 0, 0.09), scales=(0.01, 0.01))).transmittance == 1).all()
    assert (_maps(_surfel(mean=(0, 0, -2))).transmittance == 1).all()
    # A wall along the view, from behind the camera to far ahead: its hits nearer than `near` are
    # left out.
    quarter = np.sqrt(0.5)
    wall = _maps(_surfel(mean=(0.05, 0, 0.3), quat=(quarter, 0, quarter, 0), scales=(2, 2)))
    hit = wall.transmittance < 1
    x = (np.arange(SIZE[1]) - CENTER[0]) / FOCAL
    crossing = 0.05 / np.where(x > 0, x, np.inf)  # camera z of the wall x = 0.05 at each column
    assert hit[CENTER[1], (crossing > 0.11)].all()
    assert not hit[:, (x > 0) & (crossing < 0.09)].any()


def test_colour_depends_on_the_direction_in_the_world():
    surfel = _surfel(mean=(0.5, -0.3, 2))
    sh = np.random.default_rng(0).normal(size=(4, 3)) * 0.2
    surfel["sh"] = sh
    maps = jax.tree.map(np.asarray, _jitted(sh_degree=1)(*_arguments([surfel])))
    direction = np.array([[0.5, -0.3, 2]]) / np.linalg.norm([0.5, -0.3, 2])
    expected = spherical_harmonics.evaluate(1, sh[None], direction)[0] + 0.5
    y, x = np.unravel_index(maps.transmittance.argmin(), SIZE)
    seen = maps.color[y, x] - maps.transmittance[y, x] * np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(
        seen / (1 - maps.transmittance[y, x]), np.maximum(expected, 0), rtol=1e-5
    )


BAD_VALUES = [(name, value) for name in FIELDS for value in (np.nan, np.inf, -np.inf)]
BAD_VALUES += [("quats", 0.0), ("log_scales", 100.0), ("means", 2e9)]


@pytest.mark.parametrize("name, value", BAD_VALUES)
def test_an_invalid_surfel_is_skipped_counted_and_harmless(name, value):
    bad = _surfel(mean=(0.1, 0, 1.5))
    bad[name] = np.full_like(np.asarray(bad[name], np.float32), value)
    good = [_surfel(), _surfel(mean=(0.3, 0.1, 3))]
    maps = _maps(good[0], bad, good[1])
    expected = _maps(*good)
    assert maps.num_invalid == 1
    for got, want in zip(maps[:FLOAT_MAPS], expected[:FLOAT_MAPS], strict=True):
        np.testing.assert_array_equal(got, want)
    arguments = _arguments([good[0], bad, good[1]])
    gradients = _gradient_of_squares(*arguments)
    for gradient in gradients[:5]:
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[1] == 0).all()
        assert (np.asarray(gradient)[0] != 0).any()
    assert np.isfinite(gradients[5]).all()


@jax.jit
def _gradient_of_squares(*arguments):
    def loss(*floats):
        maps = render(
            *floats[:5],
            arguments[5],
            floats[5],
            *arguments[7:],
            image_size=SIZE,
            near=NEAR,
            sh_degree=0,
        )
        return sum((image * image).sum() for image in maps[:FLOAT_MAPS])

    return jax.grad(loss, argnums=range(6))(*arguments[:5], arguments[6])


# Finite differences
# ---------------------------------------------------------------------------


def _random_arguments(seed=0, count=14):
    """A cloud with all branches in it: discs, specks, edge-on, clamped, and a wall across the near
    plane.
    """
    rng = np.random.default_rng(seed)
    means = np.stack(
        [rng.uniform(-0.9, 0.9, count), rng.uniform(-0.6, 0.6, count), rng.uniform(1, 3, count)], -1
    )
    quats = rng.normal(size=(count, 4))
    log_scales = rng.uniform(-3, -0.7, (count, 2))
    logits = rng.uniform(-1, 2, count)
    log_scales[0] = -6
    means[0] = (0.11, 0.07, 1.2)
    quats[1] = np.sqrt([0.5, 0, 0.5, 0]) + 1e-3
    logits[2] = 8
    means[3] = (0.05, 0, 0.3)
    quats[3] = np.sqrt([0.5, 0, 0.5, 0])
    log_scales[3] = 0.5
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))[0]
    pose[:3, :3] *= np.sign(np.diag(pose[:3, :3]))[None, :]
    pose[:3, 3] = [0.02, -0.05, 0.1]
    intrinsics = [[FOCAL, 0, 7.9], [0, 1.2 * FOCAL, 6.1], [0, 0, 1]]
    arrays = [
        means,
        quats,
        log_scales,
        logits,
        rng.normal(size=(count, 9, 3)) * 0.3,
        np.ones(count, bool),
        pose,
        np.asarray(intrinsics),
        np.array([0.3, 0.2, 0.1]),
        np.zeros((count, 2)),
    ]
    return [jnp.asarray(x) for x in arrays]


PLACES = {
    "means": 0,
    "quats": 1,
    "log_scales": 2,
    "logit_opacities": 3,
    "sh": 4,
    "camera_from_world": 6,
    "intrinsics": 7,
    "background": 8,
    "screen_shift": 9,
}


@functools.cache
def _difference_problem():
    arguments = _random_arguments()
    options = {"image_size": SIZE, "near": NEAR, "sh_degree": 2}
    margins = decision_margins(*arguments[:9], **options)
    # Steps of 1e-6 move no decision by 1e-4. Most of the image must remain, or the check would
    # check nothing.
    keep = (margins > 1e-4).astype(margins.dtype)
    assert keep.mean() > 0.9
    maps = render(*arguments[:9], **options)
    rng = np.random.default_rng(1)
    cotangents = [
        jnp.asarray(rng.normal(size=m.shape)) * keep.reshape(SIZE + (1,) * (m.ndim - 2))
        for m in maps[:FLOAT_MAPS]
    ]

    def loss(*arguments):
        maps = render(*arguments[:9], **options, screen_shift=arguments[9])
        return jnp.stack(
            [(m * c).sum() for m, c in zip(maps[:FLOAT_MAPS], cotangents, strict=True)]
        )

    return arguments, jax.jit(loss), jax.jit(jax.jacrev(loss, argnums=tuple(PLACES.values())))


@pytest.mark.parametrize("name", PLACES)
def test_gradient_is_the_finite_difference(name):
    """One argument at a time, each map by itself, along random directions."""
    with jax.enable_x64(True):
        arguments, loss, jacobian = _difference_problem()
        place = PLACES[name]
        gradient = np.asarray(jacobian(*arguments)[list(PLACES).index(name)])
        rng = np.random.default_rng(place)
        step = 1e-6
        for _ in range(6):
            direction = rng.normal(size=arguments[place].shape)
            moved = [
                loss(
                    *arguments[:place],
                    arguments[place] + sign * step * direction,
                    *arguments[place + 1 :],
                )
                for sign in (1, -1)
            ]
            expected = np.asarray(moved[0] - moved[1]) / (2 * step)
            got = (gradient * direction[None]).sum(axis=tuple(range(1, gradient.ndim)))
            scale = np.sqrt((gradient**2).sum(axis=tuple(range(1, gradient.ndim))))
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * scale.max())
        assert (scale > 1e-3).sum() >= (
            1 if name in ("sh", "background") else 5
        )  # it does depend on the maps


def test_screen_gradients_sum_to_the_gradient_of_the_shift():
    with jax.enable_x64(True):
        arguments = _random_arguments()
        options = {"image_size": SIZE, "near": NEAR, "sh_degree": 2}
        maps = jax.eval_shape(functools.partial(render, **options), *arguments[:9])
        rng = np.random.default_rng(2)
        cotangents = jax.tree.map(lambda m: jnp.asarray(rng.normal(size=m.shape)), maps)
        screen_gradients = functools.partial(reference.screen_gradients, cotangents)
        probe = np.asarray(_of_arrays(screen_gradients)(*arguments[:9], **options))

        def loss(shift):
            maps = render(*arguments[:9], **options, screen_shift=shift)
            return sum(
                (m * c).sum()
                for m, c in zip(maps[:FLOAT_MAPS], cotangents[:FLOAT_MAPS], strict=True)
            )

        np.testing.assert_allclose(
            probe[:, :2], jax.grad(loss)(arguments[9]), rtol=1e-9, atol=1e-12
        )
        assert (probe[:, 2:] >= np.abs(probe[:, :2])).all() and (
            probe[:, 2:] > 1.5 * np.abs(probe[:, :2])
        ).any()


def test_shifting_the_image_by_a_pixel_moves_the_maps():
    arguments = _arguments(
        [_surfel(opacity=0.5), _surfel(mean=(0.3, 0.1, 3), quat=(0.9, 0.2, 0.3, 0.1))]
    )
    shift = jnp.tile(jnp.asarray([1.0, 2.0]), (2, 1))
    still = render(*arguments, image_size=SIZE, near=NEAR, sh_degree=0)
    moved = render(*arguments, image_size=SIZE, near=NEAR, sh_degree=0, screen_shift=shift)
    for a, b in zip(still[:FLOAT_MAPS], moved[:FLOAT_MAPS], strict=True):
        np.testing.assert_allclose(b[2:, 1:], a[:-2, :-1], atol=1e-5)


def test_margins_find_the_pixels_near_a_decision():
    def margins(*surfels):
        return np.asarray(
            decision_margins(*_arguments(surfels), image_size=SIZE, near=NEAR, sh_degree=0)
        )

    assert (margins(_surfel(opacity=0.5 / 255)) == np.inf).all()
    assert _at_center(margins(_surfel(opacity=1.001 / 255, scales=(3, 3)))) < 2e-3
    stack = [_surfel(mean=(0, 0, 2 + i), scales=(3, 3), opacity=0.99 - 1e-4) for i in range(2)]
    assert _at_center(margins(*stack)) < 0.03
    half = [_surfel(opacity=0.4999, scales=(3, 3)), _surfel(mean=(0, 0, 3), scales=(3, 3))]
    assert _at_center(margins(*half)) < 1e-3
