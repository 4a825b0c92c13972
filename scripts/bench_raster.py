#!/usr/bin/env python
"""Speed of the rasterizer in (surfel, pixel) pairs per second and core, beside the floor of this
machine.

python scripts/bench_raster.py [--scenes=solid,dense,town] [--cores=1,2] [--maps=geometry]
    [--backends=cpu,portable] [--out=bench.json]

Every number comes from this run: floor.cc is compiled here and timed before and after the kernels,
on one core. It does the arithmetic of one pair and nothing else, so a kernel that visits every pair
can approach it, and one that skips what a surfel cannot reach may pass it. Each number of cores is
measured in a process of its own, confined to those cores. Speeds and fractions of the floor are
from wall time. On a busy machine the fraction by processor time is the fairer one.

Scenes (fronto-parallel to random surfels, colours of degree 3):
    solid   surfels larger than the image, too faint to stop a pixel: every nominal pair is blended
    dense   surfels of 6 pixels, faint: several hundred hits a pixel
    town    surfels of 2 pixels, mostly opaque: what training sees
    few     a hundred large ones: what the definition (backend "reference") can draw

Pairs: *nominal* = tiles that a surfel's bounding box touches times 256 pixels, what a plain tile
rasterizer visits, counted here in NumPy; *blended* = hits that end up in a pixel, from the
contributions output.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from cosurfgs_jax import host_memory, program

HERE = pathlib.Path(__file__).resolve().parent
TILE = 16


@dataclasses.dataclass(frozen=True)
class Scene:
    """How to draw a synthetic cloud: surfels of one size in pixels before a camera of
    60 degrees.
    """

    num_surfels: int
    size_px: tuple[float, float]
    opacity: tuple[float, float]


SCENES = {
    "solid": Scene(600, (1500.0, 3000.0), (0.008, 0.016)),
    "dense": Scene(60_000, (4.0, 8.0), (0.01, 0.05)),
    "town": Scene(150_000, (1.0, 3.0), (0.1, 0.95)),
    "few": Scene(100, (40.0, 120.0), (0.1, 0.95)),
}


def build_scene(scene: Scene, image_size: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a cloud that fills the view, and its camera, as float32 by the names of Surfels
    and Camera.
    """
    rng = np.random.default_rng(seed)
    height, width = image_size
    focal = 0.87 * width
    n = scene.num_surfels
    depth = rng.uniform(1, 4, n)
    pixels = rng.uniform(0, 1, (n, 2)) * [width, height]
    rays = np.concatenate([(pixels - [width / 2, height / 2]) / focal, np.ones((n, 1))], axis=1)
    # Within 60 degrees of the view direction; discs much larger than the image would otherwise pass
    # behind the camera.
    tilt = rng.normal(size=(n, 2)) * (0.3 if scene.size_px[1] < 100 else 1e-5)
    scale = rng.uniform(*scene.size_px, n) * depth / focal
    opacity = rng.uniform(*scene.opacity, n)
    arrays = {
        "means": rays * depth[:, None],
        "quats": np.concatenate([np.ones((n, 1)), tilt, rng.normal(size=(n, 1))], axis=1),
        "log_scales": np.log(scale)[:, None] + rng.uniform(-0.2, 0.2, (n, 2)),
        "logit_opacities": np.log(opacity / (1 - opacity)),
        "sh": rng.normal(size=(n, 16, 3)) * 0.2,
        "camera_from_world": np.eye(4),
        "intrinsics": np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
    }
    return {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()} | {
        "alive": np.ones(n, bool)
    }


def count_nominal_pairs(arrays: dict[str, np.ndarray], image_size: tuple[int, int]) -> int:
    """Tiles met by the bounding boxes of all surfels (bounds of the 2DGS ray transform), times the
    pixels of a tile.
    """
    from cosurfgs_jax.geometry import rotations

    x = {name: value.astype(np.float64) for name, value in arrays.items()}
    axes = rotations.matrix_from_quat(x["quats"])[:, :, :2] * np.exp(x["log_scales"])[:, None, :]
    m = x["intrinsics"] @ np.concatenate([axes, x["means"][:, :, None]], axis=2)
    cutoff = 2 * np.log(255 / (1 + np.exp(-x["logit_opacities"])))
    signs = np.stack([cutoff, cutoff, -np.ones_like(cutoff)], axis=-1)
    weights = signs / (signs * m[:, 2] ** 2).sum(axis=-1, keepdims=True)
    center = (weights[:, None] * m[:, :2] * m[:, 2:]).sum(axis=-1)
    half = np.sqrt(
        np.maximum(
            center**2 - (weights[:, None] * m[:, :2] ** 2).sum(axis=-1), (cutoff / 2)[:, None]
        )
    )
    limit = np.array(image_size[::-1]) - 1
    first = np.clip(np.ceil(center - half - 0.5), 0, limit + 1)
    last = np.clip(np.floor(center + half - 0.5), -1, limit)
    tiles = np.where(last >= first, last // TILE - first // TILE + 1, 0).prod(axis=1)
    return int(tiles[cutoff > 0].sum()) * TILE * TILE


def best_seconds(function, repeats: int) -> tuple[float, float]:
    """Wall and processor seconds of the shortest of several calls: other programs can only make a
    call longer.
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = zip(*times, strict=True)
    return min(wall), min(cpu)


def measure(
    scene_name: str, image_size: tuple[int, int], maps: str, backend: str | None, repeats: int
) -> dict:
    """Times forward, and forward with backward, of one scene in this process."""
    import jax
    import jax.numpy as jnp

    from cosurfgs_jax import Camera, Surfels, rasterize

    arrays = build_scene(SCENES[scene_name], image_size)
    surfels = Surfels(**{f.name: jnp.asarray(arrays[f.name]) for f in dataclasses.fields(Surfels)})
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))
    options = {"image_size": image_size, "maps": maps, "backend": backend}
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(*image_size, 3)), jnp.float32)

    def loss(surfels):
        out = rasterize(surfels, camera, **options)
        maps_with_gradient = [
            x for x in (out.alpha, out.depth, out.plane_depth, out.distortion) if x is not None
        ]
        vectors = [x for x in (out.color, out.normal) if x is not None]
        return sum((x * weights).sum() for x in vectors) + sum(
            (x * weights[..., 0]).sum() for x in maps_with_gradient
        )

    forward = jax.jit(lambda surfels: rasterize(surfels, camera, **options))
    both = jax.jit(jax.value_and_grad(loss, allow_int=True))
    counted = jax.jit(
        lambda surfels: rasterize(surfels, camera, **options, with_contributions=True)
    )(surfels)
    for function in (forward, both):
        jax.block_until_ready(function(surfels))
    row = {
        "scene": scene_name,
        "num_surfels": int(surfels.means.shape[0]),
        "nominal_pairs": count_nominal_pairs(arrays, image_size),
        "blended_pairs": int(np.asarray(counted.contributions[:, 2], np.float64).sum()),
        "mean_alpha": float(counted.alpha.mean()),
    }
    for kind, function in (("forward", forward), ("forward_backward", both)):
        wall, cpu = best_seconds(
            lambda function=function: jax.block_until_ready(function(surfels)), repeats
        )
        row |= {f"{kind}_s": wall, f"{kind}_cpu_s": cpu}
    return row


def build_floor(folder: str) -> str:
    """Compiles floor.cc for this machine; returns the program's path."""
    program = os.path.join(folder, "floor")
    compiler = os.environ.get("CXX", "g++")
    subprocess.run(
        [compiler, "-O3", "-march=native", "-std=c++17", "-w", HERE / "floor.cc", "-o", program],
        check=True,
    )
    return program


def confined(command: list[str], cores: list[int]) -> dict:
    """Runs a command on these cores only; returns the JSON of its last line."""
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return json.loads(result.stdout.splitlines()[-1])


def describe_machine() -> dict:
    """What a reader needs to compare the numbers."""
    import jax
    import jaxlib

    from cosurfgs_jax.native import ffi

    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        cpu = next(iter(names), cpu)
    compiler = os.environ.get("CXX", "g++")
    version = [""]
    if shutil.which(compiler):
        result = subprocess.run([compiler, "--version"], capture_output=True, text=True)
        version = result.stdout.splitlines() or version
    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "cpu": cpu,
        "cores": sorted(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "device": jax.devices()[0].device_kind,
        "kernel_variant": "none" if ffi.why_no_cpu_library() else ffi.cpu_instruction_set(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "compiler": version[0],
        "commit": commit.stdout.strip(),
    }


def add_speeds(row: dict, num_cores: int, floor: dict) -> dict:
    """Pairs per second and core by wall time, and fractions of the floor by wall and by processor
    time.
    """
    floor_both = 1 / (1 / floor["forward_mpairs"] + 1 / floor["backward_mpairs"])
    row = {**row, "num_cores": num_cores}
    for kind, limit in (("forward", floor["forward_mpairs"]), ("forward_backward", floor_both)):
        core_seconds = row[f"{kind}_s"] * num_cores
        for count in ("nominal", "blended"):
            row[f"{kind}_{count}_mpairs_per_core"] = row[f"{count}_pairs"] / core_seconds / 1e6
        row[f"{kind}_share_of_floor"] = row[f"{kind}_nominal_mpairs_per_core"] / limit
        row[f"{kind}_cpu_share_of_floor"] = (
            row["nominal_pairs"] / row[f"{kind}_cpu_s"] / 1e6 / limit
        )
    return row


def print_table(machine: dict, floor: dict, rows: list[dict]) -> None:
    """The results for people."""
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"floor, one core, {floor['lanes']} lanes: forward {floor['forward_mpairs']:.0f}, backward "
        f"{floor['backward_mpairs']:.0f} Mpair/s; speeds below in Mpair/s and core\n"
    )
    print(
        f"{'scene':8}{'cores':>6}{'surfels':>9}{'nominal':>10}{'blended':>10}{'alpha':>7}  "
        f"{'pass':17}"
        f"{'ms':>9}{'cpu ms':>9}{'nominal':>9}{'blended':>9}{'of floor':>10}{'by cpu ms':>10}"
    )
    for row in rows:
        for kind in ("forward", "forward_backward"):
            print(
                f"{row['scene']:8}{row['num_cores']:6}{row['num_surfels']:9}"
                f"{row['nominal_pairs'] / 1e6:9.1f}M"
                f"{row['blended_pairs'] / 1e6:9.1f}M{row['mean_alpha']:7.2f}  "
                f"{kind.replace('_', ' + '):17}"
                f"{row[f'{kind}_s'] * 1e3:9.1f}{row[f'{kind}_cpu_s'] * 1e3:9.1f}"
                f"{row[f'{kind}_nominal_mpairs_per_core']:9.0f}"
                f"{row[f'{kind}_blended_mpairs_per_core']:9.0f}"
                f"{row[f'{kind}_share_of_floor']:10.2f}{row[f'{kind}_cpu_share_of_floor']:10.2f}"
            )


def print_backends(rows: list[dict]) -> None:
    """The time of each backend over that of the first one."""
    print(
        f"\n{'scene':8}{'cores':>6}  "
        f"{'backend':12}{'forward':>10}{'+ backward':>12}{'by cpu ms':>11}{'+ backward':>12}"
    )
    first = {(row["scene"], row["num_cores"]): row for row in reversed(rows)}
    for row in rows:
        base = first[row["scene"], row["num_cores"]]
        ratios = [
            row[key] / base[key]
            for key in (
                "forward_s",
                "forward_backward_s",
                "forward_cpu_s",
                "forward_backward_cpu_s",
            )
        ]
        print(
            f"{row['scene']:8}{row['num_cores']:6}  "
            f"{row['backend']:12}{ratios[0]:9.2f}x{ratios[1]:11.2f}x{ratios[2]:10.2f}x"
            f"{ratios[3]:11.2f}x"
        )


def parse_arguments() -> argparse.Namespace:
    """Flags, with comma-separated lists split."""
    available = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", default="solid,dense,town", help="of " + ", ".join(SCENES))
    parser.add_argument(
        "--cores",
        default=",".join(str(n + 1) for n in range(len(available))),
        help="numbers of cores",
    )
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--maps", default="geometry", choices=("color", "geometry", "all"))
    parser.add_argument(
        "--backends",
        default="",
        help="compared with the first one; empty = the default of this machine",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--floor_seconds", type=float, default=1.0)
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.scenes = arguments.scenes.split(",")
    arguments.cores = [int(n) for n in arguments.cores.split(",")]
    arguments.backends = arguments.backends.split(",")
    unknown = set(arguments.scenes) - set(SCENES)
    if unknown or max(arguments.cores) > len(available) or min(arguments.cores) < 1:
        parser.error(f"expected scenes of {', '.join(SCENES)} and 1 to {len(available)} cores")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    program.set_environment()  # as `train` does
    host_memory.keep_freed()  # likewise
    image_size = (arguments.height, arguments.width)
    if arguments.measure:
        backend = arguments.backends[0] or None
        row = measure(arguments.measure, image_size, arguments.maps, backend, arguments.repeats)
        print(json.dumps(row))
        return
    if not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit(
            "bench_raster.py compiles the floor with g++ (or $CXX), and there is none; "
            "bench_growth.py does without"
        )
    available = sorted(os.sched_getaffinity(0))
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        floor_command = [build_floor(folder), str(arguments.floor_seconds)]
        floors = [confined(floor_command, available[-1:])]
        timings = []
        for num_cores in arguments.cores:
            for scene, backend in itertools.product(arguments.scenes, arguments.backends):
                command = [
                    sys.executable,
                    __file__,
                    f"--measure={scene}",
                    f"--backends={backend}",
                    f"--maps={arguments.maps}",
                    f"--height={arguments.height}",
                    f"--width={arguments.width}",
                    f"--repeats={arguments.repeats}",
                ]
                timings.append(
                    (confined(command, available[-num_cores:]) | {"backend": backend}, num_cores)
                )
                print(f"{scene} {backend} on {num_cores} core(s) done", file=sys.stderr)
        floors.append(confined(floor_command, available[-1:]))
    floor = {name: max(f[name] for f in floors) for name in floors[0]}
    rows = [add_speeds(row, num_cores, floor) for row, num_cores in timings]
    print_table(machine, floor, rows)
    if len(arguments.backends) > 1:
        print_backends(rows)
    if arguments.out:
        content = {
            "machine": machine,
            "floor": floor,
            "image_size": image_size,
            "maps": arguments.maps,
            "rows": rows,
        }
        pathlib.Path(arguments.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
