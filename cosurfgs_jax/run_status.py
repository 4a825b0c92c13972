"""How far a run is, from the files of its workdir alone: on any machine, without JAX, while it
runs, too.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosurfgs_jax import ended, files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.part import Part
from cosurfgs_jax.shard_folders import ShardFolders
from cosurfgs_jax.workdir import BLOCK, TRAINING, Workdir

# What a checkpoint's meta data without a usable time raises.
_NO_TIME = (InputError, KeyError, TypeError, ValueError, ArithmeticError)
# Larger ones are those of a damaged file.
_MAX_BLOCKS = 10**6
_MAX_STEPS = 2**31


class PlannedStage(NamedTuple):
    """A stage of a run, as `plan.json` has it."""

    name: str
    steps: int
    is_of_blocks: bool  # jobs of single blocks may do it
    is_saved: bool  # it has checkpoints


def write_plan(workdir: Workdir, num_blocks: int, stages: Sequence[PlannedStage]) -> None:
    """Writes what a run is going to do."""
    table = {"num_blocks": num_blocks, "stages": [stage._asdict() for stage in stages]}
    files.write_json(workdir.plan, table)


def status_lines(workdir: Workdir) -> list[str]:
    """How far a run is, for people.

    Args:
        workdir: of the run; nothing in it is written.
    Returns:
        Lines: whether it is finished, what is missing, its stages, its blocks where jobs of their
        own train them, and the shards of outputs that are not merged yet.
    Raises:
        InputError: nothing was trained there, or a file is damaged.
    """
    num_blocks, stages = _read_plan(workdir)
    num_steps = sum(stage.steps for stage in stages)
    if workdir.is_complete(num_steps):
        done = f"{workdir}: finished, {num_steps} steps; {workdir.point_cloud(num_steps)}"
        return [done, *_shard_lines(workdir)]
    missing = [stage.name for stage in stages if not _is_done(workdir, stage, stages)]
    lines = [f"{workdir}: not finished; missing: {', '.join([*missing, 'the merged model'])}"]
    lines += [
        f"  {stage.name:<12}{_progress(workdir, stage, stages)}"
        for stage in stages
        if stage.is_saved
    ]
    lines += _at_work(workdir, workdir.lock(TRAINING.name))
    alone = [stage for stage in stages if stage.is_of_blocks]
    if _has_jobs(workdir) and not workdir.has_begun(alone[0].name):
        lines += [f"{num_blocks} blocks by jobs of their own:"]
        for number in range(num_blocks):
            lines += _block_lines(workdir.block(number), number, alone)
    return lines + _shard_lines(workdir)


def blocks_left(workdir: Workdir, is_compact: bool) -> list[int] | None:
    """The blocks that jobs of their own have to train yet; None where nothing is known of them.

    Args:
        workdir: of the run.
        is_compact: whether blocks hand over their models in the compact form.
    """
    if not workdir.plan.exists():
        return None
    num_blocks, stages = _read_plan(workdir)
    if workdir.is_complete(sum(stage.steps for stage in stages)):
        return []
    alone = [stage for stage in stages if stage.is_of_blocks]
    if workdir.has_begun(alone[0].name):  # the run has them, or trains them together
        return []
    last = alone[-1]
    left = []
    for number in range(num_blocks):
        folder = workdir.block(number)
        is_handed_over = not is_compact or folder.compact(last.name).exists()
        if folder.newest_step(last.name) != last.steps or not is_handed_over:
            left.append(number)
    return left


def _read_plan(workdir: Workdir) -> tuple[int, list[PlannedStage]]:
    """That of the run; where folders of blocks were copied without it, that of a block."""
    plans = [workdir.plan, *(folder.plan for folder in workdir.blocks().values())]
    path = next((plan for plan in plans if plan.exists()), None)
    if path is None:
        raise InputError(
            f"{workdir}: expected the folder of a run, got no {workdir.plan.name} in it or in "
            "blocks/<number>; `cosurfgs train` writes it as it begins, also with --blocks"
        )
    table = files.read_json_object(path)
    try:
        num_blocks = table["num_blocks"]
        stages = [PlannedStage(**stage) for stage in table["stages"]]
        if not _is_whole(num_blocks, 1, _MAX_BLOCKS):
            raise ValueError(f"num_blocks {num_blocks!r:.80}")
        wrong = [stage for stage in stages if not _is_plausible(stage)]
        if wrong or not any(stage.is_of_blocks for stage in stages):
            raise ValueError(f"stages {wrong!r:.80}")
        return num_blocks, stages
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected the blocks and stages of a run, got {error!r}; give the command of "
            "`train` again, which writes it"
        ) from error


def _is_plausible(stage: PlannedStage) -> bool:
    has_name = isinstance(stage.name, str) and stage.name.isidentifier()
    flags = (stage.is_of_blocks, stage.is_saved)
    are_bools = all(isinstance(flag, bool) for flag in flags)
    return has_name and are_bools and _is_whole(stage.steps, 0, _MAX_STEPS)


def _is_whole(number: Any, low: int, high: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and low <= number <= high


def _is_done(workdir: Workdir, stage: PlannedStage, stages: Sequence[PlannedStage]) -> bool:
    """A stage that saves nothing is done when the next one has begun."""
    later = stages[stages.index(stage) + 1 :]
    return workdir.newest_step(stage.name) == stage.steps or any(
        workdir.has_begun(other.name) for other in later
    )


def _progress(workdir: Workdir, stage: PlannedStage, stages: Sequence[PlannedStage]) -> str:
    """How far a stage is, and how long its steps take."""
    step = workdir.newest_step(stage.name)
    if step is None:
        return "done" if _is_done(workdir, stage, stages) else "not begun"
    text = f"step {step} of {stage.steps} saved"
    with contextlib.suppress(*_NO_TIME):
        path = workdir.checkpoints(stage.name) / str(step) / "meta" / "metadata"
        text += f", {files.read_json_object(path)['seconds'] / step:.3g} s a step"
    if step < stage.steps:
        text += _last_line(workdir)
    return text


def _last_line(workdir: Workdir) -> str:
    """What the newest line of the curves says, and how long ago it was written."""
    newest: dict[str, Any] = {}
    newest_at = 0.0
    for path in workdir.histories().values():
        with contextlib.suppress(OSError, IndexError, *files.NO_JSON):
            written_at = path.stat().st_mtime
            row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
            if written_at > newest_at and isinstance(row, dict):
                newest, newest_at = row, written_at
    if not newest:
        return ""
    return f"; {newest.get('stage')}, step {newest.get('step')} logged {_ago(newest_at)}"


def _ago(at: float) -> str:
    """How long ago a time of a file is."""
    seconds = max(0.0, time.time() - at)
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {name} ago"
    return f"{round(seconds)} s ago"


def _at_work(workdir: Workdir, path: Path) -> list[str]:
    """Who holds a lock, or held it when it was killed. The lock itself is not tried: who begins
    then would be refused.

    Args:
        workdir: where its owner writes.
        path: of the lock's file.
    """
    with contextlib.suppress(OSError, InputError):
        found = path.stat()
        if found.st_size:
            owner = files.read_json_object(path)
            name = ended.name_of(owner.get("pid"), owner.get("host"))
            words = "is at work"
            if ended.has_ended(name):
                words = "was killed"
            elif not ended.is_of_this_machine(name):
                wrote_at = max(found.st_mtime, *_written_at(workdir))
                words = (
                    "has not said that it ended; only that machine knows whether it is still at "
                    f"work; it last wrote {_ago(wrote_at)}"
                )
            return [
                f"    process {owner.get('pid')} on {owner.get('host')} since "
                f"{owner.get('since')} {words}"
            ]
    return []


def _written_at(workdir: Workdir) -> list[float]:
    """When the curves and the newest checkpoint of each stage were written last, and 0."""
    paths = [*workdir.histories().values(), *workdir.checkpoints("*").parent.glob("*/*")]
    times = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):  # the oldest checkpoints are deleted meanwhile
            times.append(path.stat().st_mtime)
    return times


def _has_jobs(workdir: Workdir) -> bool:
    """Whether jobs of single blocks have saved something, or are at work: what others have left
    says nothing of the run.
    """
    blocks = workdir.blocks().values()
    return any(folder.has_begun() or _at_work(folder, folder.lock(BLOCK.name)) for folder in blocks)


def _block_lines(folder: Workdir, number: int, stages: Sequence[PlannedStage]) -> list[str]:
    last = stages[-1]
    if folder.newest_step(last.name) == last.steps:
        return [f"  {number:<12}finished"]
    begun = [stage for stage in stages if folder.has_begun(stage.name)]
    text = "not begun"
    if begun:
        text = f"{begun[-1].name}, {_progress(folder, begun[-1], stages)}"
    return [f"  {number:<12}{text}", *_at_work(folder, folder.lock(BLOCK.name))]


def _shard_lines(workdir: Workdir) -> list[str]:
    """Which shards of outputs are there."""
    folders = ShardFolders(workdir.root)
    lines = []
    for what, begun in folders.begun().items():
        for count in sorted({part.count for part in begun}):
            parts = [Part(number, count) for number in range(count)]
            done = [part for part in parts if folders.note(what, part).exists()]
            missing = [part for part in parts if part not in done]
            words = "all are there, to be merged by the command without --shard"
            if missing:
                words = f"missing: {', '.join(map(str, missing))}"
            lines.append(f"{what} by {count} shards: {words}")
            for part in missing:
                lines += _at_work(workdir, folders.lock(what, part))
    return lines
