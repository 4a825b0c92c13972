"""The rasterizer beside installed peers, on the same scenes in the same run: forward and backward
of colour, depth and normals.

python scripts/bench_peers.py [--surfels=100000,1000000,5000000] [--sizes=1920x1080,3840x2160]
[--runs=20] [--out=FILE.json]

Peers are measured where they can run; the others are named with the reason. Known:
`rasterization_2dgs` of gsplat (2D surfels; wants torch with CUDA). The scene is the cloud "town" of
bench_growth.py, with colours of degree 3. Every contestant does all its cases in a process of its
own, in turns (half of the runs, twice), so that other load meets all of them. Medians; the ratio is
the peer's time over ours: above 1 ours is faster. Memory is the peak that the framework reports of
the GPU, else of the process; "<=" stands where an earlier case of the same process had as much.

gsplat compiles its kernels when it is first used, for every GPU that torch knows unless
TORCH_CUDA_ARCH_LIST says otherwise: it is set to the one of this machine.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
from bench_growth import town
from bench_raster import build_scene, describe_machine


def why_no_gsplat() -> str:
    """Why gsplat cannot be measured; empty if it can."""
    for name in ("torch", "gsplat"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    # In a process of its own: this one must not hold memory of the GPU.
    code = "import torch; print(torch.cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    return "" if found.strip() == "True" else "torch sees no CUDA device"


def timed(function, runs: int) -> list[float]:
    """Seconds of each run, after two that do not count."""
    times = []
    for number in range(runs + 2):
        started = time.perf_counter()
        function()
        if number >= 2:
            times.append(time.perf_counter() - started)
    return times


@functools.lru_cache(maxsize=1)
def _scene(num_surfels: int, aspect: float) -> dict[str, np.ndarray]:
    width = 1920
    return build_scene(town(num_surfels, width), (round(width / aspect), width))


def scene(num_surfels: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The town for an image of (width, height); for images of one shape the same surfels, which
    takes seconds to draw.
    """
    width, height = size
    arrays = _scene(num_surfels, width / height)
    zoom = (
        np.array([width, width, 1], np.float32)[:, None]
        / np.array([1920, 1920, 1], np.float32)[:, None]
    )
    return arrays | {"intrinsics": arrays["intrinsics"] * zoom}


def run_ours(
    arrays: dict[str, np.ndarray], size: tuple[int, int], runs: int, backend: str | None
) -> dict:
    """Times of `cosurfgs_jax.rasterize` and its gradient in all parameters."""
    import jax
    import jax.numpy as jnp

    from cosurfgs_jax import Camera, Surfels, rasterize

    width, height = size
    surfels = Surfels(
        **{field.name: jnp.asarray(arrays[field.name]) for field in dataclasses.fields(Surfels)}
    )
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))

    def loss(surfels):
        out = rasterize(
            surfels, camera, image_size=(height, width), maps="geometry", backend=backend
        )
        return out.color.sum() + out.normal.sum() + out.depth.sum() + out.alpha.sum()

    gradient = jax.jit(jax.value_and_grad(loss, allow_int=True))
    times = timed(lambda: jax.block_until_ready(gradient(surfels)), runs)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "seconds": times,
        "device": str(jax.local_devices()[0].device_kind),
        "peak_bytes": memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run_gsplat(
    arrays: dict[str, np.ndarray], size: tuple[int, int], runs: int, backend: str | None
) -> dict:
    """Times of gsplat's 2D surfels and their gradient in all parameters."""
    del backend
    import torch

    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", ".".join(map(str, torch.cuda.get_device_capability()))
    )
    from gsplat import rasterization_2dgs

    width, height = size
    torch.cuda.reset_peak_memory_stats()
    on = {name: torch.as_tensor(value, device="cuda") for name, value in arrays.items()}
    scales = torch.cat([on["log_scales"], torch.zeros_like(on["log_scales"][:, :1])], dim=1)
    leaves = [
        x.clone().requires_grad_()
        for x in (on["means"], on["quats"], scales, on["logit_opacities"], on["sh"])
    ]

    def once():
        for leaf in leaves:
            leaf.grad = None
        means, quats, log_scales, logits, sh = leaves
        colors, alphas, normals, *_ = rasterization_2dgs(
            means,
            quats,
            torch.exp(log_scales),
            torch.sigmoid(logits),
            sh,
            on["camera_from_world"][None],
            on["intrinsics"][None],
            width,
            height,
            near_plane=0.01,
            sh_degree=3,
            render_mode="RGB+ED",
        )
        (colors.sum() + alphas.sum() + normals.sum()).backward()
        torch.cuda.synchronize()

    times = timed(once, runs)
    return {
        "seconds": times,
        "device": torch.cuda.get_device_name(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


CONTESTANTS = {"cosurfgs_jax": (run_ours, lambda: ""), "gsplat 2DGS": (run_gsplat, why_no_gsplat)}


def versions() -> dict[str, str]:
    """Of all that is measured."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("jax", "torch", "gsplat"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def measure_all(
    name: str, cases: list[tuple[int, int, int]], runs: int, backend: str | None
) -> None:
    """All cases of one contestant in this process; a line of JSON for each, also for one that
    fails.
    """
    most = 0
    for num_surfels, width, height in cases:
        size = (width, height)
        try:
            result = CONTESTANTS[name][0](scene(num_surfels, size), size, runs, backend)
            # JAX's peak is of the whole process so far.
            result["is_peak_of_earlier"] = result["peak_bytes"] == most
            most = result["peak_bytes"]
        except Exception as error:  # memory that is too small, for one; the other cases go on
            result = {"error": (str(error).splitlines() or [type(error).__name__])[0][:200]}
        print(json.dumps({"case": [num_surfels, width, height]} | result), flush=True)


def run_contestant(name: str, options: argparse.Namespace) -> list[dict]:
    """The results of `measure_all` in a process of its own, as far as it got before it ended or its
    time was over.
    """
    command = [
        sys.executable,
        __file__,
        f"--contestant={name}",
        f"--surfels={options.surfels}",
        f"--sizes={options.sizes}",
        f"--runs={-(-options.runs // options.turns)}",
        f"--backend={options.backend}",
    ]
    try:
        output = subprocess.run(
            command, stdout=subprocess.PIPE, timeout=options.limit or None
        ).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        print(f"{name} was stopped after {options.limit:g} s", file=sys.stderr)
    # A line that was cut off has no end.
    output = output.decode().rpartition("\n")[0]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def print_row(row: dict) -> None:
    """One contestant and case."""
    head = f"{row['surfels']:10,d}{row['width']:7d}x{row['height']:<4d}  {row['name']:14}"
    if "error" in row:
        print(f"{head} failed: {row['error']}")
        return
    peak = f"{'<=' if row['is_peak_of_earlier'] else ''}{row['peak_bytes'] / 2**20:.0f}"
    ratio = f"{row['ratio']:7.2f}" if "ratio" in row else " " * 7
    print(f"{head}{1e3 * row['median_s']:10.2f}{ratio}{peak:>10}  {row['device']}")


def table(
    cases: list[tuple[int, int, int]], turns: dict[str, list[dict[tuple, dict]]]
) -> list[dict]:
    """A row for each case and contestant: median over all turns, ratio to ours."""
    rows = []
    for case in cases:
        ours = None
        for name, results in turns.items():
            found = [
                result.get(case, {"error": "its process ended before this case"})
                for result in results
            ]
            row = {"name": name, "surfels": case[0], "width": case[1], "height": case[2]} | found[
                -1
            ]
            if not any("error" in result for result in found):
                row["seconds"] = [seconds for result in found for seconds in result["seconds"]]
                row["median_s"] = float(np.median(row["seconds"]))
                ours = row["median_s"] if name == "cosurfgs_jax" else ours
                if ours:
                    row["ratio"] = row["median_s"] / ours
            rows.append(row)
    return rows


def last_line(rows: list[dict], missing: dict[str, str]) -> str:
    """The outcome in a sentence."""
    failed = [row for row in rows if "error" in row]
    ratios = [row["ratio"] for row in rows if "ratio" in row and row["name"] != "cosurfgs_jax"]
    ours = [
        f"{1e3 * row['median_s']:.1f}"
        for row in rows
        if row["name"] == "cosurfgs_jax" and "median_s" in row
    ]
    text = f"ours {', '.join(ours)} ms" if ours else "nothing of ours was measured"
    if ratios:
        text += f"; the peers take {min(ratios):.2f} to {max(ratios):.2f} times as long"
    text += "".join(f"; not measured: {name} ({reason})" for name, reason in missing.items())
    return text + (f"; {len(failed)} measurements failed: {failed[0]['error']}" if failed else "")


def main() -> None:
    """Flags -> cases -> table, JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfels", default="100000,1000000,5000000")
    parser.add_argument("--sizes", default="1920x1080,3840x2160")
    parser.add_argument("--runs", type=int, default=20, help="of each contestant and case")
    parser.add_argument(
        "--turns", type=int, default=2, help="processes of each contestant, which share the runs"
    )
    parser.add_argument("--limit", type=float, default=0, help="seconds of each process; 0 = none")
    parser.add_argument("--backend", default="", help="ours; empty = the default of this machine")
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--contestant", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [tuple(map(int, text.split("x"))) for text in options.sizes.split(",")]
    cases = [(num, *size) for num in map(int, options.surfels.split(",")) for size in sizes]
    if options.contestant:
        measure_all(options.contestant, cases, options.runs, options.backend or None)
        return
    # Else memory says nothing, and what this process holds is not there for those that are
    # measured.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    missing = {name: reason for name, (_, why) in CONTESTANTS.items() if (reason := why())}
    machine = describe_machine() | versions()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    turns: dict[str, list[dict[tuple, dict]]] = {
        name: [] for name in CONTESTANTS if name not in missing
    }
    for _ in range(options.turns):
        for name, results in turns.items():
            results.append(
                {tuple(result.pop("case")): result for result in run_contestant(name, options)}
            )
    rows = table(cases, turns)
    print(
        f"{'surfels':>10}{'image':>12}  {'':14}{'median ms':>10}{'ratio':>7}{'peak MiB':>10}  "
        "device"
    )
    for row in rows:
        print_row(row)
    if options.out:
        content = {"machine": machine, "missing": missing, "rows": rows}
        pathlib.Path(options.out).write_text(json.dumps(content, indent=1) + "\n")
    print(last_line(rows, missing))
    if any("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
