"""From trials to time, words and JSON, with stand-ins for what is measured."""

import inspect
import json
import types

import numpy as np
import pytest

from cosurfgs_jax import host_memory
from cosurfgs_jax.planning import remedies, stage_times, stand_ins, text, trials
from cosurfgs_jax.planning.block_trials import StepCost
from cosurfgs_jax.planning.forecast import Forecast
from cosurfgs_jax.planning.measured import Transients
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.course import Course, Span
from cosurfgs_jax.training.step import StepShape

SHAPE = StepShape(True)


def _cost(first: float, full: float) -> StepCost:
    return StepCost(np.ones(2), np.full(2, first), np.full(2, full), 0)


def _course(*counts: int) -> Course:
    return Course([Span(10, 100, count, SHAPE) for count in counts], 0)


@pytest.mark.parametrize("num_surfels, seconds", [(100, 1.0), (150, 2.0), (200, 3.0), (500, 3.0)])
def test_a_step_takes_longer_the_more_surfels_there_are(num_surfels, seconds):
    found = stage_times.step_time(_cost(1.0, 3.0), _course(100, 200), num_surfels)
    np.testing.assert_allclose(found, seconds)


def test_surfels_that_stay_are_those_of_the_end():
    np.testing.assert_allclose(stage_times.step_time(_cost(1.0, 3.0), _course(100, 100), 100), 3.0)


def test_what_takes_long_is_repeated_less(monkeypatch):
    now = iter(np.arange(100) * 15.0)
    clock = types.SimpleNamespace(perf_counter=lambda: next(now), process_time=lambda: 0.0)
    monkeypatch.setattr(trials, "time", clock)
    calls = []
    found = trials.mean_time(calls.append, 8)
    assert calls == [0, 1, 2] and found[0] == 15.0
    calls.clear()
    now = iter(np.arange(100) * 0.5)
    trials.mean_time(calls.append, 8)
    assert calls == list(range(8))


def test_pairs_of_views_are_neighbours_spread_over_a_block():
    centers = np.zeros((30, 3))
    centers[:, 0] = np.arange(30) // 2 * 10 + np.arange(30) % 2  # pairs, ten apart
    chosen = stand_ins._pairs(centers, np.arange(4, 30))
    assert len(chosen) == 8 and set(chosen) <= set(range(4, 30))
    assert {view // 2 for view in chosen[::2]} == {view // 2 for view in chosen[1::2]}
    assert chosen[0] == 4 and chosen[-1] == 29
    assert list(stand_ins._pairs(centers, np.array([7]))) == [7]


def test_transients_keep_the_most_of_each_moment(monkeypatch):
    peaks = iter([150, 120, 500])
    monkeypatch.setattr(host_memory, "resident_bytes", lambda: 100)
    monkeypatch.setattr(host_memory, "reset_peak", lambda: True)
    monkeypatch.setattr(host_memory, "peak_bytes", lambda: next(peaks))
    seen = Transients()
    for moment in ("training", "training", "scores"):
        with seen.at(moment):
            pass
    assert seen.found == {"training": 50, "scores": 400}
    monkeypatch.setattr(host_memory, "reset_peak", lambda: False)
    with seen.at("teachers"):
        pass
    assert "teachers" not in seen.found


def test_times_and_sizes_are_json():
    assert json.loads(json.dumps(trials.bytes_of([np.zeros((3, 2), np.float32)]))) == 24
    np.testing.assert_array_equal(trials.sum_times([]), [0, 0])
    np.testing.assert_array_equal(trials.sum_times([np.ones(2), np.ones(2)]), [2, 2])


def test_the_seconds_of_stages_in_json_are_those_by_the_clock():
    stage = stage_times.StageTime("device", 30, np.array([6.0, 11.0]), np.array([8.0, 15.0]))
    values = dict.fromkeys(Forecast._fields) | {"stages": [stage]}
    assert text._stages_json(Forecast(**values)) == [
        {
            "name": "device",
            "steps": 30,
            "seconds": 8.0,
            "processor_seconds": 15.0,
            "seconds_of_steps": 6.0,
        }
    ]


def test_what_is_tried_for_a_run_that_does_not_fit():
    settings = Settings()
    settings.data.downscale = 2
    settings.partition.num_blocks = 2
    blocks = [types.SimpleNamespace(capacity=40_000), types.SimpleNamespace(capacity=60_000)]
    found = types.SimpleNamespace(
        subject=types.SimpleNamespace(
            settings=settings, partitioned=types.SimpleNamespace(blocks=blocks)
        ),
        memory=types.SimpleNamespace(held=types.SimpleNamespace(host_photos=300 * 2**20 + 1)),
    )

    def tried(change, times):
        return inspect.unwrap(change)(found, times)

    assert tried(remedies._lower_capacity, 1) == {"surfels.capacity": 50_000}
    assert tried(remedies._lower_capacity, 10) == {"surfels.capacity": 1000}
    assert tried(remedies._more_downscale, 2) == {"data.downscale": 8}
    assert tried(remedies._less_cache, 1) == {"data.host_memory_mb": 150}
    assert tried(remedies._less_cache, 4) == {"data.host_memory_mb": 64}
    assert tried(remedies._no_photographs, 3) == {"data.device_memory_mb": 0}
    assert tried(remedies._more_blocks, 3) == {"partition.num_blocks": 16}
    settings.surfels.capacity = 8000
    assert tried(remedies._lower_capacity, 1) == {"surfels.capacity": 4000}
