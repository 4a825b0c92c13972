"""A full disk, however a library reports it."""

import errno


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk was full, also where a library wrapped the error in one of its own."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
