"""Sort-last rendering: what the devices' parts make together is what one device would draw of the
whole, and so are gradients.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import (
    NUM_BLOCKS,
    TOWN,
    exchange_of,
    four_blocks,
    from_the_rim,
    merged_surfels,
    put_states,
    run_context,
    solid_state,
    surfels_of,
)
from scenes import town_place

from cosurfgs_jax import metrics
from cosurfgs_jax.collab.composite import (
    PartialImage,
    RequestPlanner,
    composite,
    draw_part,
    null_camera,
    render_views,
    to_output,
)
from cosurfgs_jax.collab.compress import crop_to_cells
from cosurfgs_jax.collab.exchange import Grouping
from cosurfgs_jax.collab.stage_scores import render_test_views
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.losses.photometric import photometric_loss
from cosurfgs_jax.raster import RasterOptions, rasterize
from cosurfgs_jax.types import Surfels

TOGETHER = np.zeros(NUM_BLOCKS, np.int64)
RASTER = RasterOptions(background=0.3)
MIN_PSNR = 45.0  # dB: what method and maps allow surfels that reach across a wall to cost
# Without those, only the end of a ray differs: a part ends where less than 1e-4 of the light that
# enters it is left, the whole where that is left of all the light.
STOP = 1e-4


@pytest.fixture(scope="module")
def rim():
    return from_the_rim(four_blocks())


def cropped(run, is_clear_of_walls: bool) -> list:
    """The cells of opaque models, with or without the discs that reach into other cells."""
    partitioned = run.partitioned
    return crop_to_cells(
        partitioned.partition,
        run.layout,
        put_states(
            run,
            lambda number: solid_state(partitioned, number, is_clear_of_walls=is_clear_of_walls),
        ),
    )


@pytest.fixture(scope="module")
def cells(rim, tmp_path_factory):
    """(context, rows) of the cells on so many devices, seen from the rim; made once."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def make(num_devices: int, is_clear_of_walls: bool):
            run = stack.enter_context(run_context(rim, tmp_path_factory.mktemp("run"), num_devices))
            return run, cropped(run, is_clear_of_walls)

        yield make


@functools.cache
def _compiled(layout, exchange, size):
    return sharded(
        lambda states, requests: render_views(
            [state.surfels() for state in states], requests, exchange, size, RASTER
        ),
        layout,
    )


def composites(
    run, rows, exchange, views: dict, groups=TOGETHER, change=lambda requests: requests
) -> dict:
    """The maps of every block's view, sort-last."""
    requests = RequestPlanner(run.partitioned, run.layout, Grouping(exchange, groups)).requests(
        views
    )
    return run.layout.get_blocks(
        _compiled(run.layout, exchange, run.partitioned.photo_size)(rows, change(requests))
    )


@functools.cache
def _draw(size):
    return jax.jit(
        functools.partial(
            rasterize, image_size=size, maps="geometry", background=jnp.full(3, RASTER.background)
        )
    )


def whole(run, rows, view: int, cells=None):
    """One device's render of all cells, or of some, and the model."""
    surfels = merged_surfels(run, rows)
    if cells is not None:
        surfels = surfels.replace(
            alive=surfels.alive & np.isin(run.partitioned.partition.cell_of(surfels.means), cells)
        )
    return _draw(run.partitioned.photo_size)(surfels, run.partitioned.views.camera_arrays(view))


def views_of(partitioned) -> dict[int, int]:
    """One for each block, that look into different directions."""
    return {block: 4 * block + 1 for block in range(len(partitioned.blocks))}


def assert_same_maps(out, expected, tolerance: float) -> None:
    for name in ("color", "alpha", "normal"):
        np.testing.assert_allclose(
            getattr(out, name), getattr(expected, name), atol=tolerance, err_msg=name
        )
    solid = np.asarray(expected.alpha) > 0.5
    assert solid.mean() > 0.05
    for name in ("depth", "plane_depth"):
        error = (
            np.abs(getattr(out, name) - getattr(expected, name))[solid]
            / np.asarray(expected.depth)[solid]
        )
        assert np.quantile(error, 0.99) < tolerance, name


@pytest.mark.parametrize("num_devices", [4, 2, 1])
def test_test_views_of_the_cells_are_those_of_one_model(cells, num_devices):
    run, rows = cells(num_devices, False)
    for partitioned in (four_blocks(), run.partitioned):
        run = run._replace(partitioned=partitioned)
        rendered = dict(render_test_views(run, rows, exchange_of(run.layout)))
        assert sorted(rendered) == partitioned.scene.test_views.tolist() and len(rendered) >= 2
        surfels = merged_surfels(run, rows)
        for view, maps in rendered.items():
            expected = rasterize(
                surfels,
                partitioned.views.camera_arrays(view),
                image_size=partitioned.photo_size,
                maps="geometry",
            )
            assert metrics.psnr(maps["color"], np.asarray(expected.color)) >= MIN_PSNR
            np.testing.assert_allclose(maps["alpha"], expected.alpha, atol=0.01)
            hit = np.asarray(expected.alpha) > 0.5
            errors = np.abs(maps["depth"] - expected.depth)[hit] / np.asarray(expected.depth)[hit]
            assert hit.mean() > 0.2 and errors.mean() < 1e-3 and np.median(errors) < 1e-6


def test_every_camera_sees_the_whole_and_only_discs_across_walls_are_in_the_wrong_order(cells, rim):
    for is_clear in (False, True):
        run, rows = cells(4, is_clear)
        outputs = composites(run, rows, exchange_of(run.layout), views_of(rim))
        for block, view in views_of(rim).items():
            expected = whole(run, rows, view)
            num_cells = sum(
                np.asarray(whole(run, rows, view, [cell]).alpha) > 0.05
                for cell in range(NUM_BLOCKS)
            )
            assert (num_cells > 1).mean() > 0.02, "nothing to put in order"
            if is_clear:
                assert_same_maps(outputs[block], expected, 20 * STOP)
                assert metrics.psnr(outputs[block].color, np.asarray(expected.color)) > 85
            else:
                assert metrics.psnr(outputs[block].color, np.asarray(expected.color)) >= MIN_PSNR


def test_the_order_of_cells_matters(cells, rim):
    run, rows = cells(4, False)
    exchange = exchange_of(run.layout)
    right = composites(run, rows, exchange, views_of(rim))
    wrong = composites(
        run,
        rows,
        exchange,
        views_of(rim),
        change=lambda requests: requests._replace(order=requests.order[..., ::-1]),
    )
    for block, view in views_of(rim).items():
        expected = np.asarray(whole(run, rows, view).color)
        assert (
            metrics.psnr(wrong[block].color, expected)
            < metrics.psnr(right[block].color, expected) - 15
        )


def test_cells_of_other_groups_and_of_no_partner_are_not_seen(cells, rim):
    run, rows = cells(4, True)
    edges = rim.partition.edge_of_block
    assert edges.tolist() == [0, 0, 1, 1]
    for plan, groups in (
        (exchange_of(run.layout), edges),
        (exchange_of(run.layout, is_within_rows=True), edges),
        (exchange_of(run.layout, largest_all_to_all=0, most=1), TOGETHER),
    ):
        outputs = composites(run, rows, plan, views_of(rim), groups)
        planner = RequestPlanner(rim, run.layout, Grouping(plan, groups))
        for block, view in views_of(rim).items():
            partners = planner.partners(block).tolist()
            assert len(partners) == 2 and block in partners
            assert groups is TOGETHER or partners == np.flatnonzero(edges == edges[block]).tolist()
            assert_same_maps(outputs[block], whole(run, rows, view, partners), 20 * STOP)


def test_devices_with_fewer_blocks_than_others_are_no_cells(tmp_path):
    partitioned = from_the_rim(town_place(TOWN, num_blocks=3))
    views = {block: 5 * block + 1 for block in range(3)}
    with run_context(partitioned, tmp_path, 2) as run:
        assert [run.layout.blocks_of(device) for device in range(2)] == [[0, 1], [2]]
        rows = cropped(run, is_clear_of_walls=True)
        outputs = composites(run, rows, exchange_of(run.layout), views, np.zeros(3, np.int64))
        for block, view in views.items():
            assert_same_maps(outputs[block], whole(run, rows, view), 20 * STOP)


def test_null_cameras_contribute_nothing(cells, rim):
    cameras = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        rim.views.camera_arrays(1),
        null_camera(rim.views.camera_arrays(1)),
    )
    part = draw_part(surfels_of(solid_state(rim, 0)), cameras, rim.photo_size, RASTER)
    for leaf in part:
        assert (leaf[0] != 0).any() and (leaf[1] == 0).all()
    run, rows = cells(4, False)
    exchange = exchange_of(run.layout)
    for views in ({**views_of(rim), 2: None}, dict.fromkeys(range(NUM_BLOCKS))):
        outputs = composites(run, rows, exchange, views)
        for block, view in views.items():
            if view is None:
                np.testing.assert_array_equal(outputs[block].color, np.float32(RASTER.background))
                assert all(
                    (leaf == 0).all()
                    for leaf in (outputs[block].alpha, outputs[block].depth, outputs[block].normal)
                )
            else:
                expected = np.asarray(whole(run, rows, view).color)
                assert metrics.psnr(outputs[block].color, expected) >= MIN_PSNR


def random_parts(num: int, seed: int = 0) -> PartialImage:
    random = np.random.default_rng(seed)
    size = (num, 5, 7)
    fields = {
        name: random.random((*size, 3) if name in ("color", "normal") else size)
        for name in PartialImage._fields
    }
    return PartialImage(**{name: jnp.asarray(value, jnp.float32) for name, value in fields.items()})


def test_a_composite_weighs_each_part_by_the_light_that_comes_through_those_before():
    parts = random_parts(4)
    order = [2, 0, 3, 1]
    got = composite(parts, jnp.array(order, jnp.int32))
    for name in PartialImage._fields:
        values = np.asarray(getattr(parts, name), np.float64)
        expected = 0.0
        light = np.ones((5, 7))
        for part in order:
            expected = expected + values[part] * (
                light if values[part].ndim == 2 else light[..., None]
            )
            light = light * (1 - np.asarray(parts.alpha)[part])
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        got.alpha, 1 - np.prod(1 - np.asarray(parts.alpha), axis=0), rtol=1e-5
    )


def test_a_composite_of_one_part_is_the_part():
    part = random_parts(1)
    among_nothing = jax.tree.map(
        lambda leaf: jnp.concatenate([jnp.zeros_like(leaf), leaf, jnp.zeros_like(leaf)]), part
    )
    for parts, order in ((part, [0]), (among_nothing, [0, 1, 2]), (among_nothing, [1, 2, 0])):
        got = composite(parts, jnp.array(order, jnp.int32))
        jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(lambda leaf: leaf[0], part))


def test_the_maps_of_a_part_are_those_of_the_rasterizer(rim):
    surfels = surfels_of(solid_state(rim, 0))
    camera = rim.views.camera_arrays(1)
    part = draw_part(surfels, jax.tree.map(lambda leaf: leaf[None], camera), rim.photo_size, RASTER)
    out = to_output(jax.tree.map(lambda leaf: leaf[0], part), camera, RASTER.background)
    assert_same_maps(out, _draw(rim.photo_size)(surfels, camera), 1e-5)
    assert out.median_depth is None


def loss_of(out, target):
    photometric = photometric_loss(out.color, out.color, jnp.asarray(target), None, 0.2)
    return photometric + 0.1 * out.depth.mean() + 0.1 * out.normal.mean()


def gradients_of_cells(run, rows, views, target) -> tuple[float, list]:
    """Loss of all views together, and its gradient by every block's parameters, taken inside of
    each device's program.
    """
    exchange = exchange_of(run.layout)
    size = run.partitioned.photo_size

    def loss(params, states, requests, is_active):
        cells = [Surfels.of(own, state.alive) for own, state in zip(params, states, strict=True)]
        outputs = render_views(cells, requests, exchange, size, RASTER)
        return sum(
            jnp.where(real, loss_of(out, target), 0.0)
            for out, real in zip(outputs, is_active, strict=True)
        )

    def value_and_gradient(states, requests, is_active):
        return jax.value_and_grad(loss)(
            [state.params for state in states], states, requests, is_active
        )

    requests = RequestPlanner(run.partitioned, run.layout, Grouping(exchange, TOGETHER)).requests(
        views
    )
    is_active = [
        run.layout.put_row(row, lambda block: np.bool_(views[block] is not None))
        for row in range(len(rows))
    ]
    value, gradients = sharded(value_and_gradient, run.layout)(rows, requests, is_active)
    return float(value.sum()), list(run.layout.get_blocks(gradients).values())


# Without discs across walls the rest is the end of rays (STOP) and the order of sums in float32.
@pytest.mark.parametrize(
    "num_devices, is_clear, tolerance", [(4, True, 2e-3), (2, True, 2e-3), (4, False, 0.06)]
)
def test_gradients_through_the_composite_are_those_of_one_model(
    cells, rim, num_devices, is_clear, tolerance
):
    target = np.random.default_rng(0).random((*rim.photo_size, 3)).astype(np.float32)
    views = views_of(rim) | {2: None}
    run, rows = cells(num_devices, is_clear)
    value, gradients = gradients_of_cells(run, rows, views, target)
    surfels = merged_surfels(run, rows)

    def loss(params):
        return sum(
            loss_of(
                _draw(rim.photo_size)(
                    Surfels.of(params, jnp.asarray(surfels.alive)), rim.views.camera(view)
                ),
                target,
            )
            for view in views.values()
            if view is not None
        )

    params = jax.tree.map(jnp.asarray, surfels.params)
    expected_value, expected = jax.value_and_grad(loss)(params)
    assert value == pytest.approx(float(expected_value), rel=tolerance / 10)
    for name, whole_gradient in expected.by_name().items():
        got = np.concatenate([getattr(gradient, name) for gradient in gradients])
        assert np.isfinite(got).all()
        error = np.linalg.norm(got - whole_gradient)
        size = np.linalg.norm(whole_gradient)
        assert size > 0 and error < tolerance * size, f"{name}: {error / size:.1e}"


@pytest.mark.optimized_if_slow
@pytest.mark.parametrize("num_devices", [4, 2])
def test_rounds_give_the_bits_of_an_all_to_all(cells, rim, num_devices):
    run, rows = cells(num_devices, False)
    plans = [exchange_of(run.layout, largest_all_to_all=largest) for largest in (8, 0)]
    assert [bool(plan.rounds) for plan in plans] == [False, True]
    jax.tree.map(
        np.testing.assert_array_equal,
        *(composites(run, rows, plan, views_of(rim)) for plan in plans),
    )
