"""Starts programs from a process that has imported already what they import: half of what a short
program takes is Python's and JAX's start. Each program is a process of its own, forked before JAX
has a backend, and ends with its own exit code.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED = ("cosurfgs_jax.collab.pipeline", "cosurfgs_jax.outputs.commands")


class ProgramStarter:
    """A process that waits for command lines; it begins with the first one.

    Args:
        environment: of all its programs.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment
        self._process = None

    def run(self, module: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
        """What `subprocess.run` gives of `python -m module`, with what it prints; seconds."""
        process = self._started()
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("out", "err")]
            for path in outputs:
                path.touch()
            process.stdin.write(json.dumps([[module, *arguments], [*map(str, outputs)]]) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], timeout)[
                0
            ]:  # the program with the process that started it
                os.killpg(process.pid, signal.SIGKILL)
            code = process.stdout.readline()
            texts = [path.read_text(encoding="utf-8") for path in outputs]
        if not code:
            self.close()
        assert code, f"{module}: no end within {timeout} s\n{texts[1]}"
        return subprocess.CompletedProcess([module, *arguments], int(code), *texts)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate(timeout=60)
            self._process = None

    def _started(self) -> subprocess.Popen:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
        return self._process


def _become(command: Sequence[str], outputs: Sequence[str]) -> None:
    """The program, in a forked process."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    module, *arguments = command
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve() -> None:
    # Python puts the folder of a script in front, and `python -m` the current one.
    sys.path[0] = os.getcwd()
    from cosurfgs_jax import program

    program.set_environment()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # no program looks through it for garbage
    for line in sys.stdin:
        command, outputs = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(command, outputs)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
