"""The training of blocks, all in lockstep: cadence, logging, saving, resuming. No mathematics."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from cosurfgs_jax import metrics, photograph
from cosurfgs_jax.distributed.layout import Layout, sharded
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model.density import grow_capacity
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.batches import BlockViews, PackedBatch, each_view
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.dispatch import DispatchLimit, programs_ahead
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene, slots_for
from cosurfgs_jax.training.run import Run, Stopped, asked_to_stop
from cosurfgs_jax.training.run_log import Progress, Stopwatch
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.state import abstract_state, empty_state, with_surfels
from cosurfgs_jax.training.step import DensifyOrder, StepReport
from cosurfgs_jax.training.step_reports import RecentReports, mean_numbers, numbers_of
from cosurfgs_jax.types import Camera

_log = logging.getLogger(__name__)


class StageState(NamedTuple):
    """Blocks in the course of a stage: what its checkpoints hold."""

    name: str
    rows: list[Any]  # TrainState [D, ...] of the blocks in each row of the layout
    step: int
    num_without_room: int
    seconds: float


Advance = Callable[[StageState, Progress], tuple[StageState, list[Packed]]]


def checkpoint_folder(workdir: Path, name: str) -> Path:
    """Where a stage's checkpoints lie."""
    return workdir / "checkpoints" / name


def restore_stage(run: Run, name: str, checkpoints: Checkpoints) -> StageState | None:
    """The newest saved state of a stage, on whatever devices there are now; None if there is none.

    Raises:
        InputError: the checkpoints are of another dataset or partition, or damaged.
    """
    partitioned = run.partitioned
    layout = run.layout

    def make_abstract(meta: dict):
        check_identity(partitioned, meta)
        return layout.abstract_rows(
            abstract_state(meta["num_slots"], meta["max_views"], run.settings)
        )

    restored = checkpoints.restore_latest(make_abstract)
    if restored is None:
        return None
    meta = restored.meta
    return StageState(
        name,
        layout.split_rows(restored.state),
        restored.step,
        meta["num_without_room"],
        meta["seconds"],
    )


def check_identity(partitioned: PartitionedScene, meta: dict) -> None:
    """Raises InputError if a checkpoint is of another dataset or another partition than the run."""
    for key, value in partitioned.identity().items():
        if meta[key] != value:
            what = (
                ("dataset", "names, cameras, sizes, points or split differ")
                if key == "fingerprint"
                else ("partition", "its cells, or the photographs and points of its blocks, differ")
            )
            raise InputError(
                "config.data.path: the checkpoints in the workdir were made with another "
                f"{what[0]} than "
                f"{partitioned.scene.path} gives now ({what[1]}); give the old one, or use another "
                "--workdir"
            )


def save_stage(run: Run, stage: StageState, checkpoints: Checkpoints) -> None:
    """Starts to save a stage as it is now."""
    partitioned = run.partitioned
    checkpoints.save(
        stage.step,
        run.layout.join_rows(stage.rows),
        {
            "num_slots": stage.rows[0].alive.shape[1],
            "max_views": partitioned.max_views,
            "frame": partitioned.frame.to_dict(),
            "num_without_room": stage.num_without_room,
            "seconds": stage.seconds,
            "num_blocks": len(partitioned.blocks),
            **partitioned.identity(),
        },
    )


def run_stage(
    run: Run, stage: StageState, num_steps: int, advance: Advance, checkpoints: Checkpoints
) -> StageState:
    """Takes a stage to its last step: progress, logging, saving. Saves at the end.

    Args:
        run: of the run.
        stage: where it starts.
        num_steps: where it ends.
        advance: (stage, progress line) -> the stage one step later, which devices may still be
            computing, and the packed `StepReport` of each row.
        checkpoints: of this stage.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
        FloatingPointError: a loss is not finite.
    """
    cadence = run.settings.train
    stopwatch = Stopwatch(stage.seconds)
    recent = RecentReports(run.layout)
    run.log.begin(stage.name, stage.step)
    with Progress(stage.name, num_steps, stage.step) as progress:
        while stage.step < num_steps:
            stage, reports = advance(stage, progress)
            recent.add(reports)
            if stage.step % cadence.log_every == 0 or stage.step == num_steps:
                _write_log(run, stage, recent.take(), progress)
            else:
                progress.update(stage.step)
            is_stopping = asked_to_stop(run, stage.step)
            if stage.step % cadence.checkpoint_every == 0 or stage.step == num_steps or is_stopping:
                stage = stage._replace(seconds=stopwatch.seconds)
                save_stage(run, stage, checkpoints)
            if is_stopping and stage.step < num_steps:
                checkpoints.wait()
                raise Stopped
    if num_steps == 0:
        save_stage(run, stage, checkpoints)
    checkpoints.wait()
    return stage


def _write_log(
    run: Run, stage: StageState, steps: Sequence[dict[int, StepReport]], progress: Progress
) -> None:
    """Writes the line of the last steps: means over them, as what one photograph shows jumps, and
    what the last one counted.
    """
    means = {
        block: mean_numbers([numbers_of(reports[block]) for reports in steps])
        for block in steps[-1]
    }
    for block, report in steps[-1].items():
        if not np.isfinite(means[block]["loss"]):
            raise FloatingPointError(
                f"the loss of block {block} is {means[block]['loss']} after step {stage.step} of "
                "stage "
                f"{stage.name}; the last checkpoint is intact"
            )
        if report.num_invalid:
            progress.message(
                f"block {block}: {int(report.num_invalid)} surfels with values that are not finite "
                "are skipped"
            )
        run.log.row(stage.name, stage.step, block, surfels=int(report.num_alive), **means[block])
    if means:
        shown = mean_numbers(list(means.values()))
        psnr = {"psnr": shown["psnr/train"]} if "psnr/train" in shown else {}
        progress.update(
            stage.step,
            loss=shown["loss"],
            **psnr,
            surfels=sum(int(report.num_alive) for report in steps[-1].values()),
        )


class Trainer:
    """Trains blocks on their own photographs: the device stage, or the recovery after
    compression.
    """

    def __init__(self, run: Run, schedule: Schedule, first_progress: float = 0.0):
        """
        Args:
            run: of the run.
            schedule: the course of the stage.
            first_progress: where on the course of the learning rates it begins; it ends at 1.
        """
        self._run = run
        self._schedule = schedule
        self._first_progress = first_progress
        self._steps = compile_blocks(run.settings, run.layout)
        self._pace = DispatchLimit(programs_ahead(run.layout))
        self._views = BlockViews(run)
        self._next: dict[tuple[int, int], PackedBatch] = {}  # by row and step
        self.stage: StageState | None = None

    def advance(self, stage: StageState, progress: Progress) -> tuple[StageState, list[Packed]]:
        """One step of all blocks, and density control where it is due (`run_stage`)."""
        step = stage.step
        schedule = self._schedule
        shape = schedule.shape(step)
        self._views.prefetch(step + 1, with_second=shape.has_geometry)
        rows = list(stage.rows)
        reports = []
        for row in range(len(rows)):
            delivery = self._next.pop((row, step), None) or self._deliver(row, step)
            rows[row], report = self._steps.train_packed(rows[row], delivery, shape=shape)
            if step + 1 < schedule.num_steps:  # goes to the device while that computes
                self._next[row, step + 1] = self._deliver(row, step + 1)
            self._pace.launched(report)
            reports.append(report)
        self.stage = stage._replace(rows=rows, step=step + 1)
        self._control_density(progress)
        test_every = self._run.settings.train.test_every
        if (
            test_every
            and self.stage.step % test_every == 0
            and self.stage.step < schedule.num_steps
        ):
            log_test_views(self._run, self.stage)
        return self.stage, reports

    def _deliver(self, row: int, step: int) -> PackedBatch:
        schedule = self._schedule
        share = self._first_progress + (1 - self._first_progress) * step / schedule.num_steps
        return self._views.deliver(
            row, step, share, schedule.sh_degree_at(step), schedule.shape(step).has_geometry
        )

    def _control_density(self, progress: Progress) -> None:
        step = self.stage.step
        schedule = self._schedule
        if schedule.densifies_after(step):
            self._make_room(progress)
            self._densify(progress)
        if schedule.trims_after(step):
            self._trim(progress)
        if schedule.resets_after(step):
            self.stage = self.stage._replace(
                rows=[self._steps.reset_opacity(row) for row in self.stage.rows]
            )

    def _budget(self, block: Block) -> int:
        return self._schedule.budget(self.stage.step, block.num_initial, block.capacity)

    def _densify(self, progress: Progress) -> None:
        blocks = self._run.partitioned.blocks
        step = self.stage.step
        layout = self._run.layout

        def order(number: int | None) -> DensifyOrder:
            budget = 0 if number is None else self._budget(blocks[number])
            return DensifyOrder(
                np.int32(number or 0),
                np.int32(step),
                np.bool_(self._schedule.is_after_reset(step)),
                np.int32(budget),
            )

        pairs = [
            self._steps.densify(state, layout.put_row(row, order))
            for row, state in enumerate(self.stage.rows)
        ]
        reports = layout.get_blocks([report for _, report in pairs])
        num_without_room = sum(
            int(report.num_without_room)
            for number, report in reports.items()
            if self._budget(blocks[number]) == blocks[number].capacity
        )
        if num_without_room and not self.stage.num_without_room:
            progress.message(
                "the model is full: config.surfels.capacity sets how many surfels there may be; "
                "from now on only "
                "the most wanted ones are added"
            )
        self.stage = self.stage._replace(
            rows=[state for state, _ in pairs],
            num_without_room=self.stage.num_without_room + num_without_room,
        )

    def _trim(self, progress: Progress) -> None:
        """Drops what too few photographs see in front. Where there are too few to judge by, nothing
        is dropped.
        """
        partitioned = self._run.partitioned
        layout = self._run.layout
        least = self._run.settings.density.trim_min_views
        pairs = []
        for row, state in enumerate(self.stage.rows):
            num_views = layout.put(lambda _: np.zeros(state.alive.shape[1], np.int32))  # noqa: B023 - called at once
            for camera, is_active, size in each_view(partitioned, layout, row):
                num_views = self._steps.count_front_view(
                    num_views, state, camera, is_active, image_size=size
                )
            is_enough = layout.put_row(
                row,
                lambda number: np.bool_(
                    number is not None and len(partitioned.blocks[number].views) > least
                ),
            )
            pairs.append(self._steps.trim(state, num_views, is_enough))
        self.stage = self.stage._replace(rows=[state for state, _ in pairs])
        dropped = sum(
            int(number) for number in layout.get_blocks([number for _, number in pairs]).values()
        )
        progress.message(
            f"step {self.stage.step}: dropped {dropped:,d} surfels that fewer than {least} "
            "photographs see in front"
        )

    def _make_room(self, progress: Progress) -> None:
        """Grows the arrays of all blocks when the budget of one outgrows them."""
        num_slots = self.stage.rows[0].alive.shape[1]
        blocks = self._run.partitioned.blocks
        if max(map(self._budget, blocks)) <= num_slots:
            return
        new = common_slots(blocks, map(self._budget, blocks), self._run.settings)
        progress.message(
            f"step {self.stage.step}: room for {new:,d} surfels a block instead of {num_slots:,d}"
        )
        self.stage = self.stage._replace(rows=resize_rows(self._run.layout, self.stage.rows, new))


def common_slots(blocks: Sequence[Block], counts, settings: Settings) -> int:
    """Slots that hold these numbers of surfels in every block, with room to grow: blocks in
    lockstep have one shape.
    """
    return max(
        slots_for(count, block.capacity, settings.density.growth_factor)
        for block, count in zip(blocks, counts, strict=True)
    )


def resize_rows(layout: Layout, rows: Sequence[Any], num_slots: int) -> list[Any]:
    """States with more slots; the new ones are empty."""

    def grow(state):
        state = jax.tree.map(jnp.asarray, state)
        return with_surfels(
            state,
            *grow_capacity(state.params, state.optimizer, state.alive, state.stats, num_slots),
        )

    return [layout.put(lambda device, row=row: grow(layout.get(row, device))) for row in rows]


def start_stage(run: Run, name: str, make_state, num_slots: int) -> StageState:
    """A stage before its first step.

    Args:
        run, name: of the run and the stage.
        make_state: number of a block -> its TrainState of `num_slots` slots.
        num_slots: of every block.
    """
    layout = run.layout
    settings = run.settings
    empty = empty_state(num_slots, run.partitioned.max_views, settings)
    rows = [
        layout.put_row(row, lambda number: empty if number is None else make_state(number))
        for row in range(layout.blocks_per_device)
    ]
    return StageState(name, rows, 0, 0, 0.0)


def render_blocks(
    run: Run, rows: Sequence[Any], views: dict[int, int | None]
) -> dict[int, np.ndarray]:
    """What each block's own model shows from one view each: f32[H,W,3] for every local block that
    has a view.
    """
    partitioned = run.partitioned
    layout = run.layout
    raster = run.settings.raster
    size = partitioned.photo_size or partitioned.views.image_size(
        next(view for view in views.values() if view is not None)
    )
    draw = _compile_drawing(layout, size, raster.near, raster.background, raster.backend)
    colors = []
    for row, state in enumerate(rows):

        def camera(number: int | None) -> Camera:
            view = None if number is None else views[number]
            return partitioned.views.camera_arrays(0 if view is None else view)

        colors.append(jax.block_until_ready(draw(state, layout.put_row(row, camera))))
    return {
        block: color
        for block, color in layout.get_blocks(colors).items()
        if views[block] is not None
    }


@functools.lru_cache(maxsize=8)
def _compile_drawing(
    layout: Layout, size: tuple[int, int], near: float, background: float, backend: str
):
    def draw(state, camera):
        return rasterize(
            state.surfels(),
            camera,
            image_size=size,
            near=near,
            backend=backend or None,
            maps="color",
            background=jnp.full((3,), background, jnp.float32),
        ).color

    return sharded(draw, layout)


def views_in_step(
    partitioned: PartitionedScene, views: Int[np.ndarray, " n"], most: int | None = None
):
    """Views, one of each block at a time: {block: view or None}. A view belongs to the block in
    whose cell it stands.

    Args:
        partitioned: with its blocks.
        views: numbers.
        most: of each block, spread evenly over its own; None = all.
    """
    owned = [
        views[partitioned.partition.home[views] == block.number] for block in partitioned.blocks
    ]
    if most is not None:
        owned = [
            own[np.linspace(0, len(own) - 1, min(len(own), most)).round().astype(int)]
            for own in owned
        ]
    for index in range(max(map(len, owned))):
        yield {
            number: int(views[index]) if index < len(views) else None
            for number, views in enumerate(owned)
        }


def log_test_views(run: Run, stage: StageState) -> None:
    """Logs for each block the mean PSNR of its own model on the test views that stand
    in its cell.
    """
    partitioned = run.partitioned
    scores = {}
    for views in views_in_step(partitioned, partitioned.scene.test_views):
        for block, color in render_blocks(run, stage.rows, views).items():
            photo = run.images.load(views[block])
            mask = photograph.mask_of(photo)
            if mask is not None and not mask.any():
                continue
            color = np.clip(color[: photo.shape[0], : photo.shape[1]], 0, 1)
            scores.setdefault(block, []).append(
                float(metrics.psnr(color, photograph.colors_of(photo), mask))
            )
    for block, values in scores.items():
        run.log.row(stage.name, stage.step, block, **{"psnr/test": float(np.mean(values))})
