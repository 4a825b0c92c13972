"""Maps of the frozen models of a stage in their photographs' views: rendered once, kept in files,
read as the student needs them.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cosurfgs_jax import files, photograph
from cosurfgs_jax.collab.composite import RequestPlanner, render_views
from cosurfgs_jax.collab.exchange import Grouping
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.geometry.cameras import unproject
from cosurfgs_jax.losses.inputs import IS_PHOTO_VALID, IS_TEACHER_VALID, TeacherMaps
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, Photographs
from cosurfgs_jax.training.run import Run, Stopped
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.types import on_host

_ABOUT = "draws what the frozen models show of each training photograph, for the distillation"


def blank_maps(size: tuple[int, int]) -> TeacherMaps:
    """Maps of (H, W) that teach nothing, of NumPy."""
    return TeacherMaps(
        color=on_host(np.zeros((*size, 3), np.uint8)),
        flags=on_host(np.zeros(size, np.uint8)),
        depth=on_host(np.zeros(size, np.float32)),
        plane_depth=on_host(np.zeros(size, np.float32)),
        normal=on_host(np.zeros((*size, 3), np.int8)),
    )


class _Judged(NamedTuple):
    """What a stage judges of one view."""

    flags: np.ndarray  # u8[H,W], see `TeacherMaps`
    counted: np.float32  # fraction of the pixels that counts


def _judged(run: Run, group: np.ndarray, partners: np.ndarray, maps: dict, view: int) -> _Judged:
    partition = run.partitioned.partition
    camera = run.partitioned.views.camera_arrays(view)
    is_solid = (maps["alpha"] >= MIN_PLANE_ALPHA) & (maps["depth"] > 0)
    points = np.asarray(unproject(maps["depth"], camera.intrinsics, camera.camera_from_world))
    is_known = is_solid & partition.is_in_expanded(group, points)
    flags = np.where(is_known, IS_TEACHER_VALID, 0)
    is_covered = np.ones_like(is_solid)
    # Where the part of another cell will be missing, the student is not judged.
    if len(partners) < partition.num_blocks:
        is_covered = is_solid & np.isin(partition.cell_of(points), partners)
        flags *= is_covered
    flags = (flags + np.where(is_covered, IS_PHOTO_VALID, 0)).astype(np.uint8)
    counts = flags > 0
    if run.partitioned.has_masked_photos:
        counts &= required(
            photograph.mask_of(Photographs(run.partitioned, run.images).load(0, view)),
            "mask of a photograph",
        )
    return _Judged(flags, np.float32(counts.mean()))


def _views_in_step(partitioned: PartitionedScene):
    """All photographs, one of each block at a time; None where a block has no more."""
    blocks = partitioned.blocks
    for index in range(partitioned.max_views):
        yield {
            block.number: int(block.views[index]) if index < len(block.views) else None
            for block in blocks
        }


class Teachers:
    """The maps of a stage's teachers, on disk."""

    def __init__(self, run: Run, stage_name: str):
        """
        Args:
            run: of the run.
            stage_name: of the stage that they teach.
        """
        self._run = run
        self._folder = run.workdir.teachers(stage_name)

    def _path(self, block: int, view: int) -> Path:
        return self._folder / f"{block:04d}" / f"{view:06d}.npz"

    @property
    def _advice(self) -> str:
        return (
            f"delete it and checkpoints/{self._folder.name} in the workdir to begin the stage anew"
        )

    def used_views(self) -> list[np.ndarray]:
        """The views of every block (of all processes, which call it together) of which something
        counts in the stage; all of a block's where nothing counts in any.
        """
        blocks = self._run.partitioned.blocks
        counted = np.zeros((len(blocks), self._run.partitioned.max_views), np.float32)
        for block in self._run.layout.local_blocks:
            for position, view in enumerate(blocks[block].views):
                path = self._path(block, int(view))
                own = files.read_arrays(path, ("counted",), advice=self._advice)["counted"]
                if own.shape != () or not 0 <= own <= 1:
                    raise InputError(
                        f"{path}: expected the fraction that counts, 0 to 1, got {own}; "
                        f"{self._advice}"
                    )
                counted[block, position] = own
        counted = processes.gather(counted).max(axis=0)
        used = []
        for block in blocks:
            counts = counted[block.number, : len(block.views)] > 0
            used.append(block.views[counts | ~counts.any()])
        return used

    def load(self, block: int, view: int) -> TeacherMaps:
        """The maps of one of a block's views; InputError where their file is damaged or of another
        image size.
        """
        path = self._path(block, view)
        advice = self._advice
        arrays = files.read_arrays(path, TeacherMaps._fields, advice=advice)
        maps = TeacherMaps(**{name: on_host(array) for name, array in arrays.items()})
        size = maps.depth.shape
        expected = {
            "color": (np.uint8, (*size, 3)),
            "flags": (np.uint8, size),
            "depth": (np.float32, size),
            "plane_depth": (np.float32, size),
            "normal": (np.int8, (*size, 3)),
        }
        got = {name: (array.dtype, array.shape) for name, array in maps._asdict().items()}
        if len(size) != 2 or got != expected:
            raise InputError(
                f"{path}: expected the maps of one view, got arrays of {got}; {advice}"
            )
        return maps

    def check(self) -> None:
        """Raises InputError, in every process, if maps of one of the blocks' photographs are not on
        disk.
        """
        blocks = self._run.partitioned.blocks
        missing = [
            path
            for block in self._run.layout.local_blocks
            for view in blocks[block].views
            if not (path := self._path(block, int(view))).exists()
        ]
        if processes.any_process(bool(missing)):
            raise InputError(
                f"{self._folder}: expected what the teachers show of all photographs, got "
                f"{len(missing)} files "
                f"missing here; delete checkpoints/{self._folder.name} in the workdir to begin the "
                "stage anew"
            )

    def drop(self) -> None:
        """Deletes the files of this process's blocks."""
        for block in self._run.layout.local_blocks:
            shutil.rmtree(self._folder / f"{block:04d}", ignore_errors=True)

    def render(self, states: list, grouping: Grouping, partners: dict[int, np.ndarray]) -> None:
        """Renders every photograph's view of every block by its group's frozen model; what is on
        disk already stays.

        Args:
            states: states of the frozen blocks: whole local models, or the cells of edges.
            grouping: the blocks that are one frozen model.
            partners: for each local block the blocks that will take part in the student's view.
        """
        run = self._run
        partitioned = self._run.partitioned
        options = RasterOptions.from_settings(run.settings.raster)
        size = required(partitioned.photo_size, "PartitionedScene.photo_size")

        def on_device(states, requests):
            outputs = render_views(
                [state.surfels() for state in states], requests, grouping.exchange, size, options
            )
            return [
                {
                    "color": out.color,
                    "alpha": out.alpha,
                    "depth": out.depth,
                    "normal": out.normal,
                    "plane_depth": out.plane_depth,
                }
                for out in outputs
            ]

        render = sharded(on_device, run.layout)
        planner = RequestPlanner(partitioned, run.layout, grouping)
        groups = grouping.group_of_block
        with Progress(
            f"{self._folder.name} teachers", partitioned.max_views, about=_ABOUT
        ) as progress:
            for number, views in enumerate(_views_in_step(partitioned)):
                missing = [
                    block
                    for block in run.layout.local_blocks
                    if views[block] is not None and not self._path(block, views[block]).exists()
                ]
                if processes.any_process(bool(missing)):
                    maps = run.layout.get_blocks(
                        jax.block_until_ready(render(states, planner.requests(views)))
                    )
                    for block in missing:
                        group = np.flatnonzero(groups == groups[block])
                        self._store(block, views[block], maps[block], group, partners[block])
                progress.update(number + 1)
                if processes.any_process(bool(run.stop)):
                    raise Stopped

    def _store(
        self, block: int, view: int, maps: dict, group: np.ndarray, partners: np.ndarray
    ) -> None:
        judged = _judged(self._run, group, partners, maps, view)
        color = np.round(np.clip(maps["color"], 0, 1) * 255).astype(np.uint8)
        normal = np.round(np.clip(maps["normal"], -1, 1) * 127).astype(np.int8)
        with files.atomic_path(self._path(block, view)) as path:
            np.savez(
                path,
                color=color,
                flags=judged.flags,
                counted=judged.counted,
                depth=maps["depth"],
                plane_depth=maps["plane_depth"],
                normal=normal,
            )
