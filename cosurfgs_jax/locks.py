"""Locks of a folder that several programs use: who writes what there, and the scratch of each.

A lock is one of the operating system on a file (`flock`): it ends with its owner, however that
ends. Where a file system has none, a warning says so, and nothing is locked; where it has locks
that other machines do not see, one says that there may be another owner (`ended`).
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax import ended, files
from cosurfgs_jax.errors import InputError

# Seconds to wait for processes of an earlier run, which end by themselves when one of them is gone.
_MAX_WAIT_S = 60
_TELL_AFTER_S = 5
_log = logging.getLogger(__name__)


class Output(NamedTuple):
    """A kind of output that one program at a time may write."""

    name: str
    writer: str  # in messages
    together: str = ""  # who may write parts of it side by side, in messages


@contextlib.contextmanager
def hold(path: Path, what: str, scratch: Path | None = None, together: str = "") -> Iterator[None]:
    """Holds a lock that one process alone may have.

    Args:
        path: of the lock's file; missing folders are made.
        what: who holds it, for the message to a second one, e.g. "a training run".
        scratch: folder for temporary files of this process alone: what earlier ones have left
            beside it is deleted, and it is removed at the end.
        together: who may have it together (`hold_shared`), for the message; "" = nobody.
    Raises:
        InputError: another process has the lock, with its number, its machine and since when.
    """
    with _opened(path) as file:
        if not _take(file, fcntl.LOCK_EX):
            if together and _take(file, fcntl.LOCK_SH):  # an owner that the file names has ended
                raise InputError(_busy(path, together, "one or several"))
            raise InputError(_busy(path, what, _owner(path)))
        is_ended = has_last_ended(path)
        if not is_ended:
            _log.warning(
                "%s: the last one there, %s, did not end as usual; if it still runs on that "
                "machine, stop one of the two",
                path.parent.parent,
                _owner(path),
            )
        _write_owner(file)
        try:
            if scratch is not None:
                _make_scratch(scratch, is_ended)
            yield
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
                with contextlib.suppress(OSError):  # another machine's may be there
                    scratch.parent.rmdir()
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)


def _make_scratch(scratch: Path, is_ended: bool) -> None:
    """An empty folder, beside those of owners on other machines that may still use them."""
    with contextlib.suppress(OSError):
        for left in scratch.parent.iterdir():
            ended.delete_folder(left, is_ended)
    with files.writing(scratch):
        scratch.mkdir(parents=True)


def has_last_ended(path: Path) -> bool:
    """Whether who held a lock last has certainly ended: as usual, or it was a process of this
    machine. For who holds the lock, or will.
    """
    try:
        if not path.stat().st_size:
            return True
        found = files.read_json_object(path)
    except FileNotFoundError:
        return True
    except (OSError, InputError):
        return False
    return ended.has_ended(ended.name_of(found.get("pid"), found.get("host")))


@contextlib.contextmanager
def hold_shared(path: Path, what: str = "") -> Iterator[None]:
    """Holds a lock that any number of processes may have together.

    Args:
        path: of the lock's file; missing folders are made.
        what: who may have it alone (`hold`), for the message; "" = nobody who matters.
    Raises:
        InputError: one has it alone.
    """
    with _opened(path) as file:
        if not _take(file, fcntl.LOCK_SH) and what:
            raise InputError(_busy(path, what, _owner(path)))
        yield


def is_held(path: Path) -> bool:
    """Whether a process has a lock alone. Who asks has it for a moment: ask only where nobody takes
    it meanwhile.
    """
    if not path.exists():
        return False
    with _opened(path) as file:
        return not _take(file, fcntl.LOCK_SH, is_quiet=True)


def wait_until_free(path: Path, what: str) -> None:
    """Waits until nobody holds a shared lock.

    Args:
        path: as in `hold_shared`.
        what: who holds it, for messages.
    Raises:
        InputError: it is still held after a minute.
    """
    deadline = time.monotonic() + _MAX_WAIT_S
    is_told = False
    with _opened(path) as file:
        while not _take(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{path.parent.parent}: expected {what} to end within {_MAX_WAIT_S} s, but one "
                    "is still there; end it, then give the same command again"
                )
            if not is_told:
                _log.info("%s: waiting for %s to end", path.parent.parent, what)
            is_told = True
            time.sleep(0.2)


@contextlib.contextmanager
def hold_briefly(path: Path) -> Iterator[None]:
    """Holds a lock that others hold for moments only, and waits for it: around reading a file and
    writing it again. A line says where that takes long: its owner may have been stopped.
    """
    told_at = time.monotonic() + _TELL_AFTER_S
    with _opened(path) as file:
        while not _take(file, fcntl.LOCK_EX, is_quiet=True):  # no locks here: as good as it gets
            if time.monotonic() > told_at:
                told_at = math.inf
                _log.warning(
                    "%s: waiting for another program that writes %s; if it was stopped (SIGSTOP, "
                    "Ctrl-Z), let it go on, or end it",
                    path.parent.parent,
                    path.name,
                )
            time.sleep(0.02)
        yield


@contextlib.contextmanager
def hold_first(path: Path, what: str) -> Iterator[bool]:
    """Holds a lock where nobody has it; else waits until nobody does, and goes on without it: for
    what one does for all.

    Args:
        path: as in `hold_shared`.
        what: the others do meanwhile, for a line in the log.
    Yields:
        Whether nobody had it.
    """
    with _opened(path) as file:
        is_first = _take(file, fcntl.LOCK_EX, is_quiet=True)
        if not is_first:
            _log.info("%s: waiting for another program that %s", path.parent.parent, what)
        while not is_first and not _take(file, fcntl.LOCK_SH, is_quiet=True):
            time.sleep(0.02)
        if not is_first:
            fcntl.flock(file, fcntl.LOCK_UN)
        yield is_first


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _take(file: int, kind: int, *, is_quiet: bool = False) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if not is_quiet:
            _log.warning(
                "the file system has no locks (%s): two programs that write here are not noticed",
                error.strerror,
            )
    return True


def _write_owner(file: int) -> None:
    """For the message to others; on a full disk they do without."""
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().isoformat(" ", "seconds"),
    }
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(owner).encode(), 0)


def _busy(path: Path, what: str, owner: str) -> str:
    return (
        f"{path.parent.parent}: {what} is under way there already ({owner}); wait for its "
        "end or stop it, or use another folder"
    )


def _owner(path: Path) -> str:
    with contextlib.suppress(InputError):
        found = files.read_json_object(path)
        return f"process {found.get('pid')} on {found.get('host')} since {found.get('since')}"
    return "another process"
