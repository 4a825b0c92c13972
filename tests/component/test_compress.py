"""Compression: what is pruned by importance, and that moments and statistics stay with their
surfels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import (
    NUM_BLOCKS,
    PHOTOMETRIC,
    SETTINGS,
    contributions,
    four_blocks,
    num_slots,
    put_states,
    run_context,
    solid_state,
    surfels_of,
    with_lmc,
)

from cosurfgs_jax import metrics
from cosurfgs_jax.collab import compress, lmc_stages
from cosurfgs_jax.collab.compress import top_fraction_mask
from cosurfgs_jax.collab.importance import Importance
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import AppearanceSettings, LmcSettings, TrainSettings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.loop import StageState, drop_free_slots
from cosurfgs_jax.training.partitioned_scene import round_slots
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.types import Surfels

NUM = 200  # slots of the states without a place
_ARRAYS = 32  # more than a state has; slot times this is exact in f32


@pytest.fixture(scope="module")
def partitioned():
    return four_blocks()


@pytest.fixture
def run(partitioned, tmp_path):
    with run_context(partitioned, tmp_path, 4) as run:
        yield run


def kept(scores, among, prune_ratio=0.0, importance_share=0.0) -> list[int]:
    room = (0, NUM - len(scores))  # one shape for all: slots that are not judged
    scores = jnp.asarray(np.pad(scores, room), jnp.float32)
    among = jnp.asarray(np.pad(among, room), bool)
    return np.flatnonzero(top_fraction_mask(scores, among, prune_ratio, importance_share)).tolist()


def test_a_ratio_drops_the_least_important_among_those_that_are_judged():
    random = np.random.default_rng(1)
    scores = random.permutation(NUM).astype(np.float32)
    among = random.random(NUM) < 0.6
    judged = np.flatnonzero(among)
    for ratio in (0.0, 0.1, 0.25, 0.4, 0.99):
        num_kept = len(judged) - int(ratio * len(judged))
        assert kept(scores, among, ratio) == sorted(
            judged[np.argsort(-scores[judged])][:num_kept].tolist()
        )
    assert kept(scores, among, 0.0) == judged.tolist()
    assert kept(scores, np.zeros(NUM), 0.4) == []


def test_ties_are_kept_by_index():
    assert kept([1, 2, 1, 1, 2, 1], [1, 1, 1, 0, 1, 1], 0.4) == [0, 1, 4]
    assert kept([0, 0, 0, 0], [0, 1, 1, 1], 0.34) == [1, 2]
    assert kept([1, 1, 1, 1], [1, 1, 1, 1], importance_share=0.6) == [0, 1, 2]


def test_a_fraction_keeps_the_smallest_head_that_carries_it():
    scores = [4, 1, 0, 3, 2]
    everyone = [1, 1, 1, 1, 1]  # fractions 0.4, 0.7, 0.9, 1
    heads = {
        0.1: [0],
        0.39: [0],
        0.41: [0, 3],
        0.69: [0, 3],
        0.71: [0, 3, 4],
        0.89: [0, 3, 4],
        0.95: [0, 1, 3, 4],
        0.999: [0, 1, 3, 4],
    }
    for fraction, head in heads.items():
        assert kept(scores, everyone, 0.9, fraction) == head, (
            "the ratio does not count where there is a fraction"
        )
    assert kept(scores, [0, 1, 1, 0, 1], 0.0, 0.5) == [4]
    assert kept(scores, [0] * 5, 0.0, 0.5) == []
    assert kept([0] * 5, [0, 1, 1, 0, 1], 0.0, 0.5) == [1, 2, 4], "nothing is known of them"


def _arrays_of_slots(state: TrainState):
    """All that must move with a surfel, but for its position."""
    params = state.params.by_name()
    del params["means"]
    return params, state.optimizer.mu, state.optimizer.nu, state.stats


def tagged(state: TrainState) -> TrainState:
    """The state with numbers in all arrays, but for the positions, that tell the slot and the
    array.
    """
    leaves, tree = jax.tree.flatten(_arrays_of_slots(state))
    numbers = [
        np.arange(len(state.alive)).reshape(-1, *[1] * (leaf.ndim - 1)) * _ARRAYS + i
        for i, leaf in enumerate(leaves)
    ]
    params, mu, nu, stats = jax.tree.unflatten(
        tree,
        [
            np.broadcast_to(number, leaf.shape).astype(leaf.dtype)
            for number, leaf in zip(numbers, leaves, strict=True)
        ],
    )
    return dataclasses.replace(
        state,
        params=state.params.replace(**params),
        optimizer=state.optimizer._replace(mu=mu, nu=nu),
        stats=stats,
    )


def slots_of(state: TrainState) -> np.ndarray:
    """The slot that each living surfel had when it was tagged; all its arrays must agree on it."""
    leaves = jax.tree.leaves(_arrays_of_slots(state))
    assert len(leaves) == 4 + 5 + 5 + 4
    living = [
        np.asarray(leaf)[state.alive].reshape(int(state.alive.sum()), -1) - i
        for i, leaf in enumerate(leaves)
    ]
    for other in living:
        np.testing.assert_array_equal(other, np.broadcast_to(living[0][:, :1], other.shape))
    return living[0][:, 0].astype(int) // _ARRAYS


@pytest.mark.parametrize("ratio, fraction", [(0.4, 0.0), (0.0, 0.0), (0.4, 0.8)])
def test_pruning_judges_inside_and_outside_by_themselves_and_keeps_each_surfel_together(
    ratio, fraction
):
    random = np.random.default_rng(2)
    alive = random.random(NUM) < 0.9
    is_inside = random.random(NUM) < 0.3
    # What is outside is hardly seen: judged together with the rest it would all go.
    weight = np.where(is_inside, random.uniform(1, 2, NUM), random.uniform(0, 0.1, NUM)).astype(
        np.float32
    )
    importance = Importance(jnp.asarray(weight), jnp.int32(5), jnp.int32(5))
    settings = with_lmc(importance_share=fraction)
    state = first_state(four_blocks(), four_blocks().blocks[0], SETTINGS, NUM)
    state = jax.tree.map(jnp.asarray, tagged(dataclasses.replace(state, alive=alive)))
    prune = jax.jit(functools.partial(compress.prune_step, settings=settings, prune_ratio=ratio))
    new = jax.tree.map(np.asarray, prune(state, importance, jnp.asarray(is_inside)))
    expected = []
    for side in (is_inside, ~is_inside):
        slots = np.flatnonzero(alive & side)
        order = slots[np.argsort(-weight[slots])]
        fractions = np.cumsum(weight[order]) / weight[order].sum()
        expected += order[
            : np.searchsorted(fractions, fraction) + 1
            if fraction
            else len(slots) - int(ratio * len(slots))
        ].tolist()
    assert (len(expected) < alive.sum()) == (ratio > 0)
    assert slots_of(new).tolist() == sorted(expected)
    assert new.alive[: len(expected)].all() and not new.alive[len(expected) :].any(), (
        "the living are in front"
    )
    assert new.optimizer.count == state.optimizer.count
    jax.tree.map(
        np.testing.assert_array_equal, new.appearance, jax.tree.map(np.asarray, state.appearance)
    )


def compressed(run, before):
    stage = StageState("device", put_states(run, before.get), 0, 0, 0.0)
    programs = compress.compile_compression(run.settings, run.layout, 0.4)
    return compress.compress(run, stage, programs)


def test_compression_prunes_every_block_and_makes_room(run, partitioned):
    before = {block: solid_state(partitioned, block) for block in range(NUM_BLOCKS)}
    result = compressed(run, before)
    draw = jax.jit(functools.partial(rasterize, image_size=partitioned.photo_size, maps="color"))
    states = run.layout.get_blocks(result.states)
    for block, state in states.items():
        means = before[block].params.means[before[block].alive]
        inside = partitioned.partition.cell_of(means) == block
        expected = [len(part) - int(0.4 * len(part)) for part in (means[inside], means[~inside])]
        assert result.num_before[block] == len(means) and result.num_after[
            block
        ] == state.alive.sum() == sum(expected)
        is_in_cell = partitioned.partition.cell_of(state.params.means[state.alive]) == block
        assert result.num_inside[block] == expected[0] == is_in_cell.sum()
        fraction = [
            one[: len(means)][inside, 0].sum() / np.prod(partitioned.photo_size)
            for one in contributions(block)
        ]
        assert result.num_used[block] == sum(one >= 0.25 for one in fraction)
        assert state.alive.shape == (num_slots(partitioned),), "another shape is compiled anew"
    shrunk = run.layout.get_blocks(drop_free_slots(run.layout, result.states))
    for block, state in shrunk.items():
        assert state.alive.shape == (round_slots(max(result.num_after.values())),)
        assert state.alive.shape[0] < num_slots(partitioned)
        kept_means = states[block].params.means[: state.alive.shape[0]]
        np.testing.assert_array_equal(state.params.means, kept_means)
    # The head explains the photographs better than as many surfels by chance.
    block = 0
    view = partitioned.views.camera(int(partitioned.blocks[0].views[0]))
    order = np.random.default_rng(0).permutation(result.num_before[block])
    whole = draw(surfels_of(before[block]), view).color
    params = before[block].params
    by_importance = draw(surfels_of(states[block]), view).color
    by_chance = draw(
        Surfels.of(
            jax.tree.map(lambda value: value[order[: result.num_after[block]]], params),
            np.ones(result.num_after[block], bool),
        ),
        view,
    ).color
    assert metrics.psnr(by_importance, whole) > metrics.psnr(by_chance, whole) + 3


def test_a_block_without_a_used_photograph_is_compressed_by_all_of_its_own(run, partitioned):
    before = {block: solid_state(partitioned, block) for block in range(NUM_BLOCKS)}
    inside = [
        partitioned.partition.cell_of(state.params.means) == block
        for block, state in before.items()
    ]
    fractions = [
        [
            one[inside[block], 0].sum() / np.prod(partitioned.photo_size)
            for one in contributions(block)
        ]
        for block in before
    ]
    fraction = float(
        np.mean(sorted(map(max, fractions))[1:3])
    )  # two blocks have none that shows their cell so much
    results = [
        compressed(
            run._replace(settings=with_lmc(camera_switch=switch, min_cell_share=fraction)), before
        )
        for switch in (True, False)
    ]
    switched, by_all = (run.layout.get_blocks(result.states) for result in results)
    is_same = []
    for block, state in switched.items():
        num_used = sum(one >= fraction for one in fractions[block])
        assert results[0].num_used[block] == (num_used or len(fractions[block]))
        is_same.append(np.array_equal(state.params.means, by_all[block].params.means))
        assert is_same[-1] == (num_used == 0)
    assert sorted(is_same) == [False, False, True, True]


@pytest.mark.parametrize("num_devices", [4, 2])
def test_cropping_keeps_what_lies_in_the_cell_and_only_that(partitioned, tmp_path, num_devices):
    def make_state(block):
        return tagged(solid_state(partitioned, block))

    with run_context(partitioned, tmp_path, num_devices) as run:
        states = put_states(run, make_state)
        cells = compress.crop_to_cells(partitioned.partition, run.layout, states)
        cropped = run.layout.get_blocks(cells)
    assert list(cropped) == list(range(NUM_BLOCKS))
    slots = {state.alive.shape[0] for state in cropped.values()}
    assert slots == {round_slots(max(int(state.alive.sum()) for state in cropped.values()))}
    for block, state in cropped.items():
        before = make_state(block)
        expected = np.flatnonzero(
            before.alive & (partitioned.partition.cell_of(before.params.means) == block)
        )
        num = len(expected)
        assert (
            100 < num < before.alive.sum()
            and state.alive[:num].all()
            and not state.alive[num:].any()
        )
        np.testing.assert_array_equal(state.params.means[:num], before.params.means[expected])
        np.testing.assert_array_equal(slots_of(state), expected)
    # Every point of the place is in one cell, and none is lost.
    assert sum(int(state.alive.sum()) for state in cropped.values()) == len(
        partitioned.scene.cloud.points
    )


def test_recovery_leaves_exposures_alone(tmp_path):
    num_steps = 2
    settings = dataclasses.replace(
        PHOTOMETRIC,
        appearance=AppearanceSettings(start=0.0),
        lmc=LmcSettings(rounds=1),
        train=TrainSettings(steps=num_steps, log_every=100),
    )
    partitioned = four_blocks()
    with (
        run_context(partitioned, tmp_path, 1, settings) as run,
        Checkpoints(run.workdir.checkpoints("lmc_device")) as checkpoints,
    ):
        first = [solid_state(partitioned, block, settings=settings) for block in range(NUM_BLOCKS)]
        stage = StageState("lmc_device", put_states(run, first.__getitem__), 0, 0, 0.0)
        end = lmc_stages.compress_in_rounds(run, stage, num_steps, checkpoints)
        for block, state in run.layout.get_blocks(end.states).items():
            jax.tree.map(np.testing.assert_array_equal, state.appearance, first[block].appearance)
            assert int(state.appearance_optimizer.count) == num_steps
            assert int(state.optimizer.count) == num_steps
