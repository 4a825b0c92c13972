"""Where the time of a training step goes: data, rasterizer by stage, loss, optimiser, density control.

python scripts/bench_step.py [--workdir=DIR | --data=DATASET --surfels=100000] [--steps=20] [--out=FILE.json]

With --workdir it goes on from the checkpoint of a run, which it leaves alone; else from SfM points, repeated up to --surfels.

The parts are measured inside one run: those of the rasterizer by the library's own counters while whole steps run, the others as
programs of their own on the same arrays. The rest is what the whole step takes beyond its parts. Medians; this is a benchmark on
whatever else the machine does, not a test.
"""

import argparse
import ctypes
import json
import platform
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import density, optim, settings_file
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.losses.photometric import photometric_loss
from cosurfgs_jax.raster import ffi
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.state import with_surfels
from cosurfgs_jax.training.step import Batch, StepShape, compile_steps

STAGES = ("project", "bin", "blend forward", "blend backward", "project backward")


def stage_seconds() -> np.ndarray:
    """What each stage of the rasterizer has taken since the library was loaded."""
    seconds = np.zeros(len(STAGES))
    ffi.load_cpu_library().cosurfgs_stage_seconds(seconds.ctypes.data_as(ctypes.c_void_p))
    return seconds


def median_ms(function, repeats: int) -> float:
    """Median time of `function`, which must wait for its result."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def first_state(place, settings, num_surfels: int):
    """The state before the first step, with each SfM point repeated (and jittered) up to `num_surfels`."""
    rng = np.random.default_rng(0)
    points = place.scene.points
    picks = rng.integers(0, len(points), num_surfels)
    spread = 0.3 * np.median(np.linalg.norm(np.diff(points[np.lexsort(points[:, :2].T)], axis=0), axis=1))
    object.__setattr__(place.scene, "point_colors", place.scene.point_colors[picks])
    object.__setattr__(place.scene, "points", points[picks] + rng.normal(0, spread, (num_surfels, 3)))
    return loop.first_state(place, settings, num_surfels)


def measure(place, settings, state, images, repeats: int) -> dict[str, float]:
    """Milliseconds per part."""
    steps, views = compile_steps(settings), place.scene.train_views
    batches = []
    for view in views[:: max(1, len(views) // 8)][:8]:
        batches.append(Batch(place.views.camera(view), jnp.asarray(images.load(view)), jnp.asarray(view, jnp.int32),
                             jnp.float32(0.1), jnp.int32(3)))
    shape, holder = StepShape(is_densifying=True), {"state": state, "at": 0}

    def whole():
        batch = batches[holder["at"] % len(batches)]
        holder["at"] += 1
        holder["state"], report = steps.train(holder["state"], batch, shape=shape)
        jax.block_until_ready(holder["state"])

    whole()
    before = stage_seconds()
    parts = {"whole step": median_ms(whole, repeats)}
    spent = 1e3 * (stage_seconds() - before) / (repeats + 1)
    parts |= dict(zip(STAGES, spent.tolist(), strict=True))

    state, photo = holder["state"], batches[0].photo
    image = jnp.asarray(photo[..., :3], jnp.float32) / 255
    render = jnp.clip(image + 0.05, 0, 1)
    loss = jax.jit(jax.value_and_grad(lambda x: photometric_loss(
        x, x, jnp.asarray(photo[..., :3], jnp.float32) / 255, None, 0.2)))
    parts["loss"] = median_ms(lambda: jax.block_until_ready(loss(render)), repeats)

    update = jax.jit(lambda p, g, o, a: optim.update(p, g, o, a, settings.optim, 0.1), donate_argnums=(0, 2))
    gradient = jax.tree.map(jnp.ones_like, state.params)

    def step_optimizer():
        holder["params"], holder["optimizer"] = update(holder["params"], gradient, holder["optimizer"], state.alive)
        jax.block_until_ready(holder["params"])

    holder["params"], holder["optimizer"] = jax.tree.map(jnp.copy, (state.params, state.optimizer))
    parts["optimiser"] = median_ms(step_optimizer, repeats)
    state = with_surfels(state, holder["params"], holder["optimizer"], state.alive, density.init_stats(state.alive.size))
    holder["state"] = state

    def control():
        holder["state"], _ = steps.densify(holder["state"], jax.random.key(0), False, state.alive.size)
        jax.block_until_ready(holder["state"])

    parts["density control, once"] = median_ms(control, 3)
    every = max(1, round(settings.density.every * settings.train.steps))
    parts["density control, per step"] = parts["density control, once"] / every
    parts["data"] = median_ms(lambda: jax.block_until_ready(jnp.asarray(images.load(views[0]))), repeats)
    known = sum(parts[name] for name in (*STAGES, "loss", "optimiser"))
    parts["rest of the step"] = parts["whole step"] - known
    return parts


def main() -> None:
    """Flags to table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="", help="of a trained run")
    parser.add_argument("--data", default="generated", help="dataset folder, or the generated town")
    parser.add_argument("--surfels", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=20, help="repeats of each part")
    parser.add_argument("--out", default="", help="JSON file")
    options = parser.parse_args()
    settings = settings_file.load(Path(options.workdir) / settings_file.NAME) if options.workdir else Settings()
    if not options.workdir:
        settings.data.path = options.data
    with tempfile.TemporaryDirectory() as folder:
        place = loop.open_place(settings, Path(options.workdir or folder))
        if options.workdir:
            with Checkpoints(Path(options.workdir) / "checkpoints") as checkpoints:
                state = loop.restore(checkpoints, place, settings).state
        else:
            state = first_state(place, settings, options.surfels)
        num_surfels = int(state.alive.sum())
        with ImageStore(place.scene, settings.data.host_memory_mb) as images:
            parts = measure(place, settings, state, images, options.steps)
    height, width = place.views.image_size(0)
    machine = f"{platform.machine()}, {ffi.cpu_instruction_set()}, {jax.local_device_count()} device(s), jax {jax.__version__}"
    print(f"{place.scene.name}, {width}x{height}, {num_surfels:,d} surfels; {machine}")
    for name, value in parts.items():
        print(f"  {name:28s} {value:8.2f} ms  {100 * value / parts['whole step']:5.1f} %")
    raster = sum(parts[name] for name in STAGES)
    print(f"  the rasterizer is {100 * raster / parts['whole step']:.0f} % of the step")
    if options.out:
        Path(options.out).write_text(json.dumps({"machine": machine, "parts_ms": parts}, indent=2))


if __name__ == "__main__":
    main()
