"""The Pallas kernels for TPUs: in the interpreter against the native kernel, and lowered for TPUs.
None has run on a TPU.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_cases as cases
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from scenes import abstract_batch

from cosurfgs_jax import rasterize
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import backends
from cosurfgs_jax.settings import RasterSettings, Settings, SurfelSettings
from cosurfgs_jax.training.state import abstract_state
from cosurfgs_jax.training.step import StepShape, train_step

KINDS = ("TPU v5e", "TPU v6 lite")


def test_it_is_refused_where_there_is_no_tpu():
    case = cases.random_cloud()
    with pytest.raises(InputError, match="backend 'tpu' is not available: JAX computes on cpu"):
        rasterize(case.surfels(), case.camera(), **case.options(), backend="tpu")


@pytest.mark.parametrize("name", ["random_cloud", "opaque_stack"])
def test_values_and_gradients(name):
    """Against the native kernel, which is verified by the definition: the same decisions, so every
    pixel counts.
    """
    case = cases.build(name)
    _, margins = cases.reference_maps(case)
    safe = margins > cases.SAFE_MARGIN
    want = cases.kernel_maps("cpu", case)
    got = cases.kernel_maps("tpu", case)
    assert got.num_invalid == 0
    for field in cases.FLOAT_MAPS:
        np.testing.assert_allclose(
            getattr(got, field)[safe],
            getattr(want, field)[safe],
            rtol=1e-4,
            atol=1e-4,
            err_msg=field,
        )
    turned = (~safe).sum()  # a weight that is just below or above the least one may count or not
    for column, reach in enumerate((turned * 2 / 255, (turned > 0) * 2 / 255, turned, turned)):
        np.testing.assert_allclose(
            got.contributions[:, column],
            want.contributions[:, column],
            rtol=1e-3,
            atol=reach + 1e-3,
        )
    cotangents = cases.random_cotangents(case, safe)
    want, got = (cases.kernel_gradients(backend, case, cotangents) for backend in ("cpu", "tpu"))
    for field, reference in want.items():
        assert np.linalg.norm(got[field] - reference) <= 1e-3 * np.linalg.norm(reference), field


def test_an_image_whose_lists_do_not_fit_is_refused(as_on_tpus):
    """Two numbers of each tile lie in scalar memory: a picture of 8K has too many."""
    case = cases.random_cloud()
    options = {**case.options(), "image_size": (4320, 7680), "backend": "tpu"}
    with pytest.raises(
        InputError,
        match="at most .* tiles of 16 x 16 pixels, got 7680 x 4320 pixels, 129,600 tiles; set",
    ):
        jax.eval_shape(
            lambda surfels, camera: rasterize(surfels, camera, **options).color,
            case.surfels(),
            case.camera(),
        )


@contextlib.contextmanager
def _as_if_on(kind: str, num_devices: int):
    mesh = AbstractMesh(
        (num_devices,),
        ("device",),
        axis_types=(AxisType.Auto,),
        abstract_device=AbstractDevice(device_kind=kind, num_cores=1, platform="tpu"),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


@pytest.fixture
def as_on_tpus(monkeypatch):
    """The package takes what it would take on TPUs."""
    monkeypatch.setattr(backends, "why_not", lambda name: "")
    monkeypatch.setattr(ffi, "has_native", lambda *_: False)


@pytest.mark.parametrize("kind", KINDS)
def test_it_lowers_for_tpus(kind, as_on_tpus):
    """Both kernels, with all maps, the probe and contributions, inside a program that descends a
    loss.
    """
    case = cases.random_cloud()
    options = {**case.options(), "backend": "tpu", "with_contributions": True}

    def loss(surfels, camera, probe):
        out = rasterize(surfels, camera, gradient_probe=probe, **options)
        return (
            out.color.sum() + out.depth.sum() + out.plane_depth.sum() + out.distortion.sum()
        ), out.contributions

    def step(surfels, camera, probe):
        gradient, contributions = jax.grad(loss, argnums=(0, 2), allow_int=True, has_aux=True)(
            surfels, camera, probe
        )
        return surfels.means - gradient[0].means, gradient[1], contributions

    with _as_if_on(kind, 1):
        exported = jax.export.export(jax.jit(step), platforms=["tpu"])(
            case.surfels(), case.camera(), jnp.zeros((cases.COUNT, 4))
        )
    assert exported.mlir_module().count("@tpu_custom_call") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_of_two_blocks_lowers_for_two_tpus(kind, as_on_tpus):
    """The project's own step, with all losses, under shard_map: two drawings, which share the
    forward kernel before JAX 0.11, and one backward pass."""
    settings = Settings(surfels=SurfelSettings(sh_degree=1), raster=RasterSettings(backend="tpu"))
    one = abstract_state(256, 4, settings), abstract_batch((32, 48))
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)

    def on_device(*blocks):
        result = train_step(
            *jax.tree.map(lambda x: x[0], blocks),
            settings,
            StepShape(is_densifying=True, has_geometry=True),
        )
        return jax.tree.map(lambda x: x[None], result)

    with _as_if_on(kind, 2) as mesh:
        step = jax.shard_map(on_device, mesh=mesh, in_specs=P("device"), out_specs=P("device"))
        exported = jax.export.export(jax.jit(step), platforms=["tpu"])(*arguments)
    text = exported.mlir_module()
    assert text.count("@tpu_custom_call") in (2, 3) and "manual_computation" in text
    assert "all_reduce" not in text and "all_gather" not in text  # blocks exchange nothing
