"""A process of a job, started and waited for on the node where it runs."""

import datetime
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cosurfgs_jax import locks
from cosurfgs_jax.workdir import Output, Workdir

_TRAIN = (sys.executable, "-m", "cosurfgs_jax.program.with_parent", "train")
_MAX_LINE = 500
_TAIL_BYTES = 4000


def run_process(
    flags: Sequence[str], log: Path, number: int, held: Sequence[tuple[Workdir, Output]]
) -> tuple[int, str, str]:
    """Runs `train`, as a child that ends with this process, and waits for its end.

    Args:
        flags: of `train`.
        log: file to which what it prints is added.
        number: of the try.
        held: folders that it writes in. Where an earlier try is still there, that is waited for: it
            may be saving.
    Returns:
        The exit code (negative: of a signal), this machine, and the last line that it printed.
    Raises:
        InputError: an earlier try still holds a folder after a minute.
    """
    for folder, output in held:
        lock = folder.lock(output.name)
        if lock.exists():
            locks.wait_until_free(lock, output.writer)
    log.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    with open(log, "a", encoding="utf-8") as file:
        now = datetime.datetime.now().isoformat(" ", "seconds")
        file.write(f"--- try {number} on {host}, {now}\n")
        file.flush()
        # Its standard input closes when this process ends, however that is: then it gets SIGTERM,
        # and saves. Ray kills the process group of a worker, to which it must not belong for that.
        with subprocess.Popen(
            [*_TRAIN, *flags],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            code = process.wait()
    return code, host, _last_line(log)


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    printed = [line.strip() for line in lines if line.strip()]
    return printed[-1][-_MAX_LINE:] if printed else ""
