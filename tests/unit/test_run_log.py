import io
import json
import os
import signal

import jax
import numpy as np
import pytest

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.report import curves_from_rows
from cosurfgs_jax.training import run_log
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.run_log import (
    CompileClock,
    Log,
    Progress,
    Stopwatch,
    peak_bytes_per_device,
    read_history,
)
from cosurfgs_jax.workdir import Workdir


def test_without_a_terminal_lines_are_rare():
    stream = io.StringIO()
    with Progress("train", 1000, stream=stream, every_s=1000.0) as progress:
        for step in range(1, 1001):
            progress.update(step, loss=1 / step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train 1000/1000  loss 0.001")


def test_without_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now)
    stream = io.StringIO()
    progress = Progress("train", 100, stream=stream)
    for step in range(1, 33):
        now += 1.0
        progress.update(step)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/100", "20/100", "30/100"]
    assert lines[0] == "train 10/100  1 step/s  1:30 left"


def test_what_is_compiled_meanwhile_does_not_count(monkeypatch):
    now = 100.0
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now)
    stream = io.StringIO()
    event = "/jax/core/compile/jaxpr_trace_duration"
    with Progress("train", 100, stream=stream) as progress:
        now += 31.0  # one second of work
        # A function within another one, which then is compiled; and something else.
        jax.monitoring.record_event_time_span(event, 2.0, 5.0)
        jax.monitoring.record_event_time_span(event, 1.0, 21.0)
        event = "/jax/core/compile/backend_compile_duration"
        jax.monitoring.record_event_time_span(event, 22.0, 32.0)
        jax.monitoring.record_event_time_span("/jax/checkpoint/write", 22.0, 32.0)
        progress.update(1)
        now += 1.0
        progress.update(2)
        assert progress.pace == (0, 2, 1.0, 30.0)
    assert stream.getvalue().splitlines()[0] == "train 1/100  1 step/s  1:39 left"
    jax.monitoring.record_event_time_span(event, 40.0, 50.0)  # after its end
    assert progress._compiling.seconds == 30.0


def test_the_clock_hears_of_what_jax_compiles():
    with CompileClock() as clock:
        jax.jit(lambda x: x * 3 + 1)(np.float32(2.0))
    assert clock.seconds > 0


def test_a_loop_says_what_it_does(caplog):
    caplog.set_level("INFO", logger="cosurfgs_jax")
    Progress("mesh", 10, stream=io.StringIO(), about="fuses depth")
    assert caplog.messages == ["mesh: fuses depth"]


def test_lines_say_what_is_left():
    stream = io.StringIO()
    with Progress("train", 200, start=100, stream=stream, every_s=0.0) as progress:
        progress.update(150, loss=0.5, psnr=21.0, surfels=12345)
        progress.update(160)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("train 150/200  loss 0.5  psnr 21  surfels 12,345  ")
    assert lines[1].startswith("train 160/200  loss 0.5") and lines[1].endswith(" left")
    assert len(lines) == 2, "the last state once"


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("train", 10, stream=stream) as progress:
        for step in range(1, 11):
            progress.update(step, loss=0.25)
        progress.message("saved")
    assert (
        "loss 0.25" in stream.getvalue()
        and "step/s" in stream.getvalue()
        and "10/10" in stream.getvalue()
        and "saved\n" in stream.getvalue()
    )


def test_history_survives_a_resume(tmp_path):
    path = tmp_path / "run" / "history.jsonl"
    path.parent.mkdir()
    with Log(Workdir(tmp_path / "run")) as log:
        log.begin("device", 0)
        for step in (10, 20, 30, 40):
            log.row("device", step, 0, loss=1 / step, psnr=float("nan") if step == 20 else 20.0)
    with open(path, "a") as file:
        file.write('{"stage": "device", "step": 50, "lo')  # killed here
    with Log(Workdir(tmp_path / "run")) as log:
        log.begin("device", 30)
        log.row("device", 40, 0, loss=0.5)
        rows = read_history(Workdir(tmp_path / "run"))
        assert [row["step"] for row in rows] == [10, 20, 30, 40]
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
            10,
            20,
            30,
            40,
        ]
        assert [row.get("psnr") for row in rows] == [20.0, None, 20.0, None]
        assert rows[0] == {"stage": "device", "step": 10, "block": 0, "loss": 0.1, "psnr": 20.0}
        log.begin("device", 0)
    assert read_history(Workdir(tmp_path / "run")) == []


def test_damaged_rows_are_left_out(tmp_path):
    """They are what curves cannot be drawn of."""
    good = {"stage": "device", "step": 10, "block": 0, "loss": 0.1}
    wrong = [{"block": [1]}, {"block": "a"}, {"step": True}, {"step": 1.5}, {"stage": None}]
    rows = [good, *(good | row for row in wrong), good | {"step": 10**400}, 5]
    workdir = Workdir(tmp_path)
    workdir.history().write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_history(workdir) == [good]
    assert list(curves_from_rows(read_history(workdir)).charts) == ["loss"]


def _logged(folder, stages):
    """(stage, step) of the rows of two blocks, where both have the same."""
    with Log(Workdir(folder)) as log:
        for stage, start, steps in stages:
            log.begin(stage, start)
            for step in steps:
                for block in (0, 1):
                    log.row(stage, step, block, loss=1.0)
    rows = read_history(Workdir(folder))
    of_blocks = [
        [(row["stage"], row["step"]) for row in rows if row["block"] == block] for block in (0, 1)
    ]
    assert of_blocks[0] == of_blocks[1]
    return of_blocks[0]


def test_a_stage_that_begins_again_takes_later_stages_with_it(tmp_path):
    before = _logged(tmp_path, [("device", 0, (10, 20)), ("edge", 0, (5, 10)), ("cloud", 0, (5,))])
    assert before == [("device", 10), ("device", 20), ("edge", 5), ("edge", 10), ("cloud", 5)]
    assert _logged(tmp_path, [("cloud", 5, ())]) == before
    assert _logged(tmp_path, [("edge", 5, (10,))]) == before[:4]
    assert _logged(tmp_path, [("device", 10, ())]) == before[:1]


def test_rows_of_processes_are_read_as_one_history_whatever_their_number_was(tmp_path):
    with Log(Workdir(tmp_path)) as log:
        log.begin("device", 0)
        for step in (10, 20, 30):
            for block in (0, 1):
                log.row("device", step, block, loss=step + block)
    # It goes on from step 20 in two processes, ...
    for process in (0, 1):
        with Log(Workdir(tmp_path), process) as log:
            log.begin("device", 20)
            for step in (30, 40):
                log.row("device", step, process, loss=step + process)
            log.begin("cloud", 0)
            log.row("cloud", 5, process, loss=5.0)
    rows = [(row["stage"], row["step"], row["block"]) for row in read_history(Workdir(tmp_path))]
    assert sorted(rows[:8]) == [
        ("device", step, block) for step in (10, 20, 30, 40) for block in (0, 1)
    ]
    assert [row[1] for row in rows[:8]] == [10, 10, 20, 20, 30, 30, 40, 40]
    assert sorted(rows[8:]) == [("cloud", 5, 0), ("cloud", 5, 1)]
    # ... and then from step 30 in one, which cuts what the other wrote after it as well.
    with Log(Workdir(tmp_path)) as log:
        log.begin("device", 30)
    assert [(row["step"], row["block"]) for row in read_history(Workdir(tmp_path))] == [
        (step, block) for step in (10, 20, 30) for block in (0, 1)
    ]


def test_tensorboard_writes_an_event_file(tmp_path):
    for process in (0, 1):
        with Log(Workdir(tmp_path), process) as log:
            log.begin("device", 0)
            log.row("device", 1, process, loss=0.5, psnr=20)
    for folder in (tmp_path / "tensorboard", tmp_path / "tensorboard" / "process_1"):
        assert [
            path
            for path in folder.iterdir()
            if "tfevents" in path.name and path.stat().st_size > 50
        ]


def test_stopwatch_goes_on_from_earlier_runs():
    watch = Stopwatch(100.0)
    first = watch.seconds
    assert 100.0 <= first <= watch.seconds < 101.0


def test_peak_memory_is_that_of_this_process():
    assert 2**25 < peak_bytes_per_device() < 2**40


def test_stages_keep_their_order(tmp_path):
    Workdir(tmp_path).write_stage("device", steps=10, num_surfels=[1, 2], psnr_test=20.0)
    Workdir(tmp_path).write_stage("cloud", steps=20)
    Workdir(tmp_path).write_stage("device", steps=11, psnr_test=float("nan"))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content == {
        "format": 1,
        "stages": [
            {"name": "device", "steps": 11, "psnr_test": None},
            {"name": "cloud", "steps": 20},
        ],
        "final": None,
        "geometry": None,
    }


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert files.read_json(path) == {"x": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(InputError, match="b.json: cannot be read"):
        files.read_json(tmp_path / "b.json")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_a_request_and_the_second_interrupts(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.signal_number == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as caught:
            stop.exit()
    assert caught.value.code == code
    assert signal.getsignal(number) is before


def test_a_workdir_that_is_gone_is_not_made_anew(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with Log(workdir) as log:
        for write in (lambda: log.begin("device", 0), lambda: log.row("device", 1, 0, loss=1.0)):
            with pytest.raises(InputError, match=r"history\.jsonl: could not be written .No such"):
                write()
    assert not workdir.root.exists()


def test_curves_of_a_job_that_saved_nothing_are_no_part_of_the_run(tmp_path):
    """All blocks may have been trained together after it."""
    workdir = Workdir(tmp_path)
    for number in (0, 1):
        folder = workdir.block(number)
        folder.root.mkdir(parents=True)
        with Log(folder) as log:
            log.row("device", 10, number, loss=9.0)
    (workdir.block(1).checkpoints("device") / "10").mkdir(parents=True)
    assert [row["block"] for row in read_history(workdir)] == [1]
