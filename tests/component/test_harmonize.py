"""Blocks agree about brightness: factors from shared photographs, and models that show the same
with other colours.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import NUM_BLOCKS, SETTINGS, four_blocks, put_states, run_context, solid_state

from cosurfgs_jax.collab import merged_model
from cosurfgs_jax.collab.merged_model import (
    load_exposures,
    load_merged,
    none_of,
    open_merged,
)
from cosurfgs_jax.geometry import spherical_harmonics
from cosurfgs_jax.losses.photometric import apply_exposure
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import AppearanceSettings, LmcSettings, MasSettings
from cosurfgs_jax.training import harmonize, loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.saved_blocks import SavedBlocks, named_leaves
from cosurfgs_jax.workdir import Workdir


def test_gains_are_found_from_shared_photographs():
    rng = np.random.default_rng(0)
    true = np.array(
        [[1.2, 1.1, 1.0], [0.9, 0.9, 1.0], [1.0, 1.05, 0.95], [0.8, 1.0, 1.1]]
    )  # canonical colours of the blocks
    photos = rng.uniform(0.4, 0.8, (12, 3))  # what each photograph shows of the grey that all mean
    responses = photos[None] / true[:, None]
    for block, shown in enumerate((range(5), range(3, 9), range(7, 12), range(9, 12))):  # a chain
        responses[block, [view for view in range(12) if view not in shown]] = np.nan
    views = np.array([5, 6, 5, 3])
    own = [np.flatnonzero(np.isfinite(rows[:, 0])) for rows in responses]
    gains = harmonize.block_gains(
        own, [rows[numbers] for rows, numbers in zip(responses, own, strict=True)]
    )
    np.testing.assert_allclose(
        gains * true, np.broadcast_to((gains * true)[:1], true.shape), rtol=1e-9
    )
    np.testing.assert_allclose((views[:, None] * np.log(gains)).sum(axis=0), 0, atol=1e-9)


def test_gains_are_those_of_all_pairs_of_blocks():
    """The plain definition, with a row of all photographs for every block."""
    rng = np.random.default_rng(1)
    own = [np.sort(rng.choice(40, number, replace=False)) for number in (9, 12, 0, 7, 14, 3)]
    responses = [rng.uniform(0.1, 1, (len(views), 3)).astype(np.float32) for views in own]
    responses[1][4] = np.nan
    logs = np.full((6, 40, 3), np.nan, np.float32)
    for block, (views, values) in enumerate(zip(own, responses, strict=True)):
        logs[block, views] = np.log(values)
    normal = np.zeros((6, 6))
    right = np.zeros((6, 3))
    for a, b in itertools.combinations(range(6), 2):
        both = np.isfinite(logs[[a, b]]).all(axis=(0, 2))
        if both.any():
            difference = np.median(logs[b, both] - logs[a, both], axis=0).astype(np.float64)
            normal[[a, b], [a, b]] += both.sum()
            normal[[a, b], [b, a]] -= both.sum()
            right[b] += both.sum() * difference
            right[a] -= both.sum() * difference
    gains = np.linalg.pinv(normal, hermitian=True) @ right
    weights = np.array([[len(views)] for views in own])
    gains = np.exp(gains - (weights * gains).sum(axis=0) / weights.sum())
    np.testing.assert_allclose(
        harmonize.block_gains(own, responses), np.clip(gains, 0.25, 4), rtol=1e-12
    )


def test_one_bad_photograph_changes_nothing_and_strangers_stay():
    responses = [np.full((6, 3), 0.5), np.full((6, 3), 0.4), np.full((1, 3), np.nan)]
    responses[1][2] = 0.01  # a photograph that one block failed to explain
    gains = harmonize.block_gains([np.arange(6), np.arange(1, 7), np.array([7])], responses)
    np.testing.assert_allclose(gains[0] / gains[1], 0.5 / 0.4)
    unknown = [np.full((2, 3), np.nan)] * 2
    np.testing.assert_allclose(harmonize.block_gains([np.arange(2)] * 2, unknown), 1)


def _with_exposure(state, gain: float, seed: int):
    """The state with colours `gain` times as bright, and transforms that are not the identity."""
    params = jax.tree.map(jnp.asarray, state.appearance)
    output = params["network"]["output"]
    noise = np.random.default_rng(seed).normal(0, 0.005, output["kernel"].shape).astype(np.float32)
    params = params | {
        "network": params["network"] | {"output": output | {"kernel": output["kernel"] + noise}}
    }
    state = dataclasses.replace(state, appearance=params)
    return harmonize.scale_colors(jax.tree.map(jnp.asarray, state), jnp.full(3, gain, jnp.float32))


def test_a_model_with_other_colours_shows_its_photographs_as_before():
    partitioned = four_blocks()
    before = jax.tree.map(jnp.asarray, solid_state(partitioned, 0))
    before = _with_exposure(before, 1.0, 0)
    after = harmonize.scale_colors(before, jnp.asarray([1.3, 0.8, 1.1], jnp.float32))
    camera = partitioned.views.camera_arrays(int(partitioned.blocks[0].views[0]))
    colors = []
    photos = []
    for state in (before, after):
        colors.append(rasterize(state.surfels(), camera, image_size=(24, 32), maps="color").color)
        photos.append(apply_exposure(colors[-1], exposure_model.transform_of(state.appearance, 1)))
    assert (colors[0] > 0.05).mean() > 0.3
    np.testing.assert_allclose(photos[1], photos[0], atol=2e-6)
    np.testing.assert_allclose(
        colors[1], colors[0] * jnp.asarray([1.3, 0.8, 1.1])[None, None], atol=2e-6
    )


def test_blocks_of_a_run_agree_afterwards(tmp_path):
    partitioned = four_blocks()
    gains = np.array([1.25, 0.8, 1.0, 1.1])
    with run_context(partitioned, tmp_path, 2) as run:
        rows = put_states(
            run,
            lambda number: jax.tree.map(
                np.asarray,
                _with_exposure(solid_state(partitioned, number), float(gains[number]), 7),
            ),
        )
        stage, found = harmonize.harmonize_exposure(run, StageState("device", rows, 0, 0, 0.0))
        assert NUM_BLOCKS == len(gains)
        levels = found * gains[:, None]
        shared = [
            set(partitioned.blocks[0].views.tolist()) & set(block.views.tolist())
            for block in partitioned.blocks
        ]
        assert sum(map(bool, shared)) > 1, "the case must have photographs that blocks share"
        np.testing.assert_allclose(
            levels, levels.mean(axis=0)[None].repeat(NUM_BLOCKS, axis=0), rtol=0.05
        )
        assert np.ptp(found[:, 0]) > 0.2
        blocks = run.layout.get_blocks(stage.states)
    for number, state in blocks.items():
        sh = _with_exposure(
            solid_state(partitioned, number), float(gains[number] * found[number, 0]), 7
        ).params.sh
        np.testing.assert_allclose(state.params.sh[..., 0], sh[..., 0], atol=1e-4)


def _check_choices(open_model):
    """Some surfels of a saved cell are those of the whole cell, and of nothing no more is read than
    what tells who is seen.
    """
    model = open_model()
    whole = model.cell(2)
    some = model.cell(2, lambda discs: np.arange(len(discs.alive)) % 3 == 1)
    assert 0 < len(some.alive) < len(whole.alive) == model.count(2)
    jax.tree.map(
        np.testing.assert_array_equal, some, jax.tree.map(lambda values: values[1::3], whole)
    )
    read = []
    before = SavedBlocks.read

    def noted(saved, block, abstract):
        read.extend(name for name, _ in named_leaves(abstract))
        return before(saved, block, abstract)

    with pytest.MonkeyPatch.context() as patch:
        # None waits, as in a stage that has ended.
        patch.setattr(merged_model, "_settling", lambda *_: None)
        model = open_model()
        patch.setattr(SavedBlocks, "read", noted)
        nothing = model.cell(1, none_of)
    assert sorted(read) == ["alive", "params.log_scales", "params.means"]
    assert nothing.sh.shape == (0, *whole.sh.shape[1:]) and nothing.sh.dtype == whole.sh.dtype


def test_blocks_that_are_not_distilled_are_merged_in_one_brightness(tmp_path):
    partitioned = four_blocks()
    gains = np.array([1.25, 0.8, 1.0, 1.1])
    exposures = []

    def merged_colors(factors):
        workdir = tmp_path / str(factors[0])
        settings = dataclasses.replace(
            SETTINGS, lmc=LmcSettings(enabled=False), mas=MasSettings(enabled=False)
        )
        with (
            run_context(partitioned, workdir, 1, settings) as run,
            Checkpoints(Workdir(workdir).checkpoints("device")) as checkpoints,
        ):
            rows = put_states(
                run,
                lambda number: jax.tree.map(
                    np.asarray,
                    _with_exposure(solid_state(partitioned, number), float(factors[number]), 7),
                ),
            )
            loop.save_stage(run, StageState("device", rows, 1, 0, 0.0), checkpoints)
            checkpoints.wait()
        surfels, _ = load_merged(settings, Workdir(workdir), partitioned)
        _check_choices(lambda: open_merged(settings, Workdir(workdir), partitioned))
        exposures.append(load_exposures(settings, Workdir(workdir), partitioned))
        return surfels.means, 0.5 + spherical_harmonics.C0 * surfels.sh[:, 0]

    (means, level) = merged_colors(np.ones(4))
    (other_means, colors) = merged_colors(gains)
    np.testing.assert_array_equal(means, other_means)
    ratio = colors[level[:, 0] > 0.05, 0] / level[level[:, 0] > 0.05, 0]
    np.testing.assert_allclose(
        ratio, np.median(ratio), rtol=0.05
    )  # of all cells; it was 0.8 to 1.25
    # Those of the photographs are undone likewise: a photograph shows the same of the same grey.
    first, second = (found @ [0.5, 0.5, 0.5, 1.0] for found in exposures)
    np.testing.assert_allclose(
        second[partitioned.scene.train_views], first[partitioned.scene.train_views], rtol=0.03
    )


def test_photographs_without_exposures_show_colours_as_they_are(tmp_path):
    partitioned = four_blocks()
    settings = dataclasses.replace(SETTINGS, appearance=AppearanceSettings(enabled=False))
    found = load_exposures(settings, Workdir(tmp_path), partitioned)
    np.testing.assert_array_equal(found, np.tile(np.eye(3, 4), (partitioned.scene.num_views, 1, 1)))
