"""Opening a dataset in every process of a run, and what they must agree on."""

import contextlib
import os

from cosurfgs_jax import locks
from cosurfgs_jax.data import generated
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.kept_place import delete_others, kept_place, open_place
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, bound_views
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.workdir import Workdir

# Of a dataset, so much may be missing by mistake; of a machine that has a part of it, more is.
_FEW_MISSING = 0.1


def open_in_all_processes(settings: Settings, workdir: Workdir) -> PartitionedScene:
    """The dataset of a run, in blocks; the same in all processes but for missing photographs.

    Raises:
        InputError: processes differ in their settings, their workdir or their dataset.
    """
    processes.check_settings_agree(settings)
    processes.check_shared_folder(workdir.root, workdir.lock("shared"))
    processes.check_equal(
        "config.data.path",
        str(settings.data.path == generated.PATH),
        'give all processes a folder, or all of them "generated"',
    )
    are_bound = processes.any_process(
        processes.is_first() and any(folder.has_begun() for folder in workdir.blocks().values())
    )
    bound = None
    if are_bound:  # the views are those of the jobs that have trained blocks
        bound = bound_views(workdir)
    may_miss = processes.count() > 1 or bound is not None
    left_out = bound and bound.left_out
    place = kept_place(settings, workdir, left_out)
    makes = False  # photographs, or what is kept
    if processes.is_first():  # others must not look yet: their file system may remember it
        makes = settings.data.path == generated.PATH or place.is_to_be_written
    partitioned = None
    error = None
    if processes.any_process(makes) and processes.is_first():
        delete_others(workdir, place)
        try:
            partitioned = open_place(settings, workdir, may_miss, left_out, keeps=True, place=place)
        except InputError as found:
            error = found
    processes.raise_everywhere(error)
    if partitioned is None:
        is_first = processes.is_first()
        partitioned = open_place(settings, workdir, may_miss, left_out, keeps=is_first, place=place)
    for key, value in partitioned.identity().items():
        processes.check_equal(
            f"config.data.path ({key})",
            value,
            "give all processes the same cameras, points and split; only photographs may be "
            "missing",
        )
    had_masks = bound is not None and bound.has_masks
    has_masks = processes.any_process(partitioned.scene.has_masks or had_masks)
    return partitioned._replace(scene=partitioned.scene.with_masks(has_masks))


def open_for_some_blocks(settings: Settings, workdir: Workdir) -> PartitionedScene:
    """The dataset of a run for a job that trains some of its blocks; photographs of the others may
    be missing.

    The views must be the same in all jobs. So the first one decides which photographs are left out:
    where few are missing, these, as in a run of one process; where many are, other machines have
    them, and none is.

    Raises:
        InputError: the dataset is not usable, or has masks where that of the first job had none.
    """
    with contextlib.ExitStack() as stack:
        if settings.data.path == generated.PATH:  # the first job makes the photographs
            stack.enter_context(locks.hold_briefly(workdir.lock("generated")))
        bound = None
        if workdir.has_begun() or workdir.blocks_at_work():
            bound = bound_views(workdir)
        partitioned = open_place(settings, workdir, True, bound and bound.left_out, keeps=True)
        if bound is not None:
            return partitioned._replace(scene=_with_masks(partitioned.scene, bound.has_masks))
        num_missing = partitioned.scene.image_paths.count("")
        is_few = num_missing <= _FEW_MISSING * partitioned.scene.num_views
        if num_missing and is_few:
            return open_place(settings, workdir)
        return partitioned


def _with_masks(scene: Scene, had_masks: bool) -> Scene:
    """The scene of a job, its photographs with a channel for masks where the first job had it."""
    if scene.has_masks and not had_masks:
        raise InputError(
            f"config.data.path={scene.path}: expected photographs without masks, as the first job "
            "of the run had them, got some with masks; begin in another --workdir with a job that "
            "has a photograph with a mask"
        )
    return scene.with_masks(had_masks)


def check_photographs(run: Run) -> None:
    """Raises InputError, in every process, if one lacks a photograph of its own blocks."""
    partitioned = run.partitioned
    scene = partitioned.scene
    local_blocks = run.layout.local_blocks
    wanted = {int(view) for block in local_blocks for view in partitioned.blocks[block].views}
    wanted |= {
        int(view) for view in scene.test_views if partitioned.partition.home[view] in local_blocks
    }
    is_here = bool
    if partitioned.kept_in is not None:  # the paths are those of who has kept them
        is_here = os.path.isfile
    missing = [
        scene.image_names[view] for view in sorted(wanted) if not is_here(scene.image_paths[view])
    ]
    if not processes.any_process(bool(missing)):
        return
    found = "they are missing in another process"
    if missing:
        found = f"{missing[0]} and {len(missing) - 1} more are missing here"
    raise InputError(
        f"config.data.path={scene.path}: expected the photographs of all blocks that a process "
        f"carries (here blocks {', '.join(map(str, local_blocks))}), got some that are not there: "
        f"{found}; copy them there, or, where nobody has them, take them out of the dataset and "
        "begin in another --workdir"
    )
