"""What a run reports as it goes: a progress line, curves that survive a resume, TensorBoard."""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cosurfgs_jax import files, host_memory
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.workdir import Workdir

_COMPILING = "/jax/core/compile/"  # of the names of JAX's events
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """How fast a loop is, by the steps that this process has done.

    | field       | content                                          |
    |-------------|--------------------------------------------------|
    | `first`     | step that it began with                          |
    | `step`      | that it has come to, at least one later          |
    | `step_s`    | seconds of a step, without what was compiled     |
    | `compile_s` | seconds for which was compiled meanwhile         |
    """

    first: int
    step: int
    step_s: float
    compile_s: float


class CompileClock:
    """Seconds for which this process has compiled while the clock ran: tracing, lowering and XLA.
    A context manager.
    """

    def __init__(self):
        self.seconds = 0.0
        self._spans: list[tuple[float, float]] = []  # start and length, in order, apart

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_time_span_listener(self._count)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._count)

    def _count(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if not event.startswith(_COMPILING):
            return
        # What is traced within a function that is being traced has ended first.
        while self._spans and self._spans[-1][0] >= start_time:
            self.seconds -= self._spans.pop()[1]
        self._spans.append((start_time, end_time - start_time))
        self.seconds += end_time - start_time


class Progress:
    """Progress of a loop: a bar on a terminal, elsewhere a line every ten seconds. A context
    manager. Speed and time left do not count what is compiled meanwhile.
    """

    def __init__(
        self,
        name: str,
        total: int,
        start: int = 0,
        stream: Any = None,
        every_s: float = 10.0,
        *,
        about: str = "",
    ):
        """
        Args:
            name: what runs.
            total: steps of the whole loop.
            start: steps that an earlier run has done.
            stream: text file to write to; None = stderr.
            every_s: seconds between two lines where there is no terminal.
            about: what it does, in a few words, for a line of the log as it begins.
        """
        if about:
            _log.info("%s: %s", name, about)
        self._compiling = CompileClock()
        self._name = name
        self._total = total
        self._every_s = every_s
        self._stream = sys.stderr if stream is None else stream
        self._step = self._first = start
        self._began = time.monotonic()
        self._line_due = self._began + every_s
        self._numbers = ""
        self._written = start  # the step of the last line
        self._bar = None
        if self._stream.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=name,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR,
            )

    def __enter__(self) -> "Progress":
        self._compiling.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.close()
        self._compiling.__exit__()

    @property
    def pace(self) -> Pace:
        """How fast it is; there must have been a step."""
        compile_s = self._compiling.seconds
        working = max(time.monotonic() - self._began - compile_s, 1e-9)
        step_s = working / (self._step - self._first)
        return Pace(self._first, self._step, step_s, compile_s)

    def update(self, step: int, **numbers: float) -> None:
        """Says that `step` steps are done.

        Args:
            step: finished steps.
            **numbers: shown by name (loss, psnr, surfels); the last ones stay when none are given.
                Read them from the device rarely: every read waits for the step.
        """
        done = step - self._step
        self._step = step
        if numbers:
            self._numbers = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update(done)
        elif time.monotonic() >= self._line_due:
            self._write_line()

    def message(self, text: str) -> None:
        """Writes a line of its own above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Writes the last state. Calling it again does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._step > self._written and self._total:
            self._write_line()
        self._first = self._step
        self._bar = None
        self._total = 0

    def _write_line(self) -> None:
        self._line_due = time.monotonic() + self._every_s
        self._written = self._step
        self.message(f"{self._name} {self._step}/{self._total}  {self._state()}")

    def _state(self) -> str:
        """Numbers, speed and time left."""
        parts = [self._numbers]
        if self._step > self._first:
            each = self.pace.step_s
            parts.append(f"{1 / each:.3g} step/s")
            if self._step < self._total:
                parts.append(f"{_duration((self._total - self._step) * each)} left")
        return "  ".join(part for part in parts if part)


def _short(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    if not path.exists():
        return rows
    with files.reading(
        path, "lines of JSON", "move it away: it has the curves of the report and nothing else"
    ):
        for line in files.iter_lines(path):
            try:
                row = json.loads(line)
            except files.NO_JSON:  # the line that was being written when the process was killed
                continue
            if _is_row(row):
                rows.append(row)
    return rows


def _is_row(value: Any) -> bool:
    """Whether it is what `Log` writes."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("stage"), str)
        and type(value.get("step")) is int
        and files.is_finite(value["step"])
        and type(value.get("block")) in (int, type(None))
    )


def read_history(workdir: Workdir) -> list[dict[str, Any]]:
    """The rows that the `Log`s of all processes of a workdir have written, and those of blocks that
    were trained by jobs of their own, by stage and step.

    A job that has saved nothing is no part of the run: all blocks may be trained together later.
    """
    folders = [folder for folder in workdir.blocks().values() if folder.has_begun()]
    folders.append(workdir)
    paths = [path for folder in folders for path in folder.histories().values()]
    rows = [row for path in paths for row in _read_rows(path)]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    return sorted(rows, key=lambda row: (stages.index(row["stage"]), row["step"]))


class Log:
    """Rows of numbers, one JSON object a line, so that curves go on after a resume; and the same
    for TensorBoard.

    A context manager. Every process writes its own blocks' rows to its own file.
    """

    def __init__(self, workdir: Workdir, process: int = 0):
        """
        Args:
            workdir: gets the process's curves, as lines and for TensorBoard.
            process: number of this process.
        """
        self._workdir = workdir
        self._process = process
        self._path = workdir.history(process)
        self._board = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def begin(self, stage: str, step: int) -> None:
        """A stage goes on from a step: its later rows, and those of stages that ended after it, are
        cut: they come again.
        """
        paths = [self._path]
        if self._process == 0:  # an earlier run may have had more processes
            paths += [
                path
                for process, path in self._workdir.histories().items()
                if process >= processes.count()
            ]
        self._check_folder()
        for path in paths:
            kept = []
            is_later = False
            for row in _read_rows(path):
                is_later = is_later or (row["stage"] == stage and row["step"] > step)
                if row["stage"] == stage and row["step"] <= step or not is_later:
                    kept.append(row)
            files.write_text(path, "".join(files.to_json(row) + "\n" for row in kept))

    def row(self, stage: str, step: int, block: int, **numbers: float) -> None:
        """Adds a row and writes it at once."""
        row = files.to_json({"stage": stage, "step": step, "block": block, **numbers})
        files.append_line(self._path, row)
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._check_folder()
            folder = self._workdir.tensorboard(self._process)
            # The writer's own way fails where another process makes the folder above in between.
            folder.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(folder), flush_secs=30)
        for name, value in numbers.items():
            self._board.add_scalar(f"{stage}/{name}/block_{block}", float(value), step)

    def _check_folder(self) -> None:
        """Raises InputError where the workdir is gone: it would be made anew, without all else."""
        with files.writing(self._path):
            os.stat(self._workdir.root)

    def close(self) -> None:
        """Writes what is buffered."""
        if self._board is not None:
            self._board.close()
            self._board = None


class Stopwatch:
    """Seconds spent in a stage over all runs of it: what earlier runs spent, and the time since
    this object was made.
    """

    def __init__(self, seconds_before: float = 0.0):
        self._seconds_before = seconds_before
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far; save it with a checkpoint and give it to the next run's Stopwatch."""
        return self._seconds_before + time.monotonic() - self._began


def peak_bytes_per_device() -> int:
    """The most memory that any local device has held at once, in bytes.

    A CPU keeps no count per device: there it is the peak of the process, which all its virtual
        devices share.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if any(stats):
        return max(item["peak_bytes_in_use"] for item in stats if item)
    return host_memory.peak_bytes()
