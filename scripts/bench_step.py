"""Where the time of a training step goes: data, rasterizer by stage, loss, optimiser, density
control.

python scripts/bench_step.py [--workdir=DIR | --data=DATASET --surfels=100000] [--block=0]
    [--steps=20] [--out=FILE.json]

With --workdir it starts from the checkpoint of a run's device stage, which it does not change; else
from SfM points, repeated up to --surfels. The step is that of one block on one device, which has
all cores.

The parts are measured inside one run: those of the rasterizer by the native CPU library's own
counters while whole steps run (other backends have no such counters), the others as programs of
their own on the same arrays. The floor of a part that moves more than it computes is its bytes over
the memory's speed, which is measured first. The whole step is the photometric one; the one with
SV-Reg and MV-Reg (second view included) stands beside it. The rest is what the whole step takes
beyond its parts. Medians; this is a benchmark on whatever else the machine does, not a test.
"""

import argparse
import ctypes
import itertools
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import host_memory, program, settings_file
from cosurfgs_jax.collab.finished_stages import trainable
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import Layout, make_layout, sharded
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
from cosurfgs_jax.model import initialize, optim
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.batches import BlockViews, Wanted
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.density_steps import DensifyOrder
from cosurfgs_jax.training.partitioned_scene import (
    Block,
    PartitionedScene,
    Photographs,
    open_partitioned_scene,
)
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import init_state, with_surfels
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.workdir import Workdir

STAGES = ("project", "bin", "blend forward", "blend backward", "project backward")


def stage_seconds() -> np.ndarray:
    """What each stage of the rasterizer has taken since the library was loaded."""
    seconds = np.zeros(len(STAGES))
    if not ffi.why_no_cpu_library():
        ffi.load_cpu_library().cosurfgs_stage_seconds(seconds.ctypes.data_as(ctypes.c_void_p))
    return seconds


def memory_speed() -> float:
    """Bytes a second of a + 2 b over arrays that no cache holds, in JAX, best of several."""
    a = jnp.zeros(1 << 26, jnp.float32)
    b = jnp.ones(1 << 26, jnp.float32)
    triad = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a = jax.block_until_ready(triad(a, b))
        best = min(best, time.perf_counter() - started)
    return 3 * a.nbytes / best


def moved_bytes(state, image_size: tuple[int, int]) -> dict[str, float]:
    """What parts must read and write at least: parameters, moments and gradients of surfels; pixels
    of maps.
    """
    floats = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    pixels = image_size[0] * image_size[1]
    features = 128 * state.alive.size  # what the projection writes of a surfel
    return {
        "project": 2 * (floats + features),
        "project backward": 2 * floats + features,
        "optimiser": 7 * floats,
        "loss": pixels * (3 + 4 * 4 + 4 * 4),
    }


def median_ms(function, repeats: int) -> float:
    """Median time of `function`, which must wait for its result."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def first_state(partitioned, block, settings, num_surfels: int):
    """The state before the first step, with the SfM points repeated (and jittered) up to
    `num_surfels`.
    """
    rng = np.random.default_rng(0)
    points = partitioned.scene.cloud.points
    picks = rng.integers(0, len(points), num_surfels)
    spread = 0.3 * np.median(
        np.linalg.norm(np.diff(points[np.lexsort(points[:, :2].T)], axis=0), axis=1)
    )
    jittered = partitioned.frame.to_world(points[picks] + rng.normal(0, spread, (num_surfels, 3)))
    surfels = initialize.surfels_from_points(
        jittered,
        partitioned.scene.cloud.colors[picks],
        num_surfels,
        settings.surfels.sh_degree,
        settings.surfels.init_opacity,
        jax.random.key(settings.seed),
        partitioned.views.centers()[block.views],
    )
    return init_state(surfels, len(block.views), settings, partitioned.max_views, block.length)


def saved_state(partitioned, layout, block, settings, workdir: Workdir):
    """The newest state of a block in the device stage of a run."""
    run = Run(settings, workdir, partitioned, layout, None, None, None)  # restoring needs no more
    folder = workdir.checkpoints("device")
    if not workdir.has_begun() or not folder.exists():
        raise SystemExit(
            f"--workdir={workdir}: expected a run with a checkpoint of its device stage, got none; "
            "train it first"
        )
    with Checkpoints(folder) as checkpoints:
        parts = Parts(last_step=settings.train.steps)
        stage = loop.restore_stage(run, "device", checkpoints, parts)
    # On one device a block is a row.
    return trainable(run, stage).states[block.number]


class Case(NamedTuple):
    """What is measured: one block on one device."""

    partitioned: PartitionedScene
    layout: Layout
    block: Block
    settings: Settings
    repeats: int

    def put(self, tree):
        """A tree of arrays on the device of the block."""
        return self.layout.put(lambda _: tree)


def measure_loss(case: Case, photo) -> float:
    """Milliseconds of the photometric losses, forward and backward."""
    render = jnp.clip(photo[..., :3].astype(jnp.float32) / 255 + 0.05, 0, 1)
    alpha = jnp.full(photo.shape[:2], 0.9)
    weights = case.settings.loss
    weights = PhotometricWeights(weights.ssim_weight, weights.transparency_weight)

    def total(render, alpha, transform):
        return photometric_losses(render, alpha, photo, None, transform, weights).total

    loss = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    identity = jnp.eye(3, 4)
    return median_ms(lambda: jax.block_until_ready(loss(render, alpha, identity)), case.repeats)


def measure_optimizer(case: Case, state) -> tuple[float, tuple]:
    """Milliseconds of Adam, and the parameters and moments afterwards."""
    # As in a step: arguments of a mesh's device, which Adam changes in place.
    length = state.length
    update = sharded(
        lambda p, g, o, a: optim.update(p, g, o, a, case.settings.optim, 0.1, length=length),
        case.layout,
        donate=(0, 2),
    )
    gradient = case.put(jax.tree.map(jnp.ones_like, state.params))
    alive = case.put(state.alive)
    arrays = case.put((state.params, state.optimizer))

    def step_optimizer():
        nonlocal arrays
        params, optimizer = arrays
        arrays = update(params, gradient, optimizer, alive)
        jax.block_until_ready(arrays[0])

    milliseconds = median_ms(step_optimizer, case.repeats)
    return milliseconds, jax.tree.map(jnp.asarray, case.layout.get(tuple(arrays), 0))


def measure_density_control(case: Case, steps, state) -> float:
    """Milliseconds of one round of density control, without the looks of a strategy."""
    number = case.block.number
    size = state.alive.size
    order = case.put(DensifyOrder(np.int32(number), np.int32(0), np.bool_(False), np.int32(size)))
    holder = [case.put(state)]

    def control():
        holder[0], _ = steps.densify(holder[0], order)
        jax.block_until_ready(holder[0])

    return median_ms(control, 3)


def measure(case: Case, state, images) -> dict[str, float]:
    """Milliseconds per part, from a state that is on the device."""
    settings = case.settings
    number = case.block.number
    steps = compile_blocks(settings, case.layout)
    # Feeding needs no more. On one device a block is a row.
    run = Run(settings, Path(), case.partitioned, case.layout, images, None, None)
    feed = BlockViews(run)
    dilation = case.partitioned.dilation(settings)
    batches = itertools.cycle(
        [
            feed.batch(number, step, Wanted(0.5, 3, with_second=True, dilation=dilation))
            for step in range(8)
        ]
    )
    photo = next(batches).photo

    def whole(has_geometry: bool, dilation: int = 1):
        nonlocal state
        batch = next(batches)
        if not has_geometry:
            batch = batch._replace(second=None)
        shape = StepShape(not has_geometry, has_geometry, dilation)
        state, _ = steps.train(state, batch, shape=shape)
        jax.block_until_ready(state)

    whole(False)
    before = stage_seconds()
    parts = {"whole step": median_ms(lambda: whole(False), case.repeats)}
    spent = 1e3 * (stage_seconds() - before) / (case.repeats + 1)
    parts |= dict(zip(STAGES, spent.tolist(), strict=True))
    has_geometry = settings.loss.has_single_view or settings.loss.has_multi_view
    if has_geometry:
        parts["whole step with geometric terms"] = median_ms(lambda: whole(True), case.repeats)
    if dilation > 1:
        parts["dilated step"] = median_ms(lambda: whole(False, dilation), case.repeats)
    if dilation > 1 and has_geometry:
        parts["dilated step with geometric terms"] = median_ms(
            lambda: whole(True, dilation), case.repeats
        )

    own, photo = jax.tree.map(jnp.asarray, case.layout.get((state, photo), 0))
    parts["loss"] = measure_loss(case, photo)
    parts["optimiser"], (params, optimizer) = measure_optimizer(case, own)
    stats = strategy_of(settings.density).init_stats(own.alive.size)
    own = with_surfels(own, params, optimizer, own.alive, stats)
    parts["density control without looks, once"] = measure_density_control(case, steps, own)
    every = max(1, round(settings.density.every * settings.train.steps))
    parts["density control without looks, per step"] = (
        parts["density control without looks, once"] / every
    )
    photographs = Photographs(case.partitioned, images)
    view = int(case.block.views[0])
    parts["data"] = median_ms(
        lambda: jax.block_until_ready(case.put(photographs.load(number, view))), case.repeats
    )
    known = sum(parts[name] for name in (*STAGES, "loss", "optimiser"))
    parts["rest of the step"] = parts["whole step"] - known
    return parts


def main() -> None:
    """Flags to table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="", help="of a trained run")
    parser.add_argument("--data", default="generated", help="dataset folder, or the generated town")
    parser.add_argument("--surfels", type=int, default=100_000)
    parser.add_argument("--block", type=int, default=0, help="number of the block")
    parser.add_argument("--steps", type=int, default=20, help="repeats of each part")
    parser.add_argument("--out", default="", help="JSON file")
    options = parser.parse_args()
    program.set_environment()  # as `train` does
    host_memory.keep_freed()  # likewise
    if options.workdir:
        settings = settings_file.load(Workdir(Path(options.workdir)).config)
    else:
        settings = Settings()
        settings.data.path = options.data
    with tempfile.TemporaryDirectory() as folder:
        partitioned = open_partitioned_scene(settings, Workdir(Path(options.workdir or folder)))
        if not 0 <= options.block < len(partitioned.blocks):
            parser.error(
                f"--block: expected one of the {len(partitioned.blocks)} blocks (0 is the first), "
                f"got {options.block}"
            )
        block = partitioned.blocks[options.block]
        layout = make_layout(partitioned.partition.edge_of_block, num_devices=1)
        if options.workdir:
            state = saved_state(
                partitioned, layout, block, settings, Workdir(Path(options.workdir))
            )
        else:
            first = first_state(partitioned, block, settings, options.surfels)
            state = layout.put(lambda _: first)
        num_surfels = int(state.alive.sum())
        height, width = partitioned.photo_size or partitioned.views.image_size(int(block.views[0]))
        speed = memory_speed()
        floors = {
            name: 1e3 * size / speed
            for name, size in moved_bytes(layout.get(state, 0), (height, width)).items()
        }
        with ImageStore(partitioned.scene, settings.data.host_memory_mb) as images:
            case = Case(partitioned, layout, block, settings, options.steps)
            parts = measure(case, state, images)
    if why_not := ffi.why_no_cpu_library():
        kernel = f"no native kernel ({why_not})"
    else:
        kernel = ffi.cpu_instruction_set()
    machine = (
        f"{platform.machine()}, {jax.devices()[0].device_kind}, {kernel}, jax {jax.__version__}"
    )
    print(f"{partitioned.scene.name}, {width}x{height}, {num_surfels:,d} surfels; {machine}")
    for name, value in parts.items():
        floor = f"   floor {floors[name]:6.2f} ms" if name in floors else ""
        print(f"  {name:32s} {value:8.2f} ms  {100 * value / parts['whole step']:5.1f} %{floor}")
    if raster := sum(parts[name] for name in STAGES):
        print(f"  the rasterizer is {100 * raster / parts['whole step']:.0f} % of the step")
    if options.out:
        Path(options.out).write_text(
            json.dumps({"machine": machine, "parts_ms": parts, "floors_ms": floors}, indent=2)
        )


if __name__ == "__main__":
    main()
