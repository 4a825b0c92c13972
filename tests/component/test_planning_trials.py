"""A plan of a tiny town, with all of its programs: against what the arrays of its blocks are."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from blocks_case import PHOTOMETRIC, TOWN
from scenes import TINY, town_folder, town_place

from cosurfgs_jax import planning
from cosurfgs_jax.collab import needs
from cosurfgs_jax.collab.traffic import collectives
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.planning import block_trials, forecast, remedies, stand_ins
from cosurfgs_jax.planning.trials import bytes_of
from cosurfgs_jax.settings import (
    DataSettings,
    DensitySettings,
    LmcSettings,
    MeshSettings,
    PartitionSettings,
    TrainSettings,
)
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.workdir import Workdir

SETTINGS = dataclasses.replace(
    PHOTOMETRIC,
    partition=PartitionSettings(num_blocks=2, min_views=1, min_points=1),
    mesh=MeshSettings(num_devices=2),
    density=DensitySettings(),
    train=TrainSettings(steps=100),
)


@functools.cache
def two_blocks():
    return town_place(TOWN, num_blocks=2)


@pytest.fixture(scope="module")
def found():
    return planning.make_forecast(
        SETTINGS,
        two_blocks(),
        is_timed=True,
        opening_s=np.zeros(2),
        folder=Path(),
    )


def test_a_wrong_score_is_said_before_the_trials(monkeypatch):
    def measure(*_):
        raise AssertionError("trials began")

    monkeypatch.setattr(forecast, "measure", measure)
    settings = dataclasses.replace(SETTINGS, lmc=LmcSettings(score="mine"))
    with pytest.raises(InputError, match=r"config\.lmc\.score: expected removal or weight"):
        planning.make_forecast(
            settings, two_blocks(), is_timed=False, opening_s=np.zeros(2), folder=Path()
        )


def test_all_stages_have_a_time(found):
    assert [stage.num_steps for stage in found.stages] == [100, 15, 10]
    for stage in found.stages:
        assert (stage.total_s > stage.steps_s).all() and (stage.steps_s >= 0).all()
    np.testing.assert_allclose(found.total_s, sum(stage.total_s for stage in found.stages))


def test_a_device_holds_more_than_its_state(found):
    sizes = found.subject.sizes
    assert found.memory.device.num_bytes > sizes.state_bytes
    assert all(num_bytes > 0 for num_bytes in found.measured.programs)
    # The largest program of a town that small is that of distillation.
    assert found.memory.programs.distillation < 100 * sizes.num_pixels * 36


def test_the_arrays_are_as_large_as_those_of_training(found):
    partitioned = two_blocks()
    sizes = found.subject.sizes
    state = first_state(partitioned, partitioned.blocks[0], SETTINGS, sizes.num_slots)
    assert bytes_of(state) == sizes.state_bytes


def test_traffic_is_that_of_the_images_that_are_exchanged(found):
    image = found.subject.sizes.num_pixels * 36
    moved = {name: cost.bytes_moved for name, cost in found.measured.distillation.items()}
    # Images and gradients, from both devices, the own one included.
    assert list(moved.values()) == [2 * 2 * image]


def test_collectives_are_read_from_the_text_of_a_program():
    text = "%x = f32[4,10]{1,0} all-to-all(f32[4,10] %a)"
    assert [move.num_bytes for move in collectives(text)] == [160]


def test_the_process_has_room_for_python_and_its_arrays(found):
    sizes = found.subject.sizes
    assert found.memory.held.base > 100 * 2**20
    assert found.memory.host.num_bytes > found.memory.held.base + 2 * sizes.state_bytes


def test_words_and_json_say_the_same(found):
    lines = planning.lines_of(found, [])
    table = json.loads(json.dumps(planning.to_json(found, [])))
    assert "it fits" in lines
    assert len([line for line in lines if line.startswith("  block ")]) == len(table["blocks"]) == 2
    assert table["memory"]["device"]["num_bytes"] == found.memory.device.num_bytes
    assert table["seconds"] == pytest.approx(found.total_s[0])
    assert [stage["name"] for stage in table["stages"]] == [stage.name for stage in found.stages]
    assert any(f"traffic of a step of {name}" in line for line in lines for name in ("cloud",))


def test_where_it_does_not_fit_settings_are_named(found, tmp_path):
    data = DataSettings(path=str(town_folder(TINY)))
    settings = dataclasses.replace(SETTINGS, data=data)
    subject = found.subject._replace(settings=settings)
    enough = found.memory.host.num_bytes - 1
    short = found._replace(
        subject=subject, machine=found.machine._replace(host_limit=enough, device_limit=None)
    )
    assert not short.fits
    tried = list(remedies.find_remedies(short, Workdir(tmp_path)))
    names = {name for remedy in tried for name in remedy.changes}
    assert {"data.host_memory_mb", "data.downscale", "surfels.capacity"} >= names
    assert "surfels.capacity" in names
    text = "\n".join(planning.lines_of(short, tried))
    assert "does not fit into the memory of the host" in text
    assert "--config.surfels.capacity=" in text


def test_a_device_that_is_too_small_is_short(found):
    sizes = found.subject.sizes
    machine = found.machine._replace(device_limit=sizes.state_bytes)
    assert forecast.short_of(found.memory, machine) == ["device"]


def test_grown_surfels_cover_what_those_that_they_are_parts_of_covered():
    partitioned = two_blocks()
    block = partitioned.blocks[0]
    state = first_state(partitioned, block, SETTINGS, 8192)
    count = int(np.asarray(state.alive).sum())
    more = stand_ins.grown(state, 3 * count, 0)
    alive = np.asarray(more.alive)
    assert alive.sum() == 3 * count

    def area(state):
        return np.exp(np.asarray(state.params.log_scales)[np.asarray(state.alive)].sum(-1)).sum()

    assert area(more) == pytest.approx(area(state), rel=1e-4)
    assert (np.asarray(more.params.logit_opacities)[alive] == 0).all()
    thin = stand_ins.thinned(more, 0.5, 0)
    assert 0.35 < np.asarray(thin.alive).sum() / alive.sum() < 0.65


def test_without_times_memory_is_the_same_arithmetic():
    alone = dataclasses.replace(
        SETTINGS,
        partition=PartitionSettings(),
        mesh=MeshSettings(),
        density=DensitySettings(enabled=False),
    )
    plain = planning.make_forecast(
        alone, town_place(TOWN), is_timed=False, opening_s=np.zeros(2), folder=Path()
    )
    assert plain.stages is None and plain.measured.times is None
    assert plain.subject.sizes.compressed_bytes == 0 and not plain.measured.distillation
    assert plain.measured.programs.training > 0 and plain.measured.programs.control == 0
    assert any(line.startswith("stages (not timed)") for line in planning.lines_of(plain, []))


def test_few_views_of_a_block_are_its_own():
    partitioned = two_blocks()
    few = stand_ins.with_few_views(partitioned)
    for block, whole in zip(few.blocks, partitioned.blocks, strict=True):
        assert set(block.views) <= set(whole.views) and 1 < len(block.views) <= 8
    home = partitioned.partition.home
    one = stand_ins.with_few_test_views(partitioned, 1).scene.test_views
    assert set(home[one]) == set(home[partitioned.scene.test_views]) and len(one) <= 2


def test_costs_without_times_have_none():
    assert block_trials.Cost(np.zeros(2), None).num_bytes == 0


def test_shares_of_cells_are_fractions():
    fractions = needs.cell_fractions(two_blocks())
    assert ((fractions > 0) & (fractions < 1)).all()


def test_photographs_of_one_size_stand_for_those_of_several():
    partitioned = town_place(TOWN)
    views = partitioned.scene.views
    sizes = views.image_sizes.copy()
    sizes[::2] = sizes[::2] // 2
    scene = dataclasses.replace(
        partitioned.scene, views=dataclasses.replace(views, image_sizes=sizes)
    )
    mixed = partitioned._replace(scene=scene)
    assert mixed.photo_size is None
    (block,) = stand_ins.with_few_views(mixed).blocks
    assert len(block.views) and (block.views % 2 == 1).all()
