"""Whether the program that was writing something has ended, so that what it left may be deleted.

A lock tells it on one machine. Some file systems that several machines share have locks that only
one of them sees; so what may be another machine's is deleted only when it is old.
"""

import contextlib
import os
import re
import shutil
import socket
import time
from pathlib import Path

_OLD_S = 3600  # nobody writes for so long without a change
_NAME = re.compile(r"(\d{1,19})@([\w.]+)(?:-|$)")


def own_name() -> str:
    """This process's number and machine, as a part of a file's name."""
    return name_of(os.getpid(), socket.gethostname())


def name_of(number: object, host: object) -> str:
    """The same of any process; of what is no number and no name it is that of none."""
    return f"{number}@" + re.sub(r"[^\w.]", "_", str(host))


def has_ended(name: str) -> bool:
    """Whether a process has certainly ended: it was one of this machine, and is not there.

    Args:
        name: begins with its `own_name`.
    """
    match = _NAME.match(name)
    if match is None:
        return False
    number = int(match[1])
    if not is_of_this_machine(name):
        return False
    if number == os.getpid():  # in a container numbers come again
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's
        return False
    return False


def is_of_this_machine(name: str) -> bool:
    """Whether a process is one of this machine, or of one with its name.

    Args:
        name: begins with its `own_name`.
    """
    match = _NAME.match(name)
    return match is not None and name_of(0, match[2]) == name_of(0, socket.gethostname())


def is_old(path: str | os.PathLike) -> bool:
    """Whether a file, or a folder and all below it, did not change for an hour."""
    newest = os.stat(path).st_mtime
    for place, _, names in os.walk(path):
        for each in (place, *(os.path.join(place, name) for name in names)):
            with contextlib.suppress(OSError):  # it was deleted meanwhile
                newest = max(newest, os.stat(each).st_mtime)
    return time.time() - newest > _OLD_S


def delete_folder(folder: Path, is_ended: bool) -> None:
    """Deletes what a program has left, or may still be writing.

    Args:
        folder: it may be missing.
        is_ended: whether the program has certainly ended; else the folder stays until it is old.
    """
    with contextlib.suppress(OSError):
        if is_ended or is_old(folder):
            shutil.rmtree(folder, ignore_errors=True)
