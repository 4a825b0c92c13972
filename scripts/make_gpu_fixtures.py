#!/usr/bin/env python
"""Makes what scripts/gpu_check.sh compares a GPU with: results of this machine's CPU kernels.

python scripts/make_gpu_fixtures.py DIR [--short] [--only=NAME,...]

Some minutes on two cores, 20 MB (--short: seconds, tiny cases alone). Nothing here needs a GPU.
What the files hold is said in tests/gpu/stored_cases.py; about.json says what made them. Files that
are there are made anew."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = (
    # read when JAX starts: the CPU's kernels are what others are verified by, also where a GPU is
    "cpu"
)
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "gpu"))

import stored_cases as stored  # noqa: E402
from bench_raster import describe_machine  # noqa: E402

from cosurfgs_jax.native import ffi  # noqa: E402


def main() -> None:
    """Flags -> files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--short", action="store_true", help="some tiny cases")
    parser.add_argument("--only", default="", help="names of cases")
    options = parser.parse_args()
    names = (
        options.only.split(",") if options.only else stored.SHORT if options.short else stored.ALL
    )
    if unknown := set(names) - set(stored.ALL):
        parser.error(
            f"--only: expected names of {', '.join(stored.ALL)}, got {', '.join(sorted(unknown))}"
        )
    if reason := ffi.why_no_cpu_library():
        sys.exit(f"error: {reason}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        started = time.perf_counter()
        stored.store(name, options.folder)
        print(f"{name:24}{time.perf_counter() - started:6.1f} s", flush=True)
    (options.folder / "about.json").write_text(json.dumps(describe_machine(), indent=1) + "\n")
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{len(names)} results in {options.folder}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
