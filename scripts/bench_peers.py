"""The rasterizer beside installed peers, on the same scene in the same run: forward and backward of colour, depth and normals.

python scripts/bench_peers.py [--surfels=100000,1000000,5000000] [--sizes=1920x1080,3840x2160] [--runs=20] [--out=FILE.json]

Peers are measured where they can run; the others are named with the reason. Known: `rasterization_2dgs` of gsplat (2D surfels;
wants torch with CUDA). The scene is the cloud "town" of bench_growth.py, with colours of degree 3. Every contestant runs in a
process of its own, in turns (half of the runs, twice), so that other load meets all of them. Medians; the ratio is
the peer's time over ours: above 1 ours is faster. Memory is the peak that the framework reports of the GPU, else of the process.
"""

import argparse
import dataclasses
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
    import torch

    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def timed(function, runs: int) -> list[float]:
    """Seconds of each run, after two that do not count."""
    times = []
    for number in range(runs + 2):
        started = time.perf_counter()
        function()
        if number >= 2:
            times.append(time.perf_counter() - started)
    return times


def run_ours(arrays: dict[str, np.ndarray], size: tuple[int, int], runs: int, backend: str | None) -> dict:
    """Times of `cosurfgs_jax.rasterize` and its gradient in all parameters."""
    import jax
    import jax.numpy as jnp

    from cosurfgs_jax import Camera, Surfels, rasterize

    width, height = size
    surfels = Surfels(**{field.name: jnp.asarray(arrays[field.name]) for field in dataclasses.fields(Surfels)})
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))

    def loss(surfels):
        out = rasterize(surfels, camera, image_size=(height, width), maps="geometry", backend=backend)
        return out.color.sum() + out.normal.sum() + out.depth.sum() + out.alpha.sum()

    gradient = jax.jit(jax.value_and_grad(loss, allow_int=True))
    times = timed(lambda: jax.block_until_ready(gradient(surfels)), runs)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"seconds": times, "device": str(jax.local_devices()[0].device_kind),
            "peak_bytes": memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def run_gsplat(arrays: dict[str, np.ndarray], size: tuple[int, int], runs: int, backend: str | None) -> dict:
    """Times of gsplat's 2D surfels and their gradient in all parameters."""
    del backend
    import torch
    from gsplat import rasterization_2dgs

    width, height = size
    on = {name: torch.as_tensor(value, device="cuda") for name, value in arrays.items()}
    scales = torch.cat([on["log_scales"], torch.zeros_like(on["log_scales"][:, :1])], dim=1)
    leaves = [x.clone().requires_grad_() for x in (on["means"], on["quats"], scales, on["logit_opacities"], on["sh"])]

    def once():
        for leaf in leaves:
            leaf.grad = None
        means, quats, log_scales, logits, sh = leaves
        colors, alphas, normals, *_ = rasterization_2dgs(
            means, quats, torch.exp(log_scales), torch.sigmoid(logits), sh, on["camera_from_world"][None], on["intrinsics"][None],
            width, height, near_plane=0.01, sh_degree=3, render_mode="RGB+ED")
        (colors.sum() + alphas.sum() + normals.sum()).backward()
        torch.cuda.synchronize()

    times = timed(once, runs)
    return {"seconds": times, "device": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}


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


def main() -> None:
    """Flags -> cases -> table, JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfels", default="100000,1000000,5000000")
    parser.add_argument("--sizes", default="1920x1080,3840x2160")
    parser.add_argument("--runs", type=int, default=20, help="of each contestant and case")
    parser.add_argument("--backend", default="", help="ours; empty = the default of this machine")
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, num, width, height = options.case.split(",")
        size = (int(width), int(height))
        arrays = build_scene(town(int(num), size[0]), size[::-1])
        print(json.dumps(CONTESTANTS[name][0](arrays, size, options.runs, options.backend or None)))
        return
    missing = {name: reason for name, (_, why) in CONTESTANTS.items() if (reason := why())}
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}")
    print(", ".join(f"{name} {value}" for name, value in (describe_machine() | versions()).items()))
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else memory says nothing, and a peer finds none
    rows = []
    print(f"{'surfels':>10}{'image':>12}  {'':14}{'median ms':>10}{'ratio':>7}{'peak MiB':>10}  device")
    for num in map(int, options.surfels.split(",")):
        for width, height in (tuple(map(int, text.split("x"))) for text in options.sizes.split(",")):
            results: dict[str, dict] = {}
            for _ in range(2):
                for name in (name for name in CONTESTANTS if name not in missing):
                    command = [sys.executable, __file__, f"--case={name},{num},{width},{height}",
                               f"--runs={-(-options.runs // 2)}", f"--backend={options.backend}"]
                    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
                    result = json.loads(output.splitlines()[-1])
                    result["seconds"] += results.get(name, {"seconds": []})["seconds"]
                    results[name] = result
            ours = float(np.median(results["cosurfgs_jax"]["seconds"]))
            for name, result in results.items():
                median = float(np.median(result["seconds"]))
                rows.append({"name": name, "surfels": num, "width": width, "height": height, "median_s": median,
                             "ratio": median / ours} | result)
                print(f"{num:10,d}{width:7d}x{height:<4d}  {name:14}{1e3 * median:10.2f}{median / ours:7.2f}"
                      f"{result['peak_bytes'] / 2**20:10.0f}  {result['device']}", flush=True)
    if options.out:
        content = {"machine": describe_machine() | versions(), "missing": missing, "rows": rows}
        pathlib.Path(options.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
