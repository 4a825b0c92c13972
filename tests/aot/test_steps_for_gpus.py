"""The project's steps, compiled for H200 on a machine without a GPU: what is in them, and what must
not be.

`pytest -s -m slow tests/aot/test_steps_for_gpus.py` prints their kernels.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hlo_text import Program, listing
from jax.sharding import AxisType, Mesh
from scenes import abstract_batch
from targets import as_on_gpus, h200_devices

from cosurfgs_jax.distributed.layout import AXES, Layout
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import depth_memory
from cosurfgs_jax.training.batches import PackedBatch
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_steps import LOOK_STRIDE, DensifyOrder
from cosurfgs_jax.training.state import Kept, abstract_state
from cosurfgs_jax.training.step import StepShape

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

NUM_DEVICES = 2
NUM_SLOTS = 100_000
NUM_VIEWS = 100
SIZE = (1080, 1920)
SLOT = jax.ShapeDtypeStruct((), np.int32)  # of a table of photographs
SHAPES = {
    "plain": StepShape(False),
    "densifying": StepShape(True),
    "geometry": StepShape(False, True),
    "densifying-geometry": StepShape(True, True),
}


@pytest.fixture
def steps(monkeypatch):
    """The block steps of two GPUs, and the abstract state."""
    devices = h200_devices(NUM_DEVICES)
    as_on_gpus(monkeypatch)
    mesh = Mesh(np.array(devices)[None], AXES, axis_types=(AxisType.Auto,) * 2)
    settings = Settings()
    return compile_blocks(settings, Layout(mesh, tuple(range(NUM_DEVICES)), 1)), _on_each(
        abstract_state(NUM_SLOTS, NUM_VIEWS, settings)
    )


def _with_depths(state):
    """The state of blocks that remember the depths of their photographs."""
    kept = Kept(depth_memory.memory_size(SIZE), is_lazy=False)
    depths = abstract_state(NUM_SLOTS, NUM_VIEWS, Settings(), kept).depths
    return dataclasses.replace(state, depths=_on_each(depths))


def _on_each(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((NUM_DEVICES, *x.shape), x.dtype), tree)


def _compile(step, *arguments, **static) -> Program:
    # As the programs do.
    with jax.default_matmul_precision("highest"):
        compiled = step.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).compile()
    program = Program(compiled.as_text())
    memory = compiled.memory_analysis()
    print(
        f"\n{listing(program)}\n{memory.temp_size_in_bytes / 1e6:.1f} MB of temporaries on each "
        "device, beside "
        f"{memory.argument_size_in_bytes / 1e6:.1f} MB of arguments"
    )
    return program


def _check_every_step(program: Program, donated, num_unread: int = 0) -> None:
    assert not program.of_type("f64", "c128")
    assert not program.transfers()
    assert not program.collectives()
    # Arguments come in the order of the tree, those that are not read left out, and what is donated
    # is the first of them.
    assert set(program.aliases.values()) >= set(range(len(jax.tree.leaves(donated)) - num_unread))


def _delivery(shape: StepShape) -> PackedBatch:
    """What the training gives its step where all photographs of a block are on its device."""
    batch = abstract_batch(SIZE)
    table = jax.ShapeDtypeStruct((NUM_VIEWS, *SIZE, 3), np.uint8)
    second = batch.second._replace(photo=SLOT) if shape.has_geometry else None
    batch = batch._replace(photo=SLOT, second=second)
    if shape.dilation > 1:
        batch = batch._replace(origin=jax.ShapeDtypeStruct((2,), np.int32))
    numbers = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
    return PackedBatch(Packed.pack(numbers), (table,) * (1 + shape.has_geometry))


def _copied_slots(program: Program) -> list[str]:
    return [str(kernel) for kernel, shape in program.copies() if NUM_SLOTS in shape]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_training_step(steps, shape):
    blocks, state = steps
    delivery = _on_each(_delivery(shape))
    recalled = None
    if shape.has_geometry:
        state = _with_depths(state)
        recalled = jax.eval_shape(blocks.recall, state, delivery)
    program = _compile(blocks.train_packed, state, delivery, recalled, shape=shape)
    _check_every_step(program, state)
    assert not program.of_type("s64", "u64")
    assert not _copied_slots(program)
    assert not [
        str(kernel)
        for kernel, copied in program.copies()
        if NUM_VIEWS in copied and SIZE[0] in copied
    ]
    assert not program.sorts()
    calls = [kernel.target for kernel in program.kernels if kernel.target]
    assert calls.count("cosurfgs_raster_forward") == 1
    assert calls.count("cosurfgs_raster_backward") == 1
    # Only the network of the exposures is worth a matrix unit.
    products = [x.instruction for x in program.products() if not x.is_fused_loop]
    assert products and all("_Exposure" in x.source for x in products), [str(x) for x in products]


def test_the_recall_of_a_depth(steps):
    blocks, state = steps
    delivery = _on_each(_delivery(SHAPES["geometry"]))
    program = _compile(blocks.recall, _with_depths(state), delivery)
    assert not program.transfers() and not program.collectives() and not program.sorts()


def test_density_control(steps):
    blocks, state = steps
    shape = jax.ShapeDtypeStruct
    numbers = [shape((NUM_DEVICES,), kind) for kind in (np.int32, np.int32, bool, np.int32)]
    corner = shape((NUM_DEVICES, 2), np.float32)
    order = DensifyOrder(*numbers, low=corner, high=corner)
    program = _compile(blocks.densify, state, order)
    _check_every_step(program, state)
    assert not program.sorts() and not [x for x in program.products() if not x.is_fused_loop]
    # A surfel is read from where its parent stands, so parameters and statistics pass through a
    # second array; moments must not.
    leaves = len(jax.tree.leaves((state.params, state.stats)))
    assert len([line for line in _copied_slots(program) if "f32" in line]) <= leaves


def test_a_look_of_density_control(steps):
    blocks, state = steps
    shape = StepShape(False, dilation=LOOK_STRIDE)
    program = _compile(blocks.look, state, _on_each(_delivery(shape)))
    _check_every_step(program, state)
    assert not program.sorts() and not _copied_slots(program)
    calls = [kernel.target for kernel in program.kernels if kernel.target]
    assert calls.count("cosurfgs_raster_forward") == 1
    assert calls.count("cosurfgs_raster_backward") == 1


def test_the_small_steps(steps):
    blocks, state = steps
    shape = jax.ShapeDtypeStruct
    num_views = shape((NUM_DEVICES, NUM_SLOTS), np.int32)
    flag = shape((NUM_DEVICES,), bool)
    batch = _on_each(abstract_batch(SIZE))
    trim = _compile(blocks.trim, state, num_views, flag)
    reset = _compile(blocks.reset_opacity, state)
    count = _compile(blocks.count_front_view, num_views, state, batch.camera, flag, image_size=SIZE)
    _check_every_step(trim, state)
    _check_every_step(
        reset, state, num_unread=2
    )  # the moments of the opacities, which are forgotten
    _check_every_step(count, num_views)
    for program in (trim, reset, count):
        assert not program.sorts() and not program.products()
        assert not [
            kernel for kernel, shape in program.copies() if NUM_SLOTS in shape and len(shape) > 2
        ]
