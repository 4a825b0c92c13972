"""What a device holds and sends in a step of distillation (MAS) when the place grows with the
number of devices.

python scripts/scaling.py [--devices=2,4,8,16] [--surfels=50000] [--height=240 --width=320]
[--out=FILE.json]

One cell a device; the place doubles with the devices, as a corridor (a river, a street: each cell
has two neighbours) or as a square (eight). Nothing is run: the step is compiled for a mesh of
virtual CPU devices, and memory and collectives are read from the compiled program
(`memory_analysis`, and the sizes of what the collectives move)."""

import argparse
import json
import os
import subprocess
import sys

import numpy as np


def neighbors(num_devices: int, shape: str) -> np.ndarray:
    """f64[D,D]: 1 where two cells touch."""
    width = 1 if shape == "corridor" else 2 ** (int(np.log2(num_devices)) // 2)
    x, y = np.divmod(np.arange(num_devices), width)
    touch = (abs(x[:, None] - x[None]) <= 1) & (abs(y[:, None] - y[None]) <= 1)
    return (touch & ~np.eye(num_devices, dtype=bool)).astype(np.float64)


def measure(num_devices: int, shape: str, num_surfels: int, height: int, width: int) -> dict:
    """One row of the table; in a process whose JAX has that many devices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from cosurfgs_jax.collab.aggregate import MasBatch, TaughtView, compile_step
    from cosurfgs_jax.collab.composite import RenderRequests
    from cosurfgs_jax.collab.exchange import plan_exchange
    from cosurfgs_jax.collab.traffic import collectives
    from cosurfgs_jax.distributed.layout import SPEC, make_layout
    from cosurfgs_jax.losses.inputs import SecondView, TeacherMaps
    from cosurfgs_jax.settings import Settings
    from cosurfgs_jax.training.state import abstract_state
    from cosurfgs_jax.types import Camera

    settings = Settings()
    layout = make_layout(np.zeros(num_devices, np.int64))
    exchange = plan_exchange(
        (1, num_devices),
        neighbors(num_devices, shape),
        False,
        settings.mas.max_partners,
        largest_all_to_all=0,
    )
    slots = exchange.num_slots
    f32 = jnp.float32
    i32 = jnp.int32
    u8 = jnp.uint8

    def array(kind, *dims):
        return jax.ShapeDtypeStruct(
            (num_devices, *dims), kind, sharding=NamedSharding(layout.mesh, SPEC)
        )

    def cameras(*dims):
        return Camera(array(f32, *dims, 4, 4), array(f32, *dims, 3, 3))

    state = jax.tree.map(
        lambda leaf: array(leaf.dtype, *leaf.shape), abstract_state(num_surfels, 100, settings)
    )
    image = (1, height, width)
    batch = MasBatch(
        RenderRequests(cameras(1, slots), cameras(1), array(i32, 1, slots)),
        array(u8, *image, 3),
        array(i32, 1),
        TeacherMaps(
            array(u8, *image, 3),
            array(u8, *image),
            array(f32, *image),
            array(f32, *image),
            array(jnp.int8, *image, 3),
        ),
        array(jnp.bool_, 1),
        array(f32),
        TaughtView(
            SecondView(cameras(1), array(u8, *image, 3), array(jnp.bool_, 1), array(i32, 1, 2)),
            array(f32, *image),
        ),
    )
    compiled = compile_step(settings, layout, exchange).lower([state], batch).compile()
    memory = compiled.memory_analysis()
    moves = collectives(compiled.as_text())
    return {
        "shape": shape,
        "devices": num_devices,
        "partners": exchange.num_sent,
        "rounds": len(exchange.rounds),
        "bytes_held": memory.argument_size_in_bytes,
        "bytes_temporary": memory.temp_size_in_bytes,
        "bytes_moved": sum(move.num_bytes for move in moves),
        "collectives": len(moves),
        "bytes_photo_moved": sum(move.num_bytes for move in moves if "u8" in move.dtypes),
    }


def main() -> None:
    """Flags -> a process for each size -> table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="2,4,8,16")
    parser.add_argument("--surfels", type=int, default=50_000)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--out", default="")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        number, shape = arguments.one.split(",")
        print(
            json.dumps(
                measure(int(number), shape, arguments.surfels, arguments.height, arguments.width)
            )
        )
        return
    rows = []
    for shape in ("corridor", "square"):
        for number in arguments.devices.split(","):
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": number, "JAX_PLATFORMS": "cpu"}
            result = subprocess.run(
                [sys.executable, __file__, f"--one={number},{shape}", *sys.argv[1:]],
                env=environment,
                capture_output=True,
                text=True,
            )
            if result.returncode:
                sys.exit(result.stderr)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
    print(
        "| place | devices | partners | held by a device | temporary | moved a step and device | "
        "of it photographs |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        sizes = [
            f"{row[key] / 2**20:.1f} MiB"
            for key in ("bytes_held", "bytes_temporary", "bytes_moved", "bytes_photo_moved")
        ]
        print(f"| {row['shape']} | {row['devices']} | {row['partners']} | {' | '.join(sizes)} |")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
