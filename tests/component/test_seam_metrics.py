"""Depth at the seams, on flat models of two blocks that lie at heights apart: the shares are known,
whatever the view.
"""

import dataclasses

import numpy as np
import pytest
from blocks_case import TOWN, exchange_of, put_states, run_context, solid_state
from scenes import town_place

from cosurfgs_jax.collab.compress import crop_to_cells
from cosurfgs_jax.collab.seam_metrics import (
    SeamDepth,
    disagreement,
    score_seam_depth,
    seam_depth_from_sums,
    summarize_seam_depth,
    view_sums,
    wall_roughness,
)
from cosurfgs_jax.collab.stage_scores import SeamMasks
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.types import SurfelParams

HEIGHT = 0.02  # world lengths


@pytest.fixture(scope="module")
def partitioned():
    return town_place(TOWN, num_blocks=2)


def flat_state(partitioned, number, height):
    """Solid discs in a grid over the block's expanded cell, parallel to the ground."""
    state = solid_state(partitioned, number)
    params = {name: np.array(value) for name, value in state.params.by_name().items()}
    partition = partitioned.partition
    count = int(np.sqrt(len(params["means"])))
    margin = partition.expansion * (partition.inner_highs - partition.inner_lows)[number]
    low = partition.inner_lows[number] - margin
    high = partition.inner_highs[number] + margin
    x, y = np.meshgrid(*(np.linspace(low[axis], high[axis], count) for axis in (0, 1)))
    params["means"][: count**2] = np.stack(
        [x.ravel(), y.ravel(), np.full(count**2, height)], axis=1
    )
    params["quats"][:] = [1, 0, 0, 0]
    params["log_scales"][:] = np.log(0.6 * (high - low) / (count - 1))
    alive = np.arange(len(state.alive)) < count**2
    return dataclasses.replace(state, params=SurfelParams(**params), alive=alive)


def scores(run, heights, is_whole_known=True, roughness=None):
    partitioned = run.partitioned
    layout = run.layout
    rows = put_states(run, lambda number: flat_state(partitioned, number, heights[number]))
    return score_seam_depth(
        run,
        crop_to_cells(run.partitioned.partition, run.layout, rows),
        exchange_of(layout),
        SeamMasks(partitioned, run.settings),
        rows if is_whole_known else None,
        roughness,
    )


def test_blocks_that_disagree_leave_a_step_half_of_it_half_a_step_and_equal_ones_none(
    partitioned, tmp_path
):
    with run_context(partitioned, tmp_path / "one", 1) as run:
        apart, half, equal = (
            scores(run, heights) for heights in ((0.0, HEIGHT), (0.0, HEIGHT / 2), (HEIGHT, HEIGHT))
        )
    # A ray meets the two planes at depths that go with the camera's height over them: one share for
    # all pixels of a view.
    above = partitioned.views.centers()[:, 2]
    expected = HEIGHT / (above - HEIGHT / 2)
    assert expected.min() * 0.98 < apart.depth_disagreement_seam < expected.max() * 1.02
    assert equal.depth_disagreement_seam < 0.01 * expected.mean()
    # These discs are large, and reach across the wall so far that they smear most of the step.
    assert (
        0.2 * expected.min() < apart.depth_step_seam < expected.max()
        and apart.depth_step_rest < 0.02 * expected.mean()
    )
    assert apart.depth_step_expected < 0.02 * expected.mean()
    assert apart.depth_step_excess == pytest.approx(
        np.sqrt(apart.depth_step_seam**2 - apart.depth_step_expected**2)
    )
    assert half.depth_step_excess == pytest.approx(apart.depth_step_excess / 2, rel=0.05)
    assert equal.depth_step_excess < 0.02 * apart.depth_step_excess
    assert apart.depth_error_seam > 0 and apart.depth_error_rest > 0
    with run_context(partitioned, tmp_path / "two", 2) as run:
        merged = scores(run, (0.0, HEIGHT), False, wall_roughness([apart._asdict()]))
    assert merged.depth_disagreement_seam is None
    for name in SeamDepth._fields[1:]:
        assert getattr(merged, name) == pytest.approx(getattr(apart, name), rel=1e-3), name


def test_one_block_has_no_seam(tmp_path):
    partitioned = town_place(TOWN)
    with run_context(partitioned, tmp_path, 1) as run:
        rows = put_states(run, lambda number: solid_state(partitioned, number))
        depth = score_seam_depth(
            run, rows, exchange_of(run.layout), SeamMasks(partitioned, run.settings), rows
        )
    assert depth == SeamDepth() and summarize_seam_depth(depth) == ""


def test_disagreement_counts_only_where_both_blocks_were_trained(partitioned):
    view = int(partitioned.scene.test_views[0])
    camera = partitioned.views.camera_arrays(view)
    size = partitioned.views.image_size(view)
    height = partitioned.views.centers()[view, 2]
    depth = np.full(size, height, np.float32)
    everywhere = np.ones(size, bool)
    found = disagreement({0: depth, 1: 1.02 * depth}, camera, partitioned.partition, everywhere)
    assert found == pytest.approx(0.02 / 1.01, rel=1e-4)
    assert 0 < len(found) < 0.6 * depth.size  # the band of the expanded cells, not the picture
    assert (
        len(disagreement({0: depth, 1: 0 * depth}, camera, partitioned.partition, everywhere)) == 0
    )
    assert (
        len(disagreement({0: depth, 1: 1.02 * depth}, camera, partitioned.partition, ~everywhere))
        == 0
    )
    sums = view_sums(
        depth,
        camera,
        partitioned.partition,
        everywhere,
        truth=1.25 * depth,
        alone={0: depth, 1: 1.02 * depth},
    )
    result = seam_depth_from_sums(sums + sums)
    assert result.depth_disagreement_seam == pytest.approx(0.02 / 1.01, rel=1e-4)
    assert result.depth_error_seam == pytest.approx(0.2) and result.depth_error_rest is None


def sums_of(**means):
    """One view of ten pixels for each of the fields."""
    rows = [(10, 10 * means[name]) if name in means else (0, 0) for name in SeamDepth._fields[:-1]]
    return np.array(rows, float)


def test_the_excess_takes_off_what_the_same_places_have_without_a_wall():
    depth = seam_depth_from_sums(
        sums_of(depth_step_seam=0.005, depth_step_rest=0.002, depth_step_expected=0.003)
    )
    assert depth.depth_step_excess == pytest.approx(0.004) and depth.depth_disagreement_seam is None
    assert summarize_seam_depth(depth) == (
        "depth at the seams, relative: step across walls 0.500% (0.200% elsewhere), "
        "0.400% of the step due to the wall"
    )
    smaller = seam_depth_from_sums(
        sums_of(depth_step_seam=0.003, depth_step_rest=0.002, depth_step_expected=0.005)
    )
    assert smaller.depth_step_excess == 0


def test_later_stages_expect_what_goes_with_the_roughness_elsewhere():
    before = seam_depth_from_sums(
        sums_of(depth_step_seam=0.005, depth_step_rest=0.002, depth_step_expected=0.003)
    )
    merged = sums_of(depth_step_seam=0.0025, depth_step_rest=0.001)
    assert seam_depth_from_sums(merged).depth_step_excess is None and wall_roughness([]) is None
    roughness = wall_roughness(
        [SeamDepth()._asdict(), before._asdict(), {"name": "edge", "depth_step_rest": 0.001}]
    )
    after = seam_depth_from_sums(merged, roughness)
    assert after.depth_step_expected == pytest.approx(
        0.0015
    ) and after.depth_step_excess == pytest.approx(0.002)
    # What was measured counts more than what an earlier stage says.
    assert (
        seam_depth_from_sums(
            sums_of(depth_step_seam=0.005, depth_step_rest=0.002, depth_step_expected=0.003), 9.0
        )
        == before
    )


def test_edges_that_leap_over_walls_are_no_seam(partitioned):
    """Towers stand everywhere; their edges hide strips of ground, also where walls run, so that
    steps are larger at walls.
    """
    view = max(
        map(int, partitioned.scene.train_views),
        key=lambda view: np.ptp(_ground(partitioned, view, 0.0)[0]),
    )  # the most oblique one
    camera = partitioned.views.camera_arrays(view)
    size = partitioned.views.image_size(view)
    rng = np.random.default_rng(0)

    def rough(depth):
        return depth * (1 + 1e-3 * rng.standard_normal(size))

    ground, _ = _ground(partitioned, view, 0.0)
    roof, points = _ground(partitioned, view, 0.1 * partitioned.views.centers()[view, 2])
    side = np.ptp(points[..., 0]) / 12
    towers = np.where((np.floor(points[..., :2] / side) % 2 == 0).all(axis=-1), roof, ground)
    whole = {block: rough(towers) for block in (0, 1)}
    everywhere = np.ones(size, bool)
    one_piece = seam_depth_from_sums(
        view_sums(rough(towers), camera, partitioned.partition, everywhere, alone=whole)
    )
    assert (
        one_piece.depth_step_seam > 3 * one_piece.depth_step_rest
    )  # what a difference to elsewhere would call a seam
    assert one_piece.depth_step_excess < 0.2 * one_piece.depth_step_seam
    cells = partitioned.partition.cell_of(
        unproject(towers, camera.intrinsics, camera.camera_from_world)
    )
    apart = seam_depth_from_sums(
        view_sums(
            rough(np.where(cells == 0, 1.01, 1.0) * towers),
            camera,
            partitioned.partition,
            everywhere,
            alone=whole,
        )
    )
    assert apart.depth_step_excess == pytest.approx(0.01, rel=0.2)


def _ground(partitioned, view, height):
    """Depth of a plane parallel to the ground in a view, and the points there."""
    camera = partitioned.views.camera_arrays(view)
    size = partitioned.views.image_size(view)
    one = unproject(np.ones(size, np.float32), camera.intrinsics, camera.camera_from_world)
    center = partitioned.views.centers()[view]
    depth = (height - center[2]) / (one - center)[..., 2]
    return depth, center + depth[..., None] * (one - center)
