"""Surfels that wait for the next view which may show them are up to date wherever the whole model
is looked at, and when that is does not change what is trained.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blocks_case import NUM_BLOCKS, PHOTOMETRIC, four_blocks, put_states, run_context, solid_state

from cosurfgs_jax.collab import compress, lmc_stages
from cosurfgs_jax.collab.merged_model import load_merged
from cosurfgs_jax.model import optim
from cosurfgs_jax.settings import (
    LmcSettings,
    MasSettings,
    OptimSettings,
    TrainSettings,
)
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.schedule import Schedule, progress_at
from cosurfgs_jax.training.state import is_lazy
from cosurfgs_jax.training.step import settle_step
from cosurfgs_jax.training.trainer import Trainer
from cosurfgs_jax.workdir import Workdir

NUM_STEPS = 6
LAZY = dataclasses.replace(
    PHOTOMETRIC,
    lmc=LmcSettings(enabled=False, rounds=2, start_progress=0.25),
    mas=MasSettings(enabled=False),
    train=TrainSettings(steps=NUM_STEPS, log_every=100),
)

pytestmark = pytest.mark.skipif(
    not optim.can_be_lazy(LAZY.optim), reason="no native kernel: no surfel waits"
)


def first_stage(run) -> StageState:
    partitioned = run.partitioned
    states = put_states(run, lambda block: solid_state(partitioned, block, settings=run.settings))
    return StageState("device", states, 0, 0, 0.0)


def waiting(run, stage) -> int:
    """How many living surfels are behind."""
    return sum(
        int((state.alive & (state.updated != state.optimizer.count)).sum())
        for state in run.layout.get_blocks(stage.states).values()
    )


def test_compression_measures_surfels_that_are_up_to_date(tmp_path, monkeypatch):
    behind = []
    compress_as_ever = compress.compress

    def watched(run, stage, programs):
        behind.append(waiting(run, stage))
        return compress_as_ever(run, stage, programs)

    monkeypatch.setattr(compress, "compress", watched)
    with (
        run_context(four_blocks(), tmp_path, 4, LAZY) as run,
        Checkpoints(run.workdir.checkpoints("lmc_device")) as checkpoints,
    ):
        stage = first_stage(run)._replace(name="lmc_device")
        end = lmc_stages.compress_in_rounds(run, stage, NUM_STEPS, checkpoints)
        assert behind == [0, 0], "before both rounds"
        assert waiting(run, end) == 0
        trainer = Trainer(run, Schedule.without_growth(LAZY, 2 * NUM_STEPS))
        again = loop.run_stage(
            run, end._replace(name="on", step=0), NUM_STEPS // 2, trainer.advance, checkpoints
        )
        assert waiting(run, again), "the case must have surfels that wait in the middle of a stage"


@pytest.mark.parametrize("name, first_progress", [("device", 0.0), ("lmc_device", 0.25)])
def test_a_stopped_run_is_looked_at_as_if_nothing_waited(tmp_path, name, first_progress):
    partitioned = four_blocks()
    lmc = dataclasses.replace(LAZY.lmc, enabled=name == "lmc_device", recovery=1.0)
    settings = dataclasses.replace(LAZY, lmc=lmc)
    step = 4

    def stopped(block: int):
        state = solid_state(partitioned, block, settings=settings)
        random = np.random.default_rng(block)

        def moments(scale):
            return jax.tree.map(
                lambda leaf: random.uniform(0.5, 1, leaf.shape).astype(np.float32) * scale,
                state.params,
            )

        return dataclasses.replace(
            state,
            optimizer=optax.ScaleByAdamState(np.int32(step), moments(1e-3), moments(1e-6)),
            updated=random.integers(1, step + 1, len(state.alive)).astype(np.int32),
        )

    with (
        run_context(partitioned, tmp_path, 1, settings) as run,
        Checkpoints(run.workdir.checkpoints(name)) as checkpoints,
    ):
        stage = StageState(name, put_states(run, stopped), step, 0, 0.0)
        assert waiting(run, stage)
        loop.save_stage(run, stage, checkpoints)
        checkpoints.wait()
    shown, steps = load_merged(settings, Workdir(tmp_path), partitioned)
    assert steps == step + (NUM_STEPS if name == "lmc_device" else 0)
    progress = jnp.float32(progress_at(step, NUM_STEPS, first_progress))
    first = 0
    for block in range(NUM_BLOCKS):
        state = jax.tree.map(jnp.asarray, stopped(block))
        params = settle_step(state, progress, settings).params
        means = np.asarray(params.means)
        own = np.asarray(state.alive) & (partitioned.partition.cell_of(means) == block)
        part = slice(first, first + own.sum())
        for field, value in params.by_name().items():
            np.testing.assert_array_equal(getattr(shown, field)[part], np.asarray(value)[own])
        first += own.sum()
        moved = np.abs(np.asarray(params.log_scales) - np.asarray(state.params.log_scales))
        assert moved[own].max() > 1e-3
    assert first == len(shown.means)


def test_saves_and_looks_on_the_way_change_no_bit(tmp_path):
    ends = []
    for every in (100, 2):
        train = TrainSettings(
            steps=NUM_STEPS, log_every=100, test_every=every, checkpoint_every=every
        )
        settings = dataclasses.replace(LAZY, train=train)
        with (
            run_context(four_blocks(), tmp_path / str(every), 4, settings) as run,
            Checkpoints(run.workdir.checkpoints("device")) as checkpoints,
        ):
            trainer = Trainer(run, Schedule.from_settings(settings))
            end = loop.run_stage(run, first_stage(run), NUM_STEPS, trainer.advance, checkpoints)
            assert waiting(run, end) == 0
            ends.append(run.layout.get_blocks(end.states))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_large_epsilon_leaves_no_surfel_behind():
    """The steps that it shortens have no closed form."""
    assert is_lazy(LAZY)
    for epsilon in (1e-8, 1e-11):
        settings = dataclasses.replace(LAZY, optim=OptimSettings(adam_eps=epsilon))
        assert not is_lazy(settings)
