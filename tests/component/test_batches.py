"""What is delivered to the devices is the batch, wherever its photographs come from; and the host
may run a step ahead.
"""

import dataclasses
import io
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout, sharded
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.model.density_strategy import DensityReport
from cosurfgs_jax.settings import (
    DataSettings,
    DensitySettings,
    LossSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.training import dispatch, loop
from cosurfgs_jax.training import trainer as trainer_module
from cosurfgs_jax.training.batches import BlockViews, Wanted
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.device_cache import DeviceCache, free_bytes, shelf_bytes
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, Photographs
from cosurfgs_jax.training.run import Run, Stopped
from cosurfgs_jax.training.run_log import Log, Progress
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.training.trainer import Trainer
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.workdir import Workdir

SLOTS = 2048
STEPS = 5
SETTINGS = Settings(
    surfels=SurfelSettings(sh_degree=1),
    train=TrainSettings(steps=STEPS, log_every=2),
    density=DensitySettings(enabled=False),
    loss=LossSettings(geometry_start=0.0),
)
WEIGHTS_OF_GEOMETRY = (
    "single_view_weight",
    "multi_view_geometric_weight",
    "multi_view_photometric_weight",
)
KEPT = 64
SENT = 0  # config.data.device_memory_mb


class Photos:
    """Stands in for an ImageStore: photographs of noise in the sizes that the scene says, and notes
    which were read.
    """

    num_threads = 2

    def __init__(self, partitioned: PartitionedScene):
        self._partitioned = partitioned
        self.read = []
        self.asked = []

    def load(self, view: int) -> np.ndarray:
        self.read.append(view)
        channels = 4 if self._partitioned.scene.has_masks else 3
        photo = np.random.default_rng(view).integers(
            0, 256, (*self._partitioned.scene.views.image_sizes[view], channels), np.uint8
        )
        photo[..., 3:] = np.where(photo[..., 3:] > 99, 255, 0)
        return photo

    def prefetch(self, views) -> None:
        self.asked += views


def context_of(
    partitioned: PartitionedScene,
    num_devices: int,
    device_memory_mb: int,
    settings: Settings = SETTINGS,
) -> Run:
    settings = dataclasses.replace(settings, data=DataSettings(device_memory_mb=device_memory_mb))
    layout = make_layout(partitioned.partition.edge_of_block, num_devices)
    return Run(settings, Path(), partitioned, layout, Photos(partitioned), StopRequest(), None)


def with_two_sizes(partitioned: PartitionedScene, has_masks: bool) -> PartitionedScene:
    """Every other photograph is smaller, so that blocks pad them, and a single block
    has two sizes.
    """
    sizes = partitioned.scene.views.image_sizes.copy()
    sizes[::2] -= 8
    views = dataclasses.replace(partitioned.scene.views, image_sizes=sizes)
    scene = dataclasses.replace(partitioned.scene, views=views).with_masks(has_masks)
    return partitioned._replace(scene=scene, views=WorldViews(scene.views, partitioned.frame))


CASES = {
    "one block": (1, 1, False, False),
    "blocks": (4, 4, False, False),
    "a device without a block": (3, 2, False, False),
    "masks": (3, 2, False, True),
    "padded": (3, 2, True, False),
    "two sizes": (1, 1, True, True),
}


@pytest.mark.parametrize("device_memory_mb", [KEPT, SENT])
@pytest.mark.parametrize(
    "num_blocks, num_devices, has_two_sizes, has_masks", CASES.values(), ids=CASES
)
def test_what_is_delivered_is_the_batch(
    num_blocks, num_devices, has_two_sizes, has_masks, device_memory_mb
):
    partitioned = town_place(num_blocks=num_blocks)
    if has_two_sizes or has_masks:
        partitioned = (
            with_two_sizes(partitioned, has_masks)
            if has_two_sizes
            else partitioned._replace(scene=partitioned.scene.with_masks(True))
        )
    run = context_of(partitioned, num_devices, device_memory_mb)
    delivering = BlockViews(run)
    putting = BlockViews(run)
    assert delivering.device_cache.is_keeping == (device_memory_mb == KEPT)
    layout = run.layout
    open_it = sharded(lambda delivery: delivery.open(), layout)
    seconds = set()
    for step in range(2 * partitioned.max_views + 1):
        for row in range(layout.blocks_per_device):
            arguments = row, step, Wanted(step / 100, step % 3, step > 1)
            got = open_it(delivering.deliver(*arguments))
            expected = putting.batch(*arguments)
            assert jax.tree.structure(got) == jax.tree.structure(expected)
            for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert (one.shape, one.dtype) == (
                    other.shape,
                    other.dtype,
                ) and one.sharding.is_equivalent_to(other.sharding, 1)
                np.testing.assert_array_equal(one, other)
            if expected.second is not None:
                seconds |= set(np.asarray(expected.second.is_used).tolist())
    assert seconds == {True} if num_blocks == 1 else True in seconds


def test_the_choices_of_a_step_are_pinned():
    """They follow from seed, block and step alone; whoever changes them changes all results."""
    views = BlockViews(context_of(town_place(num_blocks=3), 2, SENT))
    chosen = [
        (
            views.view(1, step),
            views.second_view(1, step),
            views.lattice_offset(1, step).tolist(),
            views.dilation_origin(1, step, 2).tolist(),
        )
        for step in range(3)
    ]
    assert chosen == [(2, 1, [1, 0], [1, 0]), (5, 1, [2, 1], [0, 1]), (4, 1, [1, 2], [0, 1])]


def test_what_is_kept_is_read_once_and_not_decoded_ahead():
    partitioned = town_place(num_blocks=3)
    run = context_of(partitioned, 2, KEPT)
    views = BlockViews(run)
    layout = run.layout
    for step in range(partitioned.max_views):
        views.prefetch(step)
        for row in range(layout.blocks_per_device):
            views.deliver(row, step, Wanted(0.0, 0))
    wanted = sorted(view for block in partitioned.blocks for view in block.views)
    assert sorted(run.images.read) == wanted and set(run.images.asked) == set(wanted)
    run.images.asked.clear()
    for step in range(partitioned.max_views, 3 * partitioned.max_views):
        views.prefetch(step, with_second=True)
        for row in range(layout.blocks_per_device):
            views.deliver(row, step, Wanted(0.0, 0, with_second=True))
    assert sorted(run.images.read) == wanted and not run.images.asked


def test_a_budget_that_is_too_small_by_a_byte_keeps_nothing():
    partitioned = town_place(num_blocks=3)
    layout = make_layout(partitioned.partition.edge_of_block, 2)
    load = Photographs(partitioned, Photos(partitioned)).load
    size = 3 * int(np.prod(partitioned.photo_size))
    most = [max(len(partitioned.blocks[block].views) for block in row) for row in ((0, 2), (1,))]
    assert len(partitioned.blocks) == 3 and layout.blocks_per_device == 2
    for num_bytes, is_keeping in (
        (sum(most) * size, True),
        (sum(most) * size - 1, False),
        (0, False),
    ):
        device_cache = DeviceCache(partitioned, layout, load, num_bytes)
        assert device_cache.is_keeping == is_keeping
        (table,) = device_cache.bring(0, lambda block: int(partitioned.blocks[block].views[0]))
        assert table.shape == (2, most[0] if is_keeping else 1, *partitioned.photo_size, 3)


def test_the_budget_is_a_share_of_what_is_free_on_the_fullest_device():
    layout = make_layout(np.zeros(2, np.int64), 2)
    assert shelf_bytes(-1, layout) == 0, "the memory of a CPU is the host's"
    assert shelf_bytes(0, layout) == 0 and shelf_bytes(3, layout) == 3 * 2**20
    stats = [{"bytes_limit": 1000, "bytes_in_use": 100}, {"bytes_limit": 1000, "bytes_in_use": 400}]
    assert free_bytes(stats) == 600 and free_bytes([*stats, None]) == 0
    assert free_bytes([{"bytes_limit": 10, "bytes_in_use": 20}]) == 0


@pytest.fixture(scope="module")
def partitioned() -> PartitionedScene:
    return town_place()


def start(run: Run) -> loop.StageState:
    partitioned = run.partitioned
    return loop.start_stage(
        run,
        "device",
        lambda number: first_state(partitioned, partitioned.blocks[number], SETTINGS, SLOTS),
        SLOTS,
    )


@pytest.fixture(scope="module")
def expected(partitioned) -> list:
    """The block's state before and after each step, taken one at a time with batches put leaf by
    leaf.
    """
    run = context_of(partitioned, 1, SENT)
    course = Schedule.from_settings(SETTINGS)
    steps = compile_blocks(SETTINGS, run.layout)
    views = BlockViews(run)
    state = start(run).states[0]
    states = [run.layout.get(state, 0)]
    for step in range(STEPS):
        wanted = Wanted(step / STEPS, course.sh_degree_at(step), with_second=True)
        batch = views.batch(0, step, wanted)
        state, _ = jax.block_until_ready(
            steps.train(state, batch, shape=StepShape(False, has_geometry=True))
        )
        if step + 1 == STEPS:  # surfels that wait are brought up to date at the end
            state = steps.settle(state, run.layout.put(lambda _: np.float32(1)))
        states.append(run.layout.get(state, 0))
    return states


@pytest.mark.optimized_if_slow
def test_a_step_in_flight_changes_no_bit_and_a_stop_saves_the_step_that_it_says(
    partitioned, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer_module, "programs_ahead", lambda layout: 1)  # as on an accelerator
    events = []
    wait = jax.block_until_ready
    monkeypatch.setattr(
        dispatch.jax, "block_until_ready", lambda result: events.append("wait") or wait(result)
    )

    def trainer(run: Run, stop_after: int | None = None):
        trainer = Trainer(run, Schedule.from_settings(SETTINGS))
        launch = trainer._steps.train_packed
        trainer._steps = trainer._steps._replace(
            train_packed=lambda *arguments, **options: (
                events.append("launch") or launch(*arguments, **options)
            )
        )

        def advance(stage, progress):
            if stage.step + 1 == stop_after:
                run.stop.signal_number = 15
            return trainer.advance(stage, progress)

        return advance

    with Log(Workdir(tmp_path)) as log, Checkpoints(tmp_path / "c") as checkpoints:
        run = context_of(partitioned, 1, KEPT)._replace(log=log)
        with pytest.raises(Stopped):
            loop.run_stage(run, start(run), STEPS, trainer(run, stop_after=3), checkpoints)
        assert events == ["launch", "launch", "wait", "launch", "wait"]
        assert checkpoints.steps() == [3]
        run = context_of(partitioned, 1, SENT)._replace(log=log)
        stage = loop.restore_stage(run, "device", checkpoints)
        assert stage.step == 3
        jax.tree.map(np.testing.assert_array_equal, run.layout.get(stage.states[0], 0), expected[3])
        end = loop.run_stage(run, stage, STEPS, trainer(run), checkpoints)
        assert events[5:] == ["launch", "launch", "wait"]
    jax.tree.map(np.testing.assert_array_equal, run.layout.get(end.states[0], 0), expected[STEPS])
    assert (expected[STEPS].params.means != expected[3].params.means).any()


@pytest.mark.parametrize("device_memory_mb", [KEPT, SENT])
def test_looks_are_at_the_next_photographs_and_steps_keep_theirs(partitioned, device_memory_mb):
    settings = Settings(
        surfels=SurfelSettings(sh_degree=1),
        train=TrainSettings(steps=42),
        density=DensitySettings(strategy="error", error_views=3, start=0.0, stop=1.0, every=0.5),
        loss=LossSettings(**dict.fromkeys(WEIGHTS_OF_GEOMETRY, 0.0)),
    )
    run = context_of(partitioned, 1, device_memory_mb, settings)
    layout = run.layout
    open_it = sharded(lambda delivery: delivery.open().photo, layout)
    none = DensityReport(*layout.put(lambda _: (np.int32(0),) * 5))
    shown = []

    def note(what, delivery):
        shown.append((what, np.asarray(open_it(delivery))[0]))

    def train(state, delivery, recalled, shape):
        assert recalled is None and shape.is_densifying
        note("step", delivery)
        return state, Packed.pack(np.zeros(1, np.float32))

    def look(state, delivery):
        note("look", delivery)
        return state

    trainer = Trainer(run, Schedule.from_settings(settings))
    stand_ins = trainer._steps._replace(
        train_packed=train,
        look=look,
        densify=lambda state, order: (state, none),
        settle=lambda state, progress: state,
    )
    trainer._steps = stand_ins
    trainer._density = trainer._density._replace(steps=stand_ins)
    stage = start(run)
    progress = Progress("device", 42, stream=io.StringIO())
    for _ in range(42):
        stage, _ = trainer.advance(stage, progress)
    views = BlockViews(run)
    expected = []
    for step in range(42):
        expected.append(("step", step))
        if step + 1 in (21, 42):
            expected += [("look", later) for later in range(step + 1, step + 4)]
    assert [what for what, _ in shown] == [what for what, _ in expected]
    for (_, photo), (_, step) in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(photo, run.images.load(views.view(0, step)))


def test_threads_that_decode_are_as_many_as_cores_and_memory_allow(partitioned, monkeypatch):
    from cosurfgs_jax.data import images

    cores = types.SimpleNamespace(value=8)
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda _: range(cores.value), raising=False)
    pixels = int(partitioned.scene.photo_sizes.prod(axis=1).max())
    assert images.num_threads(partitioned.scene, 2**30) == 8
    assert images.num_threads(partitioned.scene, 4 * 12 * pixels * 5) == 5
    assert images.num_threads(partitioned.scene, 1) == 2
    cores.value = 200
    assert images.num_threads(partitioned.scene, 2**30) == 16
    cores.value = 1
    with ImageStore(partitioned.scene, 64) as store:
        assert store.num_threads == 2
