"""Whether two workdirs have the same end, for scripts/kill_test.py, which disturbs one of them."""

import hashlib
import json
import re
from pathlib import Path

# What depends on time, or on how often a run was begun.
_PASSING = ("tensorboard", ".locks", "timings.json", "report.html")
_PASSING_NUMBERS = (
    "seconds",
    "peak_bytes_per_device",
    "bytes_checkpoint",  # the seconds are in it
    "bytes_checkpoint_model",
    "bytes_handed_over",
)
_SCRATCH = (".unfinished-", ".orbax-checkpoint-tmp", "-unfinished-")


class Failure(Exception):
    """Something that the package promises did not hold."""


def _without_passing(value):
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _PASSING_NUMBERS}
        return {key: _without_passing(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_passing(item) for item in value]
    return value


def saved_steps(workdir: Path) -> set[tuple[str, int]]:
    """Stage and step of every checkpoint."""
    found = workdir.glob("checkpoints/*/*")
    return {(path.parent.name, int(path.name)) for path in found if path.name.isdigit()}


def curves(text: str, stops: set[tuple[str, int]]) -> str:
    """The rows of curves, without the means over steps that a stop has divided."""
    rows = [json.loads(line) for line in text.splitlines()]
    last: dict[str, int] = {}
    is_divided: dict[tuple[str, int], bool] = {}
    for stage, step in [(row["stage"], row["step"]) for row in rows]:
        before = last.get(stage, 0)
        if step > before:
            is_divided[stage, step] = any(
                (stage, stop) in stops for stop in range(before + 1, step)
            )
            last[stage] = step
    for row in rows:
        if is_divided[row["stage"], row["step"]]:
            for name in row.keys() - {"stage", "step", "block", "surfels"}:
                del row[name]
    return json.dumps(rows)


def contents(workdir: Path, stops: set[tuple[str, int]]) -> dict[str, str]:
    """Every file of a workdir by its name, with a digest of what may not depend on disturbances.

    Args:
        workdir: of a run.
        stops: stages and steps at which SIGTERM stopped one of the two runs.
    """
    found = {}
    last: dict[str, int] = {}
    for stage, step in saved_steps(workdir):
        last[stage] = max(step, last.get(stage, 0))
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if not path.is_file() or name.startswith(_PASSING):
            continue
        if name.startswith("checkpoints"):  # only that they are there: they hold seconds
            _, stage, step, *_ = [*Path(name).parts, "", ""]
            # The one before the last is where the run was stopped, if it was after the last mark.
            if step.isdigit() and int(step) < last[stage]:
                continue
            found[re.split("/(?:state|training|meta)/", name)[0]] = ""
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = json.dumps(_without_passing(json.loads(data)), sort_keys=True).encode()
        elif path.suffix == ".jsonl":
            data = curves(data.decode(), stops).encode()
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    return {name: value for name, value in found.items() if "_METADATA" not in name}


def compare(calm: Path, wild: Path, stops: set[tuple[str, int]]) -> None:
    """Raises Failure where two workdirs differ, or temporary files are left."""
    left = [str(path) for path in wild.rglob("*") if any(word in path.name for word in _SCRATCH)]
    left += [str(path) for path in wild.glob(".scratch/*")]
    expected = contents(calm, stops)
    got = contents(wild, stops)
    differ = sorted(name for name in expected.keys() | got if expected.get(name) != got.get(name))
    if left or differ:
        raise Failure(f"{wild}: left behind: {left[:5]}; other than undisturbed: {differ[:10]}")
