"""How a run was made: programs with their commands and times, what they ran on, and stages."""

from typing import Any

from cosurfgs_jax import run_record
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput

_MAX_ROWS = 40  # of jobs that train single blocks there may be thousands
_FROM_PYTHON = "from Python, without a command"


def provenance(given: ReportInput) -> str:
    """Tables of the programs, of the stages and of versions, as HTML; "" where nothing is noted. A
    damaged runs.json is a sentence.
    """
    try:
        runs = run_record.read_runs(given.workdir)
    except InputError as error:
        return page.note(f"This cannot be shown: {error}.")
    if not runs:
        return ""
    programs = [[_course(run), str(run.get("command") or _FROM_PYTHON)] for run in runs]
    parts = [
        page.table(["program", "command"], _last(programs), "words"),
        _stage_times(runs),
        page.table(["versions and device", "programs"], _made_with(runs), "words"),
    ]
    return "".join(parts)


def _course(run: dict[str, Any]) -> str:
    """Which program, from when to when, and how it ended."""
    end = "no end noted: it runs now or was killed"
    if run.get("ended"):
        end = f"{run.get('end')} {_time(run['ended'])}"
    return f"{run.get('program', '')}: started {_time(run.get('started'))}, {end}"


def _last(rows: list[list[str]]) -> list[list[str]]:
    """The newest rows, with a row that says how many there are before them."""
    num_left_out = len(rows) - _MAX_ROWS
    if num_left_out <= 0:
        return rows
    return [[f"{num_left_out} more in runs.json", ""], *rows[num_left_out:]]


def _time(text: Any) -> str:
    """A date and a time to the second, UTC."""
    return str(text or "")[:19].replace("T", " ")


def _stage_times(runs: list[dict[str, Any]]) -> str:
    """When the first work on each stage began and the last ended, over all runs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.get("stages", []):
            found.setdefault(str(row.get("name")), []).append(row)
    rows = []
    for name, parts in found.items():
        ends = [_time(part.get("ended")) for part in parts]
        blocks = {part.get("block") for part in parts} - {None}
        words = f"{len(parts)} times" if len(parts) > 1 else "once"
        if blocks:
            words += f", {len(blocks)} blocks by themselves"
        started = min(_time(part.get("started")) for part in parts)
        rows.append([name, started, max(ends) or "no end noted", words])
    return page.table(["stage", "started", "ended", "worked on"], rows, "words")


def _made_with(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Each set of versions and device, with the programs that had it."""
    found: dict[str, list[str]] = {}
    for run in runs:
        versions = run.get("versions", {})
        words = ", ".join(f"{name} {text}" for name, text in versions.items())
        words += f"; {run.get('device', '')}"
        if run.get("num_processes") != 1:
            words += f"; {run.get('num_processes')} processes"
        found.setdefault(words, []).append(str(run.get("program", "")))
    return [[words, ", ".join(dict.fromkeys(names))] for words, names in found.items()]
