"""The helper that starts programs for tests: codes and texts are those of `python -m`."""

import os
import signal
import subprocess
import sys

import pytest
from program_starter import ProgramStarter


@pytest.fixture
def starter():
    starter = ProgramStarter(os.environ)
    yield starter
    starter.close()


def test_a_program_ends_as_one_that_is_started_alone(starter, tmp_path):
    mistake = ("cosurfgs_jax.train", f"--workdir={tmp_path}", "--config.train.stepz=3")
    alone = subprocess.run(
        [sys.executable, "-m", *mistake], capture_output=True, text=True, timeout=60
    )
    for _ in range(2):
        got = starter.run(*mistake, timeout=60)
        assert (got.returncode, got.stdout, got.stderr) == (2, alone.stdout, alone.stderr)
    got = starter.run("cosurfgs_jax.train", "--help", timeout=60)
    assert got.returncode == 0 and "--workdir" in got.stdout and not got.stderr


def test_a_program_that_does_not_end_is_ended(starter):
    with pytest.raises(AssertionError, match="platform: no end within 0.001 s"):
        starter.run("platform", timeout=0.001)
    assert starter.run("platform", timeout=60).stdout.strip()


def test_programs_beside_each_other(starter):
    server = starter.start("http.server", "--bind=127.0.0.1", "0")
    mistake = starter.start("cosurfgs_jax.train", "--config.train.stepz=3")
    code, text = mistake.finish(timeout=60)
    assert code == 2 and "config.train.stepz" in text and mistake.poll() == 2
    assert starter.run("platform", timeout=60).returncode == 0
    assert server.poll() is None
    server.send_signal(signal.SIGTERM)
    assert server.finish(timeout=60)[0] == -signal.SIGTERM
    with pytest.raises(AssertionError, match="no end within 0.001 s"):
        starter.start("http.server", "--bind=127.0.0.1", "0").finish(timeout=0.001)
