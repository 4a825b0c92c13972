"""How the time of the rasterizer and of a whole training step grows: with surfels, pixels and
views.

python scripts/bench_growth.py [--surfels=10000,...] [--sizes=640x480,...] [--views=1,2,4,8]
    [--backend=NAME] [--out=FILE.json] [--plot=FILE.svg]

The scene is the cloud "town" of bench_raster.py: surfels that cover every pixel about equally
often, whatever their number (more are smaller) and whatever the image's size (it shows the same in
more pixels). "raster" is forward and backward of colour, depth, normals; "step" is the training
step of one photograph with SV-Reg and MV-Reg (second view included); "views" is a batch of cameras.
Each case runs in a process of its own, so that its memory can be measured. Medians; exponents are
slopes of straight lines through the logarithms of the larger half of each row, where fixed costs no
longer show. A benchmark, not a test."""

import argparse
import dataclasses
import json
import math
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
from bench_raster import Scene, build_scene, describe_machine

from cosurfgs_jax import host_memory, program

# Of 150,000 surfels at 512 pixels' width, as in bench_raster.SCENES["town"].
_NUM = 150_000
_WIDTH = 512
_SIZE_PX = (1.0, 3.0)
_COLORS = {"raster": "#2b6cb0", "step": "#c05621"}


def town(num_surfels: int, width: int) -> Scene:
    """As many layers of surfels over each pixel as in "town"."""
    scale = math.sqrt(_NUM / num_surfels) * width / _WIDTH
    return Scene(num_surfels, (_SIZE_PX[0] * scale, _SIZE_PX[1] * scale), (0.1, 0.95))


def median_seconds(function, max_seconds: float) -> float:
    """Median over at least three calls, and about as many as fit into the time."""
    function()
    times = []
    while len(times) < 3 or (sum(times) < max_seconds and len(times) < 50):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure(
    num_surfels: int, size: tuple[int, int], num_views: int, backend: str | None, seconds: float
) -> dict:
    """One case, in this process."""
    import jax
    import jax.numpy as jnp

    from cosurfgs_jax import Camera, Surfels, rasterize
    from cosurfgs_jax.losses.inputs import SecondView
    from cosurfgs_jax.settings import Settings
    from cosurfgs_jax.training.state import init_state
    from cosurfgs_jax.training.step import Batch, StepShape, train_step

    width, height = size
    arrays = build_scene(town(num_surfels, width), (height, width))
    surfels = Surfels(
        **{field.name: jnp.asarray(arrays[field.name]) for field in dataclasses.fields(Surfels)}
    )
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))
    poses = (
        jnp.broadcast_to(camera.camera_from_world, (num_views, 4, 4))
        .at[:, 0, 3]
        .add(0.01 * jnp.arange(num_views))
    )
    cameras = Camera(poses, jnp.broadcast_to(camera.intrinsics, (num_views, 3, 3)))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(height, width, 3)), jnp.float32)

    def loss(surfels, weights):
        out = rasterize(
            surfels, cameras, image_size=(height, width), maps="geometry", backend=backend
        )
        return ((out.color + out.normal) * weights).sum() + (
            out.plane_depth * weights[..., 0]
        ).sum()

    gradient = jax.jit(jax.value_and_grad(loss, allow_int=True))
    row = {"surfels": num_surfels, "width": width, "height": height, "views": num_views}
    row["raster_s"] = median_seconds(
        lambda: jax.block_until_ready(gradient(surfels, weights)), seconds
    )
    if num_views == 1:
        settings = Settings()
        settings.raster.backend = backend or ""
        photo = np.random.default_rng(2).integers(0, 255, (height, width, 3), np.uint8)
        neighbor = Camera(camera.camera_from_world.at[0, 3].add(0.05), camera.intrinsics)
        second = SecondView(neighbor, photo, np.bool_(True), np.zeros(2, np.int32))
        batch = Batch(camera, photo, np.int32(0), np.float32(0.5), np.int32(3), second)
        step = jax.jit(
            lambda state, batch: train_step(
                state, batch, settings, StepShape(is_densifying=True, has_geometry=True)
            ),
            donate_argnums=0,
        )
        holder = {"state": init_state(surfels, 1, settings)}

        def advance():
            holder["state"], report = step(holder["state"], batch)
            jax.block_until_ready((holder["state"], report))

        row["step_s"] = median_seconds(advance, seconds)
    return row | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log(time) over log(size), of the larger half of the sizes (at least three)."""
    count = max(3, (len(sizes) + 1) // 2)
    return float(np.polyfit(np.log(sizes[-count:]), np.log(seconds[-count:]), 1)[0])


def log_plot(rows: dict[str, list[dict]], exponents: dict[str, dict[str, float]]) -> str:
    """The rows side by side on logarithmic axes, as an SVG picture."""
    panel = 260
    height = 240
    left = 52
    bottom = 42
    times = [
        row[f"{kind}_s"]
        for group in rows.values()
        for row in group
        for kind in _COLORS
        if f"{kind}_s" in row
    ]
    low = math.floor(math.log10(min(times) * 1e3))
    high = math.ceil(math.log10(max(times) * 1e3))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {panel * len(rows) + 20} {height}" '
        'font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]

    def y_of(milliseconds: float) -> float:
        return (
            height
            - bottom
            - (math.log10(milliseconds) - low) / (high - low) * (height - bottom - 34)
        )

    for number, (name, group) in enumerate(rows.items()):
        x0 = left + panel * number
        sizes = [row["size"] for row in group]
        span = math.log10(sizes[-1] / sizes[0]) or 1.0
        parts.append(f'<text x="{x0}" y="16" font-size="13">time over {name}</text>')
        for power in range(low, high + 1):
            y = y_of(10.0**power)
            parts.append(
                f'<line x1="{x0}" x2="{x0 + panel - 70}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>'
            )
        places = [x0 + math.log10(size / sizes[0]) / span * (panel - 70) for size in sizes]
        for x, row in zip(places, group, strict=True):
            parts.append(
                f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle" '
                f'font-size="9">{row["label"]}</text>'
            )
        for line, (kind, color) in enumerate(_COLORS.items()):
            if any(f"{kind}_s" not in row for row in group):
                continue
            points = [
                f"{x:.1f},{y_of(1e3 * row[f'{kind}_s']):.1f}"
                for x, row in zip(places, group, strict=True)
            ]
            parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" '
                'stroke-width="1.8"/>'
                f'<text x="{x0 + 95 * line}" y="{height - 8}" fill="{color}">{kind}: exponent '
                f"{exponents[name][kind]:.2f}</text>"
            )
    return "".join(parts) + "</svg>\n"


def make_cases(options: argparse.Namespace) -> dict[str, list[tuple[int, int, int, int, int]]]:
    """(surfels, width, height, views, size on the axis) of each case, by what grows."""
    numbers = [int(text) for text in options.surfels.split(",") if text]
    views = [int(text) for text in options.views.split(",") if text]
    sizes = [tuple(map(int, text.split("x"))) for text in options.sizes.split(",") if text]
    many = 100_000
    cases = {
        "surfels": [(num, *sizes[0], 1, num) for num in numbers],
        "pixels": [(many, *size, 1, size[0] * size[1]) for size in sizes],
        "views": [(many, *sizes[0], count, count) for count in views],
    }
    if options.largest:
        cases["largest"] = [(numbers[-1], *sizes[-1], 1, 1)]
    return cases


def measure_all(cases: dict, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Measures every case in a process of its own, and prints a row of each."""
    print(
        f"{'over':9}{'surfels':>10}{'image':>11}{'views':>6}"
        f"{'raster ms':>11}{'step ms':>10}{'peak MiB':>10}"
    )
    rows: dict[str, list[dict]] = {}
    for name, group in cases.items():
        for num, width, height, count, size in group:
            command = [
                sys.executable,
                __file__,
                f"--case={num},{width},{height},{count}",
                f"--backend={options.backend}",
                f"--seconds={options.seconds}",
            ]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            label = f"{size:,d}"
            if name == "pixels":
                label = f"{width}x{height}"
            row = json.loads(output.splitlines()[-1]) | {"size": size, "label": label}
            rows.setdefault(name, []).append(row)
            step = f"{1e3 * row['step_s']:.1f}" if "step_s" in row else ""
            print(
                f"{name:9}{num:10,d}{width:6d}x{height:<4d}{count:6d}"
                f"{1e3 * row['raster_s']:11.1f}{step:>10}"
                f"{row['peak_bytes'] / 2**20:10.0f}",
                flush=True,
            )
    return rows


def exponents_of(group: list[dict]) -> dict[str, float]:
    """The exponent of each time that all rows have."""
    sizes = [row["size"] for row in group]
    kinds = [kind for kind in _COLORS if all(f"{kind}_s" in row for row in group)]
    return {kind: exponent(sizes, [row[f"{kind}_s"] for row in group]) for kind in kinds}


def main() -> None:
    """Flags -> cases -> table, JSON, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--surfels", default="10000,30000,100000,300000,1000000", help="numbers, at the first size"
    )
    parser.add_argument(
        "--sizes",
        default="640x480,1280x720,1920x1080,2560x1440,3840x2160",
        help="of the image, 100,000 surfels",
    )
    parser.add_argument(
        "--views", default="1,2,4,8", help="cameras in a batch, 100,000 surfels, first size"
    )
    parser.add_argument(
        "--largest", action="store_true", help="one case more: the most surfels at the largest size"
    )
    parser.add_argument("--backend", default="")
    parser.add_argument("--seconds", type=float, default=5.0, help="to spend on a measurement")
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--plot", default="", help="SVG file")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    program.set_environment()  # as `train` does
    host_memory.keep_freed()  # likewise
    if options.case:
        num, width, height, views = map(int, options.case.split(","))
        print(
            json.dumps(
                measure(num, (width, height), views, options.backend or None, options.seconds)
            )
        )
        return
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    rows = measure_all(make_cases(options), options)
    curves = {name: group for name, group in rows.items() if len(group) >= 3}
    exponents = {name: exponents_of(group) for name, group in curves.items()}
    for name, found in exponents.items():
        values = ", ".join(f"{kind} {value:.2f}" for kind, value in found.items())
        print(f"exponent over {name}: {values}")
    if options.out:
        content = {"machine": describe_machine(), "rows": rows, "exponents": exponents}
        pathlib.Path(options.out).write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        pathlib.Path(options.plot).write_text(log_plot(curves, exponents))


if __name__ == "__main__":
    main()
