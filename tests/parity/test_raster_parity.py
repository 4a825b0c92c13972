"""Every kernel against the plain definition in float64: values, gradients, broken inputs.

Two tiers. Pixels whose decisions are further than SAFE_MARGIN from their thresholds must agree
closely. At the others rounding may turn a decision: how many turn, and by how much they change the
image, is bounded.

Tolerances are about four times the largest errors measured with AVX-512. The reference in float32
errs by as much, so they are the price of float32 and not of the kernels.
"""

import dataclasses
import functools
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_cases as cases
from hostile_operands import hostile_cloud

from cosurfgs_jax import rasterize
from cosurfgs_jax.raster import binning
from cosurfgs_jax.raster.outputs import RawMaps, finish
from cosurfgs_jax.types import Camera

# |error| <= TOLERANCE * (1 + |reference|). Most cases are at 1e-5, the exceptions cancel:
# coordinates far from the principal point (with parallel rays in the plane distance, too), and
# discs that are a thousand times larger than the view.
TOLERANCE = 1e-4
TOLERANCES = {"far_crop": 3e-4, "parallel_far_tile": 1e-3, "extreme_scales": 4e-4}

# Gradients: error of a whole field relative to its norm, of each surfel relative to its own norm
# (plus a thousandth of the typical one), and the same for the better half of the surfels. Single
# surfels seen nearly edge-on are the worst.
FIELD_TOLERANCE = 1e-3
SURFEL_TOLERANCE = 4e-2
MEDIAN_TOLERANCE = 6e-5

# The direction of the normal is rounding itself.
UNDECIDED_NORMALS = "exactly_edge_on"


@pytest.fixture(params=cases.BACKENDS)
def backend(request):
    cases.require(request.param)
    return request.param


def _errors(got: RawMaps, want: RawMaps) -> dict[str, np.ndarray]:
    """Per map [H,W], |error| / (1 + |reference|), the largest of the channels."""
    errors = {}
    for name in cases.FLOAT_MAPS:
        error = np.abs(getattr(got, name) - getattr(want, name)) / (1 + np.abs(getattr(want, name)))
        errors[name] = error if error.ndim == 2 else error.max(axis=-1)
    return errors


@pytest.mark.parametrize("name", cases.CASES)
def test_forward(backend, name):
    case = cases.build(name)
    want, margins = cases.reference_maps(case)
    got = cases.kernel_maps(backend, case)
    assert got.num_invalid == want.num_invalid == 0
    safe = margins > cases.SAFE_MARGIN
    assert safe.mean() > 0.6, "too few pixels are left to compare"
    errors = _errors(got, want)
    if name == UNDECIDED_NORMALS:
        errors.pop("normal_sum")
    tolerance = TOLERANCES.get(name, TOLERANCE)
    for map_name, error in errors.items():
        assert np.isfinite(error).all(), map_name
        assert error[safe].max() < tolerance, map_name
    flips = ~safe & (np.stack(list(errors.values())).max(axis=0) >= tolerance)
    assert flips.sum() <= 0.5 * (~safe).sum()
    # A hit at the alpha threshold weighs 1/255; a pixel of the hard case has several of them.
    largest = np.abs(want.color).max()
    assert errors["transmittance"].max() < 4 / 255
    assert errors["color"].max() < 4 / 255 * (1 + largest)


@pytest.mark.parametrize("name", cases.CASES)
def test_contributions(backend, name):
    case = cases.build(name)
    want, margins = cases.reference_maps(case)
    got = cases.kernel_maps(backend, case)
    near_decisions = (margins <= cases.SAFE_MARGIN).sum()
    sums, largest, pixels, front = (
        np.abs(got.contributions - want.contributions)[:, i] for i in range(4)
    )
    assert (sums <= 1e-4 * (1 + want.contributions[:, 0]) + near_decisions * 2 / 255).all()
    assert (largest <= 1e-4 + (near_decisions > 0) * 2 / 255).all()
    assert (pixels <= near_decisions).all() and (front <= near_decisions).all()
    # The weights of all surfels are what the background does not get.
    np.testing.assert_allclose(
        got.contributions[:, 0].sum(), (1 - got.transmittance).sum(), rtol=1e-4, atol=1e-4
    )


def _assert_close_gradients(got, want, where):
    # Some gradients are zero but for rounding (of the median depth by scales): what counts is the
    # largest field's size.
    floor = 1e-6 * max(np.linalg.norm(reference) for reference in want.values())
    for field, reference in want.items():
        value = got[field]
        assert value.shape == reference.shape and np.isfinite(value).all(), (where, field)
        error = np.linalg.norm(value - reference)
        norm = np.linalg.norm(reference)
        assert error <= FIELD_TOLERANCE * norm + floor, (where, field, error, norm)
        if field not in cases.FIELDS or norm <= floor / FIELD_TOLERANCE:
            continue
        rows = [
            np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (value - reference, reference)
        ]
        relative = rows[0] / (rows[1] + 1e-3 * np.sqrt((rows[1] ** 2).mean()))
        assert relative.max() <= SURFEL_TOLERANCE, (where, field, relative.argmax(), relative.max())
        assert np.median(relative) <= MEDIAN_TOLERANCE, (where, field, np.median(relative))


@functools.cache
def _reference_gradients(name):
    """(maps, cotangents, gradients) of a case by the definition, once for all backends."""
    case = cases.build(name)
    _, margins = cases.reference_maps(case)
    cotangents = cases.random_cotangents(case, margins > cases.SAFE_MARGIN)
    zero = {map_name: np.zeros_like(value) for map_name, value in cotangents.items()}
    one_by_one = (
        [] if name == "one_tile" else [[map_name] for map_name in cases.FLOAT_MAPS]
    )  # 10,000 steps each
    found = []
    for chosen in (*one_by_one, cases.FLOAT_MAPS):
        some = zero | {map_name: cotangents[map_name] for map_name in chosen}
        found.append((chosen, some, cases.reference_gradients(case, some)))
    return found


@pytest.mark.parametrize(
    "name", [name for name in cases.CASES if name not in (UNDECIDED_NORMALS, *cases.ORTHOGRAPHIC)]
)
def test_gradient(backend, name):
    """Each map by itself, to every field, the pose and the background; then all maps together."""
    for chosen, cotangents, want in _reference_gradients(name):
        got = cases.kernel_gradients(backend, cases.build(name), cotangents)
        _assert_close_gradients(got, want, chosen)


@pytest.mark.parametrize(
    "maps, wanted", [("color", cases.FLOAT_MAPS[:2]), ("geometry", cases.FLOAT_MAPS[:6])]
)
def test_fewer_maps_are_the_same_maps(backend, maps, wanted):
    case = cases.build("random_cloud")
    everything = cases.kernel_maps(backend, case)
    fewer = cases.kernel_maps(backend, case, maps)
    for name in cases.FLOAT_MAPS:
        if name in wanted:
            np.testing.assert_array_equal(getattr(fewer, name), getattr(everything, name))
        else:
            assert getattr(fewer, name) is None
    _, margins = cases.reference_maps(case)
    cotangents = cases.random_cotangents(case, margins > cases.SAFE_MARGIN)
    cotangents = {name: cotangents[name] for name in wanted}
    _assert_close_gradients(
        cases.kernel_gradients(backend, case, cotangents, maps),
        cases.reference_gradients(case, cotangents),
        maps,
    )


@pytest.mark.parametrize(
    "name", ["random_cloud", "edge_on", "near_plane", "opaque_stack", "extreme_scales"]
)
def test_gradient_probe(backend, name):
    case = cases.build(name)
    _, margins = cases.reference_maps(case)
    cotangents = cases.random_cotangents(case, margins > cases.SAFE_MARGIN)
    want = cases.reference_probe(case, cotangents)
    got = cases.kernel_gradients(backend, case, cotangents)["probe"]
    assert (want[:, 2:] > 2 * np.abs(want[:, :2])).any(), (
        "signed and absolute sums must differ for the test to tell"
    )
    for columns in (slice(0, 2), slice(2, 4)):
        error = np.linalg.norm(got[:, columns] - want[:, columns], axis=1)
        size = np.linalg.norm(want[:, 2:], axis=1)
        assert (error <= 1e-3 * (size + 1e-3 * size.mean())).all()


def test_gradient_by_finite_differences(backend):
    """The kernel by itself: its values, moved along its own gradient's random directions, change as
    it says.
    """
    case = cases.build("random_cloud")
    # Smooth maps only, and pixels that stay clear of decisions while the argument moves.
    _, margins = cases.reference_maps(case)
    assert (margins > 0.03).mean() > 0.6
    cotangents = cases.random_cotangents(case, margins > 0.03)
    smooth = ("color", "transmittance", "normal_sum")
    # Zeros for the other maps: the program is that of test_gradient.
    cotangents = {
        name: value if name in smooth else np.zeros_like(value)
        for name, value in cotangents.items()
    }
    gradients = cases.kernel_gradients(backend, case, cotangents)

    def loss(changed):
        maps = cases.kernel_maps(backend, changed)
        return sum(
            (getattr(maps, name).astype(np.float64) * cotangents[name]).sum() for name in smooth
        )

    for field in (*cases.FIELDS, "camera_from_world", "background"):
        gradient = gradients[field].astype(np.float64)
        value = getattr(case, field)
        # Up the gradient by what changes the loss by 0.01: a thousand times the rounding of its
        # sum.
        step = 0.005 / (gradient**2).sum() * gradient
        ends = [(value + sign * step).astype(np.float32) for sign in (1, -1)]
        difference = loss(case.replace(**{field: ends[0]})) - loss(case.replace(**{field: ends[1]}))
        expected = (gradient * (ends[0].astype(np.float64) - ends[1])).sum()
        np.testing.assert_allclose(difference, expected, rtol=0.02, err_msg=field)


@pytest.mark.parametrize("name", ["parallel_cloud", "parallel_far_tile"])
def test_finished_maps_of_parallel_rays(backend, name):
    case = cases.build(name)
    raw, margins = cases.reference_maps(case)
    got = jax.tree.map(
        np.asarray, rasterize(case.surfels(), case.camera(), **case.options(), backend=backend)
    )
    with jax.enable_x64(True):
        camera = Camera(
            jnp.asarray(case.camera_from_world, jnp.float64),
            jnp.asarray(case.intrinsics, jnp.float64),
        )
        want = jax.tree.map(
            np.asarray, finish(jax.tree.map(jnp.asarray, raw), camera, "orthographic")
        )
    assert want.is_plane_depth_valid.mean() > 0.1
    keep = (
        (margins > cases.SAFE_MARGIN)
        & (want.alpha > 0.02)
        & (want.is_plane_depth_valid == got.is_plane_depth_valid)
    )
    assert keep.mean() > 0.5
    for map_name in (
        "color",
        "alpha",
        "depth",
        "median_depth",
        "plane_depth",
        "normal",
        "distortion",
    ):
        np.testing.assert_allclose(
            getattr(got, map_name)[keep],
            getattr(want, map_name)[keep],
            rtol=1e-3,
            atol=2e-4,
            err_msg=map_name,
        )


@pytest.mark.parametrize("name", ["random_cloud", "near_plane", "off_centre"])
def test_finished_maps_and_their_gradient(backend, name):
    """What `rasterize` returns, against the same finish of the float64 sums."""
    case = cases.build(name)
    raw, margins = cases.reference_maps(case)
    options = {**case.options(), "backend": backend}
    got = jax.tree.map(
        np.asarray, jax.jit(lambda s, c: rasterize(s, c, **options))(case.surfels(), case.camera())
    )
    with jax.enable_x64(True):
        camera = Camera(
            jnp.asarray(case.camera_from_world, jnp.float64),
            jnp.asarray(case.intrinsics, jnp.float64),
        )
        want, pullback = jax.vjp(
            lambda raw, pose: finish(raw, Camera(pose, camera.intrinsics)),
            jax.tree.map(jnp.asarray, raw),
            camera.camera_from_world,
        )
        want = jax.tree.map(np.asarray, want)
    # Quotients are compared where their denominators are not small, and validity where it is not a
    # toss-up.
    safe = (margins > cases.SAFE_MARGIN) & (want.alpha > 0.02)
    harmonize_exposure = want.is_plane_depth_valid == got.is_plane_depth_valid
    assert (harmonize_exposure | (np.abs(want.alpha - 0.5) < 1e-4) | ~safe).mean() > 0.998
    assert want.is_plane_depth_valid.mean() > 0.1
    names = ("color", "alpha", "depth", "median_depth", "plane_depth", "normal", "distortion")
    for map_name in names:
        keep = safe & harmonize_exposure
        np.testing.assert_allclose(
            getattr(got, map_name)[keep],
            getattr(want, map_name)[keep],
            rtol=1e-3,
            atol=1e-4,
            err_msg=map_name,
        )
    rng = np.random.default_rng(0)
    steady = safe & harmonize_exposure & (want.plane_depth < 20)
    keep = {m: steady.reshape(steady.shape + (1,) * (getattr(want, m).ndim - 2)) for m in names}
    cotangents = {m: rng.normal(size=getattr(want, m).shape) * keep[m] for m in names}
    with jax.enable_x64(True):
        zeros = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype if x.dtype == np.float64 else jax.dtypes.float0),
            want,
        )
        raw_cotangents, pose_gradient = pullback(
            zeros.__class__(
                **{
                    **{f: getattr(zeros, f) for f in zeros.__dataclass_fields__},
                    **{m: jnp.asarray(c) for m, c in cotangents.items()},
                }
            )
        )
    expected = cases.reference_gradients(
        case, {m: np.asarray(getattr(raw_cotangents, m)) for m in cases.FLOAT_MAPS}
    )
    expected["camera_from_world"] = expected["camera_from_world"] + np.asarray(pose_gradient)

    def loss(surfels, camera):
        out = rasterize(surfels, camera, **options)
        return sum(
            (getattr(out, m) * jnp.asarray(c, jnp.float32)).sum() for m, c in cotangents.items()
        )

    grad_surfels, grad_camera = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(
        case.surfels(), case.camera()
    )
    gradients = {field: np.asarray(getattr(grad_surfels, field)) for field in cases.FIELDS}
    gradients["camera_from_world"] = np.asarray(grad_camera.camera_from_world)
    expected.pop("background")
    _assert_close_gradients(gradients, expected, "finished")


# Inputs that are broken
# ---------------------------------------------------------------------------


def _assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("field, value", cases.BAD_NUMBERS)
def test_a_broken_surfel_is_as_if_dead_but_counted(backend, field, value):
    case = cases.broken_cloud(field, value)
    alive = case.alive.copy()
    alive[cases.BROKEN] = False
    healed = cases.random_cloud().replace(alive=alive)
    whole = cases.kernel_maps(backend, cases.random_cloud().replace(alive=case.alive))
    assert whole.contributions[cases.BROKEN, 2] > 20, (
        "the surfel must be visible before it is broken"
    )
    got = cases.kernel_maps(backend, case)
    want = cases.kernel_maps(backend, healed)
    assert got.num_invalid == 1 and want.num_invalid == 0
    _assert_same(got._replace(num_invalid=want.num_invalid), want)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    gradients = cases.kernel_gradients(backend, case, cotangents)
    assert all((gradients[name][cases.BROKEN] == 0).all() for name in (*cases.FIELDS, "probe"))
    _assert_same(gradients, cases.kernel_gradients(backend, healed, cotangents))


def test_dead_surfels_may_hold_anything(backend):
    case = cases.random_cloud()
    dead = ~case.alive
    assert dead.sum() >= 3
    filled = {}
    for field in cases.FIELDS:
        filled[field] = getattr(case, field).copy()
        filled[field][dead] = np.nan
    got = cases.kernel_maps(backend, case.replace(**filled))
    _assert_same(got, cases.kernel_maps(backend, case))
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    gradients = cases.kernel_gradients(backend, case.replace(**filled), cotangents)
    assert all((gradients[name][dead] == 0).all() for name in cases.FIELDS)
    _assert_same(gradients, cases.kernel_gradients(backend, case, cotangents))


@pytest.mark.parametrize(
    "field, value, is_counted",
    [
        ("log_scales", 100.0, True),
        ("log_scales", 45.0, True),
        ("log_scales", 20.0, False),
        ("log_scales", -200.0, False),
        ("means", 1e20, True),
        ("means", -1e20, True),
        ("means", 3e38, True),
        ("means", 1e8, False),
        ("means", -1e8, False),
        ("logit_opacities", 1e4, False),
        ("logit_opacities", -1e4, False),
        ("logit_opacities", 1e7, True),
        ("logit_opacities", -3e38, True),
        ("sh", 1e5, False),
        ("sh", -1e6, True),
        ("sh", 3e38, True),
        ("quats", 1e-12, False),
        ("quats", 1e12, False),
        ("quats", 1e-13, True),
        ("quats", 1e-30, True),
        ("quats", 1e30, None),
    ],
)
def test_finite_extremes_stay_finite(backend, field, value, is_counted):
    """Numbers whose powers leave float32's range: drawn, skipped or counted, but no NaN and no
    infinity comes out.
    """
    case = cases.random_cloud()
    array = getattr(case, field).copy()
    array[cases.BROKEN] = (
        value * np.array([1, 0.5, -0.25, 0.125])[: array[0].size] if field == "quats" else value
    )
    case = case.replace(**{field: array}, alive=np.ones(cases.COUNT, bool))
    got = cases.kernel_maps(backend, case)
    assert all(np.isfinite(x).all() for x in got)
    if is_counted is not None:
        assert got.num_invalid == int(is_counted)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    assert all(
        np.isfinite(x).all() for x in cases.kernel_gradients(backend, case, cotangents).values()
    )


@pytest.mark.parametrize("seed", range(12))
def test_hostile_operands_give_finite_numbers(backend, seed):
    """Everything extreme at once, in values that are finite; kernel and definition skip the same
    number of surfels.
    """
    case = hostile_cloud(seed)
    got = cases.kernel_maps(backend, case)
    assert all(np.isfinite(x).all() for x in got)
    definition, _ = cases.reference_maps(case, np.float32)
    assert got.num_invalid == definition.num_invalid
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool), seed)
    gradients = cases.kernel_gradients(backend, case, cotangents)
    assert all(np.isfinite(x).all() for x in gradients.values())
    assert any(gradients[name].any() for name in cases.FIELDS), "nothing was drawn"


def test_exactly_edge_on_surfels_have_finite_gradients(backend):
    case = cases.build(UNDECIDED_NORMALS)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    assert all(
        np.isfinite(x).all() for x in cases.kernel_gradients(backend, case, cotangents).values()
    )


# Other instruction sets
# ---------------------------------------------------------------------------

CHOSEN = ("random_cloud", "near_plane", "extreme_scales", "opaque_stack", "ties", "parallel_cloud")
CHILD = """
import sys
import numpy as np
import raster_cases as cases
with np.load(sys.argv[1]) as keep:
    keep = dict(keep)
results = {}
for name in keep:
    case = cases.build(name)
    maps = cases.kernel_maps("cpu", case)
    gradients = {}
    if name not in cases.ORTHOGRAPHIC:
        gradients = cases.kernel_gradients("cpu", case, cases.random_cotangents(case, keep[name]))
    for field, value in {**maps._asdict(), **gradients}.items():
        results[f"{name}/{field}"] = value
from cosurfgs_jax.native import ffi
np.savez(sys.argv[2], instruction_set=ffi.cpu_instruction_set(), **results)
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set here"
)
@pytest.mark.parametrize("instruction_set", ["baseline", "v3"])
def test_every_compiled_instruction_set(instruction_set, tmp_path):
    """The kernels for older machines, in a process that is told to use them (v3 where this machine
    has it).
    """
    margins = {name: cases.reference_maps(cases.build(name))[1] for name in CHOSEN}
    keep = {name: margin > cases.SAFE_MARGIN for name, margin in margins.items()}
    np.savez(tmp_path / "keep.npz", **keep)
    environment = {
        **os.environ,
        "COSURFGS_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "keep.npz", tmp_path / "out.npz"],
        check=True,
        env=environment,
    )
    with np.load(tmp_path / "out.npz") as results:
        assert instruction_set == "v3" or str(results["instruction_set"]) == "baseline"
        for name in CHOSEN:
            got = {key.split("/")[1]: results[key] for key in results if key.startswith(name + "/")}
            case = cases.build(name)
            errors = _errors(
                RawMaps(*(got[field] for field in RawMaps._fields)), cases.reference_maps(case)[0]
            )
            for map_name, error in errors.items():
                assert error[keep[name]].max() < TOLERANCES.get(name, TOLERANCE), (name, map_name)
            if name in cases.ORTHOGRAPHIC:
                continue
            want = cases.reference_gradients(case, cases.random_cotangents(case, keep[name]))
            _assert_close_gradients(got, want, name)


# Windows of pairs
# ---------------------------------------------------------------------------


@pytest.mark.slow
def test_many_windows_are_as_one(monkeypatch):
    """The portable rasterizer, which takes the pairs of a view in windows: some thirty of them."""
    whole = cases.random_cloud()
    margins = cases.reference_maps(whole)[1]
    cotangents = cases.random_cotangents(whole, margins > cases.SAFE_MARGIN)
    want = (
        cases.kernel_maps("portable", whole),
        cases.kernel_gradients("portable", whole, cotangents),
    )
    monkeypatch.setattr(binning, "_MIN_WINDOW", 16)
    monkeypatch.setattr(binning, "_PAIRS_PER_SURFEL", 0)
    case = dataclasses.replace(
        whole, near=whole.near * (1 + 1e-6)
    )  # another program, compiled anew
    got = cases.kernel_maps("portable", case), cases.kernel_gradients("portable", case, cotangents)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max())),
        got,
        want,
    )
