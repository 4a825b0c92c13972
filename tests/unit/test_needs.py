"""What a run needs, by arithmetic: its course, its arrays, its peaks, and its refusal."""

import dataclasses
import logging

import numpy as np
import pytest
from blocks_case import four_blocks

from cosurfgs_jax import host_memory
from cosurfgs_jax.collab import announcement, needs, peaks
from cosurfgs_jax.collab.needs import ProgramBytes, Sizes
from cosurfgs_jax.collab.peaks import Held
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import (
    DensitySettings,
    LmcSettings,
    LossSettings,
    MasSettings,
    Settings,
    TrainSettings,
)
from cosurfgs_jax.training import course
from cosurfgs_jax.training.partitioned_scene import Block
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape

MIB = 2**20


def _block(number: int, num_initial: int, capacity: int) -> Block:
    views = np.arange(5)
    return Block(number, views, capacity, np.arange(num_initial), num_initial, 1.0)


def _course(settings: Settings, *blocks: Block, dilation: int = 1) -> course.Course:
    return course.course_of(Schedule.from_settings(settings, dilation), blocks, settings)


GROWING = Settings(train=TrainSettings(steps=1000), density=DensitySettings(min_slots=1))


def test_the_course_has_all_steps_in_their_order():
    found = _course(GROWING, _block(0, 1000, 8000), dilation=2)
    assert sum(span.num_steps for span in found.spans) == 1000
    # A quarter of the steps without geometry, half with growth, nine tenths dilated.
    assert found.shapes == [
        StepShape(True, False, 2),
        StepShape(True, True, 2),
        StepShape(False, True, 2),
        StepShape(False, True, 1),
    ]
    by_shape = dict.fromkeys(found.shapes, 0)
    for span in found.spans:
        by_shape[span.shape] += span.num_steps
    assert list(by_shape.values()) == [250, 250, 400, 100]


def test_arrays_grow_by_their_factor_up_to_the_capacity():
    found = _course(GROWING, _block(0, 1000, 8000))
    assert found.slot_sizes[0] == 2048  # 1.5 times as many, rounded
    assert found.slot_sizes == sorted(found.slot_sizes) and found.num_slots == 8000
    assert found.num_surfels == 8000 and found.spans[0].num_surfels == 1000
    # From step 17, every 20 up to 500: 20, 40, ..., 500.
    assert found.num_densified == 25
    assert len(found.programs) > len(found.shapes)


def test_blocks_in_lockstep_have_the_slots_of_the_fullest():
    found = _course(GROWING, _block(0, 1000, 8000), _block(1, 200, 3000))
    assert found.num_slots == 8000 and found.num_surfels == 11_000


def test_without_density_control_nothing_grows():
    settings = dataclasses.replace(GROWING, density=DensitySettings(enabled=False))
    found = _course(settings, _block(0, 1000, 8000))
    assert found.slot_sizes == [2048] and found.num_densified == 0
    assert found.num_surfels == 1000


SIZES = Sizes(
    num_blocks=4,
    num_devices=4,
    num_slots=1000,
    cell_slots=500,
    state_bytes=100 * MIB,
    before_bytes=60 * MIB,
    cell_bytes=30 * MIB,
    compressed_bytes=70 * MIB,
    num_pixels=1000,
    num_channels=3,
    photo_bytes=50 * MIB,
    block_photo_bytes=20 * MIB,
    num_views=100,
    surfel_bytes=100,
    num_final=2000,
)
NOTHING = ProgramBytes(0, 0, 0, 0)
NO_PHOTOS = Held(device_photos=0, host_photos=0, decoding=0, base=0, compiling=0, transients={})


def _without_stages(sizes: Sizes) -> Sizes:
    return sizes._replace(cell_slots=0, cell_bytes=0, compressed_bytes=0)


def test_a_device_holds_old_and_new_arrays_while_they_grow():
    sizes = _without_stages(SIZES)
    peak = peaks.device_peak(sizes, NOTHING, NO_PHOTOS, Settings())
    # Of its block, and of the one that is just being moved.
    assert peak == (320 * MIB, "growth")
    peak = peaks.device_peak(sizes._replace(before_bytes=0), NOTHING, NO_PHOTOS, Settings())
    assert peak.num_bytes == 100 * MIB


@pytest.mark.parametrize(
    "programs, moment",
    [
        (ProgramBytes(400 * MIB, 0, 0, 0), "training"),
        (ProgramBytes(0, 400 * MIB, 0, 0), "density control"),
        (ProgramBytes(0, 0, 400 * MIB, 0), "teachers"),
        (ProgramBytes(0, 0, 0, 400 * MIB), "distillation"),
    ],
)
def test_the_largest_program_decides_the_moment(programs, moment):
    assert peaks.device_peak(SIZES, programs, NO_PHOTOS, Settings()).moment == moment


def test_rows_of_blocks_are_joined_to_be_saved():
    sizes = _without_stages(SIZES)._replace(num_devices=2, before_bytes=0)
    assert sizes.blocks_per_device == 2
    peak = peaks.device_peak(sizes, NOTHING, NO_PHOTOS, Settings())
    assert peak == (400 * MIB, "saving")


def test_models_from_before_compression_lie_beside_the_compressed_ones():
    sizes = SIZES._replace(before_bytes=0)
    peak = peaks.device_peak(sizes, NOTHING, NO_PHOTOS, Settings())
    assert peak == (170 * MIB, "teachers")
    settings = Settings(mas=MasSettings(whole_teachers=False))
    assert peaks.device_peak(sizes, NOTHING, NO_PHOTOS, settings).num_bytes == 100 * MIB


def test_on_a_cpu_the_process_has_the_memory_of_all_devices():
    sizes = _without_stages(SIZES)._replace(before_bytes=0)
    programs = ProgramBytes(10 * MIB, 0, 0, 0)
    held = NO_PHOTOS._replace(base=300 * MIB, host_photos=50 * MIB)
    on_cpu = peaks.host_peak(sizes, programs, held, Settings())
    # Base and photographs; the states and a copy that is saved, while four devices do a step.
    assert on_cpu == ((350 + 400 + 400 + 40) * MIB, "saving")
    measured = held._replace(transients={"training": 1500 * MIB})
    assert peaks.host_peak(sizes, programs, measured, Settings()) == (
        (350 + 400 + 40 + 1500) * MIB,
        "training",
    )
    unknown = held._replace(compiling=1600 * MIB)
    assert peaks.host_peak(sizes, programs, unknown, Settings()).moment == "training"
    alone = peaks.host_peak(sizes, programs, held._replace(transients=None), Settings())
    assert alone == ((350 + 2 * 400) * MIB, "writing the model")


def test_a_run_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(host_memory, "certain_limit", lambda: 399 * MIB)
    with pytest.raises(InputError, match=r"config\.surfels\.capacity: .*of this machine, got 4 bl"):
        announcement.check_certain(SIZES, 4, None, is_device_memory=True)
    announcement.check_certain(SIZES, 3, None, is_device_memory=True)
    announcement.check_certain(SIZES, 4, 100 * MIB, is_device_memory=False)
    with pytest.raises(InputError, match=r"of a device, got 1 block\(s\) of 1,000 surfels"):
        announcement.check_certain(SIZES, 4, 99 * MIB, is_device_memory=False)


@pytest.mark.parametrize(
    "num_bytes, words", [(0, "0 MiB"), (37 * MIB, "37 MiB"), (1536 * MIB, "1.5 GiB")]
)
def test_sizes_in_words(num_bytes, words):
    assert announcement.shown_bytes(num_bytes) == words


def test_a_warning_names_what_to_change(caplog):
    with caplog.at_level(logging.WARNING, logger="cosurfgs_jax"):
        announcement._warn(10, 10, "process", "data.host_memory_mb")
        assert not caplog.messages
        announcement._warn(11, 10, "process", "data.host_memory_mb")
    (message,) = caplog.messages
    assert "config.data.downscale" in message and "config.data.host_memory_mb" in message


def test_estimates_grow_with_pixels_slots_and_partners():
    small = needs.estimated_programs(SIZES, Settings())
    more_pixels = needs.estimated_programs(SIZES._replace(num_pixels=4000), Settings())
    more_slots = needs.estimated_programs(SIZES._replace(num_slots=4000), Settings())
    more_devices = SIZES._replace(num_devices=8, num_blocks=8)
    assert more_pixels.training > small.training and more_pixels.distillation > small.distillation
    assert more_slots.training > small.training and more_slots.control > small.control
    assert needs.estimated_programs(more_devices, Settings()).distillation > small.distillation
    assert needs.estimated_programs(_without_stages(SIZES), Settings()).distillation == 0


def test_compression_rounds_are_no_more_than_its_steps():
    from cosurfgs_jax.collab.lmc_stages import rounds_of

    assert rounds_of(LmcSettings(rounds=4), 150) == 4
    assert rounds_of(LmcSettings(rounds=4), 2) == 2
    assert rounds_of(LmcSettings(rounds=4), 0) == 1


def test_a_recovery_has_the_steps_of_the_end():
    from cosurfgs_jax.planning.measured import recovery_shape

    assert recovery_shape(GROWING) == StepShape(False, True, 1)
    plain = LossSettings(
        single_view_weight=0.0, multi_view_geometric_weight=0.0, multi_view_photometric_weight=0.0
    )
    assert recovery_shape(Settings(loss=plain)) == StepShape(False, False, 1)


def test_finished_stages_have_their_models_alone_on_disk():
    """A device stage that saves often, a compression with a state for each round and for its end,
    and a distillation: of four blocks."""
    sizes = SIZES._replace(
        num_blocks=4, state_bytes=300, compressed_bytes=180, cell_bytes=90, num_pixels=1
    )
    settings = Settings(
        train=TrainSettings(steps=100, checkpoint_every=10), mas=MasSettings(steps=100)
    )
    settings.data.path = "elsewhere"
    settings.lmc.recovery = 1.0
    three_of_device = 3 * 300
    device_and_first_of_lmc = 2 * 300 + 180
    three_of_lmc = 100 + 3 * 180
    assert needs.disk_bytes(sizes, settings, four_blocks())["checkpoints"] == 4 * max(
        three_of_device, device_and_first_of_lmc, three_of_lmc
    )
    settings.train.checkpoint_every = 100  # one state
    settings.lmc.rounds = 1
    device_and_first_of_lmc = 300 + 180
    lmc_and_first_of_edge = 100 + 2 * 180 + 90
    assert needs.disk_bytes(sizes, settings, four_blocks())["checkpoints"] == 4 * max(
        device_and_first_of_lmc, lmc_and_first_of_edge
    )
