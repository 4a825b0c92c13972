"""Where the time and memory of a mesh go: exact depth of the generated town, from depth maps to the
file.

python scripts/bench_fusion.py [--data=TOWN] [--views=100] [--voxel_size=0] [--memory_mb=2048]
[--scores] [--out=FILE.json]

The town is made first (it is not timed) unless --data names one. Depth comes from its ground truth,
colours from its photographs; everything else is as `extract_mesh` does it by default. A phase's
seconds are those between the calls of `progress`; the first, "load maps", is reading the exact maps
and what a view shows by itself. CPU seconds tell more than wall seconds on a busy machine. --scores
adds precision, recall and F1 against the true surface: the ceiling of what any trained model can
reach. This is a benchmark on whatever else the machine does, not a test."""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, SurfaceSettings
from cosurfgs_jax.surface import PHASES, extract_mesh, read_mesh_ply

NAMES = {
    "render depth": "load maps",
    "filter depth": "filter with neighbours",
    "find blocks": "touched blocks",
    "fuse": "integrate",
    "extract": "extract",
    "smooth": "join, clean, smooth",
    "write": "write",
}


class Stopwatch:
    """Seconds, CPU seconds and peak memory per phase, from the calls of `progress`."""

    def __init__(self):
        self.phases = {
            name: {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0} for name in PHASES
        }
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def tell(self, what: str, done: int, total: int) -> None:
        """What was done since the last call was `what`."""
        wall = time.perf_counter()
        cpu = time.process_time()
        phase = self.phases[what]
        phase["seconds"] += wall - self._wall
        phase["cpu_seconds"] += cpu - self._cpu
        phase["peak_mb"] = peak_mb()
        self._wall = time.perf_counter()
        self._cpu = time.process_time()


def peak_mb() -> float:
    """The largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exact_maps(scene, images):
    """View number -> the maps that a perfect model would render."""

    def render(view: int) -> dict[str, np.ndarray]:
        with np.load(scene.ground_truth.depth_path(view)) as maps:
            depth = maps["depth"]
            normal = maps["normal"]
        return {
            "color": images.load(view)[..., :3] / np.float32(255),
            "alpha": (depth > 0).astype(np.float32),
            "depth": depth,
            "median_depth": depth,
            "plane_depth": depth,
            "normal": normal,
        }

    return render


def main() -> None:
    """Flags to table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="generated", help="folder of a generated town; by default it is made anew"
    )
    parser.add_argument("--views", type=int, default=100)
    parser.add_argument("--voxel_size", type=float, default=0.0)
    parser.add_argument("--memory_mb", type=int, default=SurfaceSettings.memory_mb)
    parser.add_argument(
        "--min_neighbor_views", type=int, default=SurfaceSettings.min_neighbor_views
    )
    parser.add_argument(
        "--scores", action="store_true", help="against the true surface; minutes more"
    )
    parser.add_argument("--out", default="", help="JSON file")
    options = parser.parse_args()
    settings = SurfaceSettings(
        voxel_size=options.voxel_size,
        memory_mb=options.memory_mb,
        min_neighbor_views=options.min_neighbor_views,
    )
    with tempfile.TemporaryDirectory() as folder:
        scene = load_scene(
            DataSettings(path=options.data), GeneratedSettings(num_views=options.views), folder
        )
        views = np.arange(min(options.views, scene.num_views))
        path = Path(folder) / "mesh.ply"
        before_mb = peak_mb()
        with ImageStore(scene, 64) as images:
            watch = Stopwatch()
            info = extract_mesh(
                exact_maps(scene, images),
                scene,
                views,
                settings,
                path,
                scratch_dir=folder,
                progress=watch.tell,
            )
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "views": len(views),
            "before_mb": before_mb,
            "peak_mb": peak_mb(),
            "phases": {NAMES[name]: numbers for name, numbers in watch.phases.items()},
            **info,
        }
        if options.scores:
            mesh = read_mesh_ply(path)
            comparison = evaluation.compare_to_truth((mesh.vertices, mesh.triangles), scene)
            result["geometry"] = comparison.scores
    size = "x".join(map(str, scene.views.image_sizes[0][::-1]))
    print(
        f"{scene.name}, {len(views)} views of {size}, "
        "voxel size "
        f"{info['voxel_size']:.4g}; {result['machine']}"
    )
    rows = [
        *result["phases"].items(),
        (
            "sum",
            {
                key: sum(row[key] for row in result["phases"].values())
                for key in ("seconds", "cpu_seconds")
            }
            | {"peak_mb": result["peak_mb"]},
        ),
    ]
    for name, row in rows:
        print(
            f"  {name:24s} {row['seconds']:8.1f} s {row['cpu_seconds']:8.1f} CPU s   peak "
            f"{row['peak_mb']:6.0f} MB"
        )
    print(
        f"  {info['num_blocks']:,d} blocks ({info['num_voxels'] / 1e6:.1f} million voxels) in "
        f"{info['num_tiles']} tiles, "
        f"{info['num_triangles']:,d} triangles"
    )
    for row in (result.get("geometry") or {}).get("thresholds", []):
        print(
            f"  at {row['tau']:.3f} m: precision {row['precision']:.4f}, recall "
            f"{row['recall']:.4f}, F1 {row['f1']:.4f}"
        )
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2, default=float))


if __name__ == "__main__":
    main()
