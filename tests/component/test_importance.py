"""Importance: what scores surfels are ranked by, and that the change of a picture without a surfel
is what is measured, and estimated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import (
    NUM_BLOCKS,
    contributions,
    four_blocks,
    num_slots,
    put_states,
    run_context,
    solid_state,
    with_lmc,
)

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.importance import (
    Importance,
    importance_scores,
    init_importance,
    measure_view,
)
from cosurfgs_jax.collab.importance_score import PhotographView
from cosurfgs_jax.collab.importance_scores import SCORES, score_of
from cosurfgs_jax.collab.removal_score import NUM_DRAWS, estimated_effects, removal_effects
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import RasterOptions, rasterize
from cosurfgs_jax.settings import LmcSettings
from cosurfgs_jax.training.batches import each_view
from cosurfgs_jax.types import Camera, Surfels

NUM = 200  # slots of the states without a place


@pytest.fixture(scope="module")
def partitioned():
    return four_blocks()


@pytest.fixture
def run(partitioned, tmp_path):
    with run_context(partitioned, tmp_path, 4) as run:
        yield run


@pytest.mark.parametrize("camera_switch, share", [(False, 0.25), (True, 0.25), (True, 0.3)])
def test_importance_is_the_sum_over_used_photographs(run, partitioned, camera_switch, share):
    layout = run.layout
    (state,) = put_states(run, lambda number: solid_state(partitioned, number))
    (is_inside,) = compress.inside_masks(run.partitioned.partition, run.layout, [state])
    measured = {}
    for score in SCORES:
        settings = with_lmc(camera_switch=camera_switch, min_cell_share=share, score=score)
        measure = sharded(
            functools.partial(measure_view, settings=settings), layout, static=("image_size",)
        )
        importance = layout.put(lambda _: init_importance(num_slots(partitioned)))
        num_padded = 0
        for camera, is_active, size in each_view(partitioned, layout, 0):
            num_padded += int((~np.asarray(is_active)).sum())
            importance = measure(importance, state, is_inside, camera, is_active, image_size=size)
        measured[score] = layout.get_blocks([importance])
    assert (
        num_padded
        == NUM_BLOCKS * partitioned.max_views
        - sum(len(block.views) for block in partitioned.blocks)
        > 0
    )
    num_abandoned = 0
    for block, got in measured["weight"].items():
        removal = measured["removal"][block]
        inside = (
            partitioned.partition.cell_of(solid_state(partitioned, block).params.means) == block
        )
        used = [
            one
            for one in contributions(block)
            if not camera_switch or one[inside, 0].sum() >= share * np.prod(partitioned.photo_size)
        ]
        num_abandoned += len(partitioned.blocks[block].views) - len(used)
        assert got.num_used == removal.num_used == len(used) > 0
        assert got.num_seen == removal.num_seen == partitioned.max_views, (
            "every call draws other signs"
        )
        np.testing.assert_allclose(
            got.statistic, sum(one[:, 0] for one in used), rtol=1e-5, atol=1e-4
        )
        assert got.statistic.max() > 10 and (removal.statistic >= 0).all()
        assert (removal.statistic[got.statistic == 0] == 0).all() and removal.statistic.max() > 1
    assert (num_abandoned > 0) == camera_switch


def test_the_weight_score_weighs_by_area():
    random = np.random.default_rng(0)
    alive = random.random(NUM) < 0.8
    log_scales = random.normal(-4, 1, (NUM, 2)).astype(np.float32)
    log_scales[~alive] = 9  # must not set the percentile
    weight = random.uniform(0, 5, NUM).astype(np.float32)
    area = np.exp(log_scales.astype(np.float64).sum(axis=1))
    share = np.minimum(area / np.exp(np.percentile(np.log(area[alive]), 90)), 1)
    importance = Importance(jnp.asarray(weight), jnp.int32(7), jnp.int32(7))
    for exponent in (0.1, 1.0, 0.0, -0.3):
        got = importance_scores(
            importance,
            jnp.asarray(log_scales),
            jnp.asarray(alive),
            with_lmc(score="weight", area_exponent=exponent),
        )
        np.testing.assert_allclose(got, np.where(alive, share**exponent * weight, 0), rtol=2e-5)


def test_the_removal_score_is_what_was_gathered():
    alive = np.arange(NUM) % 3 > 0
    removal = jnp.arange(NUM, dtype=jnp.float32)
    importance = Importance(removal, jnp.int32(7), jnp.int32(7))
    got = importance_scores(
        importance, jnp.zeros((NUM, 2)), jnp.asarray(alive), with_lmc(score="removal")
    )
    np.testing.assert_array_equal(got, np.where(alive, removal, 0))


def test_an_unknown_score():
    with pytest.raises(
        InputError, match="config.lmc.score: expected removal or weight, got 'area'"
    ):
        score_of(LmcSettings(score="area"))


def _cloud(num: int) -> Surfels:
    """Discs before a camera at the origin, some behind others, from faint to as good as opaque."""
    random = np.random.default_rng(3)
    depth = random.uniform(1, 3, num)
    return Surfels(
        means=jnp.asarray(
            np.column_stack([random.uniform(-0.5, 0.5, (num, 2)) * depth[:, None], depth]),
            jnp.float32,
        ),
        quats=jnp.asarray(
            np.column_stack([np.ones(num), random.normal(size=(num, 3)) * 0.3]), jnp.float32
        ),
        log_scales=jnp.asarray(np.log(random.uniform(0.03, 0.4, (num, 2))), jnp.float32),
        logit_opacities=jnp.asarray(random.uniform(-3, 5, num), jnp.float32).at[0].set(30.0),
        sh=jnp.asarray(random.normal(size=(num, 1, 3)), jnp.float32),
        alive=jnp.ones(num, bool).at[5].set(False),
    )


def test_the_estimate_is_the_change_of_the_picture_without_each_surfel():
    num = 40
    size = (36, 48)
    num_keys = 100
    camera = Camera(jnp.eye(4), jnp.array([[40.0, 0, 24], [0, 40.0, 18], [0, 0, 1]]))
    surfels = _cloud(num)

    def draw(surfels):
        return rasterize(
            surfels,
            camera,
            image_size=size,
            near=0.1,
            maps="color",
            with_contributions=True,
            background=jnp.array([0.3, 0.5, 0.2]),
        )

    color = jax.jit(lambda alive: draw(surfels.replace(alive=alive)).color)
    whole = color(surfels.alive)
    truth = np.array(
        [np.square(color(surfels.alive.at[i].set(False)) - whole).sum() for i in range(num)]
    )
    estimate = jax.jit(lambda key: estimated_effects(draw, surfels, key))
    keys = jax.random.split(jax.random.key(1), num_keys)
    effects = np.array([estimate(key)[0] for key in keys])
    np.testing.assert_array_equal(
        estimate(keys[0])[1].contributions,
        draw(
            surfels.replace(logit_opacities=jnp.minimum(surfels.logit_opacities, 5.3))
        ).contributions,
    )
    assert (truth > 0.01).sum() > num / 2 and effects[:, 5].max() == truth[5] == 0
    # A square of a sum of many signs spreads by 1.4 times its mean; 0.02 for alphas that are cut
    # off.
    spread = np.sqrt(2 / (NUM_DRAWS * num_keys))
    assert (np.abs(effects.mean(axis=0) - truth) <= (4 * spread + 0.02) * truth + 1e-4).all()
    assert abs(effects.mean(axis=0).sum() / truth.sum() - 1) < 0.05
    assert spread < 0.15 and effects.std(axis=0).sum() > 0.5 * truth.sum()


@pytest.mark.parametrize("backend", ["cpu", "portable"])
def test_the_score_is_the_change_where_the_kernel_knows_it(backend):
    """Exact, whatever the random signs; else the estimate, which differs from one to the next."""
    size = (36, 48)
    camera = Camera(jnp.eye(4), jnp.array([[40.0, 0, 24], [0, 40.0, 18], [0, 0, 1]]))
    surfels = _cloud(40)
    view = PhotographView(camera, size, RasterOptions(near=0.1, background=0.3, backend=backend))
    whole = view(surfels)
    measure = jax.jit(lambda key: removal_effects(view, surfels, key))
    (first, weights), (second, _) = (measure(jax.random.key(seed)) for seed in (1, 2))
    assert (np.asarray(first) == np.asarray(second)).all() == (backend == "cpu")
    np.testing.assert_allclose(weights, whole.contributions[:, 0], rtol=0.02, atol=1e-3)
    if backend == "portable":
        return
    color = jax.jit(lambda alive: view(surfels.replace(alive=alive)).color)
    truth = np.array(
        [np.square(color(surfels.alive.at[i].set(False)) - whole.color).sum() for i in range(40)]
    )
    np.testing.assert_allclose(first, truth, rtol=2e-3, atol=1e-4)
