"""The whole run: the stages of the table, each resumable, then the files of the merged model."""

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax import host_memory, settings_file
from cosurfgs_jax.collab import concessions
from cosurfgs_jax.collab.adopted_blocks import (
    adopt_stage,
    adopts_blocks,
    bytes_of_blocks,
    finish_blocks,
)
from cosurfgs_jax.collab.announcement import announce
from cosurfgs_jax.collab.block_jobs import check_settings_of_blocks
from cosurfgs_jax.collab.finished_stages import keep_models_alone
from cosurfgs_jax.collab.importance_scores import score_of
from cosurfgs_jax.collab.merged_model import open_merged
from cosurfgs_jax.collab.open_run import check_photographs, open_in_all_processes
from cosurfgs_jax.collab.plans import make_plans
from cosurfgs_jax.collab.stage_course import run_one_stage, stages_left
from cosurfgs_jax.collab.stage_metrics import StageMetrics
from cosurfgs_jax.collab.stages import note_plan, stages_of, total_steps
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import Layout, check_num_devices, make_layout
from cosurfgs_jax.distributed.recording import recording
from cosurfgs_jax.distributed.run_lock import hold_run
from cosurfgs_jax.errors import required
from cosurfgs_jax.files import readable
from cosurfgs_jax.formats.cameras_json import write_cameras_json
from cosurfgs_jax.formats.geo_json import carry_geo
from cosurfgs_jax.formats.splat_ply import write_surfel_parts
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.raster import backend_of
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.loss_terms import check_own_terms
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, bind_partition
from cosurfgs_jax.training.partners import check_neighbors
from cosurfgs_jax.training.run import Run, Stopped, run_config
from cosurfgs_jax.training.run_log import Log, Pace
from cosurfgs_jax.workdir import Workdir

_log = logging.getLogger(__name__)


WhenTimed = Callable[[Run, str, Pace], None]


def train(
    settings: Settings,
    workdir: Workdir,
    losses: Sequence[LossTerm] = (),
    when_timed: WhenTimed | None = None,
) -> None:
    """Trains a model of a dataset, goes on where an earlier call stopped, or says that it is
    finished.

    Args:
        settings: validated.
        workdir: gets what training writes. All processes of a run share it.
        losses: terms of your own (`losses.term.own_term`), added in every stage to those that the
            settings name. A run goes on only with the terms that it began with.
        when_timed: called with the run, the name of a stage and its pace, at each line of the log.
    Raises:
        InputError: the dataset is not usable, is not the one that the workdir was made with, or
            processes disagree, or another run is under way there.
        SystemExit: after SIGINT or SIGTERM, when the state is saved.
    """
    backend_of(settings.raster)
    check_own_terms(losses)
    strategy_of(settings.density)
    score_of(settings.lmc)
    check_num_devices(settings.mesh.num_devices)
    processes.check_versions()
    with hold_run(workdir):
        _train(settings, workdir, losses, when_timed)


def _train(
    settings: Settings,
    workdir: Workdir,
    losses: Sequence[LossTerm],
    when_timed: WhenTimed | None,
) -> None:
    """`train`, with the workdir locked."""
    partitioned = open_in_all_processes(settings, workdir)
    check_neighbors(partitioned, settings.loss)
    layout = make_layout(partitioned.partition.edge_of_block, settings.mesh.num_devices)
    check_settings_of_blocks(settings, workdir)
    bind_partition(partitioned, workdir)
    _log_scene(partitioned, layout)
    num_steps = total_steps(settings, partitioned.partition)
    if processes.is_first():  # of a finished run of an earlier version, too
        note_plan(settings, workdir, partitioned.partition)
    if workdir.is_complete(num_steps):
        _log.info("finished already, after step %d: %s", num_steps, workdir.point_cloud(num_steps))
        _log_next(workdir)
        return
    asked = settings
    now, given_up = concessions.make_do(settings, workdir, partitioned, layout)
    settings = now.settings
    partitioned = now.partitioned
    announce(settings, workdir, partitioned, layout, found=now.found)
    with (
        StopRequest() as stop,
        ImageStore(partitioned.scene, settings.data.host_memory_mb) as images,
        Log(workdir, processes.index()) as log,
    ):
        run = Run(
            settings=settings,
            workdir=workdir,
            partitioned=partitioned,
            layout=layout,
            images=images,
            stop=stop,
            log=log,
            own_terms=tuple(losses),
        )
        check_photographs(run)
        config = b""
        if processes.is_first():  # no other looks at it: elsewhere it may not be seen for seconds
            settings_file.save(asked, workdir.made_with)
            settings_file.save(asked, workdir.config)
            concessions.note(given_up, workdir)
            carry_geo(Path(partitioned.scene.path), workdir.geo)
            config = run_config(workdir)
        processes.barrier("configured")
        with recording(workdir, "train") as record:
            try:
                run_stages(run._replace(config=config, record=record, when_timed=when_timed))
            except Stopped:
                _log.info("stopped; the same command goes on from there")
                stop.exit()
            write_merged(settings, workdir, partitioned)
            processes.barrier("finished")


def run_stages(run: Run) -> loop.StageState:
    """Runs the stages that are not done yet, and scores each once.

    Returns:
        The last stage.
    Raises:
        Stopped: the run was asked to stop; the state is saved.
    """
    plans = make_plans(run)
    metrics = StageMetrics(run, plans)
    specs = stages_of(run.settings, run.partitioned.partition)
    is_adopting = adopts_blocks(run)
    if is_adopting:
        finish_blocks(run)
    stage = None
    # The first process decides: elsewhere the folder may be seen as it was a moment ago.
    num_left = int(processes.gather(np.array(len(stages_left(run.workdir, specs))))[0])
    for spec in specs[len(specs) - num_left :]:
        is_of_jobs = is_adopting and spec.is_of_blocks
        is_new = is_of_jobs and not run.workdir.has_begun(spec.name)
        is_new = processes.any_process(is_new and processes.is_first())
        handed_over = 0
        if is_of_jobs:  # an earlier call may have been killed before it wrote the scores
            handed_over = bytes_of_blocks(run, spec)
        if is_new:
            stage = adopt_stage(run, spec)
        else:
            stage, is_new = run_one_stage(run, plans, spec, stage)
        if processes.any_process(processes.is_first() and (is_new or not metrics.has(spec.name))):
            metrics.write(spec, stage, handed_over)
            host_memory.give_back_freed()  # all test views were drawn
    keep_models_alone(run, specs)
    return required(stage, "the last stage")


def write_merged(settings: Settings, workdir: Workdir, partitioned: PartitionedScene) -> None:
    """Writes what other programs read: the merged model in the dataset's frame, and the cameras.

    Args:
        settings, workdir, partitioned: of the run. All processes call it: they read checkpoints
            together.
    """
    model = open_merged(settings, workdir, partitioned)
    if not processes.is_first():
        return
    _log.info("merging: puts the cells of all blocks together, in the dataset's frame")
    path = workdir.point_cloud(model.step)
    count = write_surfel_parts(
        path, lambda: map(partitioned.frame.surfels_to_dataset, model.chunks())
    )
    workdir.merge_metrics(final=None, geometry=None)  # scores of an earlier step
    scene = partitioned.scene
    write_cameras_json(workdir.cameras, scene.image_names, scene.views)
    _log.info("finished: %d surfels in %s", count, path)
    _log_next(workdir)


def _log_next(workdir: Workdir) -> None:
    folder = shlex.quote(readable(str(workdir)))
    _log.info(
        "next: cosurfgs export --format=dsm --workdir=%s (draws the map; with `view` in its place "
        "the model is shown in a browser, with `evaluate` it is scored)",
        folder,
    )


def _log_scene(partitioned: PartitionedScene, layout: Layout) -> None:
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
