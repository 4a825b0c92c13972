"""Distillation: its losses, what counts in them, and that a step is the same on any number of
devices and moves no photograph.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import (
    NUM_BLOCKS,
    SETTINGS,
    exchange_of,
    four_blocks,
    put_states,
    run_context,
    solid_state,
    surfels_of,
)

from cosurfgs_jax import metrics
from cosurfgs_jax.collab.aggregate import Aggregation, compile_step
from cosurfgs_jax.collab.compress import crop_to_cells
from cosurfgs_jax.collab.exchange import Exchange, Grouping
from cosurfgs_jax.collab.teachers import Teachers
from cosurfgs_jax.collab.traffic import collectives
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.losses.distillation import depth_loss, normal_loss
from cosurfgs_jax.losses.inputs import IS_PHOTO_VALID, IS_TEACHER_VALID, LossView, TeacherMaps
from cosurfgs_jax.losses.photometric import photometric_loss
from cosurfgs_jax.losses.term import Phase
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import (
    AppearanceSettings,
    DataSettings,
    LossSettings,
    MasSettings,
    Settings,
)
from cosurfgs_jax.training.batches import BlockViews
from cosurfgs_jax.training.loss_terms import total_loss, used_terms
from cosurfgs_jax.types import RenderOutput
from cosurfgs_jax.workdir import Workdir

STEPS = 4
ALL_TO_ALL = 8
ROUNDS = 0  # the largest group that has one
TOGETHER = np.zeros(NUM_BLOCKS, np.int64)
SIZE = (9, 14)


def teachers_of(run, name: str, partners: dict) -> Teachers:
    """What every block's own model shows, before the cells are cut out of it."""
    rows = put_states(run, lambda number: solid_state(run.partitioned, number))
    alone = Exchange(
        ("device",), (), *(tuple((device,) for device in range(run.layout.num_devices)),) * 2
    )
    teachers = Teachers(run, name)
    teachers.render(rows, Grouping(alone, np.arange(NUM_BLOCKS)), partners)
    return teachers


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """The context on so many devices; all have one workdir, and so the teachers that the first
    made.
    """
    workdir = tmp_path_factory.mktemp("run")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def make(num_devices: int):
            return stack.enter_context(run_context(four_blocks(), workdir, num_devices))

        teachers_of(make(4), "cloud", dict.fromkeys(range(NUM_BLOCKS), np.arange(NUM_BLOCKS)))
        yield make


def student(number: int):
    """A block's model with other colours than its teacher's."""
    state = solid_state(four_blocks(), number)
    random = np.random.default_rng(number)
    sh = state.params.sh + random.normal(0, 0.3, state.params.sh.shape).astype(np.float32)
    return dataclasses.replace(state, params=state.params.replace(sh=sh))


@pytest.fixture(scope="module")
def steps(contexts):
    """(layout, compiled step, batches, first rows) of so many devices and this exchange; compiled
    once.
    """

    @functools.cache
    def make(num_devices: int, largest_all_to_all: int):
        run = contexts(num_devices)
        exchange = exchange_of(run.layout, largest_all_to_all=largest_all_to_all)
        aggregation = Aggregation(run, Grouping(exchange, TOGETHER), Teachers(run, "cloud"), STEPS)
        batches = [aggregation.batch(step) for step in range(STEPS)]
        rows = crop_to_cells(run.partitioned.partition, run.layout, put_states(run, student))
        return (
            run.layout,
            compile_step(SETTINGS, run.layout, exchange).lower(rows, batches[0]).compile(),
            batches,
            rows,
        )

    return make


def take(steps, num_devices: int, choose, largest_all_to_all: int = ALL_TO_ALL):
    """The states after steps with the chosen batches, and every step's reports, of all blocks."""
    layout, compiled, batches, rows = steps(num_devices, largest_all_to_all)
    rows = jax.tree.map(jnp.copy, rows)
    history = []  # a step takes the memory of its rows
    for batch in choose(batches):
        rows, reports = compiled(rows, batch)
        history.append(layout.get_blocks(jax.block_until_ready(reports)))
    return layout.get_blocks(rows), history


@pytest.mark.optimized_if_slow
def test_steps_lower_the_loss_and_move_only_the_exposure_that_is_used(steps):
    layout, _, batches, rows = steps(4, ALL_TO_ALL)
    before = layout.get_blocks(rows)
    states, history = take(steps, 4, lambda batches: batches[:1] * 8)
    used = layout.get_blocks([batches[0].exposure_indices])
    for block, state in states.items():
        losses = [float(reports[block].loss) for reports in history]
        assert losses[-1] < 0.95 * losses[0] and losses == sorted(losses, reverse=True)
        assert history[-1][block].shown["psnr/train"] > history[0][block].shown["psnr/train"] + 0.5
        assert history[0][block].num_alive == before[block].alive.sum()
        np.testing.assert_array_equal(state.alive, before[block].alive)
        for name, value in state.params.by_name().items():
            has_moved = (
                (value != before[block].params.by_name()[name]).reshape(len(value), -1).any(axis=1)
            )
            assert has_moved[state.alive].mean() > 0.5 and not has_moved[~state.alive].any(), name
        has_moved = (state.appearance["embeddings"] != before[block].appearance["embeddings"]).any(
            axis=1
        )
        assert np.flatnonzero(has_moved).tolist() == used[block].tolist()


@pytest.mark.optimized_if_slow
@pytest.mark.parametrize("num_devices", [4, 1])
def test_a_batch_holds_photograph_exposure_teacher_and_camera_of_one_view_of_each_block(
    contexts, steps, num_devices
):
    run = contexts(num_devices)
    partitioned = four_blocks()
    layout, _, batches, _ = steps(num_devices, ALL_TO_ALL)
    order = BlockViews(run, used_views=Teachers(run, "cloud").used_views)
    used = set()
    for step, batch in enumerate(batches):
        for block in range(NUM_BLOCKS):
            own = layout.get(batch, block // layout.blocks_per_device)
            row = block % layout.blocks_per_device
            view = order.view(block, step)
            assert (
                own.is_active[row]
                and partitioned.blocks[block].views[own.exposure_indices[row]] == view
            )
            np.testing.assert_array_equal(own.photos[row], run.images.load(view))
            np.testing.assert_array_equal(
                own.requests.own_cameras.camera_from_world[row],
                partitioned.views.camera_arrays(view).camera_from_world,
            )
            for got, expected in zip(
                own.teachers, Teachers(run, "cloud").load(block, view), strict=True
            ):
                np.testing.assert_array_equal(got[row], expected)
            used.add((block, view))
    assert len(used) > NUM_BLOCKS * STEPS / 2


def assert_same_steps(got, expected) -> None:
    """The sums of a few floats in another order, and what Adam makes of that: it divides by the
    gradient's size.
    """
    (states, history) = got
    (expected_states, expected_history) = expected
    for reports, expected_reports in zip(history, expected_history, strict=True):
        for block, report in reports.items():
            assert report.loss == pytest.approx(expected_reports[block].loss, rel=1e-4)
            expected_shown = expected_reports[block].shown
            assert report.shown.keys() == expected_shown.keys()
            for name, value in report.shown.items():
                assert value == pytest.approx(expected_shown[name], rel=1e-4), name
    for block, state in states.items():
        for name, moment in state.optimizer.mu.by_name().items():
            expected_moment = expected_states[block].optimizer.mu.by_name()[name]
            assert np.linalg.norm(moment - expected_moment) < 1e-3 * np.linalg.norm(expected_moment)
            error = np.abs(
                state.params.by_name()[name] - expected_states[block].params.by_name()[name]
            )
            assert np.quantile(error, 0.99) < 1e-5, name


@pytest.mark.optimized_if_slow
@pytest.mark.parametrize("num_devices", [2, 1])
def test_any_number_of_devices_takes_the_same_steps(steps, num_devices):
    expected = take(steps, 4, lambda batches: batches[:3])
    assert (
        len({float(report.loss) for reports in expected[1] for report in reports.values()}) == 12
    ), "views are told apart"
    assert_same_steps(take(steps, num_devices, lambda batches: batches[:3]), expected)


@pytest.mark.optimized_if_slow
def test_rounds_take_the_steps_of_an_all_to_all(steps):
    assert_same_steps(
        take(steps, 4, lambda batches: batches[:3], ROUNDS),
        take(steps, 4, lambda batches: batches[:3]),
    )


@pytest.mark.optimized_if_slow
def test_no_photograph_leaves_its_device(steps):
    height, width = four_blocks().photo_size
    for largest, kind, times in ((ALL_TO_ALL, "all-to-all", 1), (ROUNDS, "collective-permute", 3)):
        found = collectives(steps(4, largest)[1].as_text())
        assert {one.kind for one in found} == {kind}
        assert {dtype for one in found for dtype in one.dtypes} == {"f32"}, (
            "bytes are photographs and teachers' maps"
        )
        # The images and their gradients: nothing that grows with the number of surfels.
        parts = 4 * 9 * height * width
        assert [one.num_bytes for one in found] == [
            parts * (4 if kind == "all-to-all" else 1)
        ] * 2 * times
    assert collectives(steps(1, ALL_TO_ALL)[1].as_text()) == []
    assert "u8[" in steps(4, ALL_TO_ALL)[1].as_text(), "a photograph is in the program"


@pytest.mark.optimized_if_slow
def test_where_nothing_counts_nothing_moves(steps):
    layout, _, _, rows = steps(4, ALL_TO_ALL)

    def blank(batches):
        maps = batches[0].teachers
        return [batches[0]._replace(teachers=maps._replace(flags=jnp.zeros_like(maps.flags)))]

    states, history = take(steps, 4, blank)
    for block, state in layout.get_blocks(rows).items():
        jax.tree.map(np.testing.assert_array_equal, states[block].params, state.params)
        moments = jax.tree.leaves(states[block].optimizer.mu)
        assert moments and all((moment == 0).all() for moment in moments)
        assert history[0][block].loss == 0


@pytest.mark.parametrize("num_devices, device_memory_mb", [(4, 0), (1, 0), (1, 64)])
def test_what_is_delivered_is_the_batch(contexts, num_devices, device_memory_mb):
    run = contexts(num_devices)
    settings = dataclasses.replace(
        run.settings, data=DataSettings(device_memory_mb=device_memory_mb)
    )
    run, layout = run._replace(settings=settings), run.layout
    aggregation = Aggregation(
        run, Grouping(exchange_of(layout), TOGETHER), Teachers(run, "cloud"), STEPS
    )
    open_it = sharded(lambda delivery: delivery.open(), layout)
    for step in range(2 * run.partitioned.max_views):  # more than once through all photographs
        got = open_it(aggregation.deliver(step))
        expected = aggregation.batch(step)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_array_equal(one, other)
        assert (np.asarray(expected.seconds.plane_depth) > 0).any()
    assert aggregation._views.device_cache.is_keeping == (device_memory_mb > 0)


def test_teachers_show_their_own_model_and_know_where_they_were_trained(contexts):
    run = contexts(4)
    partitioned = four_blocks()
    few = teachers_of(run, "few", {block: np.array([block]) for block in range(NUM_BLOCKS)})
    all_flags = []
    few_flags = []
    for block in range(NUM_BLOCKS):
        view = int(partitioned.blocks[block].views[-1])
        maps = Teachers(run, "cloud").load(block, view)
        camera = partitioned.views.camera_arrays(view)
        out = rasterize(
            surfels_of(solid_state(partitioned, block)),
            camera,
            image_size=partitioned.photo_size,
            maps="geometry",
        )
        np.testing.assert_allclose(maps.color / 255, np.clip(out.color, 0, 1), atol=0.51 / 255)
        np.testing.assert_allclose(maps.normal / 127, np.clip(out.normal, -1, 1), atol=0.51 / 127)
        np.testing.assert_allclose(maps.depth, out.depth, rtol=1e-5, atol=1e-6)
        points = unproject(maps.depth, camera.intrinsics, camera.camera_from_world)
        is_solid = np.asarray(out.alpha) >= 0.5
        is_known = is_solid & partitioned.partition.is_in_expanded(block, points)
        np.testing.assert_array_equal(maps.flags, IS_PHOTO_VALID + IS_TEACHER_VALID * is_known)
        # Where only its own cell will be drawn, the student is judged by nothing that lies in
        # another.
        is_own = is_solid & (partitioned.partition.cell_of(points) == block)
        flags = few.load(block, view).flags
        np.testing.assert_array_equal(
            flags, (IS_PHOTO_VALID + IS_TEACHER_VALID * is_known) * is_own
        )
        all_flags.append(maps.flags)
        few_flags.append(flags)
    assert {*np.unique(all_flags)} == {IS_PHOTO_VALID, IS_PHOTO_VALID + IS_TEACHER_VALID}
    assert 0.05 < (np.array(few_flags) > 0).mean() < 0.9
    few.drop()
    assert not list(run.workdir.teachers("few").rglob("*.npz"))


def test_a_photograph_of_which_nothing_counts_is_not_drawn(contexts, tmp_path):
    run = contexts(4)._replace(workdir=Workdir(tmp_path))
    partitioned = four_blocks()
    teachers = teachers_of(run, "dark", dict.fromkeys(range(NUM_BLOCKS), np.arange(NUM_BLOCKS)))
    dark = [int(block.views[1]) for block in partitioned.blocks]
    for block, view in enumerate(dark):
        path = run.workdir.teachers("dark") / f"{block:04d}" / f"{view:06d}.npz"
        arrays = dict(np.load(path))
        assert 0 < arrays["counted"] <= 1
        np.savez(path, **(arrays | {"counted": np.float32(0)}))
    views = BlockViews(run, used_views=teachers.used_views)
    for block, view in enumerate(dark):
        drawn = {views.view(block, step) for step in range(200)}
        assert drawn == {*map(int, partitioned.blocks[block].views)} - {view}
    for view in map(int, partitioned.blocks[0].views):  # nothing counts in any: all are drawn
        path = run.workdir.teachers("dark") / "0000" / f"{view:06d}.npz"
        np.savez(path, **(dict(np.load(path)) | {"counted": np.float32(0)}))
    used = teachers.used_views()
    assert used[0].tolist() == partitioned.blocks[0].views.tolist()
    assert used[1].tolist() == [view for view in partitioned.blocks[1].views if view != dark[1]]


TRANSFORM = jnp.asarray(
    [[0.9, 0, 0, 0.03], [0, 0.9, 0, 0.03], [0, 0, 0.9, 0.03]], jnp.float32
)  # of an exposure


def random_maps(seed: int) -> tuple[RenderOutput, jnp.ndarray, TeacherMaps]:
    """A student's maps, a photograph and a teacher, of which parts are masked."""
    random = np.random.default_rng(seed)
    color, normal = (
        jnp.asarray(random.uniform(0.1, 0.9, (*SIZE, 3)), jnp.float32) for _ in range(2)
    )
    alpha = random.uniform(0.5, 1, SIZE)
    alpha[0, :3] = 0
    out = RenderOutput(
        color,
        jnp.asarray(alpha, jnp.float32),
        jnp.asarray(random.uniform(1, 2, SIZE), jnp.float32),
        None,
        None,
        None,
        normal,
        None,
        None,
        jnp.int32(0),
    )
    photo = jnp.asarray(random.integers(0, 256, (*SIZE, 3)), jnp.uint8)
    depth = random.uniform(1, 2, SIZE)
    depth[1, :3] = 0
    teacher = TeacherMaps(
        jnp.asarray(random.integers(0, 256, (*SIZE, 3)), jnp.uint8),
        jnp.asarray(random.integers(0, 4, SIZE), jnp.uint8),
        jnp.asarray(depth, jnp.float32),
        jnp.asarray(depth, jnp.float32),
        jnp.asarray(random.integers(-127, 128, (*SIZE, 3)), jnp.int8),
    )
    return out, photo, teacher


def settings_of(
    teacher_weight=0.5, depth_weight=0.2, normal_weight=0.05, ssim_weight=0.2
) -> Settings:
    return Settings(
        mas=MasSettings(
            teacher_weight=teacher_weight, depth_weight=depth_weight, normal_weight=normal_weight
        ),
        loss=LossSettings(ssim_weight=ssim_weight, transparency_weight=0.1),
        appearance=AppearanceSettings(enabled=False),
    )


def loss_view(out, transform, photo, teacher) -> LossView:
    return LossView(
        out=out,
        surfels=None,
        camera=None,
        photo=photo,
        is_photo_valid=(teacher.flags & IS_PHOTO_VALID) > 0,
        transform=transform,
        teacher=teacher,
    )


def view_loss(out, transform, photo, teacher, settings):
    """The loss of a distilled view without geometry, and what is shown."""
    terms = used_terms(settings, Phase(has_geometry=False, is_distillation=True))
    return total_loss(loss_view(out, transform, photo, teacher), terms, settings)


def expected_depth_loss(depth, alpha, teacher_depth, mask) -> float:
    depth, alpha, teacher_depth, mask = (
        np.asarray(value, np.float64) for value in (depth, alpha, teacher_depth, mask)
    )
    counts = (mask > 0) & (alpha > 1e-3) & (teacher_depth > 0)
    return float(
        (mask * np.abs(depth - teacher_depth))[counts] @ (1 / teacher_depth[counts]) / mask.size
    )


def expected_normal_loss(normal, teacher_normal, mask) -> float:
    difference = np.abs(
        np.asarray(normal, np.float64) - np.asarray(teacher_normal, np.float64)
    ).sum(axis=-1)
    return float((np.asarray(mask, np.float64) * difference).mean())


@pytest.mark.parametrize(
    "weights",
    [(0.5, 0.2, 0.05), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.3, 1.0, 0.0), (0.0, 0.0, 2.0)],
)
def test_the_loss_of_a_view_is_the_sum_of_its_parts(weights):
    out, photo, teacher = random_maps(0)
    flags = np.asarray(teacher.flags)
    is_teacher, is_photo = (jnp.asarray((flags & flag) > 0, jnp.float32) for flag in (1, 2))
    by_photo = photometric_loss(out.color, 0.9 * out.color + 0.03, photo / 255, is_photo, 0.2)
    by_teacher = photometric_loss(out.color, out.color, teacher.color / 255, is_teacher, 0.2)
    by_depth = expected_depth_loss(out.depth, out.alpha, teacher.depth, is_teacher)
    by_normal = expected_normal_loss(out.normal, np.asarray(teacher.normal) / 127, is_teacher)
    assert min(by_photo, by_teacher, by_depth, by_normal) > 0.05
    by_light = (is_photo * (1 - out.alpha) ** 2).sum() / is_photo.sum()
    expected = (
        (1 - weights[0]) * by_photo
        + weights[0] * by_teacher
        + weights[1] * by_depth
        + weights[2] * by_normal
        + 0.1 * by_light
    )
    loss, shown = view_loss(out, TRANSFORM, photo, teacher, settings_of(*weights))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert shown["psnr/train"] == pytest.approx(
        float(metrics.psnr(0.9 * out.color + 0.03, photo / 255, is_photo > 0)), rel=1e-5
    )


def test_masked_pixels_take_no_gradient_and_nothing_under_a_mask_counts():
    out, photo, teacher = random_maps(1)
    flags = np.asarray(teacher.flags)
    photo = jnp.concatenate([photo, jnp.full((*SIZE, 1), 255, jnp.uint8).at[2].set(0)], axis=-1)
    is_teacher = (flags & IS_TEACHER_VALID) > 0
    is_photo = ((flags & IS_PHOTO_VALID) > 0) & (np.arange(SIZE[0]) != 2)[:, None]
    np.testing.assert_array_equal(loss_view(out, None, photo, teacher).pixel_weights, is_photo)
    unmasked = loss_view(out, None, photo[..., :3], teacher)
    np.testing.assert_array_equal(unmasked.pixel_weights, (flags & IS_PHOTO_VALID) > 0)

    def loss(color, depth, normal, photo, teacher, settings):
        shown = dataclasses.replace(out, color=color, depth=depth, normal=normal)
        return view_loss(shown, None, photo, teacher, settings)[0]

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    maps = out.color, out.depth, out.normal
    for teacher_weight, counts in (
        (0.5, is_teacher | is_photo),
        (0.0, is_photo),
        (1.0, is_teacher),
    ):
        by_color, by_depth, by_normal = gradient(*maps, photo, teacher, settings_of(teacher_weight))
        np.testing.assert_array_equal((by_color != 0).any(axis=-1), counts)
        np.testing.assert_array_equal(
            by_depth != 0, is_teacher & (teacher.depth > 0) & (out.alpha > 1e-3)
        )
        np.testing.assert_array_equal((by_normal != 0).any(axis=-1), is_teacher)
    # What stands under the masks does not matter, but to the windows of SSIM that reach there,
    # which see it in both images.
    settings = settings_of(ssim_weight=0.0)
    (_, other_photo, other_teacher) = random_maps(2)
    other_photo = jnp.where(is_photo[..., None], photo[..., :3], other_photo)
    leaves = [
        jnp.where(is_teacher.reshape(*SIZE, *[1] * (mine.ndim - 2)), mine, other)
        for mine, other in zip(teacher, other_teacher, strict=True)
    ]
    other_teacher = TeacherMaps(*leaves)._replace(flags=teacher.flags)
    assert (other_photo != photo[..., :3]).any() and (other_teacher.depth != teacher.depth).any()
    other = gradient(
        *maps, jnp.concatenate([other_photo, photo[..., 3:]], axis=-1), other_teacher, settings
    )
    jax.tree.map(np.testing.assert_array_equal, other, gradient(*maps, photo, teacher, settings))


def test_distillation_losses_are_their_definitions_and_their_gradients_are_slopes():
    out, _, teacher = random_maps(3)
    mask = jnp.asarray(np.random.default_rng(4).choice([0, 0.5, 1], SIZE), jnp.float32)
    normals = teacher.normal.astype(jnp.float32) / 127
    losses = {
        "depth": (
            lambda depth: depth_loss(depth, out.alpha, teacher.depth, mask),
            out.depth,
            lambda depth: expected_depth_loss(depth, out.alpha, teacher.depth, mask),
        ),
        "normal": (
            lambda normal: normal_loss(normal, normals, mask),
            out.normal,
            lambda normal: expected_normal_loss(normal, normals, mask),
        ),
    }
    for name, (loss, value, expected) in losses.items():
        assert loss(value) == pytest.approx(expected(value), rel=1e-5) and expected(value) > 0.05
        gradient = np.asarray(jax.grad(loss)(value)).ravel()
        step = 1e-4
        moved = np.asarray(value, np.float64)[None] + step * np.eye(value.size).reshape(
            value.size, *value.shape
        )
        back = 2 * np.asarray(value, np.float64)[None] - moved
        slopes = np.array(
            [
                (expected(more) - expected(less)) / (2 * step)
                for more, less in zip(moved, back, strict=True)
            ]
        )
        np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-9, err_msg=name)
        assert 0.2 < (gradient == 0).mean() < 0.5, "a third is masked"


def test_a_pixel_without_depth_neither_counts_nor_breaks_the_gradient():
    depth = jnp.array([[0.0, 2.0, 3.0]])
    alpha = jnp.array([[0.0, 1.0, 1.0]])
    value, gradient = jax.value_and_grad(depth_loss)(
        depth, alpha, jnp.array([[1.0, 0.0, 2.0]]), jnp.ones((1, 3))
    )
    assert value == pytest.approx(0.5 / 3)
    np.testing.assert_allclose(gradient, [[0, 0, 1 / 6]], rtol=1e-6)
