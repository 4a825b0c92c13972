#!/usr/bin/env python
"""Which kernels the time of the rasterizer goes into, by JAX's profiler: forward and backward of
colour, depth and normals.

python scripts/profile_kernels.py [--surfels=1000000] [--size=1920x1080] [--runs=5] [--most=25]
[--out=FILE.json]

On a GPU every kernel and copy of the device counts, ours and XLA's; on a CPU XLA's operations (the
rasterizer is two of them). The scene is the cloud "town" of bench_growth.py. The profiler itself
adds some microseconds to each kernel."""

import argparse
import collections
import dataclasses
import gzip
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from bench_growth import town
from bench_raster import build_scene, describe_machine

from cosurfgs_jax import Camera, Surfels, rasterize


def device_events(trace: dict) -> list[tuple[str, float]]:
    """Name and microseconds of what ran: on devices where the trace has any, else XLA's operations
    on the host.
    """
    events = trace["traceEvents"]
    processes = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("name") == "process_name"
    }
    threads = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event.get("name") == "thread_name"
    }
    ran = [event for event in events if event.get("ph") == "X"]
    # Beside its streams a device has rows that sum others up ("XLA Ops", "Steps"): they would count
    # everything twice.
    streams = [
        event
        for event in ran
        if processes.get(event["pid"], "").startswith("/device:")
        and threads.get((event["pid"], event["tid"]), "").startswith("Stream")
    ]
    chosen = streams or [event for event in ran if "hlo_op" in event.get("args", {})]
    return [(event["name"], event["dur"]) for event in chosen]


def short_name(name: str) -> str:
    """A kernel's name without its arguments and the inner part of long templates."""
    name = re.sub(r"\(.*", "", name.replace("(anonymous namespace)::", "")).removeprefix("void ")
    return name if len(name) <= 90 else f"{name[:60]}...{name[-27:]}"


def traced(function, runs: int) -> dict[str, tuple[float, float]]:
    """Milliseconds and calls a run by name, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(runs):
                jax.block_until_ready(function())
        files = list(Path(folder).rglob("*.trace.json.gz"))
        if not files:
            sys.exit("error: JAX's profiler wrote no trace")
        with gzip.open(files[0]) as file:
            events = device_events(json.load(file))
    times = collections.Counter()
    calls = collections.Counter()
    for name, microseconds in events:
        times[short_name(name)] += microseconds / 1e3 / runs
        calls[short_name(name)] += 1 / runs
    return {name: (milliseconds, calls[name]) for name, milliseconds in times.most_common()}


def main() -> None:
    """Flags -> table, JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfels", type=int, default=1_000_000)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--most", type=int, default=25, help="rows of the table")
    parser.add_argument("--out", default="", help="JSON file")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    arrays = build_scene(town(options.surfels, width), (height, width))
    surfels = Surfels(
        **{field.name: jnp.asarray(arrays[field.name]) for field in dataclasses.fields(Surfels)}
    )
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))

    def loss(surfels):
        out = rasterize(surfels, camera, image_size=(height, width), maps="geometry")
        return out.color.sum() + out.normal.sum() + out.depth.sum()

    gradient = jax.jit(jax.value_and_grad(loss, allow_int=True))
    jax.block_until_ready(gradient(surfels))
    started = time.perf_counter()
    for _ in range(options.runs):
        jax.block_until_ready(gradient(surfels))
    whole = 1e3 * (time.perf_counter() - started) / options.runs
    rows = traced(lambda: gradient(surfels), options.runs)
    if not rows:
        sys.exit(
            "error: the trace holds no kernel; the profiler of this machine's driver may not be "
            "allowed to look"
        )
    total = sum(milliseconds for milliseconds, _ in rows.values())
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    print(f"{'ms':>9}{'share':>8}{'calls':>7}  kernel")
    for name, (milliseconds, calls) in list(rows.items())[: options.most]:
        print(f"{milliseconds:9.3f}{100 * milliseconds / total:7.1f}%{calls:7.1f}  {name}")
    if options.out:
        content = {
            "machine": describe_machine(),
            "surfels": options.surfels,
            "size": options.size,
            "whole_ms": whole,
            "kernels": [
                {"name": name, "ms": ms, "calls": calls} for name, (ms, calls) in rows.items()
            ],
        }
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n")
    print(
        f"{options.surfels:,d} surfels at {options.size}: {total:.2f} ms in {len(rows)} kernels, "
        f"{whole:.2f} ms by the clock; "
        f"most in {next(iter(rows))[:60]}"
    )


if __name__ == "__main__":
    main()
