"""runs.json: which programs made a run, when, with which command lines, versions and devices; and
timings.json.

Every program that adds to a workdir has an entry of its own, a run that goes on after a stop, too.
Of several processes of one run the first one writes. Entries of programs that were killed have no
end.
"""

import contextlib
import contextvars
import datetime
import importlib.metadata
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cosurfgs_jax import ended, files, locks, metrics_json
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.workdir import Workdir

FORMAT = 1
FINISHED = "finished"
STOPPED = "stopped"
FAILED = "failed"
_VERSIONS = ("jax", "jaxlib", "numpy")
_REMEDY = "move the file away: it is for the report alone"
_log = logging.getLogger(__name__)
_command = contextvars.ContextVar("command", default="")


@contextlib.contextmanager
def command_line(argv: Sequence[str]) -> Iterator[None]:
    """Notes the command line of a program, for the entries of all that it does.

    Args:
        argv: with the program's name, or the file of its module, first.
    """
    name = Path(argv[0]).stem
    token = _command.set(shlex.join(["cosurfgs", name, *argv[1:]]))
    try:
        yield
    finally:
        _command.reset(token)


def read_runs(workdir: Workdir) -> list[dict[str, Any]]:
    """The entries of runs.json in the order of their starts; [] without the file.

    Raises:
        InputError: it is damaged, or of another format.
    """
    if not workdir.runs.exists():
        return []
    table = files.read_json_object(workdir.runs)
    runs = table.get("runs")
    if table.get("format") != FORMAT or not isinstance(runs, list):
        raise InputError(
            f"{workdir.runs}: expected runs of format {FORMAT}, got {table.get('format')!r:.80} or "
            f"no list of them; {_REMEDY}"
        )
    for number, run in enumerate(runs):
        if not _is_run(run):
            raise InputError(
                f"{workdir.runs}: run {number}: expected an object with a text as key, an object "
                f"of versions and a list of stages, got {run!r:.80}; {_REMEDY}"
            )
    return runs


def _is_run(value: Any) -> bool:
    """Whether it is an entry of runs.json."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), str):
        return False
    stages = value.get("stages", [])
    has_stages = isinstance(stages, list) and all(map(_is_stage, stages))
    return has_stages and isinstance(value.get("versions", {}), dict)


def _is_stage(value: Any) -> bool:
    """Whether it is a stage of an entry."""
    return isinstance(value, dict) and type(value.get("block")) in (int, type(None))


class RunRecord:
    """The entry of a program that runs now. Where it cannot be written a warning says so: that is
    no reason to end a run.
    """

    def __init__(self, workdir: Workdir | None, entry: dict[str, Any]):
        """
        Args:
            workdir: whose runs.json has the entry; None: nothing is written.
            entry: with a `key` that no other has.
        """
        self._workdir = workdir
        self._entry = entry

    def write(self) -> None:
        """Adds the entry, or replaces the one with its key."""
        workdir = self._workdir
        # A workdir that is gone is not made anew.
        if workdir is None or not workdir.root.exists():
            return
        try:
            with locks.hold_briefly(workdir.lock("runs")):
                runs = {run.get("key"): run for run in read_runs(workdir)}
                runs[self._entry["key"]] = self._entry
                files.write_json(workdir.runs, {"format": FORMAT, "runs": list(runs.values())})
        except (InputError, OSError) as error:
            _log.warning("what runs here is not noted: %s", error)

    @contextlib.contextmanager
    def stage(self, name: str, step: int, block: int | None = None) -> Iterator[None]:
        """Notes when the work on a stage begins and ends.

        Args:
            name: of the stage.
            step: that it goes on from.
            block: that is trained by itself; None = all.
        """
        row = {"name": name, "block": block, "step": step, "started": _now(), "ended": None}
        self._entry.setdefault("stages", []).append(row)
        self.write()
        try:
            yield
        finally:
            row["ended"] = _now()
            self.write()

    @contextlib.contextmanager
    def ending(self) -> Iterator["RunRecord"]:
        """Notes the end of the program, however it ends."""
        how = FAILED
        try:
            yield self
            how = FINISHED
        except (KeyboardInterrupt, SystemExit):
            how = STOPPED
            raise
        finally:
            self._entry.update(ended=_now(), end=how)
            self.write()


def begin(
    workdir: Workdir, program: str, sources: str, device: str, num_processes: int = 1
) -> RunRecord:
    """Adds an entry.

    Args:
        workdir: of the run.
        program: what it does, e.g. "train".
        sources: checksum of the package's sources.
        device: what it computes on, in words.
        num_processes: of the run.
    """
    started = datetime.datetime.now(datetime.UTC)
    entry = {
        "key": f"{ended.own_name()} {started.isoformat()}",
        "program": program,
        "command": _command.get(),
        "started": started.isoformat(timespec="seconds"),
        "ended": None,
        "end": None,
        "versions": _versions() | {"sources": sources},
        "device": device,
        "num_processes": num_processes,
        "stages": [],
    }
    record = RunRecord(workdir, entry)
    record.write()
    return record


def no_record() -> RunRecord:
    """Stands in where another process writes."""
    return RunRecord(None, {})


def read_timings(workdir: Workdir) -> dict[str, float]:
    """Name -> seconds of what was done after training.

    Raises:
        InputError: a damaged file.
    """
    return metrics_json.read_timings(workdir.timings)


def note_seconds(workdir: Workdir, name: str, seconds: float) -> None:
    """Writes into timings.json how long a part took."""
    with locks.hold_briefly(workdir.lock("metrics")):
        files.write_json(workdir.timings, read_timings(workdir) | {name: seconds})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"cosurfgs_jax": sys.modules["cosurfgs_jax"].__version__}
    found["Python"] = platform.python_version()
    for name in _VERSIONS:
        found[name] = importlib.metadata.version(name)
    return found


def processor() -> str:
    """The processor of this machine and how many cores of it this process may use, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = files.read_lines("/proc/cpuinfo")
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = next(iter(models), name)
    return f"{name}, cores: {len(os.sched_getaffinity(0))}"
