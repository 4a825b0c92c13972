"""The rasterizer with its Pallas kernels, compiled for TPUs on a machine without one: down to
machine code, but never run.
"""

import jax
import numpy as np
import pytest
from hlo_text import Program, listing
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from targets import as_on_tpus, tpu_devices

from cosurfgs_jax import Camera, Surfels, rasterize
from cosurfgs_jax.raster import pallas_tpu

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

SHAPE = jax.ShapeDtypeStruct
NUM_SURFELS = 1000
SURFELS = Surfels(
    *(SHAPE((NUM_SURFELS, *shape), np.float32) for shape in ((3,), (4,), (2,), (), (4, 3))),
    SHAPE((NUM_SURFELS,), np.bool_),
)
CAMERA = Camera(SHAPE((4, 4), np.float32), SHAPE((3, 3), np.float32))
PROBE = SHAPE((NUM_SURFELS, 4), np.float32)


@pytest.fixture(params=["v5e", "v6e"])
def compile_for_tpu(request, monkeypatch):
    """A function that compiles another one for one TPU, and reads what comes out."""
    mesh = Mesh(np.array(tpu_devices(request.param)[:1]), ("device",), axis_types=(AxisType.Auto,))
    as_on_tpus(monkeypatch)
    whole = NamedSharding(mesh, PartitionSpec())

    def compile_function(function, *arguments) -> Program:
        arguments = jax.tree.map(lambda x: SHAPE(x.shape, x.dtype, sharding=whole), arguments)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = (
                jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
            )
        program = Program(compiled.as_text())
        print(f"\n{listing(program)}")
        return program

    return compile_function


def _num_kernels(program: Program) -> int:
    return sum(kernel.target == "tpu_custom_call" for kernel in program.kernels)


def _check(program: Program) -> None:
    assert not program.of_type("f64", "s64")
    assert not program.transfers()
    assert not program.collectives()


def test_drawing(compile_for_tpu):
    def draw(surfels, camera):
        return rasterize(
            surfels, camera, image_size=(64, 96), backend="tpu", with_contributions=True
        )

    program = compile_for_tpu(draw, SURFELS, CAMERA)
    _check(program)
    assert _num_kernels(program) == 1


def test_the_way_back(compile_for_tpu):
    def loss(surfels, camera, probe):
        out = rasterize(surfels, camera, image_size=(64, 96), backend="tpu", gradient_probe=probe)
        return out.color.sum() + out.depth.sum() + out.plane_depth.sum() + out.distortion.sum()

    program = compile_for_tpu(
        jax.grad(loss, argnums=(0, 1, 2), allow_int=True), SURFELS, CAMERA, PROBE
    )
    _check(program)
    assert _num_kernels(program) == 2


def test_the_largest_image_fits_into_scalar_memory(compile_for_tpu):
    side = int(pallas_tpu._MAX_TILES**0.5)
    size = (side * 16, pallas_tpu._MAX_TILES // side * 16)

    def loss(surfels, camera):
        out = rasterize(surfels, camera, image_size=size, backend="tpu", with_contributions=True)
        return out.color.sum(), out.contributions

    program = compile_for_tpu(jax.grad(loss, allow_int=True, has_aux=True), SURFELS, CAMERA)
    assert _num_kernels(program) == 2
