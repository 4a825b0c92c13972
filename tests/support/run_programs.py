"""Programs as tests start them: alone or from a process that has imported, and what they say."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fast_compiling import QUICK_ENVIRONMENT
from program_starter import ProgramStarter, Started

# What is tested here is the same without XLA's optimizer, and compiling is most of the time.
FAST_TO_COMPILE = os.environ | QUICK_ENVIRONMENT
STARTER = ProgramStarter(FAST_TO_COMPILE)


def command_of(name: str, workdir: Path, *flags: str) -> list[str]:
    """The command line of a program."""
    return [sys.executable, "-m", f"cosurfgs_jax.{name}", f"--workdir={workdir}", *flags]


def run(name: str, workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs a program in a process that has imported already."""
    return STARTER.run(f"cosurfgs_jax.{name}", f"--workdir={workdir}", *flags, timeout=300)


def start(name: str, workdir: Path, *flags: str) -> Started:
    """Starts a program in a process that has imported already."""
    return STARTER.start(f"cosurfgs_jax.{name}", f"--workdir={workdir}", *flags)


def run_anew(name: str, workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    """In a Python of its own, from the first import on, as users do: each program once."""
    return subprocess.run(
        command_of(name, workdir, *flags),
        capture_output=True,
        text=True,
        timeout=300,
        env=FAST_TO_COMPILE,
    )


def expect_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    """Checks that a program ended with a user's mistake and these words."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def run_until(
    is_time: Callable[[], bool], act: Callable[[], object], *command
) -> subprocess.CompletedProcess:
    """Runs a program and does something as soon as it is time."""

    def wait():
        while not is_time():
            time.sleep(0.002)
        act()

    helper = threading.Thread(target=wait, daemon=True)
    helper.start()
    result = run(*command)
    helper.join(timeout=10)
    assert not helper.is_alive(), result.stderr
    return result
