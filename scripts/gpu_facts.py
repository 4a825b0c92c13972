#!/usr/bin/env python
"""What there is on this machine for scripts/gpu_check.sh: Python, packages, devices. The last line
names the device.

python scripts/gpu_facts.py [--device_file=FILE]

FILE gets "gpu", or a sentence that says why no GPU can be used. Nothing of the package itself is
imported: it may not be built."""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Distribution -> which steps cannot run without it.
NEEDED = {
    "jax": "all",
    "jaxlib": "all",
    "numpy": "all",
    "scipy": "all",
    "jaxtyping": "all",
    "absl-py": "all",
    "pytest": "all comparisons",
    "flax": "parts, training",
    "optax": "parts, training",
    "orbax-checkpoint": "parts, training",
    "pillow": "parts, training",
    "ml_collections": "training",
    "tensorboardX": "training",
    "pytest-xdist": "tests (one after the other without it)",
    "beartype": "none (the tests go without their checks of types and shapes)",
    "torch": "none (gsplat is not measured)",
    "gsplat": "none (gsplat is not measured)",
}


def version(name: str) -> str:
    """Of an installed distribution; empty if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def devices() -> tuple[str, str]:
    """JAX's devices in words, and why there is no NVIDIA GPU among them (empty if there is)."""
    try:
        import jax
        from jax.extend.backend import get_backend

        found = ", ".join(
            f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()
        )
        if jax.default_backend() == "gpu" and "cuda" in get_backend().platform_version.lower():
            return found, ""
        return found, f"no NVIDIA GPU here: JAX sees {found}"
    except Exception as error:  # a plugin that does not start raises what it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return "none", f"JAX finds no device: {reason[:200]}"


def commit() -> str:
    """Of the sources, with a mark if they were changed; a copy of the sources may have none."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def main() -> None:
    """Prints one line per fact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device_file", default="")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found, why_not = devices()
    print(f"python         {platform.python_version()} ({sys.executable})")
    print(f"system         {platform.platform()}, {cores} cores")
    print(f"sources        {commit()}")
    print(f"devices        {found}")
    missing = {name: steps for name, steps in NEEDED.items() if not version(name)}
    print(
        "packages       "
        + ", ".join(f"{name} {version(name)}" for name in NEEDED if name not in missing)
    )
    for name, steps in missing.items():
        print(f"missing        {name}; steps that need it: {steps}")
    if options.device_file:
        Path(options.device_file).write_text((why_not or "gpu") + "\n")
    print(why_not or f"JAX {version('jax')} on {found}")


if __name__ == "__main__":
    main()
