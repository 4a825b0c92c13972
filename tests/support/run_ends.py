"""Whether two workdirs have the same end, for scripts/kill_test.py, which disturbs one of them."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

# What depends on time, or on how often a run was begun.
_PASSING = ("tensorboard", ".locks", "timings.json", "runs.json", "report.html", "logs")
_PASSING_NUMBERS = ("seconds", "peak_bytes_per_device")
# The seconds are in these files: only whether there are any.
_SIZES = ("bytes_checkpoint", "bytes_checkpoint_model", "bytes_handed_over")
_SCRATCH = (".unfinished-", ".orbax-checkpoint-tmp", "-unfinished-")
_BLOCK = re.compile(r"(blocks/\d+)/(.*)")


class Failure(Exception):
    """Something that the package promises did not hold."""


def _without_passing(value):
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _PASSING_NUMBERS}
        sizes = {key: bool(item) for key, item in kept.items() if key in _SIZES}
        return {key: _without_passing(item) for key, item in kept.items()} | sizes
    if isinstance(value, list):
        return [_without_passing(item) for item in value]
    return value


def saved_steps(workdir: Path) -> set[tuple[str, int]]:
    """Stage and step of every checkpoint; a stage of a block is `blocks/<number>/<stage>`."""
    found = [*workdir.glob("checkpoints/*/*"), *workdir.glob("blocks/*/checkpoints/*/*")]
    return {
        (str(path.parents[2].relative_to(workdir) / path.parent.name), int(path.name))
        for path in found
        if path.name.isdigit()
    }


def curves(text: str, stops: set[tuple[str, int]], folder: str = "") -> str:
    """The rows of curves, without the means over steps that a stop has divided.

    Args:
        text: of the file.
        stops: as those of `contents`.
        folder: that has the file, in the workdir.
    """
    rows = [json.loads(line) for line in text.splitlines()]
    last: dict[str, int] = {}
    is_divided: dict[tuple[str, int], bool] = {}
    for stage, step in [(row["stage"], row["step"]) for row in rows]:
        before = last.get(stage, 0)
        if step > before:
            name = str(Path(folder) / stage)
            is_divided[stage, step] = any((name, stop) in stops for stop in range(before + 1, step))
            last[stage] = step
    for row in rows:
        if is_divided[row["stage"], row["step"]]:
            for name in row.keys() - {"stage", "step", "block", "surfels"}:
                del row[name]
    return json.dumps(rows)


def digest_of_arrays(item: Path) -> str:
    """Of all arrays of an item of a checkpoint, whatever files they are in."""
    import tensorstore

    base = {"driver": "ocdbt", "base": f"file://{item}/"}
    store = tensorstore.KvStore.open(base).result()
    digest = hashlib.sha256()
    for key in sorted(store.list().result()):
        if key.endswith(b"/.zarray"):
            name = key.decode().removesuffix(".zarray")
            spec = {"driver": "zarr", "kvstore": base | {"path": name}}
            value = tensorstore.open(spec).result().read().result()
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def _digests(items: list[Path]) -> list[str]:
    """Those of several items, in a process of its own: TensorStore has threads, and a process that
    has used it may not be forked any more.
    """
    if not items:
        return []
    command = [sys.executable, __file__, *map(str, items)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return result.stdout.split()


def contents(workdir: Path, stops: set[tuple[str, int]]) -> dict[str, str]:
    """Every file of a workdir by its name, with a digest of what may not depend on disturbances.

    Args:
        workdir: of a run.
        stops: stages and steps (`saved_steps`) at which SIGTERM stopped one of the two runs.
    """
    found = {}
    with_arrays = []
    last: dict[str, int] = {}
    for stage, step in saved_steps(workdir):
        last[stage] = max(step, last.get(stage, 0))
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        match = _BLOCK.fullmatch(name)
        folder, own = match.groups() if match else ("", name)
        if not path.is_file() or own.startswith(_PASSING) or "_METADATA" in own:
            continue
        if own.startswith("checkpoints"):
            _, stage, step, item, *_ = [*Path(own).parts, "", "", ""]
            # The one before the last is where the run was stopped, if it was after the last mark.
            if step.isdigit() and int(step) < last[str(Path(folder) / stage)]:
                continue
            end = workdir / folder / "checkpoints" / stage / step / item
            key = str(end.relative_to(workdir))
            if end.name in ("state", "training") and key not in found:
                with_arrays.append(key)
            found[key] = _numbers_of(end) if end.name == "meta" else ""
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = json.dumps(_without_passing(json.loads(data)), sort_keys=True).encode()
        elif path.suffix == ".npz":
            data = _values_of(path)
        elif path.suffix == ".jsonl":
            data = curves(data.decode(), stops, folder).encode()
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    digests = _digests([workdir / key for key in with_arrays])
    return found | dict(zip(with_arrays, digests, strict=True))


def _values_of(path: Path) -> bytes:
    """What may not differ of an npz file: its arrays, and of compact forms the meta data, which is
    a JSON text, without times.
    """
    values = []
    with np.load(path, allow_pickle=False) as file:
        for name in sorted(file.files):
            value = file[name]
            data = f"{name} {value.dtype} {value.shape}".encode() + value.tobytes()
            if name == "meta":
                table = json.loads(value.tobytes())
                data = json.dumps(_without_passing(table), sort_keys=True).encode()
            values.append(data)
    return b"".join(values)


def _numbers_of(meta: Path) -> str:
    """What may not differ of a checkpoint's meta data."""
    table = json.loads((meta / "metadata").read_text(encoding="utf-8"))
    return json.dumps(_without_passing(table), sort_keys=True)


def compare(calm: Path, wild: Path, stops: set[tuple[str, int]]) -> None:
    """Raises Failure where two workdirs differ, or temporary files are left."""
    left = [str(path) for path in wild.rglob("*") if any(word in path.name for word in _SCRATCH)]
    left += [str(path) for path in wild.glob("**/.scratch/*")]
    expected = contents(calm, stops)
    got = contents(wild, stops)
    differ = sorted(name for name in expected.keys() | got if expected.get(name) != got.get(name))
    if left or differ:
        raise Failure(f"{wild}: left behind: {left[:5]}; other than undisturbed: {differ[:10]}")


def compare_models(one: Path, other: Path) -> None:
    """Raises Failure where the models of two finished runs differ."""
    found = [
        {path.relative_to(run): path.read_bytes() for path in run.glob("point_cloud/*/*.ply")}
        for run in (one, other)
    ]
    if found[0] != found[1] or len(found[0]) != 1:
        raise Failure(f"{one}, {other}: other models")


if __name__ == "__main__":
    print(*(digest_of_arrays(Path(name)) for name in sys.argv[1:]), sep="\n")
