"""runs.json: who made a run, whatever ends it, and the words of the report about it."""

import json
import logging
import re
import threading

import numpy as np
import pytest

from cosurfgs_jax import run_record
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.recording import recording
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import write_report
from cosurfgs_jax.report.curves import NO_CURVES
from cosurfgs_jax.report.provenance import provenance
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def begin(workdir, program="train"):
    return run_record.begin(workdir, program, "0badcafe", "2 x cpu; a processor")


def test_a_program_is_noted_from_its_start_to_its_end(workdir):
    argv = ["/somewhere/cosurfgs_jax/train.py", "--workdir=a run", "--config.seed=3"]
    with run_record.command_line(argv), recording(workdir, "train") as record:
        (entry,) = run_record.read_runs(workdir)
        assert entry["ended"] is entry["end"] is None
        with record.stage("device", 0):
            (row,) = run_record.read_runs(workdir)[0]["stages"]
            assert (row["name"], row["step"], row["block"]) == ("device", 0, None)
            assert row["ended"] is None
    (entry,) = run_record.read_runs(workdir)
    assert entry["command"] == "cosurfgs train '--workdir=a run' --config.seed=3"
    assert entry["program"] == "train" and entry["end"] == "finished"
    assert entry["started"] <= entry["stages"][0]["ended"] <= entry["ended"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry["started"])
    versions = entry["versions"]
    assert set(versions) == {"cosurfgs_jax", "Python", "jax", "jaxlib", "numpy", "sources"}
    assert versions["numpy"] == np.__version__ and "4 x cpu; " in entry["device"]
    with run_record.command_line(argv):
        pass
    begin(workdir)
    assert run_record.read_runs(workdir)[1]["command"] == ""  # after the program's end


@pytest.mark.parametrize(
    "error, end", [(SystemExit, "stopped"), (KeyboardInterrupt, "stopped"), (InputError, "failed")]
)
def test_however_a_program_ends_is_noted(workdir, error, end):
    with pytest.raises(error), begin(workdir).ending() as record, record.stage("edge", 5, block=2):
        raise error("x")
    (entry,) = run_record.read_runs(workdir)
    assert entry["end"] == end and entry["ended"]
    assert entry["stages"][0]["ended"] and entry["stages"][0]["block"] == 2


def test_programs_that_run_together_keep_each_others_entries(workdir):
    def work(number):
        with begin(workdir, f"job {number}").ending() as record, record.stage("device", 0, number):
            pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {run["program"]: run for run in run_record.read_runs(workdir)}
    assert set(found) == {f"job {number}" for number in range(6)}
    assert all(run["end"] == "finished" and run["stages"][0]["ended"] for run in found.values())


def test_of_several_processes_the_first_one_writes(workdir, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with recording(workdir, "train") as record, record.stage("device", 0):
        pass
    assert not workdir.runs.exists()


def test_what_cannot_be_noted_ends_no_run(workdir, caplog):
    workdir.runs.write_text('{"format": 7}')
    with caplog.at_level(logging.WARNING), begin(workdir).ending():
        pass
    assert "what runs here is not noted: " in caplog.text and "format 1, got 7" in caplog.text
    assert json.loads(workdir.runs.read_text()) == {"format": 7}
    with pytest.raises(InputError, match="runs.json: expected runs of format 1, got 7"):
        run_record.read_runs(workdir)
    gone = Workdir(workdir.root / "gone")
    with begin(gone).ending():
        pass
    assert not gone.root.exists()


DAMAGED = [
    5,
    {},
    {"key": ["a"]},
    {"key": "a", "versions": ["jax"]},
    {"key": "a", "versions": None},
    {"key": "a", "stages": {"device": 0}},
    {"key": "a", "stages": [5]},
    {"key": "a", "stages": [{"block": [1]}]},
    {"key": "a", "stages": [{"block": True}]},
    {"key": "a", "stages": [{"block": 0.5}]},
]


@pytest.mark.parametrize("entry", DAMAGED, ids=str)
def test_a_damaged_entry_ends_no_run_and_no_report(workdir, caplog, entry):
    good = {"key": "good", "versions": {}, "stages": [{"block": None}, {"block": 10**30}]}
    text = json.dumps({"format": 1, "runs": [good, entry]})
    workdir.runs.write_text(text)
    with begin(workdir).ending() as record, record.stage("device", 0, block=3):
        pass
    assert "what runs here is not noted: " in caplog.text
    assert "run 1: expected an object with a text as key" in caplog.text
    assert workdir.runs.read_text() == text
    words = report_of(workdir)
    assert words.startswith('<p class="note">This cannot be shown: ') and "run 1: " in words
    assert "run 1: expected an object" in write_report(workdir).read_text()
    workdir.runs.write_text(json.dumps({"format": 1, "runs": [good]}))
    assert run_record.read_runs(workdir) == [good] and "by themselves" in report_of(workdir)


def report_of(workdir):
    return provenance(ReportInput(workdir, {}, NO_CURVES, {}, None, 0))


def rows_of(workdir):
    text = report_of(workdir)
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(<td>.*?)</tr>", text)]


def test_the_report_says_how_a_run_was_made(workdir):
    assert rows_of(workdir) == []
    stage = {"name": "device", "step": 0, "block": None}
    first = {"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:10:00+00:00"}
    second = {"started": "2026-01-03T00:00:00+00:00", "ended": "2026-01-03T01:00:00+00:00"}
    same = {"versions": {"jax": "0.10.2"}, "device": "1 x GPU", "num_processes": 1, "key": "a"}
    train = same | {"program": "train", "command": "cosurfgs train --workdir=<x>"}
    runs = [
        train | first | {"end": "stopped", "stages": [stage | first]},
        train | second | {"end": "finished", "stages": [stage | second]},
        same | second | {"program": "evaluate", "command": "", "num_processes": 2, "ended": None},
    ]
    workdir.runs.write_text(json.dumps({"format": 1, "runs": runs}))
    no_end = "no end noted: it runs now or was killed"
    command = "cosurfgs train --workdir=&lt;x&gt;"
    assert rows_of(workdir) == [
        ["train: started 2026-01-02 03:04:05, stopped 2026-01-02 03:10:00", command],
        ["train: started 2026-01-03 00:00:00, finished 2026-01-03 01:00:00", command],
        [f"evaluate: started 2026-01-03 00:00:00, {no_end}", "from Python, without a command"],
        ["device", "2026-01-02 03:04:05", "2026-01-03 01:00:00", "2 times"],
        ["jax 0.10.2; 1 x GPU", "train"],
        ["jax 0.10.2; 1 x GPU; 2 processes", "evaluate"],
    ]
    workdir.runs.write_text(json.dumps({"format": 1, "runs": [runs[0]] * 50}))
    programs = rows_of(workdir)[:41]
    assert programs[0][0] == "10 more in runs.json" and programs[-1][0].startswith("train: ")
