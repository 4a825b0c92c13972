"""What lies outside of a block's expanded cell: few surfels, and none are added."""

import dataclasses

import numpy as np
import pytest
from blocks_case import NUM_BLOCKS, SETTINGS, TOWN, four_blocks, run_context
from scenes import town_place

from cosurfgs_jax.training import loop
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_control import DensityControl
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.partitioned_scene import _plan_blocks
from cosurfgs_jax.training.schedule import Schedule


def plan(partitioned, **changes):
    settings = dataclasses.replace(
        SETTINGS, partition=dataclasses.replace(SETTINGS.partition, **changes)
    )
    return settings, _plan_blocks(
        partitioned.scene, partitioned.frame, partitioned.partition, settings
    )


def is_inside(partitioned, number, points):
    world = partitioned.frame.to_world(partitioned.scene.cloud.points[points])
    return partitioned.partition.is_in_expanded(number, world)


@pytest.mark.parametrize("most", [0.0, 0.25])
def test_a_block_starts_from_all_points_of_its_cell_and_few_around_it(most):
    partitioned = four_blocks()
    _, blocks = plan(partitioned, backdrop=most)
    for block in blocks:
        theirs = partitioned.partition.points[block.number]
        inside = is_inside(partitioned, block.number, theirs)
        assert (~inside).sum() > 0.5 * inside.sum(), "the case must have points to leave out"
        own = is_inside(partitioned, block.number, block.points)
        assert np.array_equal(block.points[own], theirs[inside])
        assert (~own).sum() == int(most * inside.sum())
        assert np.isin(block.points, theirs).all() and (np.diff(block.points) > 0).all()
        assert block.num_initial == len(block.points)
    _, again = plan(partitioned, backdrop=most)
    for block, same in zip(blocks, again, strict=True):
        assert np.array_equal(block.points, same.points)


def test_a_large_backdrop_is_all_that_there_is():
    partitioned = four_blocks()
    settings, blocks = plan(partitioned, backdrop=1e6)
    for block in blocks:
        assert np.array_equal(block.points, partitioned.partition.points[block.number])
        state = first_state(partitioned._replace(blocks=blocks), block, settings, block.num_initial)
        assert state.alive.sum() <= len(block.points)


def test_one_block_has_no_outside():
    (block,) = town_place(TOWN).blocks
    assert block.num_initial == len(block.points) == len(town_place(TOWN).partition.points[0])


@pytest.mark.parametrize("grows", [False, True])
def test_blocks_grow_in_their_expanded_cells(tmp_path, grows):
    settings, blocks = plan(four_blocks(), grows_backdrop=grows)
    partitioned = four_blocks()._replace(blocks=blocks)
    with run_context(partitioned, tmp_path, 4, settings) as run:
        steps = compile_blocks(settings, run.layout)
        schedule = Schedule.from_settings(settings)
        control = DensityControl(partitioned, run.layout, settings, schedule, steps)
        stage = loop.start_stage(
            run,
            "device",
            lambda number: first_state(partitioned, blocks[number], settings, 900),
            900,
        )
    for number in range(NUM_BLOCKS):
        low, high = control.growing_area(number)
        assert (low < high).all() and np.isfinite([low, high]).any() != grows
        state = run.layout.get_blocks(stage.states)[number]
        means = np.asarray(state.params.means)[np.asarray(state.alive)]
        grown = ((means[:, :2] >= low) & (means[:, :2] < high)).all(axis=1)
        expected = partitioned.partition.is_in_expanded(number, means) | grows
        assert np.array_equal(grown, expected) and grown.mean() > 0.7
