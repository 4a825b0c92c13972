"""What a run tells while it goes: a progress line, curves that survive a resume, TensorBoard, and metrics.json."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax

from cosurfgs_jax import files
from cosurfgs_jax.training.evaluation import merge_metrics


class Progress:
    """Progress of a loop: a bar on a terminal, elsewhere a line every few seconds. A context manager."""

    def __init__(self, name: str, total: int, start: int = 0, stream: Any = None, every_s: float = 10.0):
        """
        Args:
            name: what runs.
            total: steps of the whole loop.
            start: steps that an earlier run has done.
            stream: text file to write to; None = stderr.
            every_s: seconds between two lines where there is no terminal.
        """
        self._name, self._total, self._every_s = name, total, every_s
        self._stream = sys.stderr if stream is None else stream
        self._step = self._first = start
        self._began = time.monotonic()
        self._line_due = self._began + every_s
        self._numbers = ""
        self._bar = None
        if self._stream.isatty():
            import tqdm

            self._bar = tqdm.tqdm(total=total, initial=start, desc=name, file=self._stream, dynamic_ncols=True, unit="step")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def update(self, step: int, **numbers: float) -> None:
        """Says that `step` steps are done.

        Args:
            step: finished steps.
            **numbers: shown by name (loss, psnr, surfels); the last ones stay when none are given. Read them from the device
                rarely: every read waits for the step.
        """
        done, self._step = step - self._step, step
        if numbers:
            self._numbers = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if self._bar is not None:
            if numbers:
                self._bar.set_postfix_str(self._numbers, refresh=False)
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
        elif self._step > self._first and self._total:
            self._write_line()
        self._first, self._bar, self._total = self._step, None, 0

    def _write_line(self) -> None:
        now = time.monotonic()
        self._line_due = now + self._every_s
        rate = (self._step - self._first) / max(now - self._began, 1e-9)
        left = (self._total - self._step) / rate if rate > 0 else float("inf")
        parts = [f"{self._name} {self._step}/{self._total}", self._numbers, f"{rate:.3g} step/s"]
        if self._step < self._total:
            parts.append(f"{_duration(left)} left")
        self.message("  ".join(part for part in parts if part))


def _short(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def read_history(path: Path | str) -> list[dict[str, Any]]:
    """The rows that a `History` has written; none if there is no file."""
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the line that was being written when the process was killed
                continue
    return rows


class History:
    """Rows of numbers, one JSON object a line, so that curves go on after a resume."""

    def __init__(self, path: Path | str, resume_step: int = 0):
        """
        Args:
            path: the file; its folder is made if missing.
            resume_step: the step that training goes on from. Later rows are cut: they will come again.
        """
        self._path = Path(path)
        self.rows = [row for row in read_history(self._path) if row["step"] <= resume_step]
        files.write_text(self._path, "".join(files.to_json(row) + "\n" for row in self.rows))

    def append(self, step: int, **numbers: Any) -> None:
        """Adds a row and writes it at once."""
        row = {"step": step, **numbers}
        self.rows.append(row)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(files.to_json(row) + "\n")


class TensorBoard:
    """Scalars for TensorBoard. A context manager."""

    def __init__(self, folder: Path | str, resume_step: int = 0):
        """
        Args:
            folder: of the event files.
            resume_step: what was logged at later steps is hidden, as it will come again.
        """
        from tensorboardX import SummaryWriter

        purge = {"purge_step": resume_step + 1} if resume_step else {}
        self._writer = SummaryWriter(str(folder), flush_secs=30, **purge)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def scalars(self, step: int, **numbers: float) -> None:
        """Adds one point to the curve of each name."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class Stopwatch:
    """Seconds spent in a stage over all runs of it: what earlier runs spent, and the time since this object was made."""

    def __init__(self, seconds_before: float = 0.0):
        self._seconds_before = seconds_before
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far; save it with a checkpoint and give it to the next run's Stopwatch."""
        return self._seconds_before + time.monotonic() - self._began


def peak_bytes_per_device() -> int:
    """The most memory that any local device has held at once, in bytes.

    A CPU keeps no count per device: there it is the peak of the process, which all its virtual devices share.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if any(stats):
        return max(item["peak_bytes_in_use"] for item in stats if item)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_stage(workdir: Path | str, name: str, **numbers: Any) -> None:
    """Adds a stage to DIR/metrics.json, or replaces the one of this name where it stands."""
    path = Path(workdir) / "metrics.json"
    stages = files.read_json(path)["stages"] if path.exists() else []
    row = {"name": name, **numbers}
    if any(stage["name"] == name for stage in stages):
        stages = [row if stage["name"] == name else stage for stage in stages]
    else:
        stages = [*stages, row]
    merge_metrics(path, stages=stages)
