import io
import json
import os
import signal

import pytest

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.logging import History, Progress, Stopwatch, TensorBoard, peak_bytes_per_device, write_stage


def test_without_a_terminal_lines_are_rare():
    stream = io.StringIO()
    with Progress("train", 1000, stream=stream, every_s=1000.0) as progress:
        for step in range(1, 1001):
            progress.update(step, loss=1 / step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train 1000/1000  loss 0.001")


def test_lines_say_what_is_left():
    stream = io.StringIO()
    with Progress("train", 200, start=100, stream=stream, every_s=0.0) as progress:
        progress.update(150, loss=0.5, psnr=21.0, surfels=12345)
        progress.update(160)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("train 150/200  loss 0.5  psnr 21  surfels 12,345  ")
    assert lines[1].startswith("train 160/200  loss 0.5") and lines[1].endswith(" left")


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("train", 10, stream=stream) as progress:
        for step in range(1, 11):
            progress.update(step, loss=0.25)
        progress.message("saved")
    assert "loss 0.25" in stream.getvalue() and "10/10" in stream.getvalue() and "saved\n" in stream.getvalue()


def test_history_survives_a_resume(tmp_path):
    path = tmp_path / "run" / "history.jsonl"
    history = History(path)
    for step in (10, 20, 30, 40):
        history.append(step, loss=1 / step, psnr=float("nan") if step == 20 else 20.0)
    with open(path, "a") as file:
        file.write('{"step": 50, "lo')  # killed here
    resumed = History(path, resume_step=30)
    resumed.append(40, loss=0.5)
    assert [row["step"] for row in resumed.rows] == [10, 20, 30, 40]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30, 40]
    assert [row.get("psnr") for row in resumed.rows] == [20.0, None, 20.0, None]
    assert History(path).rows == []


def test_tensorboard_writes_an_event_file(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.scalars(1, loss=0.5, psnr=20)
    assert [path for path in tmp_path.iterdir() if "tfevents" in path.name and path.stat().st_size > 50]


def test_stopwatch_goes_on_from_earlier_runs():
    watch = Stopwatch(100.0)
    first = watch.seconds
    assert 100.0 <= first <= watch.seconds < 101.0


def test_peak_memory_is_that_of_this_process():
    assert 2**25 < peak_bytes_per_device() < 2**40


def test_stages_keep_their_order(tmp_path):
    write_stage(tmp_path, "device", steps=10, num_surfels=[1, 2], psnr_test=20.0)
    write_stage(tmp_path, "cloud", steps=20)
    write_stage(tmp_path, "device", steps=11, psnr_test=float("nan"))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content == {"format": 1, "stages": [{"name": "device", "steps": 11, "psnr_test": None},
                                               {"name": "cloud", "steps": 20}], "final": None, "geometry": None}


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert files.read_json(path) == {"x": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(InputError, match="b.json.*can be read"):
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
