"""The CUDA rasterizer's custom calls, run on the host, against the CPU kernels.

Against them and not the definition, which is slower: test_raster_parity.py verifies those.
Rows of gradients and what the forward call leaves are in test_cuda_rows.py, errors of the calls in
test_cuda_calls.py."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_cases as cases
from emulated_calls import assert_same, cotangents_where_safe
from hostile_operands import hostile_cloud
from test_raster_parity import (
    TOLERANCE,
    TOLERANCES,
    UNDECIDED_NORMALS,
    _assert_close_gradients,
    _errors,
)

BANDS = 1 << 24  # pairs; as on a GPU


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
    sums, largest, pixels, front = (
        np.abs(got.contributions - want.contributions)[:, i] for i in range(4)
    )
    assert (sums <= 1e-4 * (1 + want.contributions[:, 0]) + turned * 2 / 255).all()
    assert (largest <= 1e-4 + (turned > 0) * 2 / 255).all()
    assert (pixels <= turned).all() and (front <= turned).all()


@pytest.mark.parametrize("backend", ["emulation", "emulation_atomic"])
@pytest.mark.parametrize(
    "name", [name for name in cases.CASES if name not in (UNDECIDED_NORMALS, *cases.ORTHOGRAPHIC)]
)
def test_gradients_and_probe(emulation, backend, name):
    emulation()
    case = cases.build(name)
    cotangents = cotangents_where_safe(case)
    got, want = (cases.kernel_gradients(b, case, cotangents) for b in (backend, "cpu"))
    _assert_close_gradients(got, want, name)


def _patch_borders() -> cases.Case:
    """Surfels that end at the borders of warps' 8x8 patches, one pixel before or one behind them,
    by a twentieth of a pixel, and surfels of one pixel in all corners of the patches; an image that
    ends within tiles and patches."""
    rng = np.random.default_rng(30)
    height, width = cases.SIZE
    radius = np.sqrt(
        np.log(255 * 0.6)
    )  # where alpha is 1/255 for opacity 0.6 and the low-pass filter alone
    centers = []
    opacities = []
    for axis, size in enumerate((width, height)):
        for border in range(8, size, 8):
            # Side 1: the surfel is before the border and ends `gap` before it; the centres of
            # pixels are at 0.5 and -0.5.
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
    return case.replace(
        means=rays * rng.uniform(1.2, 4, (count, 1)),
        log_scales=np.full((count, 2), -12.0),
        logit_opacities=cases._logit(np.array(opacities)),
    )


def test_patches_are_visited_up_to_their_borders(emulation):
    """Every pixel and surfel gets what the CPU gives it: which patches a surfel touches is right to
    the pixel.
    """
    emulation()
    case = _patch_borders()
    _, margins = cases.reference_maps(case)
    assert (margins > cases.SAFE_MARGIN).all(), (
        "the surfels must not end at pixels' centres to within rounding"
    )
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    for name, error in _errors(got, want).items():
        assert error.max() < TOLERANCE, name
    np.testing.assert_array_equal(got.contributions[:, 2:], want.contributions[:, 2:])
    pixels = want.contributions[:, 2]
    assert (pixels == 1).sum() >= 90 and (pixels > 10).sum() >= 30, (
        "too few of either kind are seen"
    )
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    _assert_close_gradients(
        *(cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu")),
        "borders",
    )


@pytest.mark.parametrize("backend", ["emulation", "emulation_atomic"])
@pytest.mark.parametrize(
    "maps, wanted",
    [
        ("color", cases.FLOAT_MAPS[:2]),
        ("geometry", cases.FLOAT_MAPS[:6]),
        ("all", cases.FLOAT_MAPS),
    ],
)
def test_without_a_probe_the_gradients_are_the_same(emulation, backend, maps, wanted):
    """Other kernels, which leave the absolute gradients out."""
    emulation()
    case = cases.build("random_cloud")
    cotangents = {
        name: value for name, value in cotangents_where_safe(case).items() if name in wanted
    }

    def loss(floats, probe):
        raw = cases.RENDERERS[backend](
            dataclasses.replace(case.surfels(), **floats),
            case.camera(),
            jnp.asarray(case.background),
            probe,
            image_size=case.image_size,
            near=case.near,
            sh_degree=3,
            maps=maps,
            with_contributions=False,
        )
        return sum((getattr(raw, name) * cotangent).sum() for name, cotangent in cotangents.items())

    floats = {field: jnp.asarray(getattr(case, field)) for field in cases.FIELDS}
    gradient = jax.jit(jax.grad(loss))
    without = gradient(floats, None)
    with_probe = gradient(floats, jnp.zeros((cases.COUNT, 4)))
    assert all(np.abs(value).max() > 0 for value in without.values())
    assert_same(without, with_probe)


@pytest.mark.parametrize(
    "maps, wanted", [("color", cases.FLOAT_MAPS[:2]), ("geometry", cases.FLOAT_MAPS[:6])]
)
def test_fewer_maps(emulation, maps, wanted):
    emulation()
    case = cases.build("random_cloud")
    everything = cases.kernel_maps("emulation", case)
    fewer = cases.kernel_maps("emulation", case, maps)
    for name in cases.FLOAT_MAPS:
        if name in wanted:
            np.testing.assert_array_equal(getattr(fewer, name), getattr(everything, name))
        else:
            assert getattr(fewer, name) is None
    cotangents = {
        name: value for name, value in cotangents_where_safe(case).items() if name in wanted
    }
    _assert_close_gradients(
        *(
            cases.kernel_gradients(backend, case, cotangents, maps)
            for backend in ("emulation", "cpu")
        ),
        maps,
    )


@pytest.mark.parametrize("maps", ["color", "geometry", "all"])
def test_without_contributions_the_maps_are_the_same(emulation, maps):
    """Other kernels, as nothing is added up over pixels."""
    emulation()
    case = cases.build("random_cloud")
    with_them, without = (
        jax.jit(
            functools.partial(
                cases.RENDERERS["emulation"],
                image_size=case.image_size,
                near=case.near,
                sh_degree=3,
                maps=maps,
                with_contributions=with_contributions,
            )
        )(case.surfels(), case.camera(), jnp.asarray(case.background), None)
        for with_contributions in (True, False)
    )
    assert without.contributions is None
    assert_same(without, with_them._replace(contributions=None))


def test_a_batch_of_cameras(emulation):
    emulation()
    case = cases.three_cameras()
    got, want = (cases.kernel_maps(backend, case) for backend in ("emulation", "cpu"))
    for i in range(3):
        alone = cases.kernel_maps("emulation", case.view(i))
        assert_same(jax.tree.map(lambda x, i=i: x[i], got), alone)
    assert (np.abs(got.color - want.color).max(axis=-1) > 1e-4).mean() < 0.01
    keep = np.stack([cases.reference_maps(case.view(i))[1] > cases.SAFE_MARGIN for i in range(3)])
    cotangents = {
        name: np.stack([value] * 3) * keep.reshape(keep.shape + (1,) * (value.ndim - 2))
        for name, value in cases.random_cotangents(case, np.ones(case.image_size, bool)).items()
    }
    _assert_close_gradients(
        *(cases.kernel_gradients(backend, case, cotangents) for backend in ("emulation", "cpu")),
        "batch",
    )


@pytest.mark.parametrize("name", ["random_cloud", "one_tile", "opaque_stack", "ties"])
def test_results_do_not_depend_on_the_order_of_threads(emulation, name):
    """The same bits when threads, warps and blocks run backwards: nobody reads what another of its
    phase writes.
    """
    case = cases.build(name)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    results = []
    for is_reversed in (False, True):
        emulation(is_reversed=is_reversed)
        results.append(
            (
                cases.kernel_maps("emulation", case),
                cases.kernel_gradients("emulation", case, cotangents),
            )
        )
    assert_same(*results)


@pytest.mark.parametrize("name", ["random_cloud", "extreme_scales"])
def test_bands_of_gradient_rows(emulation, name):
    """With little memory the rows of gradients are made for a few rows of tiles at a time."""
    case = cases.build(name)
    cotangents = cotangents_where_safe(case)
    results = []
    for knobs in ({}, {"band_pairs": 150}, {"band_pairs": 1}):
        emulation(**knobs)
        results.append(cases.kernel_gradients("emulation", case, cotangents))
    for got in results[1:]:
        # Sums of sums: only the place of brackets differs.
        _assert_close_gradients(got, results[0], name)
    assert any((got["means"] != results[0]["means"]).any() for got in results[1:]), (
        "bands were not used"
    )


@pytest.mark.parametrize(
    "field, value", [("means", np.nan), ("sh", np.inf), ("quats", 0.0), ("log_scales", 100.0)]
)
def test_a_broken_surfel_is_as_if_dead_but_counted(emulation, field, value):
    emulation()
    case = cases.broken_cloud(field, value)
    alive = case.alive.copy()
    alive[cases.BROKEN] = False
    healed = cases.random_cloud().replace(alive=alive)
    got = cases.kernel_maps("emulation", case)
    want = cases.kernel_maps("emulation", healed)
    assert got.num_invalid == 1 and want.num_invalid == 0
    assert_same(got._replace(num_invalid=want.num_invalid), want)
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    assert_same(*(cases.kernel_gradients("emulation", c, cotangents) for c in (case, healed)))


@pytest.mark.parametrize("seed", range(12))
def test_hostile_operands_give_finite_numbers(emulation, seed):
    emulation()
    case = hostile_cloud(seed)
    got = cases.kernel_maps("emulation", case)
    assert all(np.isfinite(x).all() for x in got)
    assert got.num_invalid == cases.kernel_maps("cpu", case).num_invalid
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool), seed)
    gradients = cases.kernel_gradients("emulation", case, cotangents)
    assert all(np.isfinite(x).all() for x in gradients.values())
