"""The CUDA rasterizer's custom calls, run on the host, against the CPU kernels.

`tests/native/emulated_handlers.cc` has the text of the real calls, puts loops where a GPU has threads, and stands in for what XLA
offers on GPUs, with XLA's limits. Against the CPU's kernels and not the definition, which is slower: those are held to it in
test_raster_parity.py.
"""

import ctypes
import dataclasses
import functools
import itertools
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
import raster_cases as cases
from test_raster_parity import TOLERANCE, TOLERANCES, UNDECIDED_NORMALS, _assert_close_gradients, _errors

from cosurfgs_jax.raster import ops

ROOT = Path(__file__).parents[2]
CALL_ERRORS = (jax.errors.JaxRuntimeError, ValueError)  # the latter where JAX waits for the call when it dispatches it


class Emulation(ctypes.Structure):
    """The knobs and counters of emulated_handlers.cc."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "is_reversed", "band_pairs", "max_alignment", "address_offset", "failing_allocation", "failing_launch",
        "allocations", "launches", "largest_alignment", "refused_bytes")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Compiles the emulation, makes its targets known, and adds it to the renderers."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler; apt-get install g++")
    path = tmp_path_factory.mktemp("emulation") / "libemulated.so"
    native = ROOT / "tests" / "native"
    subprocess.run([compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread",
                    "-DCOSURFGS_CUDA_CONTENT=\"machine code of 8.0\"", "-I", native / "cuda_stub",
                    "-I", ROOT / "cosurfgs_jax" / "raster" / "native", "-isystem", Path(jaxlib.__file__).parent / "include",
                    native / "emulated_handlers.cc", "-o", path], check=True)
    library = ctypes.CDLL(str(path))
    for target, symbol in (("forward", "EmulatedRasterForward"), ("backward", "EmulatedRasterBackward")):
        jax.ffi.register_ffi_target(f"emulated_raster_{target}", jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    renderers = {"emulation": {}, "emulation_atomic": {"deterministic": False}, "emulation_alone": {"kept_bytes": 0}}
    for name, options in renderers.items():
        cases.RENDERERS[name] = functools.partial(ops.render, targets="emulated_raster", **options)
    yield library
    for name in renderers:
        del cases.RENDERERS[name]


@pytest.fixture
def emulation(library):
    """Sets knobs of the emulation, all others as they were, and returns them together with the counters."""
    knobs = Emulation.in_dll(library, "emulation")
    untouched = {name: getattr(knobs, name) for name, _ in Emulation._fields_}

    def configure(**wanted):
        for name, value in {**untouched, **wanted}.items():
            setattr(knobs, name, value)
        return knobs

    yield configure
    configure()


def _cotangents(case):
    _, margins = cases.reference_maps(case)
    return cases.random_cotangents(case, margins > cases.SAFE_MARGIN)


def _assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", cases.CASES)
def test_maps_and_contributions(emulation, name):
    emulation()
    case = cases.build(name)
    _, margins = cases.reference_maps(case)
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    assert got.num_invalid == want.num_invalid
    safe = margins > cases.SAFE_MARGIN
    errors = _errors(got, want)
    if name == UNDECIDED_NORMALS:
        errors.pop("normal_sum")
    for map_name, error in errors.items():
        assert np.isfinite(error).all(), map_name
        assert error[safe].max() < TOLERANCES.get(name, TOLERANCE), map_name
    assert errors["transmittance"].max() < 4 / 255
    turned = (~safe).sum()
    sums, largest, pixels, front = (np.abs(got.contributions - want.contributions)[:, i] for i in range(4))
    assert (sums <= 1e-4 * (1 + want.contributions[:, 0]) + turned * 2 / 255).all()
    assert (largest <= 1e-4 + (turned > 0) * 2 / 255).all()
    assert (pixels <= turned).all() and (front <= turned).all()


@pytest.mark.parametrize("backend", ["emulation", "emulation_atomic"])
@pytest.mark.parametrize("name", [name for name in cases.CASES if name not in (UNDECIDED_NORMALS, *cases.ORTHOGRAPHIC)])
def test_gradients_and_probe(emulation, backend, name):
    emulation()
    case = cases.build(name)
    cotangents = _cotangents(case)
    got, want = (cases.kernel_gradients(b, case, cotangents) for b in (backend, "cpu"))
    _assert_close_gradients(got, want, name)


def _patch_borders() -> cases.Case:
    """Surfels that end at the borders of warps' 8x8 patches, one pixel before or one behind them, by a twentieth of a pixel,
    and surfels of one pixel in all corners of the patches; an image that ends within tiles and patches."""
    rng = np.random.default_rng(30)
    height, width = cases.SIZE
    radius = np.sqrt(np.log(255 * 0.6))  # where alpha is 1/255 for opacity 0.6 and the low-pass filter alone
    centers, opacities = [], []
    for axis, size in enumerate((width, height)):
        for border in range(8, size, 8):
            # Side 1: the surfel is before the border and ends `gap` before it; the centres of pixels are at 0.5 and -0.5.
            for side, gap in itertools.product((1, -1), (0.55, 0.45, -0.45, -0.55)):
                along = border - side * (gap + radius)
                across = rng.integers(2, (height, width)[axis] - 2) + 0.5
                centers.append((along, across) if axis == 0 else (across, along))
                opacities.append(0.6)
    for x in range(width):
        for y in range(height):
            if {x % 8, y % 8} <= {0, 7}:
                centers.append((x + 0.6, y + 0.45))
                opacities.append(1.2 / 255)
    count = len(centers)
    slopes = (np.array(centers) - cases.intrinsics()[:2, 2]) / np.diag(cases.intrinsics())[:2]
    rays = np.concatenate([slopes, np.ones((count, 1))], axis=1)
    case = cases.random_cloud(30, count, camera_from_world=np.eye(4), alive=np.ones(count, bool))
    return case.replace(means=rays * rng.uniform(1.2, 4, (count, 1)), log_scales=np.full((count, 2), -12.0),
                        logit_opacities=cases._logit(np.array(opacities)))


def test_patches_are_visited_up_to_their_borders(emulation):
    """Every pixel and surfel gets what the CPU gives it: which patches a surfel touches is right to the pixel."""
    emulation()
    case = _patch_borders()
    _, margins = cases.reference_maps(case)
    assert (margins > cases.SAFE_MARGIN).all(), "the surfels must not end at pixels' centres to within rounding"
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    for name, error in _errors(got, want).items():
        assert error.max() < TOLERANCE, name
    np.testing.assert_array_equal(got.contributions[:, 2:], want.contributions[:, 2:])
    pixels = want.contributions[:, 2]
    assert (pixels == 1).sum() >= 90 and (pixels > 10).sum() >= 30, "too few of either kind are seen"
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    _assert_close_gradients(*(cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu")), "borders")


@pytest.mark.parametrize("backend", ["emulation", "emulation_atomic"])
@pytest.mark.parametrize("maps, wanted", [("color", cases.FLOAT_MAPS[:2]), ("geometry", cases.FLOAT_MAPS[:6]),
                                          ("all", cases.FLOAT_MAPS)])
def test_without_a_probe_the_gradients_are_the_same(emulation, backend, maps, wanted):
    """Other kernels, which leave the absolute gradients out."""
    emulation()
    case = cases.build("random_cloud")
    cotangents = {name: value for name, value in _cotangents(case).items() if name in wanted}

    def loss(floats, probe):
        raw = cases.RENDERERS[backend](
            dataclasses.replace(case.surfels(), **floats), case.camera(), jnp.asarray(case.background), probe,
            image_size=case.image_size, near=case.near, sh_degree=3, maps=maps, with_contributions=False)
        return sum((getattr(raw, name) * cotangent).sum() for name, cotangent in cotangents.items())

    floats = {field: jnp.asarray(getattr(case, field)) for field in cases.FIELDS}
    gradient = jax.jit(jax.grad(loss))
    without, with_probe = gradient(floats, None), gradient(floats, jnp.zeros((cases.COUNT, 4)))
    assert all(np.abs(value).max() > 0 for value in without.values())
    _assert_same(without, with_probe)


@pytest.mark.parametrize("maps, wanted", [("color", cases.FLOAT_MAPS[:2]), ("geometry", cases.FLOAT_MAPS[:6])])
def test_fewer_maps(emulation, maps, wanted):
    emulation()
    case = cases.build("random_cloud")
    everything, fewer = cases.kernel_maps("emulation", case), cases.kernel_maps("emulation", case, maps)
    for name in cases.FLOAT_MAPS:
        if name in wanted:
            np.testing.assert_array_equal(getattr(fewer, name), getattr(everything, name))
        else:
            assert getattr(fewer, name) is None
    cotangents = {name: value for name, value in _cotangents(case).items() if name in wanted}
    _assert_close_gradients(*(cases.kernel_gradients(backend, case, cotangents, maps) for backend in ("emulation", "cpu")), maps)


@pytest.mark.parametrize("maps", ops.MAP_LEVELS)
def test_without_contributions_the_maps_are_the_same(emulation, maps):
    """Other kernels, as nothing is added up over pixels."""
    emulation()
    case = cases.build("random_cloud")
    with_them, without = (
        jax.jit(functools.partial(cases.RENDERERS["emulation"], image_size=case.image_size, near=case.near, sh_degree=3,
                                  maps=maps, with_contributions=with_contributions))(
            case.surfels(), case.camera(), jnp.asarray(case.background), None) for with_contributions in (True, False))
    assert without.contributions is None
    _assert_same(without, with_them._replace(contributions=None))


def test_a_batch_of_cameras(emulation):
    emulation()
    case = cases.three_cameras()
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    for i in range(3):
        alone = cases.kernel_maps("emulation", case.view(i))
        _assert_same(jax.tree.map(lambda x, i=i: x[i], got), alone)
    assert (np.abs(got.color - want.color).max(axis=-1) > 1e-4).mean() < 0.01
    keep = np.stack([cases.reference_maps(case.view(i))[1] > cases.SAFE_MARGIN for i in range(3)])
    cotangents = {name: np.stack([value] * 3) * keep.reshape(keep.shape + (1,) * (value.ndim - 2))
                  for name, value in cases.random_cotangents(case, np.ones(case.image_size, bool)).items()}
    _assert_close_gradients(*(cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu")), "batch")


def _renderer_keeping(bytes_per_surfel):
    def render(surfels, *operands, **options):
        kept_bytes = bytes_per_surfel * surfels.means.shape[0]
        return ops.render(surfels, *operands, targets="emulated_raster", kept_bytes=kept_bytes, **options)

    return render


@pytest.fixture
def emulation_kept(emulation, monkeypatch):
    """Names of renderers that differ in what the forward call leaves for the backward call: nothing, too little for anything, too
    little for the lists of tiles, and all."""
    names = [f"emulation_keeping_{kept}" for kept in (0, 10, 150, 1000)]
    for name in names:
        monkeypatch.setitem(cases.RENDERERS, name, _renderer_keeping(int(name.split("_")[-1])))
    emulation()
    return names


def _sizes_of_all_kinds():
    """Surfels over all of 180 tiles, one of them through the camera's plane, beside thousands that touch one or two."""
    rng, count, size = np.random.default_rng(30), 2500, (160, 288)
    matrix = cases.intrinsics(250, 260, 140, 85)
    case = cases.random_cloud(30, count, image_size=size, intrinsics=matrix)
    log_scales = rng.uniform(-6, -4, (count, 2))
    log_scales[::400] = 1.5
    means, logits = case.means.copy(), rng.uniform(-3, 0, count)
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
    """Their rows are added up by blocks, those of the others by threads, and none of those in one tile."""
    emulation()
    case = _sizes_of_all_kinds()
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    assert (want.contributions[::400, 2] > 64 * 256).sum() > 3, "more than 64 tiles"
    np.testing.assert_allclose(got.contributions[:, :2], want.contributions[:, :2], rtol=1e-3, atol=2e-2)
    cotangents = _cotangents_where_same(case, got, want)
    want = cases.kernel_gradients("cpu", case, cotangents)
    gradients = cases.kernel_gradients("emulation", case, cotangents)
    _assert_close_gradients(gradients, want, "rows")
    _assert_close_gradients(cases.kernel_gradients("emulation_atomic", case, cotangents), want, "atomic")
    emulation(is_reversed=True)
    _assert_same(cases.kernel_gradients("emulation", case, cotangents), gradients)
    _assert_same(cases.kernel_maps("emulation", case).contributions, got.contributions)
    emulation(band_pairs=1000)
    _assert_close_gradients(cases.kernel_gradients("emulation", case, cotangents), want, "bands")


@pytest.mark.parametrize("degree, stored, count", [(0, 1, 129), (0, 16, 128), (1, 4, 300), (1, 9, 127), (2, 9, 300), (2, 16, 300),
                                                   (3, 16, 1)])
def test_degrees_of_colour_and_numbers_of_surfels(emulation, degree, stored, count):
    """A kernel for each degree; rows of 3, 12, 27 and 48 numbers; full blocks of 128 surfels, and what is left."""
    emulation()
    case = dataclasses.replace(cases.random_cloud(31, count), sh_degree=degree)
    case = case.replace(sh=case.sh[:, :stored], alive=np.ones(count, bool))
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    cotangents = _cotangents_where_same(case, got, want)
    got, want = (cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu"))
    _assert_close_gradients(got, want, f"degree {degree}")
    assert (got["sh"][:, (degree + 1) ** 2 :] == 0).all()


def test_gradients_of_views_add_up(emulation):
    """The first view writes, the others add: the same bits as the sum of gradients by view."""
    emulation()
    case = cases.three_cameras()
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    got = cases.kernel_gradients("emulation", case, {name: np.stack([value] * 3) for name, value in cotangents.items()})
    alone = [cases.kernel_gradients("emulation", case.view(i), cotangents) for i in range(3)]
    for field in (*cases.FIELDS, "probe"):
        np.testing.assert_array_equal(got[field], alone[0][field] + alone[1][field] + alone[2][field])
    np.testing.assert_array_equal(got["camera_from_world"], [view["camera_from_world"] for view in alone])


def test_no_views(emulation):
    emulation()
    case = cases.three_cameras()
    case = case.replace(camera_from_world=case.camera_from_world[:0], intrinsics=case.intrinsics[:0])
    gradients = cases.kernel_gradients("emulation", case, {"color": np.zeros((0, *case.image_size, 3))})
    assert all((gradients[field] == 0).all() for field in (*cases.FIELDS, "probe"))


@pytest.mark.parametrize("name", ["random_cloud", "one_tile", "no_surfels", "all_dead"])
def test_what_the_forward_call_leaves_changes_nothing(emulation_kept, name):
    case = cases.build(name)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    want = cases.kernel_gradients(emulation_kept[0], case, cotangents)
    for backend in (*emulation_kept, "emulation"):
        _assert_same(cases.kernel_gradients(backend, case, cotangents), want)


def test_what_the_forward_call_leaves_is_used(emulation, monkeypatch):
    """By spoiling the keys in it, which lie behind the records: the backward call then believes that every surfel was hidden."""
    emulation()
    case = cases.random_cloud()
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    forward, keys = ops._forward_call, slice(128 * cases.COUNT, 132 * cases.COUNT)

    def spoilt(*arguments):
        *out, kept = forward(*arguments)
        return *out, kept.at[keys].set(255)

    monkeypatch.setattr(ops, "_forward_call", spoilt)
    for kept_bytes, is_used in ((1000, True), (150, False), (0, False)):
        name = f"emulation_spoilt_{kept_bytes}"
        monkeypatch.setitem(cases.RENDERERS, name, _renderer_keeping(kept_bytes))
        assert (cases.kernel_gradients(name, case, cotangents)["means"] == 0).all() == is_used


def test_gpus_keep_and_cpus_do_not(monkeypatch):
    num_surfels, image_size, num_tiles = 1000, (1080, 1920), 68 * 120
    assert ops._kept_bytes("cosurfgs_raster", num_surfels, image_size) == 0
    monkeypatch.setattr(ops.ffi, "is_cuda", lambda: True)
    num_pairs = 12 * num_surfels + 240 * num_tiles
    assert ops._kept_bytes("cosurfgs_raster", num_surfels, image_size) > 144 * num_surfels + 8 * num_tiles + 4 * num_pairs


def test_vmap_keeps_of_each_camera(emulation):
    """One view a call: each leaves its own, and each backward call gets it."""
    emulation()
    case = cases.three_cameras()
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(*case.image_size, 3)), jnp.float32)

    def gradient(camera):
        def loss(means):
            surfels = dataclasses.replace(case.surfels(), means=means)
            raw = cases.RENDERERS["emulation"](surfels, camera, jnp.asarray(case.background), None, image_size=case.image_size,
                                               near=case.near, sh_degree=3, maps="color", with_contributions=False)
            return (raw.color * weights).sum()

        return jax.grad(loss)(jnp.asarray(case.means))

    got = jax.jit(jax.vmap(gradient))(case.camera())
    _assert_same(got, jnp.stack([jax.jit(gradient)(case.view(i).camera()) for i in range(3)]))
    assert (got != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_hidden_surfel_with_a_bad_colour_is_counted(emulation_kept, value):
    """Behind the camera, beside the image, too faint: as on the CPU, though its colour is no part of any image."""
    case = cases.random_cloud(32)
    means, logits, sh = case.means.copy(), case.logit_opacities.copy(), case.sh.copy()
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
        got, want = cases.kernel_maps(backend, broken), cases.kernel_maps(backend, healthy)
        assert got.num_invalid == 3 == cases.kernel_maps("cpu", broken).num_invalid
        _assert_same(got._replace(num_invalid=want.num_invalid), want)
        _assert_same(*(cases.kernel_gradients(backend, each, cotangents) for each in (broken, healthy)))


@pytest.mark.parametrize("name", ["random_cloud", "one_tile", "opaque_stack", "ties"])
def test_results_do_not_depend_on_the_order_of_threads(emulation, name):
    """The same bits when threads, warps and blocks run backwards: nobody reads what another of its phase writes."""
    case = cases.build(name)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    results = []
    for is_reversed in (False, True):
        emulation(is_reversed=is_reversed)
        results.append((cases.kernel_maps("emulation", case), cases.kernel_gradients("emulation", case, cotangents)))
    _assert_same(*results)


@pytest.mark.parametrize("name", ["random_cloud", "extreme_scales"])
def test_bands_of_gradient_rows(emulation, name):
    """With little memory the rows of gradients are made for a few rows of tiles at a time."""
    case = cases.build(name)
    cotangents = _cotangents(case)
    results = []
    for knobs in ({}, {"band_pairs": 150}, {"band_pairs": 1}):
        emulation(**knobs)
        results.append(cases.kernel_gradients("emulation", case, cotangents))
    for got in results[1:]:
        # Sums of sums: only the place of brackets differs.
        _assert_close_gradients(got, results[0], name)
    assert any((got["means"] != results[0]["means"]).any() for got in results[1:]), "bands were not used"


@pytest.mark.parametrize("field, value", [("means", np.nan), ("sh", np.inf), ("quats", 0.0), ("log_scales", 100.0)])
def test_a_broken_surfel_is_as_if_dead_but_counted(emulation, field, value):
    emulation()
    case = cases.broken_cloud(field, value)
    alive = case.alive.copy()
    alive[cases.BROKEN] = False
    healed = cases.random_cloud().replace(alive=alive)
    got, want = cases.kernel_maps("emulation", case), cases.kernel_maps("emulation", healed)
    assert got.num_invalid == 1 and want.num_invalid == 0
    _assert_same(got._replace(num_invalid=want.num_invalid), want)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    _assert_same(*(cases.kernel_gradients("emulation", c, cotangents) for c in (case, healed)))


def _calls(case):
    """The calls of a case as functions without arguments that return what they compute. The backward call either reads what the
    forward call has left or, alone, projects and bins again."""
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    return {"forward": lambda: cases.kernel_maps("emulation", case),
            "backward": lambda: cases.kernel_gradients("emulation", case, cotangents),
            "backward_alone": lambda: cases.kernel_gradients("emulation_alone", case, cotangents)}


CALLS = {"forward": 8, "backward": 4, "backward_alone": 8}  # and more pieces of memory, and launches, than this


@pytest.mark.parametrize("offset", [0, 16])
def test_scratch_memory_is_asked_for_as_xla_allows_and_aligned(emulation, offset):
    """XLA refuses to be asked for more than 16, and the kernels need 256: also where XLA's memory is only aligned to 16. The
    emulation calls it a fault where scratch memory is not aligned."""
    case = cases.build("one_tile")
    wanted = {name: call() for name, call in _calls(case).items()}
    knobs = emulation(address_offset=offset)
    for name, call in _calls(case).items():
        _assert_same(call(), wanted[name])
        assert knobs.allocations and knobs.largest_alignment == 16


def test_a_refusal_is_not_called_want_of_memory(emulation):
    emulation(max_alignment=8)
    with pytest.raises(CALL_ERRORS, match="INTERNAL: rasterize: XLA refused.*Unsupported alignment: 16"):
        _calls(cases.build("one_tile"))["forward"]()


def _failures(emulation, call, knob, counter, least):
    """The error of a call for each of the pieces of memory it asks for, or of its launches, when that one fails.

    There must be more of them than `least`."""
    knobs = emulation()
    wanted = call()
    count = getattr(knobs, counter)
    for index in range(count):
        emulation(**{knob: index})
        with pytest.raises(CALL_ERRORS) as error:
            call()
        # An error of the call, not the emulation's: nothing was launched afterwards, and all memory was given back.
        yield str(error.value), knobs, index
    emulation()
    _assert_same(call(), wanted)  # the next call works
    assert count == getattr(knobs, counter) > least


@pytest.mark.parametrize("name", CALLS)
def test_without_scratch_memory_calls_say_how_much_they_wanted(emulation, name):
    call = _calls(cases.build("one_tile"))[name]
    for message, knobs, _ in _failures(emulation, call, "failing_allocation", "allocations", CALLS[name]):
        assert f"RESOURCE_EXHAUSTED: rasterize: the GPU has no {knobs.refused_bytes} bytes left" in message
        assert "Out of memory while trying to allocate" in message, "XLA's own words"


@pytest.mark.parametrize("name", CALLS)
def test_a_failing_launch_ends_the_call(emulation, name):
    call = _calls(cases.build("one_tile"))[name]
    for message, knobs, index in _failures(emulation, call, "failing_launch", "launches", CALLS[name]):
        assert "INTERNAL: rasterize: CUDA: unspecified launch failure" in message
        assert knobs.launches == index + 1


def _problem(library, capabilities, asked=(), needed=80):
    """What cosurfgs_cuda_problem says of `asked` of a machine's GPUs, and that it leaves the present one as it was."""
    library.emulation_set_gpus((ctypes.c_int32 * len(capabilities))(*capabilities), len(capabilities), needed, 1)
    function = library.cosurfgs_cuda_problem
    function.restype = ctypes.c_char_p
    text = function((ctypes.c_int32 * len(asked))(*asked), len(asked)).decode()
    assert library.emulation_present_gpu() == 1
    return text


def test_each_gpu_is_asked_whether_it_has_kernels(library):
    assert _problem(library, [80, 90]) == ""
    old = _problem(library, [80, 90, 75])
    assert "GPU 2 (a played GPU, compute capability 7.5): no kernel image" in old and "8.0 (Ampere) or newer" in old
    assert _problem(library, [80, 90, 75], asked=[0, 1]) == ""
    new = _problem(library, [80, 120], needed=121)
    assert "GPU 0 (a played GPU, compute capability 8.0)" in new and "machine code of 8.0" in new
    assert "COSURFGS_CUDA_ARCHITECTURES=80 in" in new
    assert _problem(library, []) == "no CUDA-capable device is detected"
