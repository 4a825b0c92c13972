"""Depth at the seams, on flat models of two blocks that lie at heights apart: the shares are known, whatever the view."""

import dataclasses

import numpy as np
import pytest
from blocks_case import TOWN, exchange_of, put_states, run_context, solid_state
from scenes import town_place

from cosurfgs_jax.collab.compress import crop_rows
from cosurfgs_jax.collab.score import SeamMasks
from cosurfgs_jax.collab.seam_depth import (
    SeamDepth,
    disagreement,
    score_seam_depth,
    seam_depth_from_sums,
    tell_seam_depth,
    view_sums,
)

HEIGHT = 0.02  # world lengths


@pytest.fixture(scope="module")
def place():
    return town_place(TOWN, num_blocks=2)


def flat_state(place, number, height):
    """Solid discs in a grid over the block's expanded cell, parallel to the ground."""
    state = solid_state(place, number)
    params = {name: np.array(value) for name, value in state.params.items()}
    partition, count = place.partition, int(np.sqrt(len(params["means"])))
    margin = partition.expansion * (partition.inner_highs - partition.inner_lows)[number]
    low, high = partition.inner_lows[number] - margin, partition.inner_highs[number] + margin
    x, y = np.meshgrid(*(np.linspace(low[axis], high[axis], count) for axis in (0, 1)))
    params["means"][:count**2] = np.stack([x.ravel(), y.ravel(), np.full(count**2, height)], axis=1)
    params["quats"][:] = [1, 0, 0, 0]
    params["log_scales"][:] = np.log(0.6 * (high - low) / (count - 1))
    return dataclasses.replace(state, params=params, alive=np.arange(len(state.alive)) < count**2)


def scores(context, heights, is_whole_known=True):
    place, layout = context.place, context.layout
    rows = put_states(context, lambda number: flat_state(place, number, heights[number]))
    return score_seam_depth(context, crop_rows(context, rows), exchange_of(layout), SeamMasks(place, context.settings),
                            rows if is_whole_known else None)


def test_blocks_that_disagree_leave_a_step_half_of_it_half_a_step_and_equal_ones_none(place, tmp_path):
    with run_context(place, tmp_path / "one", 1) as context:
        apart, half, equal = (scores(context, heights) for heights in ((0.0, HEIGHT), (0.0, HEIGHT / 2), (HEIGHT, HEIGHT)))
    # A ray meets the two planes at depths that go with the camera's height over them: one share for all pixels of a view.
    above = place.views.centers()[place.scene.test_views][:, 2]
    expected = HEIGHT / (above - HEIGHT / 2)
    assert expected.min() * 0.98 < apart.depth_disagreement_seam < expected.max() * 1.02
    assert equal.depth_disagreement_seam < 0.01 * expected.mean()
    # These discs are large, and reach across the wall so far that they smear most of the step.
    assert 0.2 * expected.min() < apart.depth_step_seam < expected.max() and apart.depth_step_rest < 0.02 * expected.mean()
    assert apart.depth_step_excess == pytest.approx(np.sqrt(apart.depth_step_seam**2 - apart.depth_step_rest**2))
    assert half.depth_step_excess == pytest.approx(apart.depth_step_excess / 2, rel=0.05)
    assert equal.depth_step_excess < 0.02 * apart.depth_step_excess
    assert apart.depth_error_seam > 0 and apart.depth_error_rest > 0
    with run_context(place, tmp_path / "two", 2) as context:
        merged = scores(context, (0.0, HEIGHT), is_whole_known=False)
    assert merged.depth_disagreement_seam is None
    for name in SeamDepth._fields[1:]:
        assert getattr(merged, name) == pytest.approx(getattr(apart, name), rel=1e-3), name


def test_one_block_has_no_seam(tmp_path):
    place = town_place(TOWN)
    with run_context(place, tmp_path, 1) as context:
        rows = put_states(context, lambda number: solid_state(place, number))
        depth = score_seam_depth(context, rows, exchange_of(context.layout), SeamMasks(place, context.settings), rows)
    assert depth == SeamDepth() and tell_seam_depth(depth) == ""


def test_disagreement_counts_only_where_both_blocks_were_trained(place):
    view = int(place.scene.test_views[0])
    camera, size = place.views.camera_arrays(view), place.views.image_size(view)
    height = place.views.centers()[view, 2]
    depth = np.full(size, height, np.float32)
    everywhere = np.ones(size, bool)
    found = disagreement({0: depth, 1: 1.02 * depth}, camera, place.partition, everywhere)
    assert found == pytest.approx(0.02 / 1.01, rel=1e-4)
    assert 0 < len(found) < 0.6 * depth.size  # the band of the expanded cells, not the picture
    assert len(disagreement({0: depth, 1: 0 * depth}, camera, place.partition, everywhere)) == 0
    assert len(disagreement({0: depth, 1: 1.02 * depth}, camera, place.partition, ~everywhere)) == 0
    sums = view_sums(depth, camera, place.partition, everywhere, truth=1.25 * depth, alone={0: depth, 1: 1.02 * depth})
    result = seam_depth_from_sums(sums + sums)
    assert result.depth_disagreement_seam == pytest.approx(0.02 / 1.01, rel=1e-4)
    assert result.depth_error_seam == pytest.approx(0.2) and result.depth_error_rest is None


def test_the_excess_takes_roughness_off():
    def sums(seam, rest):
        return np.array([[0, 0], [10, 10 * seam], [90, 90 * rest], [0, 0], [0, 0.0]])

    depth = seam_depth_from_sums(sums(0.005, 0.003))
    assert depth.depth_step_excess == pytest.approx(0.004) and depth.depth_disagreement_seam is None
    assert seam_depth_from_sums(sums(0.003, 0.005)).depth_step_excess == 0
    assert tell_seam_depth(depth) == ("depth at the seams, as a share of it: step across walls 0.500% (0.300% elsewhere), "
                                      "step beyond roughness 0.400%")
