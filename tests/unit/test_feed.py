"""What is delivered to the devices is the batch, wherever its photographs come from; and the host may run a step ahead."""

import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout, sharded
from cosurfgs_jax.settings import DataSettings, DensitySettings, LossSettings, Settings, SurfelSettings, TrainSettings
from cosurfgs_jax.training import dispatch, loop
from cosurfgs_jax.training.batches import BlockViews
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.device_cache import Shelf, free_bytes, shelf_bytes
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import Photographs, Place, first_state
from cosurfgs_jax.training.run import Context, Stopped
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.training.world_cameras import WorldViews

SLOTS, STEPS = 2048, 5
SETTINGS = Settings(surfels=SurfelSettings(sh_degree=1), train=TrainSettings(steps=STEPS, log_every=2),
                    density=DensitySettings(enabled=False), loss=LossSettings(geometry_start=0.0))
KEPT, SENT = 64, 0  # config.data.device_memory_mb


class Photos:
    """Stands in for an ImageStore: photographs of noise in the sizes that the scene says, and notes which were read."""

    num_threads = 2

    def __init__(self, place: Place):
        self._place, self.read, self.asked = place, [], []

    def load(self, view: int) -> np.ndarray:
        self.read.append(view)
        channels = 4 if self._place.scene.has_masks else 3
        photo = np.random.default_rng(view).integers(0, 256, (*self._place.scene.image_sizes[view], channels), np.uint8)
        photo[..., 3:] = np.where(photo[..., 3:] > 99, 255, 0)
        return photo

    def prefetch(self, views) -> None:
        self.asked += views


def context_of(place: Place, num_devices: int, device_memory_mb: int, settings: Settings = SETTINGS) -> Context:
    settings = dataclasses.replace(settings, data=DataSettings(device_memory_mb=device_memory_mb))
    layout = make_layout(place.partition.edge_of_block, num_devices)
    return Context(settings, Path(), place, layout, Photos(place), StopRequest(), None)


def with_two_sizes(place: Place, has_masks: bool) -> Place:
    """Every other photograph is smaller, so that blocks pad them, and a single block has two sizes."""
    sizes = place.scene.image_sizes.copy()
    sizes[::2] -= 8
    scene = dataclasses.replace(place.scene, image_sizes=sizes).with_masks(has_masks)
    return place._replace(scene=scene, views=WorldViews(scene, place.frame))


CASES = {"one block": (1, 1, False, False), "blocks": (4, 4, False, False), "a device without a block": (3, 2, False, False),
         "masks": (3, 2, False, True), "padded": (3, 2, True, False), "two sizes": (1, 1, True, True)}


@pytest.mark.parametrize("device_memory_mb", [KEPT, SENT])
@pytest.mark.parametrize("num_blocks, num_devices, has_two_sizes, has_masks", CASES.values(), ids=CASES)
def test_what_is_delivered_is_the_batch(num_blocks, num_devices, has_two_sizes, has_masks, device_memory_mb):
    place = town_place(num_blocks=num_blocks)
    if has_two_sizes or has_masks:
        place = with_two_sizes(place, has_masks) if has_two_sizes else place._replace(scene=place.scene.with_masks(True))
    context = context_of(place, num_devices, device_memory_mb)
    delivering, putting = BlockViews(context), BlockViews(context)
    assert delivering.shelf.is_keeping == (device_memory_mb == KEPT)
    layout = context.layout
    open_it, seconds = sharded(lambda delivery: delivery.open(), layout), set()
    for step in range(2 * place.max_views + 1):
        for row in range(layout.blocks_per_device):
            arguments = row, step, step / 100, step % 3, step > 1
            got, expected = open_it(delivering.deliver(*arguments)), putting.batch(*arguments)
            assert jax.tree.structure(got) == jax.tree.structure(expected)
            for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype) and one.sharding.is_equivalent_to(other.sharding, 1)
                np.testing.assert_array_equal(one, other)
            if expected.second is not None:
                seconds |= set(np.asarray(expected.second.is_used).tolist())
    assert seconds == {True} if num_blocks == 1 else True in seconds


def test_what_is_kept_is_read_once_and_not_decoded_ahead():
    place = town_place(num_blocks=3)
    context = context_of(place, 2, KEPT)
    views, layout = BlockViews(context), context.layout
    for step in range(place.max_views):
        views.prefetch(step)
        for row in range(layout.blocks_per_device):
            views.deliver(row, step, 0.0, 0)
    wanted = sorted(view for block in place.blocks for view in block.views)
    assert sorted(context.images.read) == wanted and set(context.images.asked) == set(wanted)
    context.images.asked.clear()
    for step in range(place.max_views, 3 * place.max_views):
        views.prefetch(step, with_second=True)
        for row in range(layout.blocks_per_device):
            views.deliver(row, step, 0.0, 0, with_second=True)
    assert sorted(context.images.read) == wanted and not context.images.asked


def test_a_budget_that_is_too_small_by_a_byte_keeps_nothing():
    place = town_place(num_blocks=3)
    layout = make_layout(place.partition.edge_of_block, 2)
    load, size = Photographs(place, Photos(place)).load, 3 * int(np.prod(place.photo_size))
    most = [max(len(place.blocks[block].views) for block in row) for row in ((0, 2), (1,))]
    assert len(place.blocks) == 3 and layout.blocks_per_device == 2
    for num_bytes, is_keeping in ((sum(most) * size, True), (sum(most) * size - 1, False), (0, False)):
        shelf = Shelf(place, layout, load, num_bytes)
        assert shelf.is_keeping == is_keeping
        table, = shelf.bring(0, lambda block: int(place.blocks[block].views[0]))
        assert table.shape == (2, most[0] if is_keeping else 1, *place.photo_size, 3)


def test_the_budget_is_a_share_of_what_is_free_on_the_fullest_device():
    layout = make_layout(np.zeros(2, np.int64), 2)
    assert shelf_bytes(-1, layout) == 0, "the memory of a CPU is the host's"
    assert shelf_bytes(0, layout) == 0 and shelf_bytes(3, layout) == 3 * 2**20
    stats = [{"bytes_limit": 1000, "bytes_in_use": 100}, {"bytes_limit": 1000, "bytes_in_use": 400}]
    assert free_bytes(stats) == 600 and free_bytes([*stats, None]) == 0
    assert free_bytes([{"bytes_limit": 10, "bytes_in_use": 20}]) == 0


@pytest.fixture(scope="module")
def place() -> Place:
    return town_place()


def start(context: Context) -> loop.Stage:
    place = context.place
    return loop.start_stage(context, "device", lambda number: first_state(place, place.blocks[number], SETTINGS, SLOTS), SLOTS)


@pytest.fixture(scope="module")
def expected(place) -> list:
    """The block's state before and after each step, taken one at a time with batches put leaf by leaf."""
    context, course = context_of(place, 1, SENT), Schedule.from_settings(SETTINGS)
    steps, views, state = compile_blocks(SETTINGS, context.layout), BlockViews(context), start(context).rows[0]
    states = [context.layout.get(state, 0)]
    for step in range(STEPS):
        batch = views.batch(0, step, step / STEPS, course.sh_degree_at(step), with_second=True)
        state, _ = jax.block_until_ready(steps.train(state, batch, shape=StepShape(False, has_geometry=True)))
        states.append(context.layout.get(state, 0))
    return states


def test_a_step_in_flight_changes_no_bit_and_a_stop_saves_the_step_that_it_says(place, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "programs_ahead", lambda layout: 1)  # as on an accelerator
    events, wait = [], jax.block_until_ready
    monkeypatch.setattr(dispatch.jax, "block_until_ready", lambda result: events.append("wait") or wait(result))

    def trainer(context: Context, stop_after: int | None = None):
        trainer = loop.Trainer(context, Schedule.from_settings(SETTINGS))
        launch = trainer._steps.train_delivered
        trainer._steps = trainer._steps._replace(
            train_delivered=lambda *arguments, **options: events.append("launch") or launch(*arguments, **options))

        def advance(stage, progress):
            if stage.step + 1 == stop_after:
                context.stop.signal_number = 15
            return trainer.advance(stage, progress)

        return advance

    with Log(tmp_path) as log, Checkpoints(tmp_path / "c") as checkpoints:
        context = context_of(place, 1, KEPT)._replace(log=log)
        with pytest.raises(Stopped):
            loop.run_stage(context, start(context), STEPS, trainer(context, stop_after=3), checkpoints)
        assert events == ["launch", "launch", "wait", "launch", "wait"]
        assert checkpoints.steps() == [3]
        context = context_of(place, 1, SENT)._replace(log=log)
        stage = loop.restore_stage(context, "device", checkpoints)
        assert stage.step == 3
        jax.tree.map(np.testing.assert_array_equal, context.layout.get(stage.rows[0], 0), expected[3])
        end = loop.run_stage(context, stage, STEPS, trainer(context), checkpoints)
        assert events[5:] == ["launch", "launch", "wait"]
    jax.tree.map(np.testing.assert_array_equal, context.layout.get(end.rows[0], 0), expected[STEPS])
    assert (expected[STEPS].params["means"] != expected[3].params["means"]).any()


def test_threads_that_decode_are_as_many_as_cores_and_memory_allow(place, monkeypatch):
    from cosurfgs_jax.data import images

    cores = types.SimpleNamespace(value=8)
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda _: range(cores.value), raising=False)
    pixels = int(place.scene.photo_sizes.prod(axis=1).max())
    assert images.num_threads(place.scene, 2**30) == 8
    assert images.num_threads(place.scene, 4 * 12 * pixels * 5) == 5
    assert images.num_threads(place.scene, 1) == 2
    cores.value = 200
    assert images.num_threads(place.scene, 2**30) == 16
    cores.value = 1
    with ImageStore(place.scene, 64) as store:
        assert store.num_threads == 2
