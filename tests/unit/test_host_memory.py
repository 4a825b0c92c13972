"""What a process keeps of the memory that it freed, and gives back."""

import platform
import subprocess
import sys

import pytest

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
print(kept - first, resident() - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pieces_between_what_lives_are_given_back():
    done = subprocess.run(
        [sys.executable, "-c", _FRAGMENT], capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 180 and left < 60
