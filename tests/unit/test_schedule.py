"""When what happens, step by step, on a course whose numbers can be reckoned by hand."""

import dataclasses

import numpy as np
import pytest

from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.schedule import Schedule, ViewOrder, progress_at
from cosurfgs_jax.training.step import StepShape

COURSE = Schedule(
    num_steps=120,
    density_start=20,
    density_stop=100,
    density_every=10,
    reset_every=30,
    prune_large_start=50,
    trim_every=40,
    sh_every=25,
    sh_degree=3,
    is_growing=True,
    geometry_start=40,
    dilation=2,
    dilation_stop=60,
    mask_start=70,
    mask_stop=90,
)


def steps_of(happens, course=COURSE) -> set[int]:
    return {step for step in range(1, course.num_steps + 1) if happens(course, step)}


def test_steps_of_density_control_and_masks():
    assert steps_of(Schedule.densifies_after) == {*range(20, 101, 10)}
    # The reset at 90 would end after density control.
    assert steps_of(Schedule.resets_after) == {30, 60}
    assert steps_of(Schedule.prunes_masked_after) == {90}
    assert steps_of(Schedule.is_masked) == {*range(70, 90)}
    assert steps_of(Schedule.prunes_large) == {*range(51, 121)}
    assert steps_of(Schedule.looks_at_all_after) == {*range(20, 101, 10), 120}
    still = dataclasses.replace(COURSE, is_growing=False, mask_stop=70)
    assert steps_of(Schedule.looks_at_all_after, still) == {120}
    assert not steps_of(Schedule.is_masked, still)


@pytest.mark.parametrize(
    "every, steps",
    [
        (40, {80}),
        (15, {45, 75, 90}),  # half of the steps between two resets after one
        (44, {88}),
        (0, set()),
    ],
)
def test_nothing_is_trimmed_while_opacities_are_low(every, steps):
    course = dataclasses.replace(COURSE, trim_every=every)
    assert steps_of(Schedule.trims_after, course) == steps
    often = dataclasses.replace(course, reset_every=0)
    multiples = {*range(every, 101, every)} - {15} if every else set()
    assert steps_of(Schedule.trims_after, often) == multiples
    assert not steps_of(Schedule.resets_after, often)


def test_the_budget_rises_in_a_straight_line_to_four_fifths_of_the_way():
    found = [COURSE.budget(step, first=100, capacity=1000) for step in (0, 20, 52, 84, 100)]
    assert found == [100, 100, 550, 1000, 1000]
    at_once = dataclasses.replace(COURSE, density_stop=20)
    assert at_once.budget(21, first=100, capacity=1000) == 1000


def test_shapes_of_steps_and_degrees_of_colours():
    assert [COURSE.shape(step) for step in (0, 39, 40, 59, 60, 99, 100)] == [
        StepShape(True, False, 2),
        StepShape(True, False, 2),
        StepShape(True, True, 2),
        StepShape(True, True, 2),
        StepShape(True, True, 1),
        StepShape(True, True, 1),
        StepShape(False, True, 1),
    ]
    flat = dataclasses.replace(COURSE, is_growing=False, geometry_start=None)
    assert flat.shape(99) == StepShape(False, False, 1)
    assert [COURSE.sh_degree_at(step) for step in (0, 24, 25, 74, 75, 119)] == [0, 0, 1, 2, 3, 3]
    assert dataclasses.replace(COURSE, sh_every=0).sh_degree_at(0) == 3


def settings_of(num_steps) -> Settings:
    settings = Settings()
    settings.train.steps = num_steps
    settings.density = dataclasses.replace(
        settings.density,
        start=0.02,
        stop=0.6,
        every=0.004,
        opacity_reset_every=0.1,
        prune_scale_start=0.2,
        trim_every=0.05,
        trim_min_views=2,
    )
    settings.mask = dataclasses.replace(settings.mask, weight=0.1, start=0.5, stop=0.7)
    settings.train.sh_degree_every = 0.03
    settings.train.dilation_stop = 0.9
    settings.loss.geometry_start = 0.25
    return settings


def test_fractions_are_steps_with_floors():
    long = Schedule.from_settings(settings_of(10_000), dilation=2)
    assert dataclasses.astuple(long) == (
        10_000, 200, 6000, 40, 1000, 2000, 500, 300, 3, True, 2500, 2, 9000, 5000, 7000
    )  # fmt: skip
    short = Schedule.from_settings(settings_of(100))
    assert dataclasses.astuple(short) == (
        100, 20, 60, 20, 500, 500, 200, 3, 3, True, 25, 1, 90, 50, 70
    )  # fmt: skip
    tiny = Schedule.from_settings(settings_of(1))
    assert (tiny.density_stop, tiny.sh_every, tiny.mask_start, tiny.geometry_start) == (1, 1, 0, 0)


def test_what_is_off_never_happens():
    settings = settings_of(10_000)
    settings.density.trim_min_views = settings.density.opacity_reset_every = 0
    settings.mask.weight = 0.0
    settings.density.enabled = False
    loss = settings.loss
    loss.single_view_weight = 0.0
    loss.multi_view_geometric_weight = 0.0
    assert Schedule.from_settings(settings).geometry_start == 2500
    loss.multi_view_photometric_weight = 0.0
    course = Schedule.from_settings(settings)
    assert (course.trim_every, course.reset_every, course.geometry_start) == (0, 0, None)
    assert course.mask_stop == course.mask_start and not course.is_growing


def test_a_course_without_growth():
    course = Schedule.without_growth(settings_of(10_000), 77)
    assert (course.num_steps, course.is_growing, course.geometry_start) == (77, False, 0)
    assert course.sh_degree_at(0) == 3 and course.shape(0) == StepShape(False, True, 1)
    assert steps_of(Schedule.looks_at_all_after, course) == {77}
    assert not steps_of(Schedule.is_masked, course)
    settings = settings_of(10_000)
    for name in ("single_view", "multi_view_geometric", "multi_view_photometric"):
        setattr(settings.loss, f"{name}_weight", 0.0)
    assert Schedule.without_growth(settings, 77).geometry_start is None


def test_the_course_of_the_learning_rates():
    assert progress_at(5, 20) == 0.25 and progress_at(5, 20, 0.5) == 0.625
    assert progress_at(20, 20, 0.5) == 1


def test_photographs_come_once_an_epoch_in_an_order_of_seed_and_block():
    views = np.array([3, 5, 8, 9])
    order = ViewOrder(views, seed=7)
    epochs = [order.views(first, 4) for first in (0, 4, 8)]
    assert all(sorted(epoch) == [3, 5, 8, 9] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order.views(2, 4) == [*epochs[0][2:], *epochs[1][:2]]
    assert ViewOrder(views, 7, 0).views(0, 12) == sum(epochs, [])
    assert ViewOrder(views, 7, 1).views(0, 12) != sum(epochs, [])
    assert ViewOrder(views, 8).views(0, 12) != sum(epochs, [])
