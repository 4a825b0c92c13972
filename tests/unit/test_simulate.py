"""scripts/simulate_city.py: runs on a cluster by arithmetic."""

import math
import types

import city_cases
import numpy as np
import pytest
import simulate_check
import simulate_city

ASKED = types.SimpleNamespace(mtbf_hours=2000.0, imbalance=0.0, price=2.0)


@pytest.fixture(scope="module")
def courses():
    """A place, and one of four times the blocks with as much in each."""
    found = []
    for factor in (1, 4):
        case = city_cases.Case(
            "place",
            num_photos=800 * factor,
            num_surfels=10**6 * factor,
            num_points=100,  # opening grows with them
            num_blocks=16 * factor,
            blocks_per_host=8,
            num_initial=10_000,
        )
        settings = simulate_city.settings_of(case, 1000)
        machine = simulate_city.Machine(simulate_city.PREDICTED_H200, network_bytes_s=1e10)
        found.append((case, settings, simulate_city.course_of(case, settings, machine, 8)))
    return found


def test_what_belongs_to_a_block_does_not_grow_with_the_place(courses):
    (_, _, small), (_, _, large) = courses
    assert large.block_s == pytest.approx(small.block_s, rel=0.01)
    assert large.device_bytes == pytest.approx(small.device_bytes, rel=0.01)
    assert large.distill_s == pytest.approx(small.distill_s, rel=0.01)
    assert large.traffic_bytes == small.traffic_bytes == 8 * 72 * 864 * 1152
    assert large.disk_bytes == pytest.approx(4 * small.disk_bytes, rel=0.01)
    assert large.score_s > small.score_s, "each test view is drawn of all cells"


def test_a_bill(courses):
    case, settings, course = courses[0]
    bill = simulate_city.bill_of(case, course, settings, ASKED)
    together = course.distill_s + course.score_s
    work = 16 * (course.block_s + together) / 3600
    assert work < bill.device_hours < 1.2 * work
    assert bill.price == pytest.approx(2 * bill.device_hours)
    assert bill.hours >= (course.block_s + together) / 3600
    often = simulate_city.bill_of(case, course, settings, _changed(mtbf_hours=0.5))
    assert often.device_hours > 1.1 * bill.device_hours and often.num_failures > 3
    never = simulate_city.bill_of(case, course, settings, _changed(mtbf_hours=0.02))
    assert "does not end" in simulate_city.times_row(case, course, never)


def _changed(**changes):
    return types.SimpleNamespace(**(vars(ASKED) | changes))


def test_failures_cost_what_came_after_the_last_checkpoint():
    class Draws:
        def __init__(self, *values):
            self._values = list(values)

        def exponential(self, mean):
            return self._values.pop(0)

    took = simulate_city.with_failures(100.0, 1.0, 20.0, Draws(50.0, 5.0, math.inf))
    restarts = 2 * simulate_city._RESTART_S
    assert took == 50 + 5 + 60 + restarts, "40 were saved at the first failure, none at the second"
    assert simulate_city.expected_s(10.0, 1e9) == pytest.approx(10.0)
    often = simulate_city.expected_s(10.0, 10.0)
    assert often == pytest.approx((10 + simulate_city._RESTART_S) * (math.e - 1))


def test_an_even_place_has_the_numbers_of_its_case():
    settings = simulate_city.settings_of(city_cases.CASES[0], 1000)
    case = city_cases.CASES[0].with_defaults(settings)
    subject = simulate_city.subject_of(settings, city_cases.place_of(case, 8), 8)
    assert subject.sizes.num_blocks == 8
    assert subject.sizes.num_final == pytest.approx(case.num_surfels, rel=0.02)
    assert subject.sizes.num_pixels == 864 * 1152
    assert len(subject.partitioned.scene.test_views) == math.ceil(case.num_photos / 8)
    assert {len(block.views) for block in subject.partitioned.blocks} == {case.views_per_block}
    home = subject.partitioned.partition.home
    assert np.ptp(np.bincount(home)) <= 1


def test_a_profile_gives_back_the_trials():
    step = {"kind": "photometric", "compile_s": 7.0, "first_s": 0.02, "full_s": 0.03}
    pair = [3.0, 0.06]
    found = {
        "num_pixels": 10_000,
        "first": 1000.0,
        "full": 3000.0,
        "num_slots": 4096,
        "steps": [step, step | {"kind": "geometric", "first_s": 0.04, "full_s": 0.05}],
        "distillation": {"edge": [5.0, 0.04], "cloud": [9.0, 0.06]},
        "start_s": 1.0,
        "decode_s": 0.01,
        "open_s": 4.0,
        "host": {},
    } | dict.fromkeys(("control", "compression", "drawing", "scoring", "teaching"), pair)
    found["merged_scoring"] = [4.0, 0.15]
    machine = simulate_city.Machine(simulate_check.profile_from(found))
    assert machine.seconds("photometric", 1000, 10_000) == pytest.approx(0.02)
    assert machine.seconds("photometric", 3000, 10_000) == pytest.approx(0.03)
    assert machine.seconds("geometric", 3000, 10_000) == pytest.approx(0.05)
    partner = machine.seconds("partner", 0, 10_000)
    assert partner == pytest.approx(0.01)
    assert machine.seconds("distillation", 0, 10_000) + 3 * partner == pytest.approx(0.06)
    assert machine.profile["scoring"] == pytest.approx(2.0), "in pictures of 0.03 s"
    assert machine.profile["scoring_partner"] == pytest.approx(1.0)


def test_each_job_of_a_process_compiles_its_own_programs_and_distillation_once():
    case = city_cases.Case("place", 400, 10**6, 100, num_blocks=4, blocks_per_host=4)
    settings = simulate_city.settings_of(case, 1000)
    free = simulate_city.PREDICTED_H200 | {
        "compile_s": dict.fromkeys(simulate_city.PREDICTED_H200["compile_s"], 0.0)
    }

    def compiling(num_shared: int) -> tuple[float, float]:
        courses = [
            simulate_city.course_of(case, settings, simulate_city.Machine(profile, num_shared), 3)
            for profile in (simulate_city.PREDICTED_H200, free)
        ]
        one, other = courses
        return one.block_s - other.block_s, one.distill_s - other.distill_s

    jobs, together = compiling(1)
    assert jobs > 0 and together > 0
    assert compiling(4) == pytest.approx((4 * jobs, together))
