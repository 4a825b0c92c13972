"""Blocks in lockstep: their compiled steps do not communicate, and give the same bits on any number
of devices.
"""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout, sharded
from cosurfgs_jax.settings import DensitySettings, Settings, SurfelSettings, TrainSettings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.batches import BlockViews, Wanted, each_view
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_steps import LOOK_STRIDE, DensifyOrder
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.workdir import Workdir

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)
SLOTS = 2048
# Every surfel that is seen grows, so that the random numbers of density control matter too.
SETTINGS = Settings(
    surfels=SurfelSettings(sh_degree=1),
    train=TrainSettings(steps=3),
    density=DensitySettings(
        gradient_threshold=1e-12, absolute_gradient_threshold=1e-12, trim_min_views=1
    ),
)


def collectives_in(compiled) -> set[str]:
    """Which kinds of communication between devices a compiled program holds."""
    return set(re.findall("|".join(COLLECTIVES), compiled.as_text()))


@pytest.fixture(scope="module")
def partitioned():
    partitioned = town_place(num_blocks=4, num_edges=2)
    assert len(partitioned.blocks) == 4
    return partitioned


@pytest.fixture
def run(partitioned, tmp_path):
    """What a run works with, on so many devices."""
    with ImageStore(partitioned.scene, 64) as images, Log(Workdir(tmp_path)) as log:
        yield lambda num_devices: Run(
            SETTINGS,
            Path(tmp_path),
            partitioned,
            make_layout(partitioned.partition.edge_of_block, num_devices),
            images,
            StopRequest(),
            log,
        )


def start(run) -> loop.StageState:
    partitioned = run.partitioned
    return loop.start_stage(
        run,
        "device",
        lambda number: first_state(partitioned, partitioned.blocks[number], SETTINGS, SLOTS),
        SLOTS,
    )


def order(block: int | None) -> DensifyOrder:
    return DensifyOrder(np.int32(block or 0), np.int32(20), np.bool_(False), np.int32(SLOTS))


COMMUNICATING = {
    "all-reduce": lambda x: jax.lax.psum(x, "device"),
    "all-gather": lambda x: jax.lax.all_gather(x, "device"),
    "all-to-all": lambda x: jax.lax.all_to_all(x, ("edge", "device"), 0, 0, tiled=True),
    "collective-permute": lambda x: jax.lax.ppermute(x, ("edge", "device"), [(0, 1), (1, 0)]),
    "reduce-scatter": lambda x: jax.lax.psum_scatter(x, ("edge", "device"), tiled=True),
}


@pytest.mark.optimized_if_slow
@pytest.mark.parametrize("kind", COMMUNICATING)
def test_the_check_finds_communication(kind):
    layout = make_layout(np.array([0, 0, 1, 1]))
    values = layout.put(lambda device: np.full(8, device, np.float32))
    assert kind in collectives_in(sharded(COMMUNICATING[kind], layout).lower(values).compile())
    assert not collectives_in(sharded(lambda x: x * 2, layout).lower(values).compile())


@pytest.mark.optimized_if_slow
def test_the_steps_of_blocks_do_not_communicate(run):
    run = run(4)
    layout = run.layout
    steps = compile_blocks(SETTINGS, run.layout)
    (state,) = start(run).states
    assert layout.mesh.devices.shape == (2, 2)
    batch = BlockViews(run).batch(0, 0, Wanted(0.1, 1, with_second=True))
    camera, is_active, size = next(iter(each_view(run.partitioned, layout, 0)))
    counts = layout.put(lambda _: np.zeros(SLOTS, np.int32))
    programs = [
        steps.train.lower(state, batch, shape=StepShape(*shape))
        for shape in itertools.product((True, False), repeat=2)
    ]
    delivery = BlockViews(run).deliver(0, 0, Wanted(0.1, 1, dilation=LOOK_STRIDE))
    programs += [
        steps.look.lower(state, delivery),
        steps.densify.lower(state, layout.put_row(0, order)),
        steps.reset_opacity.lower(state),
        steps.count_front_view.lower(counts, state, camera, is_active, image_size=size),
        steps.trim.lower(state, counts, is_active),
    ]
    for program in programs:
        compiled = program.compile()
        assert len(compiled.as_text()) > 100 and compiled.input_shardings[0]
        assert not collectives_in(compiled)


def _trained(run) -> dict[int, list]:
    """States of each block after three steps and after density control: looks, growth, lower
    opacities, trimming.
    """
    layout = run.layout
    steps = compile_blocks(SETTINGS, run.layout)
    stage = start(run)
    views = BlockViews(run)
    for step in range(3):
        for row in range(layout.blocks_per_device):
            batch = views.batch(row, step, Wanted(step / 3, 1, with_second=step > 0))
            stage.states[row], _ = steps.train(
                stage.states[row], batch, shape=StepShape(True, has_geometry=step > 0)
            )
    history = [layout.get_blocks(stage.states)]
    for row in range(layout.blocks_per_device):
        state = stage.states[row]
        for step in range(2):  # as many as must agree
            state = steps.look(
                state, views.deliver(row, step, Wanted(1.0, 1, dilation=LOOK_STRIDE))
            )
        state, _ = steps.densify(state, layout.put_row(row, order))
        state = steps.reset_opacity(state)
        counts = layout.put(lambda _: np.zeros(SLOTS, np.int32))
        for camera, is_active, size in each_view(run.partitioned, layout, row):
            counts = steps.count_front_view(counts, state, camera, is_active, image_size=size)
        stage.states[row], _ = steps.trim(
            state, counts, layout.put_row(row, lambda number: np.bool_(number is not None))
        )
    history.append(layout.get_blocks(stage.states))
    return {block: [states[block] for states in history] for block in history[0]}


@pytest.mark.optimized
def test_any_number_of_devices_gives_the_same_bits(run, partitioned):
    on_four, *others = [_trained(run(num_devices)) for num_devices in (4, 2, 1)]
    assert list(on_four) == [0, 1, 2, 3]
    for block, (trained, controlled) in on_four.items():
        before = first_state(partitioned, partitioned.blocks[block], SETTINGS, SLOTS)
        assert (trained.params.means != np.asarray(before.params.means)).any()
        assert (
            trained.appearance["embeddings"] != np.asarray(before.appearance["embeddings"])
        ).any()
        assert controlled.alive.sum() != trained.alive.sum()
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, on_four)
    means = [states[0].params.means for states in on_four.values()]
    assert all((means[0] != other).any() for other in means[1:]), "blocks are told apart"
