"""What a file system refuses, however a library reports it."""

import errno
import os
import re

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO)
# What NumPy says, without the system's number, where a part of an array could be written.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_REFUSED = (*_DISK_FULL, *_FORBIDDEN, errno.ENOENT, errno.ENOTDIR)


def _find(error: BaseException | None, numbers: tuple[int, ...]) -> int:
    """The first of these system errors in an exception or what caused it; 0 = none.

    Libraries in C++ give a status with the text of the system error.
    """
    while error is not None:
        number = getattr(error, "errno", None)
        if number in numbers:
            return number
        if errno.ENOSPC in numbers and _SHORT_WRITE.search(str(error)):
            return errno.ENOSPC
        for number in numbers:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return 0


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk was full, or a file as large as it may be, also where a library wrapped the
    error in one of its own.
    """
    return _find(error, _DISK_FULL) != 0


def forbidden(error: BaseException) -> str:
    """What a system error that no program can help says: read-only, no permission, a disk's fault;
    "" for any other. A file that is missing may be a bug.
    """
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return os.strerror(error.errno)
    return ""


def storage_problem(error: BaseException | None) -> str:
    """Why the file system refused, in words: full, read-only, gone; "" where it did not."""
    number = _find(error, _REFUSED)
    return os.strerror(number) if number else ""
