"""What removing each surfel changes: the definition against pictures drawn without them, and every
kernel that sums it up against the definition in float64.

Elsewhere: the estimate from derivatives is in tests/component/test_importance.py.
"""

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
from emulated_calls import assert_same
from hostile_operands import hostile_cloud
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import (
    RasterOptions,
    native,
    reference,
    reference_removal,
    removal_effects,
)
from cosurfgs_jax.raster.options import Maps, Static

# |error| <= TOLERANCE * (FLOOR + |reference|): four times the largest that was measured.
TOLERANCE = 4e-4
FLOOR = 1e-3
FEWER = ("random_cloud", "near_plane", "dilated", "opaque_stack", "one_tile", "parallel_cloud")


def static_of(case: cases.Case, targets: str = "cosurfgs_raster") -> Static:
    """What a program for the case is specialised to."""
    return Static(
        *case.image_size,
        near=case.near,
        sh_degree=case.sh_degree,
        maps=Maps.COLOR,
        with_contributions=False,
        orthographic=case.projection == "orthographic",
        low_pass=case.low_pass,
        targets=targets,
    )


_definition = jax.jit(reference_removal.removal_effects, static_argnums=0)
_native = jax.jit(native.removal_effects, static_argnums=0)


def by_definition(case: cases.Case) -> np.ndarray:
    """f64[N,2] of one view."""
    with jax.enable_x64(True):
        return np.asarray(_definition(static_of(case), *cases._operands(case, np.float64)))


def by_kernel(case: cases.Case, targets: str = "cosurfgs_raster") -> np.ndarray:
    """f32[N,2] of one view."""
    operands = (case.surfels(), case.camera(), jnp.asarray(case.background))
    return np.asarray(_native(static_of(case, targets), *operands))


def assert_close(got: np.ndarray, case: cases.Case, label: str) -> None:
    """As the definition; a pixel where rounding turns a decision moves the sums by a little."""
    want = by_definition(case)
    assert np.isfinite(got).all() and got.shape == want.shape and (got >= 0).all()
    turned = (cases.reference_maps(case)[1] <= cases.SAFE_MARGIN).sum()
    bound = TOLERANCE * (FLOOR + want) + turned * np.array([2 / 255, 1e-3])
    assert (np.abs(got - want) <= bound).all(), label
    assert want.size == 0 or np.median(np.abs(got - want) / (FLOOR + want)) < 1e-5, label


# The definition
# ---------------------------------------------------------------------------


def _few(case: cases.Case, count: int = 40) -> cases.Case:
    fields = {name: getattr(case, name)[:count] for name in (*cases.FIELDS, "alive")}
    return case.replace(**fields)


def _one_by_one(case: cases.Case) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared changes f64[N] of pictures without each surfel, and the picture's rest of
    light.
    """
    with jax.enable_x64(True):
        surfels, camera, background = cases._operands(case, np.float64)
        options = static_of(case)

        @jax.jit
        def draw(alive):
            return reference.render(
                surfels.replace(alive=alive),
                camera,
                background,
                image_size=case.image_size,
                near=options.near,
                sh_degree=options.sh_degree,
                projection=case.projection,
                low_pass=options.low_pass,
            )

        whole = draw(surfels.alive)
        changes = [
            np.square(draw(surfels.alive.at[i].set(False)).color - whole.color).sum()
            for i in range(len(case.means))
        ]
        return np.array(changes), np.asarray(whole.transmittance)


@pytest.mark.parametrize("name", ["random_cloud", "dilated", "parallel_cloud"])
def test_where_no_pixel_stops_it_is_the_change_of_the_picture(name):
    case = _few(cases.build(name))
    truth, transmittance = _one_by_one(case)
    assert transmittance.min() > 0.011, "a pixel may have stopped"
    sums = by_definition(case)
    np.testing.assert_allclose(sums[:, 1], truth, rtol=1e-9, atol=1e-12)
    assert (truth > 0.01).sum() > 15
    weights = cases.reference_maps(case)[0].contributions[:, 0]
    np.testing.assert_allclose(sums[:, 0], weights, rtol=1e-12, atol=1e-12)


def test_what_lies_behind_the_last_hit_is_the_hit_that_stopped_the_pixel():
    """Walls of as good as opaque surfels: without the first the second is seen, which was not drawn
    with it.
    """
    case = _few(cases.opaque_stack())
    case = case.replace(logit_opacities=np.full(40, 9.0))
    truth, transmittance = _one_by_one(case)
    stopped = (transmittance < 0.011).mean()
    assert stopped > 0.9
    effects = by_definition(case)[:, 1]
    # A change is off by less than 0.01 times the contrast, in three channels of each pixel.
    contrast = 2 * np.abs(cases.reference_maps(case)[0].color).max()
    bound = 0.01 * contrast * np.sqrt(3 * np.prod(case.image_size))
    assert (np.abs(np.sqrt(effects) - np.sqrt(truth)) <= bound).all()
    assert abs(effects.sum() / truth.sum() - 1) < 0.01
    assert (truth > 1).sum() > 3


# The kernels
# ---------------------------------------------------------------------------


@pytest.fixture(params=["cosurfgs_raster", "emulated_raster"])
def targets(request):
    """The CPU kernel, and that for GPUs on the host."""
    if request.param == "emulated_raster":
        request.getfixturevalue("emulation")()
    return request.param


@pytest.mark.parametrize("name", cases.CASES)
def test_the_kernel_sums_up_the_definition(targets, name):
    case = cases.build(name)
    assert_close(by_kernel(case, targets), case, name)


@pytest.mark.parametrize("field, value", cases.BAD_NUMBERS)
def test_a_broken_surfel_is_as_if_dead(targets, field, value):
    case = cases.broken_cloud(field, value)
    alive = case.alive.copy()
    alive[cases.BROKEN] = False
    whole, healed = (cases.random_cloud().replace(alive=x) for x in (case.alive, alive))
    got = by_kernel(case, targets)
    assert (by_kernel(whole, targets)[cases.BROKEN] > 0.01).all()
    assert (got[cases.BROKEN] == 0).all()
    np.testing.assert_array_equal(got, by_kernel(healed, targets))


@pytest.mark.parametrize("seed", range(12))
def test_hostile_operands_have_finite_effects(targets, seed):
    got = by_kernel(hostile_cloud(seed), targets)
    assert np.isfinite(got).all() and (got >= 0).all()


def test_what_no_camera_sees_changes_nothing(targets):
    case = cases.random_cloud()
    behind = case.replace(means=case.means - 100 * case.camera_from_world[2, :3])
    assert (by_kernel(behind, targets) == 0).all()


@pytest.mark.parametrize("name", ["random_cloud", "one_tile", "opaque_stack"])
def test_effects_do_not_depend_on_the_order_of_threads(emulation, name):
    case = cases.build(name)
    results = []
    for is_reversed in (False, True):
        emulation(is_reversed=is_reversed)
        results.append(by_kernel(case, "emulated_raster"))
    assert_same(*results)


def test_a_pixel_takes_as_many_hits_as_one_can(targets):
    """10,000 faint surfels over one pixel: as many hits as are noted at most."""
    count = 10_000
    case = cases.random_cloud(
        5, count, image_size=(1, 1), intrinsics=cases.intrinsics(1, 1, 0.5, 0.5)
    )
    case = case.replace(
        log_scales=np.full((count, 2), 3.0),
        logit_opacities=cases._logit(np.full(count, 1.01 / 255)),
        alive=np.ones(count, bool),
    )
    got = by_kernel(case, targets)
    assert 2200 < (got[:, 0] > 0).sum() < 2400
    assert_close(got, case, "one pixel")


def test_transformations_of_jax_change_no_bit():
    """vmap and several devices: each cloud gets what it gets alone."""
    clouds = [cases.random_cloud(seed) for seed in (0, 8, 9, 12)]
    options = RasterOptions(near=clouds[0].near, background=0.3)
    camera = clouds[0].camera()

    def measure(surfels):
        return removal_effects(surfels, camera, cases.SIZE, options)

    alone = [jax.jit(measure)(cloud.surfels()) for cloud in clouds]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(cloud.surfels() for cloud in clouds))
    want = jax.tree.map(lambda *x: np.stack(x), *alone)
    assert want.effects.max() > 1
    assert_same(jax.jit(jax.vmap(measure))(stacked), want)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def own(surfels):
        one = measure(jax.tree.map(lambda x: x[0], surfels))
        return jax.tree.map(lambda x: x[None], one)

    sharded = jax.shard_map(own, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    assert_same(jax.jit(sharded)(stacked), want)


def test_backends_say_whether_they_know():
    """The definition is a backend's, too; plain JAX by tiles has no accumulator."""
    case = cases.random_cloud()
    measure = functools.partial(removal_effects, case.surfels(), case.camera(), cases.SIZE)
    options = functools.partial(RasterOptions, near=case.near)
    assert measure(options(backend="portable")) is None
    exact, want = (jax.jit(lambda b=b: measure(options(backend=b)))() for b in ("cpu", "reference"))
    for got, expected in zip(exact, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_effects_are_of_one_view_and_have_no_gradient(backend):
    case = cases.random_cloud()
    camera = case.camera()
    options = RasterOptions(near=case.near, backend=backend)

    def total(means):
        surfels = case.surfels().replace(means=means)
        return removal_effects(surfels, camera, cases.SIZE, options).effects.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(case.surfels().means)
    assert value > 0 and not np.asarray(gradient).any()
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), camera)
    with pytest.raises(InputError, match=r"camera: expected one view, .* got \(2, 4, 4\)"):
        removal_effects(case.surfels(), two, cases.SIZE, options)


# Other instruction sets
# ---------------------------------------------------------------------------

CHILD = """
import os, sys
os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
import numpy as np
from test_removal import FEWER, by_kernel, cases
from cosurfgs_jax.native import ffi
results = {name: by_kernel(cases.build(name)) for name in FEWER}
np.savez(sys.argv[2], instruction_set=ffi.cpu_instruction_set(), **results)
"""


def _run_variant(instruction_set: str, cores: list[int], path) -> dict[str, np.ndarray]:
    environment = {
        **os.environ,
        "COSURFGS_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    listed = ",".join(map(str, cores))
    subprocess.run([sys.executable, "-c", CHILD, listed, path], check=True, env=environment)
    with np.load(path) as results:
        return dict(results)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set here"
)
def test_every_compiled_instruction_set_and_fewer_threads(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    results = {
        name: _run_variant(name, cores, tmp_path / f"{name}.npz") for name in ("baseline", "v3")
    }
    assert str(results["baseline"]["instruction_set"]) == "baseline"
    for instruction_set, got in results.items():
        for name in FEWER:
            assert_close(got[name], cases.build(name), f"{name} {instruction_set}")
    assert_same(_run_variant("v3", cores[:1], tmp_path / "one.npz"), results["v3"])
