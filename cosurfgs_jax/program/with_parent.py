"""Runs a program that ends with the process that started it, however that one ends.

python -m cosurfgs_jax.program.with_parent NAME [flags]

is `python -m cosurfgs_jax.NAME [flags]` for who keeps its standard input open: where that closes,
the program gets SIGTERM, at which training saves. No lock and no device is left to a process that
nobody knows of.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is written there: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(f"cosurfgs_jax.{sys.argv[0]}", run_name="__main__", alter_sys=True)
