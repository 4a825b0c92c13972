"""Starts programs from a process that has imported already what they import: half of what a short
program takes is Python's and JAX's start. Each program is a process of its own, forked before JAX
has a backend, and ends with its own exit code.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
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
        self._outputs = None  # of what `start` started

    def run(self, module: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
        """What `subprocess.run` gives of `python -m module`, with what it prints; seconds."""
        process = self._started()
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("out", "err")]
            for path in outputs:
                path.touch()
            process.stdin.write(json.dumps([[module, *arguments], [*map(str, outputs)]]) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            if not ready:  # the program ends with the process that started it
                os.killpg(process.pid, signal.SIGKILL)
            code = process.stdout.readline()
            texts = [path.read_text(encoding="utf-8") for path in outputs]
        if not code:
            self.close()
        assert code, f"{module}: no end within {timeout} s\n{texts[1]}"
        return subprocess.CompletedProcess([module, *arguments], int(code), *texts)

    def start(self, module: str, *arguments: str) -> "Started":
        """Starts `python -m module` beside others, and beside what `run` runs."""
        folder = Path(tempfile.mkdtemp(prefix="started-", dir=self._folder()))
        outputs = [folder / "out", folder / "err"]
        for path in outputs:
            path.touch()
        process = self._started()
        request = [[module, *arguments], [*map(str, outputs)], str(folder)]
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return Started(int(process.stdout.readline()), folder)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate(timeout=60)
            self._process = None
        if self._outputs is not None:
            self._outputs.cleanup()
            self._outputs = None

    def _folder(self) -> str:
        if self._outputs is None:
            self._outputs = tempfile.TemporaryDirectory()
        return self._outputs.name

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


class Started:
    """A program that `ProgramStarter.start` started.

    Args:
        pid: of its process.
        folder: has what it prints, `out` and `err`, and once it has ended its exit code, `code`.
    """

    def __init__(self, pid: int, folder: Path):
        self.pid = pid
        self._folder = folder

    def poll(self) -> int | None:
        """The exit code, negative after a signal, or None while it runs."""
        code = self._folder / "code"
        return int(code.read_text()) if code.exists() else None

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finish(self, timeout: float) -> tuple[int, str]:
        """Its exit code, and all that it has printed. Fails, and kills it, after some seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        code = self.poll()
        if code is None:
            self.send_signal(signal.SIGKILL)
        text = self.printed()
        assert code is not None, f"no end within {timeout} s\n{text}"
        return code, text

    def printed(self) -> str:
        """What it has printed until now."""
        return "".join((self._folder / name).read_text("utf-8") for name in ("out", "err"))


class Forked:
    """A program in a process forked from this one, with the methods of `subprocess.Popen`.

    This process has imported already (`import_programs`) and has no backend of JAX. The program
    ends like any other: it leaves through what stands around the call.

    Args:
        command: module and arguments.
        output: a file, to which what the program prints is added.
        limits: (resource, size) from its start.
    """

    def __init__(
        self, command: Sequence[str], output: Path, limits: Sequence[tuple[int, int]] = ()
    ):
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for kind, size in limits:
                resource.setrlimit(kind, (size, size))
            _become(command, [output, output])
            sys.exit(0)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float) -> int:
        """The exit code, once there is one. Raises subprocess.TimeoutExpired after some seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self._code

    def used_s(self) -> float:
        """Seconds of processor time until now; 0 where it has ended."""
        if self.poll() is not None:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def import_programs() -> None:
    """Imports what programs import, as in a process that JAX is not used in."""
    from cosurfgs_jax import program

    program.set_environment()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # no program looks through it for garbage


def _become(command: Sequence[str], outputs: Sequence[str | Path]) -> None:
    """The program, in a forked process."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    module, *arguments = command
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _start_beside(command: Sequence[str], outputs: Sequence[str], folder: Path) -> None:
    """Prints the number of the program's process. Another one waits for its end, so that this one
    can go on, and nobody else has its number before its code is written.
    """
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with open(told) as pipe:
            print(pipe.read(), flush=True)
        return
    os.close(told)
    child = os.fork()
    if child == 0:
        os.close(tell)
        _become(command, outputs)
        sys.exit(0)
    os.write(tell, str(child).encode())
    for number in (tell, 0, 1):  # whoever reads from the other ends does not wait for this process
        os.close(number)
    _, status = os.waitpid(child, 0)
    (folder / ".code").write_text(str(os.waitstatus_to_exitcode(status)))
    (folder / ".code").rename(folder / "code")
    os._exit(0)


def _serve() -> None:
    # Python puts the folder of a script in front, and `python -m` the current one.
    sys.path[0] = os.getcwd()
    import_programs()
    for line in sys.stdin:
        _take_leave()
        command, outputs, *folder = json.loads(line)
        if folder:
            _start_beside(command, outputs, Path(*folder))
            continue
        child = os.fork()
        if child == 0:
            _become(command, outputs)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    _take_leave()


def _take_leave() -> None:
    """Of processes that have ended: what they used counts as used by this one."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    _serve()
