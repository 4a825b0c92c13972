"""The training run: cadence, logging, saving, resuming. No mathematics."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import initialize, metrics, pictures, settings_file
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.scene import Scene, load_scene
from cosurfgs_jax.density import grow_capacity
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.export.cameras import write_cameras_json
from cosurfgs_jax.export.ply import write_surfels_ply
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.raster import choose_backend
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.evaluation import merge_metrics
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.logging import (
    History,
    Progress,
    Stopwatch,
    TensorBoard,
    peak_bytes_per_device,
    write_stage,
)
from cosurfgs_jax.training.schedule import Schedule, ViewOrder
from cosurfgs_jax.training.state import TrainState, abstract_state, init_state, with_surfels
from cosurfgs_jax.training.step import Batch, compile_steps
from cosurfgs_jax.training.views import WorldViews, make_render_fn

_PIXELS_PER_SURFEL = 32  # of the place's own pixels: a mean surfel of 6 by 6 pixels, fine where detail is, coarse on plain ground
_MIN_CAPACITY, _MAX_CAPACITY = 20_000, 5_000_000
_SLOT_ROUNDING = 1024
_PREFETCH = 8  # photographs decoded ahead
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A dataset as training sees it."""

    scene: Scene
    frame: SceneFrame
    views: WorldViews

    def fingerprint(self) -> str:
        """Changes when names, cameras, image sizes or points change."""
        digest = hashlib.sha256("\n".join(self.scene.image_names).encode())
        for array in (self.scene.camera_from_world, self.scene.intrinsics, self.scene.image_sizes, self.scene.points,
                      self.scene.is_test):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def open_place(settings: Settings, workdir: Path) -> Place:
    """Reads the dataset of a run; the generated one lies in the workdir."""
    scene = load_scene(settings.data, settings.generated, workdir / "data")
    frame = SceneFrame.from_scene(scene)
    return Place(scene, frame, WorldViews(scene, frame))


def choose_capacity(scene: Scene, settings: Settings) -> int:
    """The most surfels that the model may have: `surfels.capacity`, or one per 32 pixels of the place.

    The place's own pixels are those of all training photographs over the number of photographs that see a point.
    """
    if settings.surfels.capacity:
        return settings.surfels.capacity
    pixels = int(scene.image_sizes[scene.train_views].prod(axis=1).sum())
    lengths = np.diff(scene.track_offsets)
    views_per_point = max(2.0, lengths[lengths > 0].mean() if (lengths > 0).any() else 4.0)
    capacity = int(pixels / views_per_point / _PIXELS_PER_SURFEL)
    return min(max(capacity, _MIN_CAPACITY), _MAX_CAPACITY)


def _slots_for(num_surfels: int, capacity: int, factor: float) -> int:
    """Slots that leave room for `factor` times as many surfels, in few distinct sizes: each one compiles the step anew."""
    wanted = -(-int(num_surfels * factor) // _SLOT_ROUNDING) * _SLOT_ROUNDING
    return min(max(wanted, _SLOT_ROUNDING), capacity)


def first_state(place: Place, settings: Settings, capacity: int) -> TrainState:
    """The state before the first step: a surfel on every SfM point, and free slots, but never more than `capacity`."""
    num_slots = _slots_for(len(place.scene.points), capacity, settings.density.growth_factor)
    surfels = initialize.surfels_from_points(
        place.frame.to_world(place.scene.points), place.scene.point_colors, num_slots, settings.surfels.sh_degree,
        settings.surfels.init_opacity, jax.random.key(settings.seed), place.views.centers())
    return init_state(surfels, place.scene.num_views, settings)


class Run:
    """One block's training, from its checkpoints on."""

    def __init__(self, settings: Settings, workdir: Path, place: Place, checkpoints: Checkpoints):
        self.settings, self.workdir, self.place = settings, workdir, place
        self._checkpoints = checkpoints
        self._schedule = Schedule.from_settings(settings)
        self._order = ViewOrder(place.scene.train_views, settings.seed)
        self._capacity = choose_capacity(place.scene, settings)
        self._num_first = min(len(place.scene.points), self._capacity)
        self._key = jax.random.fold_in(jax.random.key(settings.seed), 2)
        restored = restore(checkpoints, place, settings)
        if restored is None:
            self.step, self.state = 0, first_state(place, settings, self._capacity)
            self.num_without_room, seconds = 0, 0.0
        else:
            self.step, self.state, meta = restored
            self.num_without_room, seconds = meta["num_without_room"], meta["seconds"]
        self.stopwatch = Stopwatch(seconds)

    def save(self) -> None:
        """Starts to save the state as it is now."""
        self._checkpoints.save(self.step, self.state, {
            "num_slots": self.state.alive.shape[0], "num_views": self.place.scene.num_views,
            "frame": self.place.frame.to_dict(), "fingerprint": self.place.fingerprint(),
            "num_without_room": self.num_without_room, "seconds": self.stopwatch.seconds})

    def train(self, images: ImageStore, stop: StopRequest, history: History, board: TensorBoard) -> None:
        """Runs to the last step, or to a stop request; saves at the end of either."""
        steps = compile_steps(self.settings)
        cadence, total = self.settings.train, self._schedule.num_steps
        recent = []  # loss and PSNR of each step since the last line; those of one photograph alone jump
        with Progress("train", total, self.step) as progress:
            while self.step < total and not stop:
                view = self._order.view(self.step)
                images.prefetch(self._order.views(self.step + 1, _PREFETCH))
                batch = Batch(self.place.views.camera(view), jnp.asarray(images.load(view)), jnp.asarray(view, jnp.int32),
                              jnp.asarray(self.step / total, jnp.float32),
                              jnp.asarray(self._schedule.sh_degree_at(self.step), jnp.int32))
                self.state, report = steps.train(self.state, batch, shape=self._schedule.shape(self.step))
                # This waits: more than one step in flight only holds memory, and on a CPU they would share the same cores.
                recent.append((float(report.loss), float(report.psnr)))
                self.step += 1
                if self.step % cadence.log_every == 0 or self.step == total:
                    self._log(np.mean(recent, axis=0), report, progress, history, board)
                    recent = []
                else:
                    progress.update(self.step)
                self._control_density(steps, progress)
                if cadence.test_every and self.step % cadence.test_every == 0 and self.step < total:
                    self._log_test(images, history, board)
                if self.step % cadence.checkpoint_every == 0 or self.step == total:
                    self.save()
        if stop:
            self.save()
        self._checkpoints.wait()

    def _log(self, means, report, progress: Progress, history: History, board: TensorBoard) -> None:
        (loss, psnr), num_invalid = means.tolist(), int(report.num_invalid)
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} after step {self.step}; the last checkpoint is intact")
        if num_invalid:
            progress.message(f"{num_invalid} surfels with values that are not finite are skipped")
        numbers = {"loss": loss, "psnr": psnr, "surfels": int(report.num_alive)}
        progress.update(self.step, **numbers)
        rows = {"loss": loss, "psnr/train": psnr, "surfels": numbers["surfels"]}
        history.append(self.step, **rows)
        board.scalars(self.step, **rows)

    def _log_test(self, images: ImageStore, history: History, board: TensorBoard) -> None:
        psnr, ssim = score_test_views(self.state, self.place, images, self.settings)
        if psnr is not None:
            history.append(self.step, **{"psnr/test": psnr, "ssim/test": ssim})
            board.scalars(self.step, **{"psnr/test": psnr, "ssim/test": ssim})

    def _control_density(self, steps, progress: Progress) -> None:
        if self._schedule.densifies_after(self.step):
            key = jax.random.fold_in(self._key, self.step)
            budget = self._schedule.budget(self.step, self._num_first, self._capacity)
            self._make_room(budget, progress)
            self.state, report = steps.densify(self.state, key, self._schedule.is_after_reset(self.step), budget)
            if budget == self._capacity and int(report.num_without_room):
                if not self.num_without_room:
                    progress.message(f"the model is full: {self._capacity:,d} surfels (surfels.capacity); from now on only "
                                     "the most wanted ones are added")
                self.num_without_room += int(report.num_without_room)
        if self._schedule.trims_after(self.step):
            self._trim(steps, progress)
        if self._schedule.resets_after(self.step):
            self.state = steps.reset_opacity(self.state)

    def _trim(self, steps, progress: Progress) -> None:
        """Drops what too few photographs see in front. Where there are too few to judge by, nothing is dropped."""
        views = self.place.scene.train_views
        if len(views) <= self.settings.density.trim_min_views:
            return
        num_views = jnp.zeros(self.state.alive.shape, jnp.int32)
        for view in views:
            num_views = steps.count_front_view(num_views, self.state, self.place.views.camera(view),
                                               image_size=self.place.views.image_size(view))
        self.state, num_dropped = steps.trim(self.state, num_views)
        progress.message(f"step {self.step}: dropped {int(num_dropped):,d} surfels that fewer than "
                         f"{self.settings.density.trim_min_views} photographs see in front")

    def _make_room(self, budget: int, progress: Progress) -> None:
        """Grows the arrays when the budget outgrows them."""
        num_slots = self.state.alive.shape[0]
        if budget > num_slots:
            new = _slots_for(budget, self._capacity, self.settings.density.growth_factor)
            progress.message(f"step {self.step}: room for {new:,d} surfels instead of {num_slots:,d}")
            state = self.state
            slots = grow_capacity(state.params, state.optimizer, state.alive, state.stats, new)
            self.state = with_surfels(state, *slots)


def restore(checkpoints: Checkpoints, place: Place, settings: Settings):
    """The newest state of a run, or None.

    Raises:
        InputError: the checkpoints are of another dataset, or damaged.
    """
    def make_abstract(meta: dict):
        if meta["fingerprint"] != place.fingerprint():
            raise InputError(f"config.data.path: the checkpoints in the workdir were made with another dataset than "
                             f"{place.scene.path} is now (names, cameras, sizes, points or split differ); give the old one, "
                             "or use another --workdir")
        return abstract_state(meta["num_slots"], meta["num_views"], settings)

    return checkpoints.restore_latest(make_abstract)


def score_test_views(state: TrainState, place: Place, images: ImageStore,
                     settings: Settings) -> tuple[float | None, float | None]:
    """Mean PSNR and SSIM over the test views, without colour correction; None where there are none."""
    views = place.scene.test_views
    if not len(views):
        return None, None
    render = make_render_fn(state.surfels(), place.views, place.frame, settings.raster, "color")
    scores = []
    for view in views:
        photo = images.load(int(view)).astype(np.float32) / 255
        mask = photo[..., 3] > 0.5 if photo.shape[-1] == 4 else None
        color = np.clip(render(int(view))["color"], 0, 1)
        scores.append((float(metrics.psnr(color, photo[..., :3], mask)), float(metrics.ssim(color, photo[..., :3], mask))))
    psnr, ssim = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


def _draw_before(run: Run) -> None:
    """Pictures of the test views as the SfM points alone show them, for the report."""
    render = make_render_fn(run.state.surfels(), run.place.views, run.place.frame, run.settings.raster, "color")
    for number, view in enumerate(run.place.scene.test_views):
        pictures.write_image(run.workdir / "before" / f"{number:05d}.png", pictures.to_uint8(render(int(view))["color"]))


def model_path(workdir: Path, step: int) -> Path:
    """Where the model's splat file lies."""
    return workdir / "point_cloud" / f"iteration_{step}" / "point_cloud.ply"


def _finish(run: Run, images: ImageStore) -> None:
    """Writes what others read: the model in the dataset's frame, cameras, scores of the stage."""
    place, settings = run.place, run.settings
    path = model_path(run.workdir, run.step)
    count = write_surfels_ply(path, place.frame.surfels_to_dataset(run.state.surfels()))
    write_cameras_json(run.workdir / "cameras.json", place.scene)
    psnr, ssim = score_test_views(run.state, place, images, settings)
    write_stage(
        run.workdir, "device", steps=run.step, seconds=run.stopwatch.seconds, num_surfels=[count], psnr_test=psnr,
        ssim_test=ssim, psnr_seam=None, peak_bytes_per_device=peak_bytes_per_device(), num_without_room=run.num_without_room,
        num_slots=run.state.alive.shape[0])
    merge_metrics(run.workdir / "metrics.json", final=None, geometry=None)  # what stood there was of an earlier step
    scores = "no test views" if psnr is None else f"test PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"
    _log.info("finished: %d surfels, %s; model in %s", count, scores, path)
    if run.num_without_room:
        _log.info("%d times a surfel was to be added and found no room; config.surfels.capacity=%d sets the limit",
                  run.num_without_room, run.state.alive.shape[0])


def train(settings: Settings, workdir: Path) -> None:
    """Trains a model, or goes on where an earlier call stopped, or says that it is finished.

    Args:
        settings: validated.
        workdir: gets checkpoints/, before/, tensorboard/, history.jsonl, point_cloud/, cameras.json, metrics.json.
    Raises:
        InputError: the dataset is not usable, or is not the one that the workdir was made with.
        SystemExit: after SIGINT or SIGTERM, when the state is saved.
    """
    choose_backend(settings.raster.backend)
    place = open_place(settings, workdir)
    scene = place.scene
    _log.info("%s: %d photographs for training, %d for testing, %d points", scene.name, len(scene.train_views),
              len(scene.test_views), len(scene.points))
    with StopRequest() as stop, Checkpoints(workdir / "checkpoints") as checkpoints, \
            ImageStore(scene, settings.data.host_memory_mb) as images:
        run = Run(settings, workdir, place, checkpoints)
        settings_file.save(settings, workdir / settings_file.NAME)
        is_done = run.step >= settings.train.steps
        if is_done and model_path(workdir, run.step).exists() and (workdir / "metrics.json").exists():
            _log.info("finished already, after step %d: %s", run.step, model_path(workdir, run.step))
            return
        if run.step:
            _log.info("going on from step %d", run.step)
        else:
            _draw_before(run)
        if not is_done:
            history = History(workdir / "history.jsonl", run.step)
            with TensorBoard(workdir / "tensorboard", run.step) as board:
                run.train(images, stop, history, board)
        if run.step < settings.train.steps:
            _log.info("stopped after step %d; the same command goes on from there", run.step)
            stop.exit()
        _finish(run, images)
