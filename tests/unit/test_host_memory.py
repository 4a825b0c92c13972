"""What a process keeps of the memory that it freed, and gives back."""

import os
import platform
import resource
import subprocess
import sys

import numpy as np
import pytest

from cosurfgs_jax import host_memory

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory"
)

_ALLOCATE = """
import resource, sys, threading
import numpy as np
from cosurfgs_jax import host_memory
if sys.argv[1] == "keep":
    host_memory.keep_freed()

def allocate():
    for size in (2**21, 2**22, 2**24) * 4:
        np.ones(size, np.float32)

allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", _ALLOCATE, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 0.1 * faults["give back"]


_FRAGMENT = """
import numpy as np
from cosurfgs_jax import host_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

host_memory.keep_freed()
first = resident()
arrays = [np.ones(2**18, np.float32) for _ in range(200)]
arrays = arrays[::20]  # 190 MiB are free, in pieces between what lives
kept = resident()
host_memory.give_back_freed()
left = resident()
host_memory.give_back_at_once()
more = [np.ones(2**23, np.float32) for _ in range(6)]  # larger than the pieces: 192 MiB
del more[:-1]
print(kept - first, left - first, resident() - left)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pieces_between_what_lives_are_given_back():
    done = subprocess.run(
        [sys.executable, "-c", _FRAGMENT], capture_output=True, text=True, check=True
    )
    kept, left, later = map(int, done.stdout.split())
    assert kept > 180 and left < 60
    assert later < 50, "from then on, what is freed goes back at once"


@pytest.mark.parametrize(
    "text, limit",
    [("max\n", None), ("1048576\n", 2**20), (None, None), ("9223372036854771712\n", None)],
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, text, limit):
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path)
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    assert host_memory.container_limit() == limit
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit == 2**20:
        assert host_memory.limit_bytes() == 2**20
    else:
        assert host_memory.limit_bytes() >= of_machine


def test_the_least_limit_of_the_groups_around_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("5:cpu:/elsewhere\n0::/slice/job/step\n3:memory:/old\n")
    for name, text in (("slice/job", "4096"), ("slice", "8192"), ("elsewhere", "1")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.max").write_text(text)
    assert host_memory.container_limit() == 4096
    (tmp_path / "memory" / "old").mkdir(parents=True)
    (tmp_path / "memory" / "old" / "memory.limit_in_bytes").write_text("2048")
    assert host_memory.container_limit() == 2048
    monkeypatch.setattr(host_memory, "_meminfo", {"SwapTotal": 100}.get)
    assert host_memory.limit_bytes() == 2048 and host_memory.certain_limit() == 2148
    monkeypatch.setattr(host_memory, "_meminfo", {}.get)
    assert host_memory.certain_limit() is None
    monkeypatch.setattr(host_memory.os, "sysconf", lambda _: -1)
    assert host_memory.limit_bytes() == 2048


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_can_begin_anew():
    if not host_memory.reset_peak():
        pytest.skip("the system keeps one peak for the whole process")
    before = host_memory.resident_bytes()
    np.ones(2**24, np.float32)
    assert host_memory.peak_bytes() - before > 60 * 2**20
    assert host_memory.reset_peak()
    assert host_memory.peak_bytes() - before < 40 * 2**20


def test_limits_of_the_process_count(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_OWN_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("VmSize:\t 3000 kB\nVmData:\t 1000 kB\nName:\tü\n")
    limits = dict.fromkeys(host_memory._OWN_LIMITS.values(), resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], 0))
    monkeypatch.setattr(host_memory, "_LATER_STACKS_BYTES", 100 * 1024)
    monkeypatch.setattr(host_memory, "resident_bytes", lambda: 500 * 1024)
    assert host_memory.own_limit() is None
    limits[resource.RLIMIT_AS] = 3700 * 1024
    assert host_memory.own_limit() == host_memory.limit_bytes() == 1100 * 1024
    limits[resource.RLIMIT_DATA] = 1600 * 1024  # less is left of it
    assert host_memory.own_limit() == 1000 * 1024
    limits[resource.RLIMIT_DATA] = 10  # more is reserved than it allows from now on
    assert host_memory.own_limit() == 400 * 1024
    (tmp_path / "status").unlink()
    assert host_memory.own_limit() is None
