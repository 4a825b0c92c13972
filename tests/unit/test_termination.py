"""SIGTERM in programs that only read a model."""

import os
import signal
import threading
import types

import pytest

from cosurfgs_jax import program


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def exits(monkeypatch):
    def end(code):
        raise Ended(code)

    timer = types.SimpleNamespace(daemon=False, start=lambda: None)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(threading, "Timer", lambda *_: timer)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # a program sets its own
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_what_a_library_makes_of_sigterm_is_143_too(exits, capsys):
    """orbax raises a ValueError of its own where a read ends early."""

    def main(_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit as stop:
            raise ValueError("Error reading") from stop

    with pytest.raises(Ended) as ended:
        program.run(main, workdir="", argv=["prog"])
    assert ended.value.args == (143,) and "Traceback" not in capsys.readouterr().err

    def fails(_options):
        raise ValueError("its own")

    assert program.run(fails, workdir="", argv=["prog"]) == 1  # the signal before is forgotten


def test_sigterm_is_143(exits):
    with pytest.raises(Ended) as ended:
        program.run(lambda _: os.kill(os.getpid(), signal.SIGTERM), workdir="", argv=["prog"])
    assert ended.value.args == (143,)
