"""Model aggregation (MAS): the blocks' models distilled into one, which stays sharded by cell.

One step: every block takes one of its photographs. The devices whose cells its camera sees draw
their cells for it (`composite.render_views`), and the block's device compares the composite with
the maps of the frozen teacher, and with its own photograph, which never leaves it. Gradients run
through composite and exchange; each device updates only its own surfels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cosurfgs_jax.collab.composite import RenderRequests, RequestPlanner, render_views
from cosurfgs_jax.collab.exchange import Exchange, Grouping
from cosurfgs_jax.collab.teachers import Teachers, blank_maps
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import required
from cosurfgs_jax.losses.inputs import (
    IS_PHOTO_VALID,
    IS_TEACHER_VALID,
    LossView,
    SecondView,
    TeacherMaps,
)
from cosurfgs_jax.losses.term import LossTerm, Phase
from cosurfgs_jax.model import exposure_model, optim
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.batches import BlockViews
from cosurfgs_jax.training.device_cache import pick
from cosurfgs_jax.training.dispatch import DispatchLimit, programs_ahead
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.loss_terms import total_loss, used_terms
from cosurfgs_jax.training.partitioned_scene import Photographs
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.training.step import StepReport
from cosurfgs_jax.types import Surfels, on_host


class TaughtView(NamedTuple):
    """A second view of a block, for MV-Reg: its own photograph from nearby, and the surface that
    its teacher shows there.
    """

    view: SecondView
    plane_depth: Float[Array, "h w"]


class MasBatch(NamedTuple):
    """What one device needs for a step; b own blocks."""

    requests: RenderRequests
    photos: UInt8[Array, "b h w c"]
    exposure_indices: Int[Array, " b"]  # which of the block's exposures is the photograph's
    teachers: TeacherMaps | None  # [b, ...]; None before they are delivered
    is_active: Bool[Array, " b"]  # False where the device has no block
    progress: Float[Array, ""]
    seconds: TaughtView | None = None  # [b, ...], where MV-Reg is on


def _exposure_index(blocks, block: int | None, views: dict[int, int]) -> int:
    """Which of its exposures is that of the block's view; 0 where there is no block."""
    if block is None:
        return 0
    return int(np.searchsorted(blocks[block].views, views[block]))


class _Static(NamedTuple):
    settings: Settings
    terms: tuple[LossTerm, ...]


def _loss(
    params: list,
    exposures: list,
    states: list[TrainState],
    batch: MasBatch,
    exchange: Exchange,
    static: _Static,
):
    """Sum over this device's own cameras; gradients of other devices' losses arrive through the
    exchange.
    """
    settings = static.settings
    cells = [Surfels.of(own, state.alive) for own, state in zip(params, states, strict=True)]
    height, width = batch.photos.shape[1:3]
    total = jnp.float32(0.0)
    reports = []
    options = RasterOptions.from_settings(settings.raster)
    for i, out in enumerate(
        render_views(cells, batch.requests, exchange, (height, width), options)
    ):
        transform = None
        if exposures[i] is not None:
            transform = exposure_model.transform_of(exposures[i], batch.exposure_indices[i])
        teacher, camera, second = jax.tree.map(
            lambda leaf, i=i: leaf[i], (batch.teachers, batch.requests.own_cameras, batch.seconds)
        )
        second_view, second_depth = second or (None, None)
        view = LossView(
            out=out,
            surfels=cells[i],
            camera=camera,
            photo=batch.photos[i],
            is_photo_valid=(teacher.flags & IS_PHOTO_VALID) > 0,
            transform=transform,
            exposure=exposures[i],
            num_views=states[i].num_views,
            second=second_view,
            second_depth=second_depth,
            teacher=teacher,
        )
        loss, shown = total_loss(view, static.terms, settings)
        total += jnp.where(batch.is_active[i], loss, 0.0)
        reports.append((loss, shown))
    return total, reports


def mas_step(
    states: list[TrainState],
    batch: MasBatch,
    settings: Settings,
    exchange: Exchange,
    own_terms: tuple[LossTerm, ...] = (),
) -> tuple[list[TrainState], list[StepReport]]:
    """One step of a device: draws, exchanges, compares, and moves its own surfels and exposures.

    Args:
        states: of its b cells.
        batch: of this device.
        settings, exchange, own_terms: static; a user's terms of the loss.
    Returns:
        The new states and what to show of each block.
    """
    phase = Phase(has_geometry=True, is_distillation=True)
    terms = used_terms(settings, phase, own_terms)
    grad = jax.value_and_grad(_loss, argnums=(0, 1), has_aux=True)
    (_, shown), (grad_params, grad_exposures) = grad(
        [state.params for state in states],
        [state.appearance for state in states],
        states,
        batch,
        exchange,
        _Static(settings, terms),
    )
    new = []
    reports = []
    for i, state in enumerate(states):
        params, optimizer = optim.update(
            state.params,
            grad_params[i],
            state.optimizer,
            state.alive,
            settings=settings.optim,
            progress=batch.progress,
            sh_degree=settings.surfels.sh_degree,
            length=state.length,
        )
        exposure = state.appearance
        exposure_optimizer = state.appearance_optimizer
        if exposure is not None:
            exposure, exposure_optimizer = exposure_model.update(
                exposure,
                grad_exposures[i],
                required(exposure_optimizer, "TrainState.appearance_optimizer"),
                batch.exposure_indices[i],
                settings.appearance,
            )
        new.append(
            dataclasses.replace(
                state,
                params=params,
                optimizer=optimizer,
                appearance=exposure,
                appearance_optimizer=exposure_optimizer,
            )
        )
        loss, numbers = shown[i]
        num_alive = state.alive.sum(dtype=jnp.int32)
        reports.append(StepReport(loss, num_alive, jnp.zeros((), jnp.int32), numbers))
    return new, reports


class PackedMasBatch(NamedTuple):
    """A MasBatch as it goes to a device: its numbers in one array, and tables of (photograph,
    TeacherMaps) to pick from.
    """

    # of a MasBatch with slots in the place of photographs, and without teachers; seconds:
    # SecondView [b, ...]
    numbers: Packed
    own: tuple[Any, ...]  # b tables
    seconds: tuple[Any, ...]  # b tables for the second views, or none

    def open(self) -> MasBatch:
        """The batch. Inside a compiled function."""
        batch = self.numbers.open()
        photos, teachers = _pick_each(self.own, batch.photos)
        seconds = None
        if batch.seconds is not None:
            others, of_others = _pick_each(self.seconds, batch.seconds.photo)
            is_known = (of_others.flags & IS_TEACHER_VALID > 0) & batch.seconds.is_used[
                :, None, None
            ]
            seconds = TaughtView(
                batch.seconds._replace(photo=others),
                jnp.where(is_known, of_others.plane_depth, 0.0),
            )
        # As in `batches.PackedBatch`: what follows compiles as if the batch had been given as it
        # is.
        return jax.lax.optimization_barrier(
            batch._replace(photos=photos, teachers=teachers, seconds=seconds)
        )


def _pick_each(tables: tuple[Any, ...], slots: Int[Array, " b"]) -> Any:
    """One item of each table, stacked."""
    items = [pick(table, slots[i]) for i, table in enumerate(tables)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


class _TaughtPhotographs:
    """What a block's step needs of a view."""

    def __init__(self, run: Run, teachers: Teachers):
        self._photographs = Photographs(run.partitioned, run.images)
        self._teachers = teachers

    def load(self, block: int | None, view: int) -> tuple[np.ndarray, TeacherMaps]:
        """The photograph and its teacher's maps; blank for a device without a block."""
        photo = self._photographs.load(block, view)
        if block is None:
            return photo, blank_maps(photo.shape[:2])
        return photo, self._teachers.load(block, view)


class Aggregation:
    """One MAS stage: devices to edges, or edges to the cloud."""

    def __init__(self, run: Run, grouping: Grouping, teachers: Teachers, num_steps: int):
        """
        Args:
            run: of the run.
            grouping: the blocks that become one model.
            teachers: rendered already.
            num_steps: of the stage.
        """
        self._run = run
        self._num_steps = num_steps
        self._planner = RequestPlanner(run.partitioned, run.layout, grouping)
        self._taught = _TaughtPhotographs(run, teachers)
        self._views = BlockViews(run, self._taught.load, teachers.used_views)
        self._step = compile_packed(run.settings, run.layout, grouping.exchange, run.own_terms)
        self._pace = DispatchLimit(programs_ahead(run.layout))

    def advance(self, stage: StageState, progress) -> tuple[StageState, list[Packed]]:
        """One step of all blocks (`loop.run_stage`)."""
        self._views.prefetch(stage.step + 1, with_second=True)
        states, reports = self._step(stage.states, self.deliver(stage.step))
        self._pace.launched(reports)
        return stage._replace(states=states, step=stage.step + 1), reports

    def view_of(self, block: int, step: int) -> int:
        """The view that a block's step uses."""
        return self._views.view(block, step)

    def batch(self, step: int) -> MasBatch:
        """What all devices need for a step, with the device axis in front, put leaf by leaf:
        `deliver` is verified against it.
        """
        layout = self._run.layout
        views = self._views_of(step)

        def make(device: int) -> MasBatch:
            items = [
                self._taught.load(block, views[block or 0]) for block in self._blocks_of(device)
            ]
            photos, teachers = jax.tree.map(_stack, *items)
            batch = self._numbers(device, step, views)._replace(photos=photos, teachers=teachers)
            if batch.seconds is not None:
                seconds = [self._second(block, step) for block in self._blocks_of(device)]
                batch = batch._replace(seconds=jax.tree.map(_stack, *seconds))
            return batch

        return layout.put(make)

    def deliver(self, step: int) -> PackedMasBatch:
        """The same with the least to send. What was delivered before is used up
        (`DeviceCache.bring`).
        """
        layout = self._run.layout
        views = self._views_of(step)
        choices: list[Callable[[int], int]] = [views.__getitem__]
        if self._run.settings.loss.has_multi_view:
            choices.append(functools.partial(self._views.second_shown, step=step))
        tables = [
            self._views.device_cache.bring(row, *choices) for row in range(layout.blocks_per_device)
        ]
        own, *seconds = zip(*tables, strict=True)
        return PackedMasBatch(
            layout.pack(lambda device: self._numbers(device, step, views)),
            own,
            next(iter(seconds), ()),
        )

    def _views_of(self, step: int) -> dict[int, int]:
        return {
            block.number: self._views.view(block.number, step)
            for block in self._run.partitioned.blocks
        }

    def _blocks_of(self, device: int) -> list[int | None]:
        layout = self._run.layout
        return [layout.block_at(device, row) for row in range(layout.blocks_per_device)]

    def _numbers(self, device: int, step: int, views: dict[int, int]) -> MasBatch:
        """A device's batch with slots in the place of photographs, and without teachers."""
        settings = self._run.settings
        partitioned = self._run.partitioned
        blocks = self._blocks_of(device)
        start = settings.mas.start_progress
        slot = self._views.device_cache.slot
        exposures = [_exposure_index(partitioned.blocks, block, views) for block in blocks]
        seconds = None
        if settings.loss.has_multi_view:
            seconds = jax.tree.map(
                _stack, *(self._views.second(block, step, slot) for block in blocks)
            )
        return MasBatch(
            self._planner.requests_of(device, views),
            photos=on_host(np.stack([slot(block, views[block or 0]) for block in blocks])),
            exposure_indices=on_host(np.array(exposures, np.int32)),
            teachers=None,
            is_active=on_host(np.array([block is not None for block in blocks])),
            progress=on_host(np.float32(start + (1 - start) * step / self._num_steps)),
            seconds=seconds,
        )

    def _second(self, block: int | None, step: int) -> TaughtView:
        """The second view of a block's step and its teacher's surface; a stand-in that does not
        count where there is none.
        """
        second = self._views.second(block, step, self._views.photographs.load)
        if not second.is_used:
            return TaughtView(second, on_host(np.zeros(second.photo.shape[:2], np.float32)))
        number = required(block, "block of a second view that is used")
        _, teacher = self._taught.load(number, self._views.second_shown(number, step))
        # Beyond where a teacher was trained it shows floaters.
        is_valid = teacher.flags & IS_TEACHER_VALID
        return TaughtView(second, on_host(np.where(is_valid, teacher.plane_depth, np.float32(0))))


def _stack(*leaves) -> np.ndarray:
    return np.stack(leaves)


def compile_step(
    settings: Settings, layout, exchange: Exchange, own_terms: tuple[LossTerm, ...] = ()
):
    """The jitted step of all devices: (states, MasBatch) -> (states, reports), both with the device
    axis; the states are donated.
    """
    return sharded(
        functools.partial(mas_step, settings=settings, exchange=exchange, own_terms=own_terms),
        layout,
        donate=(0,),
    )


def compile_packed(
    settings: Settings, layout, exchange: Exchange, own_terms: tuple[LossTerm, ...] = ()
):
    """The same with less to send: (states, MasDelivery) -> (states, packed reports)."""

    def step(states, delivery):
        states, reports = mas_step(states, delivery.open(), settings, exchange, own_terms)
        return states, [Packed.pack(report) for report in reports]

    return sharded(step, layout, donate=(0,))
