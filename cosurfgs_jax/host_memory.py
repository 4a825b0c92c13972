"""What this process keeps of the memory that it has freed. For glibc; elsewhere nothing happens.

XLA allocates the buffers of a step anew in each. Ways that were considered: leave it to glibc
(buffers of more than 32 MiB go back to the system every time, which then clears them page by page:
a sixth of the processor time of training a megapixel); keep all that is freed (what compiling, a
save or growth leave behind stays in pieces between what lives: 0.5 GB of 2.4 GB); keep it, and give
the free pages back now and then (chosen).
"""

import ctypes
import sys

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed() -> None:
    """Makes this process keep memory that it frees for what it allocates next."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)  # arenas of threads are returned as soon as they are empty


def give_back_freed() -> None:
    """Gives the free pages back to the system, those between what lives, too. The next step gets
    its own anew: at times of logs and saves that costs less than 1 %.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def _of_glibc(name: str):
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)
