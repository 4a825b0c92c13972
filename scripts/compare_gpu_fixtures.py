#!/usr/bin/env python
"""Compares this machine's rasterizer with stored results, and says how far they are apart.

python scripts/compare_gpu_fixtures.py DIR [--backend=cuda] [--only=NAME,...] [--out=FILE.json]

DIR is what scripts/make_gpu_fixtures.py made. Without --backend the best one of this machine is
compared. A line for each case: the error that came nearest to its limit; all of them are in the
    JSON file. Exit code 1 if any is beyond.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "gpu"), str(ROOT / "tests" / "parity")]

import raster_cases as cases  # noqa: E402
import stored_cases as stored  # noqa: E402
import stored_compare  # noqa: E402

from cosurfgs_jax.raster import available_backends, best_backend  # noqa: E402


def stored_names(folder: Path) -> list[str]:
    """Cases that are in a folder, in their usual order."""
    return [name for name in stored.ALL if stored.path_of(folder, name).exists()]


def main() -> None:
    """Flags -> lines, exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--backend", default="", help=f"one of {', '.join(cases.RENDERERS)}")
    parser.add_argument(
        "--only",
        default="",
        help="names of cases; whole, large or none of them = all that are in DIR",
    )
    parser.add_argument(
        "--any_order", action="store_true", help="gradients with deterministic=False"
    )
    parser.add_argument("--out", default="", help="JSON file")
    options = parser.parse_args()
    backend = options.backend or best_backend()
    if reason := available_backends()[backend]:
        sys.exit(f"error: backend {backend}: {reason}")
    groups = {
        "whole": [name for name in stored_names(options.folder) if name in stored.WHOLE],
        "large": [name for name in stored_names(options.folder) if name in stored.LARGE],
        "": stored_names(options.folder),
    }
    names = groups[options.only] if options.only in groups else options.only.split(",")
    if not names:
        sys.exit(
            f"error: {options.folder}: expected stored results, got none; python "
            "scripts/make_gpu_fixtures.py "
            f"{options.folder}"
        )
    renderer = backend
    if options.any_order:
        renderer = f"{backend}, any order"
        cases.RENDERERS[renderer] = functools.partial(cases.RENDERERS[backend], deterministic=False)
    print(
        f"{renderer} on {jax.devices()[0].device_kind}, jax {jax.__version__}, against "
        f"{options.folder}"
    )
    with jax.default_matmul_precision("highest"):
        rows = stored_compare.compare_all(names, renderer, options.folder)
    bad = [name for name, row in rows.items() if row["wrong"]]
    if options.out:
        Path(options.out).write_text(
            json.dumps({"backend": renderer, "cases": rows}, indent=1) + "\n"
        )
    if bad:
        sys.exit(
            f"{len(bad)} of {len(names)} cases differ: {', '.join(bad)}: {rows[bad[0]]['wrong']}"
        )
    print(
        "1 case agrees with the stored results"
        if len(names) == 1
        else f"{len(names)} cases agree with the stored results"
    )


if __name__ == "__main__":
    main()
