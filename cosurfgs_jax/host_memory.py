"""Memory of the host: what there is, what this process has, and what it keeps of what it has freed.
The last is for glibc; elsewhere nothing happens.

XLA allocates the buffers of a step anew in each. Ways that were considered: leave it to glibc
(buffers of more than 32 MiB go back to the system every time, which then clears them page by page:
a sixth of the processor time of training a megapixel); keep all that is freed (what compiling, a
save or growth leave behind stays in pieces between what lives: 0.5 GB of 2.4 GB); keep it, and give
the free pages back now and then (chosen).
"""

import contextlib
import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_DEFAULT_TRIM_BYTES = 2**17
_OWN_PAGES_BYTES = 2**20  # buffers of at least this size have pages of their own
_MAX_MAPPINGS = 2**16
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a container, in the folder of its group
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MACHINE = Path("/proc/meminfo")
_OWN_STATUS = Path("/proc/self/status")
_LATER_STACKS_BYTES = 28 * 2**23  # of threads that save and score: 28 were counted
# What libraries in C++, and threads that have no room for a stack, say.
_NO_MEMORY = re.compile(
    "RESOURCE_EXHAUSTED|bad_alloc|Cannot allocate memory|can't start new thread|"
    "failed to map segment"
)
_OWN_LIMITS = {"VmSize": resource.RLIMIT_AS, "VmData": resource.RLIMIT_DATA}


def keep_freed() -> None:
    """Makes this process keep memory that it frees for what it allocates next."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)  # arenas of threads are returned as soon as they are empty


def give_back_at_once() -> None:
    """Undoes `keep_freed` for what is allocated from now on: buffers go back to the system when
    they are freed, and leave no pieces between what lives.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
        mallopt(_M_MMAP_MAX, _MAX_MAPPINGS)
        give_back_freed()


def give_back_freed() -> None:
    """Gives the free pages back to the system, those between what lives, too. The next step gets
    its own anew: at times of logs and saves that costs less than 1 %.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def limit_bytes() -> int:
    """The most memory that this process can have: that of the machine with what it may swap, the
    limit of the container, or its own. Where the system does not say, a number that is never
    reached.
    """
    found = _physical_bytes() + (_meminfo("SwapTotal") or 0)
    limits = (container_limit(), own_limit())
    return min([found, *(limit for limit in limits if limit is not None)])


def own_limit() -> int | None:
    """What the limits of this process alone (`ulimit -v`, `ulimit -d`) let it have in memory: what
    it has now, and what they leave. None where there are none, or the system does not say.

    They count what is reserved, stacks of threads too: 0.5 GiB more than is used, once JAX has
    started. Ask after that; what starts later is taken off.
    """
    left = []
    for name, kind in _OWN_LIMITS.items():
        soft, _ = resource.getrlimit(kind)
        reserved = _listed(_OWN_STATUS, name)
        if soft != resource.RLIM_INFINITY and reserved is not None:
            left.append(max(0, soft - reserved))
    return max(0, resident_bytes() + min(left) - _LATER_STACKS_BYTES) if left else None


def certain_limit() -> int | None:
    """What processes here can in no case have more of, with all that may be swapped; None where the
    system does not say.
    """
    swap = _meminfo("SwapTotal")
    if swap is None:  # some systems make room for it as they need it
        return None
    found = _physical_bytes()
    return min(found, container_limit() or found) + swap


def _physical_bytes() -> int:
    pages = os.sysconf("SC_PHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else sys.maxsize


def container_limit() -> int | None:
    """The memory that a container may have, in bytes: the least limit of its group and those around
    it. None where none is set.
    """
    found = [_physical_bytes()]
    for folder in _own_groups():
        for name in _LIMITS:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text.isdigit():
                found.append(int(text))
    least = min(found)
    return least if least < found[0] else None  # without a limit some systems say a huge one


def _own_groups() -> Iterator[Path]:
    """The folders of the control groups of this process, and of those around them."""
    yield from (_CGROUPS, _CGROUPS / "memory")
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            base = _CGROUPS
            if controllers:
                if "memory" not in controllers.split(","):
                    continue
                base = _CGROUPS / "memory"
            own = base / path.lstrip("/")
            yield from (own, *(parent for parent in own.parents if base in parent.parents))


def available_memory() -> int | None:
    """Bytes that programs may still take without swapping, file caches included; None where the
    system does not say.
    """
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> int | None:
    return _listed(_MACHINE, name)


def _listed(path: Path, name: str) -> int | None:
    """Bytes that a table of the system has under a name; None where it has none."""
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def resident_bytes() -> int:
    """What this process has in memory now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> bool:
    """Makes `peak_bytes` begin anew; False where the system does not let it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most that this process has had in memory, since `reset_peak` where that was called."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_glibc(name: str):
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)


def ran_out(error: BaseException | None) -> bool:
    """Whether memory, of the machine or of a device, did not suffice, also where a library wrapped
    the error in one of its own.
    """
    while error is not None:
        is_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if isinstance(error, MemoryError) or is_system or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
