"""Rows of gradients of the emulated CUDA calls, how they are added up, and what the forward call
leaves for the backward call.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_cases as cases
from emulated_calls import assert_same
from test_raster_parity import _assert_close_gradients, _errors

from cosurfgs_jax.raster import native


def _renderer_keeping(bytes_per_surfel):
    def render(surfels, *operands, **options):
        kept_bytes = bytes_per_surfel * surfels.means.shape[0]
        draw = cases.renderer(targets="emulated_raster", kept_bytes=kept_bytes)
        return draw(surfels, *operands, **options)

    return render


@pytest.fixture
def emulation_kept(emulation, monkeypatch):
    """Names of renderers that differ in what the forward call leaves for the backward call:
    nothing, too little for anything, too little for the lists of tiles, and all."""
    names = [f"emulation_keeping_{kept}" for kept in (0, 10, 150, 1000)]
    for name in names:
        monkeypatch.setitem(cases.RENDERERS, name, _renderer_keeping(int(name.split("_")[-1])))
    emulation()
    return names


def _sizes_of_all_kinds():
    """Surfels over all of 180 tiles, one of them through the camera's plane, beside thousands that
    touch one or two.
    """
    rng = np.random.default_rng(30)
    count = 2500
    size = (160, 288)
    matrix = cases.intrinsics(250, 260, 140, 85)
    case = cases.random_cloud(30, count, image_size=size, intrinsics=matrix)
    log_scales = rng.uniform(-6, -4, (count, 2))
    log_scales[::400] = 1.5
    means = case.means.copy()
    logits = rng.uniform(-3, 0, count)
    means[800] = (np.array([0.1, 0.0, 0.3]) - cases.POSE[:3, 3]) @ cases.POSE[:3, :3]
    logits[::400] = -2
    return case.replace(log_scales=log_scales, means=means, logit_opacities=logits)


def _cotangents_where_same(case, *maps):
    """Random cotangents at pixels where renders agree, so that no decision went another way."""
    keep = np.ones(case.image_size, bool)
    for error in _errors(*maps).values():
        keep &= error < 1e-4
    assert keep.mean() > 0.95
    return cases.random_cotangents(case, keep)


def test_surfels_over_hundreds_of_tiles(emulation):
    """Their rows are added up by blocks, those of the others by threads, and none of those in one
    tile.
    """
    emulation()
    case = _sizes_of_all_kinds()
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    assert (want.contributions[::400, 2] > 64 * 256).sum() > 3, "more than 64 tiles"
    np.testing.assert_allclose(
        got.contributions[:, :2], want.contributions[:, :2], rtol=1e-3, atol=2e-2
    )
    cotangents = _cotangents_where_same(case, got, want)
    want = cases.kernel_gradients("cpu", case, cotangents)
    gradients = cases.kernel_gradients("emulation", case, cotangents)
    _assert_close_gradients(gradients, want, "rows")
    _assert_close_gradients(
        cases.kernel_gradients("emulation_atomic", case, cotangents), want, "atomic"
    )
    emulation(is_reversed=True)
    assert_same(cases.kernel_gradients("emulation", case, cotangents), gradients)
    assert_same(cases.kernel_maps("emulation", case).contributions, got.contributions)
    emulation(band_pairs=1000)
    _assert_close_gradients(cases.kernel_gradients("emulation", case, cotangents), want, "bands")


@pytest.mark.parametrize(
    "degree, stored, count",
    [(0, 1, 129), (0, 16, 128), (1, 4, 300), (1, 9, 127), (2, 9, 300), (2, 16, 300), (3, 16, 1)],
)
def test_degrees_of_colour_and_numbers_of_surfels(emulation, degree, stored, count):
    """A kernel for each degree; rows of 3, 12, 27 and 48 numbers; full blocks of 128 surfels, and
    what is left.
    """
    emulation()
    case = dataclasses.replace(cases.random_cloud(31, count), sh_degree=degree)
    case = case.replace(sh=case.sh[:, :stored], alive=np.ones(count, bool))
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    cotangents = _cotangents_where_same(case, got, want)
    got, want = (
        cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu")
    )
    _assert_close_gradients(got, want, f"degree {degree}")
    assert (got["sh"][:, (degree + 1) ** 2 :] == 0).all()


def test_gradients_of_views_add_up(emulation):
    """The first view writes, the others add: the same bits as the sum of gradients by view."""
    emulation()
    case = cases.three_cameras()
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    got = cases.kernel_gradients(
        "emulation", case, {name: np.stack([value] * 3) for name, value in cotangents.items()}
    )
    alone = [cases.kernel_gradients("emulation", case.view(i), cotangents) for i in range(3)]
    for field in (*cases.FIELDS, "probe"):
        np.testing.assert_array_equal(
            got[field], alone[0][field] + alone[1][field] + alone[2][field]
        )
    np.testing.assert_array_equal(
        got["camera_from_world"], [view["camera_from_world"] for view in alone]
    )


def test_no_views(emulation):
    emulation()
    case = cases.three_cameras()
    case = case.replace(
        camera_from_world=case.camera_from_world[:0], intrinsics=case.intrinsics[:0]
    )
    gradients = cases.kernel_gradients(
        "emulation", case, {"color": np.zeros((0, *case.image_size, 3))}
    )
    assert all((gradients[field] == 0).all() for field in (*cases.FIELDS, "probe"))


@pytest.mark.parametrize("name", ["random_cloud", "one_tile", "no_surfels", "all_dead"])
def test_what_the_forward_call_leaves_changes_nothing(emulation_kept, name):
    case = cases.build(name)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    want = cases.kernel_gradients(emulation_kept[0], case, cotangents)
    for backend in (*emulation_kept, "emulation"):
        assert_same(cases.kernel_gradients(backend, case, cotangents), want)


def test_what_the_forward_call_leaves_is_used(emulation, monkeypatch):
    """By spoiling the keys in it, which lie behind the records: the backward call then believes
    that every surfel was hidden. Bands of rows, which there are only where the order of additions
    is fixed, need more than is kept."""
    case = cases.random_cloud()
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    forward = native._forward_call
    keys = slice(128 * cases.COUNT, 132 * cases.COUNT)

    def spoilt(*arguments):
        drawn, kept = forward(*arguments)
        return drawn, kept.at[keys].set(255)

    monkeypatch.setattr(native, "_forward_call", spoilt)
    for kept_bytes, band_pairs, deterministic, is_used in (
        (1000, 1 << 24, True, True),
        (150, 1 << 24, True, False),
        (0, 1 << 24, True, False),
        (1000, 1, True, False),
        (1000, 1, False, True),
    ):
        emulation(band_pairs=band_pairs)
        name = f"emulation_spoilt_{kept_bytes}_{band_pairs}_{deterministic}"
        monkeypatch.setitem(
            cases.RENDERERS,
            name,
            functools.partial(_renderer_keeping(kept_bytes), deterministic=deterministic),
        )
        assert (cases.kernel_gradients(name, case, cotangents)["means"] == 0).all() == is_used


def test_gpus_keep_and_cpus_do_not(monkeypatch):
    num_surfels = 1000
    image_size = (1080, 1920)
    num_tiles = 68 * 120
    assert native._kept_bytes("cosurfgs_raster", num_surfels, image_size) == 0
    monkeypatch.setattr(native.ffi, "is_cuda", lambda: True)
    num_pairs = 12 * num_surfels + 240 * num_tiles
    assert (
        native._kept_bytes("cosurfgs_raster", num_surfels, image_size)
        > 144 * num_surfels + 8 * num_tiles + 4 * num_pairs
    )


def test_vmap_keeps_of_each_camera(emulation):
    """One view a call: each leaves its own, and each backward call gets it."""
    emulation()
    case = cases.three_cameras()
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(*case.image_size, 3)), jnp.float32)

    def gradient(camera):
        def loss(means):
            surfels = dataclasses.replace(case.surfels(), means=means)
            raw = cases.RENDERERS["emulation"](
                surfels,
                camera,
                jnp.asarray(case.background),
                None,
                image_size=case.image_size,
                near=case.near,
                sh_degree=3,
                maps="color",
                with_contributions=False,
            )
            return (raw.color * weights).sum()

        return jax.grad(loss)(jnp.asarray(case.means))

    got = jax.jit(jax.vmap(gradient))(case.camera())
    assert_same(got, jnp.stack([jax.jit(gradient)(case.view(i).camera()) for i in range(3)]))
    assert (got != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_hidden_surfel_with_a_bad_colour_is_counted(emulation_kept, value):
    """Behind the camera, beside the image, too faint: as on the CPU, though its colour is no part
    of any image.
    """
    case = cases.random_cloud(32)
    means = case.means.copy()
    logits = case.logit_opacities.copy()
    sh = case.sh.copy()
    points = np.array([[0.0, 0.0, -2.0], [50.0, 0.0, 2.0], [0.0, 0.0, 2.0], [0.0, 0.1, -1.0]])
    means[:4] = (points - cases.POSE[:3, 3]) @ cases.POSE[:3, :3]
    logits[2] = -9
    alive = case.alive.copy()
    alive[:4] = True, True, True, False
    sh[:4, -1, -1] = value
    healthy = case.replace(means=means, logit_opacities=logits, alive=alive)
    broken = healthy.replace(sh=sh)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    for backend in emulation_kept:
        got = cases.kernel_maps(backend, broken)
        want = cases.kernel_maps(backend, healthy)
        assert got.num_invalid == 3 == cases.kernel_maps("cpu", broken).num_invalid
        assert_same(got._replace(num_invalid=want.num_invalid), want)
        assert_same(
            *(cases.kernel_gradients(backend, each, cotangents) for each in (broken, healthy))
        )
