"""The whole run: device -> compression -> edge -> compression -> cloud, each stage resumable, then
the merged model's files.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import pictures, settings_file
from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.aggregate import Aggregation
from cosurfgs_jax.collab.composite import PARTIAL_IMAGE_BYTES, RequestPlanner
from cosurfgs_jax.collab.exchange import Exchange, plan_exchange
from cosurfgs_jax.collab.seam_metrics import score_seam_depth, summarize_seam_depth, wall_roughness
from cosurfgs_jax.collab.stage_scores import SeamMasks, score_cells
from cosurfgs_jax.collab.teachers import Teachers
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import check_num_devices, make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.cameras_json import write_cameras_json
from cosurfgs_jax.formats.splat_ply import write_surfels_ply
from cosurfgs_jax.outputs.merged_model import load_merged, model_path, stage_names, total_steps
from cosurfgs_jax.raster import choose_backend
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import harmonize, loop
from cosurfgs_jax.training.batches import check_neighbors
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import (
    PartitionedScene,
    bind_partition,
    first_state,
    open_partitioned_scene,
)
from cosurfgs_jax.training.run import Run, Stopped
from cosurfgs_jax.training.run_log import Log, Stopwatch, peak_bytes_per_device, write_stage
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.workdir import merge_metrics, read_metrics

RECOVERY_PROGRESS = (
    0.8  # where on the course of the learning rates the recovery after pruning begins
)
_log = logging.getLogger(__name__)


class Plans(NamedTuple):
    """Exchanges between the devices of a run, and which blocks form one model in each."""

    alone: Exchange  # every block by itself
    edge: Exchange
    cloud: Exchange
    # everyone draws for everyone: for teachers and scores, which must lack nothing, and take no
    # gradient
    whole_edge: Exchange
    whole_cloud: Exchange
    edge_groups: np.ndarray  # i64[B]
    cloud_groups: np.ndarray
    alone_groups: np.ndarray


def make_plans(run: Run) -> Plans:
    """The exchanges of a run."""
    partitioned = run.partitioned
    layout = run.layout
    num_devices = layout.num_devices
    per_device = layout.blocks_per_device
    rows, width = layout.mesh.devices.shape
    edges = partitioned.partition.edge_of_block
    needs = np.zeros((num_devices, num_devices))
    edge_needs = np.zeros((num_devices, num_devices))
    for block in partitioned.blocks:
        for cell, share in enumerate(partitioned.partition.coverage[block.views].sum(axis=0)):
            needs[block.number // per_device, cell // per_device] += share
            edge_needs[block.number // per_device, cell // per_device] += share * (
                edges[cell] == edges[block.number]
            )
    row_of_block = np.arange(len(partitioned.blocks)) // (width * per_device)
    # Edges lie within rows unless there is one row for several edges; then the row is the group,
    # and views are told apart by it.
    is_within_rows = all(
        len(np.unique(row_of_block[edges == edge])) == 1 for edge in np.unique(edges)
    )
    most = run.settings.mas.max_partners
    alone = Exchange(("device",), (), *(tuple((device,) for device in range(num_devices)),) * 2)
    return Plans(
        alone,
        plan_exchange((rows, width), edge_needs, is_within_rows, most),
        plan_exchange((rows, width), needs, False, most),
        plan_exchange((rows, width), edge_needs, is_within_rows, most, num_devices),
        plan_exchange((rows, width), needs, False, most, num_devices),
        edges,
        np.zeros(len(edges), np.int64),
        np.arange(len(edges)),
    )


class _Pipeline:
    """One run, stage by stage."""

    def __init__(self, run: Run):
        self._run = run
        self._plans = make_plans(run)
        self._seams = SeamMasks(run.partitioned, run.settings)
        self._names = stage_names(run.settings, run.partitioned.partition)
        self._roughness = wall_roughness(self._rows_of_stages())

    def run(self) -> loop.StageState:
        """All stages that are not done yet; returns the last one."""
        run = self._run
        makers = {
            "device": self._device,
            "lmc_device": self._lmc_device,
            "edge": self._edge,
            "cloud": self._cloud,
        }
        stage = None
        for position, name in enumerate(self._names):
            later = self._names[position + 1 :]
            if stage is None and any(self._has_begun(other) for other in later):
                continue  # what a later stage began with, it has
            folder = loop.checkpoint_folder(run.workdir, name)
            with Checkpoints(folder, keep=2) as checkpoints:
                restored = loop.restore_stage(run, name, checkpoints)
                if restored is not None and restored.step:
                    _log.info("%s: going on from step %d", name, restored.step)
                num_steps = self._num_steps(name)
                is_new = restored is None or restored.step < num_steps or not self._is_scored(name)
                stage = makers[name](stage, restored, num_steps, checkpoints)
            if is_new:
                self._score(stage, name)
        return stage

    def _has_begun(self, name: str) -> bool:
        folder = loop.checkpoint_folder(self._run.workdir, name)
        return any(path.name.isdigit() for path in folder.glob("*"))

    def _is_scored(self, name: str) -> bool:
        return any(row["name"] == name for row in self._rows_of_stages())

    def _rows_of_stages(self) -> list[dict]:
        return read_metrics(self._run.workdir / "metrics.json")["stages"]

    def _num_steps(self, name: str) -> int:
        return total_steps(self._run.settings, name)

    def _device(self, _, restored, num_steps: int, checkpoints: Checkpoints) -> loop.StageState:
        run = self._run
        partitioned = run.partitioned
        settings = run.settings
        if restored is None:
            num_slots = loop.common_slots(
                partitioned.blocks, [block.num_initial for block in partitioned.blocks], settings
            )
            restored = loop.start_stage(
                run,
                "device",
                lambda number: first_state(
                    partitioned, partitioned.blocks[number], settings, num_slots
                ),
                num_slots,
            )
            _draw_before(run, restored)
        trainer = loop.Trainer(run, Schedule.from_settings(settings))
        return loop.run_stage(run, restored, num_steps, trainer.advance, checkpoints)

    def _lmc_device(
        self, before, restored, num_steps: int, checkpoints: Checkpoints
    ) -> loop.StageState:
        if restored is None:
            restored = before._replace(name="lmc_device", step=0, num_without_room=0, seconds=0.0)
        elif num_steps == 0:
            return restored
        return compress_in_rounds(self._run, restored, num_steps, checkpoints)

    def _edge(self, before, restored, num_steps: int, checkpoints: Checkpoints) -> loop.StageState:
        plans = self._plans
        return self._aggregate(
            "edge",
            before,
            restored,
            num_steps,
            checkpoints,
            (plans.alone, plans.alone_groups),
            (plans.edge, plans.edge_groups),
        )

    def _cloud(self, before, restored, num_steps: int, checkpoints: Checkpoints) -> loop.StageState:
        plans = self._plans
        run = self._run
        has_edges = "edge" in self._names
        of_teachers = (
            (plans.whole_edge, plans.edge_groups)
            if has_edges
            else (plans.alone, plans.alone_groups)
        )
        if restored is None and has_edges and run.settings.lmc.enabled:
            stopwatch = Stopwatch()
            result = compress.compress(run, before, run.settings.lmc.edge_prune_ratio)
            _log_compression(result)
            before = before._replace(
                rows=result.rows, name="lmc_edge", step=0, seconds=stopwatch.seconds
            )
            self._score(before, "lmc_edge")
        return self._aggregate(
            "cloud",
            before,
            restored,
            num_steps,
            checkpoints,
            of_teachers,
            (plans.cloud, plans.cloud_groups),
        )

    def _aggregate(
        self,
        name: str,
        before,
        restored,
        num_steps: int,
        checkpoints: Checkpoints,
        of_teachers,
        of_students,
    ) -> loop.StageState:
        run = self._run
        teachers = Teachers(run, name)
        if restored is None:
            stopwatch = Stopwatch()
            if before.name in (
                "device",
                "lmc_device",
            ):  # later models are of one brightness already
                before, gains = harmonize.harmonize_exposure(run, before)
                _log_gains(gains)
            planner = RequestPlanner(run.partitioned, run.layout, *of_students)
            partners = {block: planner.partners(block) for block in run.layout.local_blocks}
            teachers.render(before.rows, *of_teachers, partners)
            restored = loop.StageState(
                name, compress.crop_rows(run, before.rows), 0, 0, stopwatch.seconds
            )
            loop.save_stage(
                run, restored, checkpoints
            )  # from here on the models of the stage before are not needed
            checkpoints.wait()
        if restored.step < num_steps:
            teachers.check()
        aggregation = Aggregation(run, *of_students, teachers, num_steps)
        stage = loop.run_stage(run, restored, num_steps, aggregation.advance, checkpoints)
        teachers.drop()
        return stage

    def _bytes_sent(self, name: str) -> int:
        """What leaves the busiest device in a step: its parts of others' views, and the gradients
        of what it got.
        """
        exchange = {"edge": self._plans.edge, "cloud": self._plans.cloud}.get(
            name, self._plans.alone
        )
        run = self._run
        images = exchange.num_sent * run.layout.blocks_per_device**2
        height, width = run.partitioned.photo_size or (0, 0)
        return 2 * images * height * width * PARTIAL_IMAGE_BYTES

    def _score(self, stage: loop.StageState, name: str) -> None:
        """Writes the stage's row of metrics.json: the scores are those of its cells put
        together.
        """
        run = self._run
        is_cropped = name in ("edge", "lmc_edge", "cloud")
        cells = stage.rows if is_cropped else compress.crop_rows(run, stage.rows)
        scores = score_cells(run, cells, self._plans.whole_cloud, self._seams)
        depth = score_seam_depth(
            run,
            cells,
            self._plans.whole_cloud,
            self._seams,
            None if is_cropped else stage.rows,
            self._roughness,
        )
        self._roughness = wall_roughness([depth._asdict()]) or self._roughness
        counts = np.zeros(len(run.partitioned.blocks), np.int64)
        merged = counts.copy()
        for table, rows in ((counts, stage.rows), (merged, cells)):
            for block, state in run.layout.get_blocks(rows).items():
                table[block] = int(state.alive.sum())
        counts = processes.gather(counts).sum(axis=0)
        merged = processes.gather(merged).sum(axis=0)
        peak = int(processes.gather(np.int64(peak_bytes_per_device())).max())
        if processes.is_first():
            write_stage(
                run.workdir,
                name,
                steps=stage.step,
                seconds=stage.seconds,
                num_surfels=counts.tolist(),
                psnr_test=scores.psnr,
                ssim_test=scores.ssim,
                psnr_seam=scores.psnr_seam,
                peak_bytes_per_device=peak,
                psnr_test_fitted=scores.psnr_fitted,
                psnr_seam_fitted=scores.psnr_seam_fitted,
                num_surfels_merged=int(merged.sum()),
                num_without_room=stage.num_without_room,
                num_slots=stage.rows[0].alive.shape[1],
                bytes_sent_per_step=self._bytes_sent(name),
                **depth._asdict(),
            )
        seam = ""
        if scores.psnr_seam is not None:
            seam = f", at the seams {scores.psnr_seam:.2f} ({scores.psnr_seam_fitted:.2f})"
        told = (
            "no test views"
            if scores.psnr is None
            else f"test PSNR {scores.psnr:.2f} dB ({scores.psnr_fitted:.2f} fitted){seam}, SSIM "
            f"{scores.ssim:.4f}"
        )
        _log.info(
            "%s: %d surfels in %d blocks, %d merged; %s",
            name,
            counts.sum(),
            len(counts),
            merged.sum(),
            told,
        )
        if told := summarize_seam_depth(depth):
            _log.info("%s: %s", name, told)


def compress_in_rounds(
    run: Run, stage: loop.StageState, num_steps: int, checkpoints: Checkpoints
) -> loop.StageState:
    """Compresses blocks by `lmc.prune_ratio` in `lmc.rounds` rounds, each with its share of the
    training to recover.

    What is left after a round is another model, in which others matter: so each round measures
    anew.

    Args:
        run: of the run.
        stage: the blocks before the first round (step 0), or as saved in the course of an earlier
            call. At the step where a round begins it holds the blocks before that round.
        num_steps: of recovery, in all rounds together; 0 = none.
        checkpoints: of this stage.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
    """
    settings = run.settings.lmc
    num_rounds = min(settings.rounds, max(num_steps, 1))
    ratio = 1 - (1 - settings.prune_ratio) ** (1 / num_rounds)
    course = Schedule.without_growth(run.settings, max(num_steps, 1))
    trainer = loop.Trainer(run, course, RECOVERY_PROGRESS)
    for number in range(num_rounds):
        begin = number * num_steps // num_rounds
        end = (number + 1) * num_steps // num_rounds
        if stage.step >= end > 0:
            continue
        if stage.step == begin:
            stopwatch = Stopwatch(stage.seconds)
            result = compress.compress(run, stage, ratio)
            _log_compression(result)
            stage = stage._replace(rows=result.rows, seconds=stopwatch.seconds)
        stage = loop.run_stage(run, stage, end, trainer.advance, checkpoints)
    return stage


def _log_compression(result: compress.Compression) -> None:
    for block, before in result.num_before.items():
        after = result.num_after[block]
        _log.info(
            "block %d: %d photographs used; %d of %d surfels pruned, %d kept, %d of them in its "
            "cell",
            block,
            result.num_used[block],
            before - after,
            before,
            after,
            result.num_inside[block],
        )


def _log_gains(gains: np.ndarray) -> None:
    if len(gains) > 1:
        means = gains.mean(axis=1)
        _log.info(
            "brightness of the blocks: made to agree by factors of %.3f to %.3f",
            means.min(),
            means.max(),
        )


def _draw_before(run: Run, stage: loop.StageState) -> None:
    """Pictures of the test views as the SfM points alone show them, for the report."""
    partitioned = run.partitioned
    numbers = {int(view): number for number, view in enumerate(partitioned.scene.test_views)}
    if not numbers:
        return
    for views in loop.views_in_step(partitioned, partitioned.scene.test_views):
        for block, color in loop.render_blocks(run, stage.rows, views).items():
            height, width = partitioned.views.image_size(views[block])
            pictures.write_image(
                run.workdir / "before" / f"{numbers[views[block]]:05d}.png",
                pictures.to_uint8(color[:height, :width]),
            )


def _finish(settings: Settings, workdir: Path, partitioned: PartitionedScene) -> None:
    """Writes what others read: the merged model in the dataset's frame, cameras."""
    surfels, step = load_merged(
        settings, workdir, partitioned
    )  # by all processes together: checkpoints are read so
    if not processes.is_first():
        return
    path = model_path(workdir, step)
    count = write_surfels_ply(path, partitioned.frame.surfels_to_dataset(surfels))
    merge_metrics(
        workdir / "metrics.json", final=None, geometry=None
    )  # what stood there was of an earlier step
    write_cameras_json(
        workdir / "cameras.json", partitioned.scene.image_names, partitioned.scene.views
    )
    _log.info("finished: %d surfels in %s", count, path)


def _open(settings: Settings, workdir: Path) -> PartitionedScene:
    """The place, agreed on by all processes."""
    processes.check_settings_agree(settings)
    processes.check_shared_folder(workdir)
    is_shared = settings.data.path == "generated"
    processes.check_equal(
        "config.data.path",
        str(is_shared),
        'give all processes a folder, or all of them "generated"',
    )
    if is_shared and not processes.is_first():
        processes.barrier("generated")  # the first one makes the photographs
    partitioned = open_partitioned_scene(settings, workdir, allow_missing=processes.count() > 1)
    if is_shared and processes.is_first():
        processes.barrier("generated")
    identity = partitioned.identity()
    for key, value in identity.items():
        processes.check_equal(
            f"config.data.path ({key})",
            value,
            "give all processes the same cameras, points and split; only photographs may be "
            "missing",
        )
    return partitioned._replace(
        scene=partitioned.scene.with_masks(processes.any_process(partitioned.scene.has_masks))
    )


def _check_photographs(run: Run) -> None:
    """Raises InputError if this process lacks a photograph of its own blocks."""
    partitioned = run.partitioned
    wanted = {
        int(view) for block in run.layout.local_blocks for view in partitioned.blocks[block].views
    }
    wanted |= {
        int(view)
        for view in partitioned.scene.test_views
        if partitioned.partition.home[view] in run.layout.local_blocks
    }
    missing = [
        partitioned.scene.image_names[view]
        for view in sorted(wanted)
        if not partitioned.scene.image_paths[view]
    ]
    if processes.any_process(bool(missing)):
        mine = (
            f"{missing[0]} and {len(missing) - 1} more are missing here"
            if missing
            else "they are missing in another process"
        )
        raise InputError(
            f"config.data.path={partitioned.scene.path}: expected the photographs of all blocks "
            "that a process carries "
            f"(here blocks {', '.join(map(str, run.layout.local_blocks))}), got some that are not "
            f"there: {mine}"
        )


def train(settings: Settings, workdir: Path) -> None:
    """Trains a model of a place, or goes on where an earlier call stopped, or says that it is
    finished.

    Args:
        settings: validated.
        workdir: gets checkpoints/, before/, tensorboard/, history.jsonl, partition.json,
            point_cloud/, cameras.json, metrics.json. All processes of a run share it.
    Raises:
        InputError: the dataset is not usable, is not the one that the workdir was made with, or
            processes disagree.
        SystemExit: after SIGINT or SIGTERM, when the state is saved.
    """
    choose_backend(settings.raster.backend)
    check_num_devices(settings.mesh.num_devices)
    partitioned = _open(settings, workdir)
    check_neighbors(partitioned, settings.loss)
    layout = make_layout(partitioned.partition.edge_of_block, settings.mesh.num_devices)
    bind_partition(partitioned, workdir)
    scene = partitioned.scene
    _log.info(
        "%s: %d photographs for training, %d for testing, %d points; %d block(s) on %d device(s)",
        scene.name,
        len(scene.train_views),
        len(scene.test_views),
        len(scene.cloud),
        len(partitioned.blocks),
        layout.num_devices,
    )
    steps = sum(
        total_steps(settings, name) for name in stage_names(settings, partitioned.partition)
    )
    if (
        model_path(workdir, steps).exists()
        and (workdir / "metrics.json").exists()
        and (workdir / "cameras.json").exists()
    ):
        _log.info("finished already, after step %d: %s", steps, model_path(workdir, steps))
        return
    with (
        StopRequest() as stop,
        ImageStore(scene, settings.data.host_memory_mb) as images,
        Log(workdir, processes.index()) as log,
    ):
        run = Run(settings, workdir, partitioned, layout, images, stop, log)
        _check_photographs(run)
        if processes.is_first():
            settings_file.save(settings, workdir / settings_file.NAME)
        try:
            _Pipeline(run).run()
        except Stopped:
            _log.info("stopped; the same command goes on from there")
            stop.exit()
        _finish(settings, workdir, partitioned)
        processes.barrier("finished")
