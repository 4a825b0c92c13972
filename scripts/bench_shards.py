"""What outputs need by shards and in one process: a place with a model of any size, without
training, and the peak memory, seconds and files of each command.

python scripts/bench_shards.py --workdir=DIR [--surfels=4000000] [--blocks=16] [--size=400]
[--views=160] [--width=320] [--shards=4] [--commands=evaluate,extract_mesh,export]
[--options=--config.surface.memory_mb=256]

The place is a generated town, and its model the true surface: a disc for every place of an even
random sample of it, saved as the last stage of a run. The workdir is made if it is missing. Every
command runs in one process, then by shards, one after the other, and the files are compared; a
process each, whose peak is what the system says of it when it ends. Times are of one run on
whatever else the machine does. This is a benchmark, not a test."""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cosurfgs_jax import program, settings_file
from cosurfgs_jax.collab.stages import note_plan, stages_of
from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.metrics import sample_mesh
from cosurfgs_jax.settings import (
    AppearanceSettings,
    GeneratedSettings,
    PartitionSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, open_partitioned_scene
from cosurfgs_jax.types import Surfels, on_host
from cosurfgs_jax.workdir import Workdir

_OVERLAP = 0.7  # standard deviation of a disc, in distances between discs
_LOGIT = 4.0
_STEPS = 10
_FILES = (
    "metrics.json",
    "results.json",
    "per_view.json",
    "test/**/*.png",
    "test/**/*.json",
    "mesh/mesh.ply",
    "mesh/mesh.json",
    "export/*",
)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Of the run."""
    return Settings(
        generated=GeneratedSettings(
            num_views=arguments.views,
            width=arguments.width,
            height=arguments.width * 3 // 4,
            size_m=arguments.size,
        ),
        surfels=SurfelSettings(sh_degree=arguments.sh_degree),
        appearance=AppearanceSettings(enabled=False),
        partition=PartitionSettings(num_blocks=arguments.blocks, num_edges=1, min_views=1),
        train=TrainSettings(steps=_STEPS),
    )


def model_of(partitioned: PartitionedScene, arguments: argparse.Namespace) -> Surfels:
    """Discs all over the true surface, world frame."""
    truth = partitioned.scene.ground_truth
    corners = truth.mesh_vertices[truth.mesh_triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1).sum() / 2
    points, triangles, _ = sample_mesh(truth.mesh_vertices, truth.mesh_triangles, arguments.surfels)
    normals = across[triangles] / np.linalg.norm(across[triangles], axis=1)[:, None]
    x, y, z = (normals @ partitioned.frame.rotation.T).T
    quats = np.stack([1 + z, -y, x, np.zeros(len(x))], axis=1)  # the shortest turn from +z
    quats[quats[:, 0] < 1e-6] = [0, 1, 0, 0]  # half a turn for what looks straight down
    size = _OVERLAP * np.sqrt(area / len(points)) * partitioned.frame.scale
    num_sh = (arguments.sh_degree + 1) ** 2
    sh = np.random.default_rng(0).normal(0, 0.01, (len(points), num_sh, 3)).astype(np.float32)
    sh[:, 0] = 0.4 * np.sin(points * [0.3, 0.4, 0.7]) / C0
    return Surfels(
        means=on_host(partitioned.frame.to_world(points).astype(np.float32)),
        quats=on_host((quats / np.linalg.norm(quats, axis=1)[:, None]).astype(np.float32)),
        log_scales=on_host(np.full((len(points), 2), np.log(size), np.float32)),
        logit_opacities=on_host(np.full(len(points), _LOGIT, np.float32)),
        sh=on_host(sh),
        alive=on_host(np.ones(len(points), bool)),
    )


def make(workdir: Workdir, arguments: argparse.Namespace) -> None:
    """The workdir of a run that has ended, each block on a device of its own."""
    settings = settings_of(arguments)
    partitioned = open_partitioned_scene(settings, workdir)
    num_blocks = len(partitioned.blocks)
    model = model_of(partitioned, arguments)
    cells = partitioned.partition.cell_of(np.asarray(model.means))
    num_slots = int(np.bincount(cells, minlength=num_blocks).max())
    mesh = jax.make_mesh((num_blocks,), ("blocks",), devices=jax.devices()[:num_blocks])

    def of_blocks(values: np.ndarray) -> jax.Array:
        table = np.zeros((num_blocks, num_slots, *values.shape[1:]), values.dtype)
        for block in range(num_blocks):
            own = values[cells == block]
            table[block, : len(own)] = own
        return put(table)

    def put(table: np.ndarray) -> jax.Array:
        return jax.device_put(table, NamedSharding(mesh, PartitionSpec("blocks")))

    blocks = partitioned.blocks
    state = {
        "params": jax.tree.map(of_blocks, model.params),
        "alive": of_blocks(np.asarray(model.alive)),
        "num_views": put(np.array([len(block.views) for block in blocks], np.int32)),
        "length": put(np.array([block.length for block in blocks], np.float32)),
    }
    meta = {
        "num_slots": num_slots,
        "max_views": partitioned.max_views,
        "num_blocks": num_blocks,
        **partitioned.identity(),
    }
    spec = stages_of(settings, partitioned.partition)[-1]
    with Checkpoints(workdir.checkpoints(spec.name)) as checkpoints:
        checkpoints.save(spec.num_steps(settings), state, meta)
        checkpoints.wait()
    note_plan(settings, workdir, partitioned.partition)
    settings_file.save(settings, workdir.config)
    settings_file.save(settings, workdir.made_with)


def measured(command: list[str]) -> tuple[float, float, float]:
    """Runs a command; its peak memory in MiB, seconds and seconds of processor time."""
    started = time.monotonic()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{shlex.join(command)} failed")
    return (
        usage.ru_maxrss / 1024,
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
    )


def digests(root: Path) -> dict[str, str]:
    """Of all output files."""
    paths = sorted({path for pattern in _FILES for path in root.glob(pattern) if path.is_file()})
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def bench(workdir: Workdir, name: str, arguments: argparse.Namespace) -> None:
    """A row for one process, one for each shard, one for the merge; and whether files differ."""
    base = [sys.executable, "-m", f"cosurfgs_jax.{name}", f"--workdir={workdir.root}"]
    base += shlex.split(arguments.options)
    rows = [("one process", base)]
    for number in range(arguments.shards):
        part = f"{number}/{arguments.shards}"
        rows.append((f"shard {part}", [*base, f"--shard={part}"]))
    rows.append(("merge", base))
    before = {}
    for label, command in rows:
        peak, seconds, cpu = measured(command)
        print(f"| {name} | {label} | {peak:.0f} | {seconds:.1f} | {cpu:.1f} |", flush=True)
        if label == "one process":
            before = digests(workdir.root)
    after = digests(workdir.root)
    differing = [path for path in before | after if before.get(path) != after.get(path)]
    print(f"{name}: {len(after)} files, differing: {differing or 'none'}", flush=True)


def main() -> None:
    """Flags -> rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    for name, default in {
        "surfels": 4_000_000,
        "blocks": 16,
        "size": 400,
        "views": 160,
        "width": 320,
        "sh_degree": 3,
        "shards": 4,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--commands", default="evaluate,extract_mesh,export")
    parser.add_argument("--options", default="")
    arguments = parser.parse_args()
    workdir = Workdir(arguments.workdir.absolute())
    if not workdir.has_begun() and arguments.commands:
        # In a process of its own: the peak of a command is at least that of who starts it.
        subprocess.run([sys.executable, *sys.argv, "--commands="], check=True)
    elif not workdir.has_begun():
        program.start_devices(arguments.blocks)
        make(workdir, arguments)
    print("| command | process | peak MiB | seconds | processor seconds |")
    print("|---|---|---|---|---|")
    for name in filter(None, arguments.commands.split(",")):
        bench(workdir, name, arguments)


if __name__ == "__main__":
    main()
