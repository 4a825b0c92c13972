"""What the blend kernels of the CUDA library cost, counted without a GPU: instructions of the
machine code, work of a scene.

python scripts/count_gpu_instructions.py [--nvdisasm=PATH] [--arch=sm_90]
    [--scenes=100000x1920x1080,1000000x1920x1080] [--source=cosurfgs_jax/native/csrc]
    [--multiprocessors=132] [--ghz=1.75] [--issue=0.7]

The machine code is what nvcc makes of gpu/cuda_blend.cu, as nvdisasm shows it (of the CUDA toolkit,
or of the package nvidia-cuda-nvdisasm; also $NVDISASM). In each kernel the loop over the surfels
that a warp visits is the innermost one with an exponential in it. The instructions of a visit are
those on the shortest way round the loop ("no_hit"), or on the longest ("hit"; calls of slow ways
for denormal numbers are left out). A visit is of one warp, 32 lanes with two pixels each; "half" is
a hit of only first or only second pixels of the lanes: the shortest way on which lanes exchange
numbers. "whole" counts the other hits.

The work is that of the scene "town" of bench_peers.py: the kernels' emulation on this CPU
(tests/native/) renders it and counts how many batches of surfels a warp has, how often it looks
which surfels to visit ("ballots", one for 32 surfels; kernels with one ballot a batch have its
instructions in "rest"), how many it visits and in how many visits a pixel is hit. "rest" is what a
warp does besides for each batch (copies surfels, adds up over the tile's warps): the longest way
round the loop over batches, less visits and ballots. The time is the product over what the GPU's
schedulers can issue at the clock, times the fraction of cycles in which they do (--issue: a guess).
Nothing here has been measured on a GPU."""

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_control_flow import COUNTED, count_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
KERNEL = re.compile(r"\.text\.\S*?(BlendTile(?:Backward)?Block)ILi(\d)E((?:Lb\dE)*)")
FLAGS = {"BlendTileBlock": ["contributions"], "BlendTileBackwardBlock": ["deterministic", "probe"]}
MAPS = ["color", "geometry", "all"]
# In the order of emulation_work in tests/native/emulated_handlers.cc.
WORK = ("batches", "ballots", "visits", "hits", "whole")


def resources(log: str) -> dict[str, list[int]]:
    """[registers, bytes of shared memory, bytes spilled] by the name of a kernel, from what ptxas
    says.
    """
    found = {}
    name = ""
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[name] = [int(match[1]) + int(match[2])]
        elif match := re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", line):
            found[name] = [int(match[1]), int(match[2] or 0), *found.get(name, [0])]
    return found


def count_machine_code(source: Path, arch: str, nvdisasm: str) -> list[tuple[str, dict[str, int]]]:
    """(kernel, counts) of every blend kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "blend.cubin")
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            "-cubin",
            f"-arch={arch}",
            "-Xptxas",
            "-v",
            "-I",
            source,
            source / "gpu/cuda_blend.cu",
            "-o",
            cubin,
        ]
        log = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
        text = subprocess.run(
            [nvdisasm, "-c", cubin], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    used = resources(log)
    rows = []
    for section in text.split("\t.section\t")[1:]:
        match = KERNEL.match(section)
        if not match:
            continue
        lines = section.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(".text."))
        counts = count_kernel(lines[start + 1 :])
        symbol = section[len(".text.") :].split('"')[0].rstrip(",").strip()
        registers, shared, spilled = used[symbol]
        flags = [
            name
            for name, bit in zip(FLAGS[match[1]], re.findall(r"Lb(\d)", match[3]), strict=False)
            if bit == "1"
        ]
        kind = "forward"
        if "Backward" in match[1]:
            kind = "backward"
        rows.append(
            (
                " ".join([kind, MAPS[int(match[2])], *flags]),
                counts | {"registers": registers, "shared": shared, "spilled": spilled},
            )
        )
    return sorted(rows, key=lambda row: row[0])


def count_work(scene: tuple[int, int, int], library: ctypes.CDLL) -> dict[str, dict[str, int]]:
    """Ballots, visits and hits of all warps, forward and backward, and the (surfel, tile) pairs."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    from bench_growth import town
    from bench_raster import build_scene

    from cosurfgs_jax import Camera, Surfels
    from cosurfgs_jax.raster import native
    from cosurfgs_jax.raster.options import Maps, Static

    num, width, height = scene
    arrays = build_scene(town(num, width), (height, width))
    surfels = Surfels(
        **{field.name: jnp.asarray(arrays[field.name]) for field in dataclasses.fields(Surfels)}
    )
    camera = Camera(jnp.asarray(arrays["camera_from_world"]), jnp.asarray(arrays["intrinsics"]))

    def loss(surfels):
        static = Static(
            height,
            width,
            near=0.01,
            sh_degree=3,
            maps=Maps.GEOMETRY,
            with_contributions=False,
            orthographic=False,
            deterministic=False,
            targets="emulated_raster",
        )
        out = native.render_views(static, surfels, camera, jnp.zeros(3), None)
        return (
            out.color.sum() + out.normal_sum.sum() + out.depth_sum.sum() + out.transmittance.sum()
        )

    def counted(function) -> dict[str, int]:
        numbers = (ctypes.c_int64 * len(WORK))()
        library.emulation_work(numbers)
        jax.block_until_ready(function(surfels))
        library.emulation_work(numbers)
        return dict(zip(WORK, numbers, strict=True))

    forward = counted(jax.jit(loss))
    both = counted(jax.jit(jax.grad(loss, allow_int=True)))
    backward = {name: both[name] - forward[name] for name in both}
    # The forward kernels have one way for both kinds of hits.
    return {"forward": forward | {"whole": forward["hits"]}, "backward": backward}


def find_nvdisasm(given: str) -> str:
    """The program's path; ends the program with what is missing."""
    found = shutil.which(given or os.environ.get("NVDISASM", "") or "nvdisasm")
    if not shutil.which("nvcc") or not found:
        what = "nvcc (CUDA 12 or 13)"
        if shutil.which("nvcc"):
            what = "nvdisasm (name it with --nvdisasm or $NVDISASM)"
        sys.exit(f"count_gpu_instructions.py needs {what}, and it was not found")
    return found


def print_work(
    scene: str, work: dict[str, dict[str, int]], code: dict[str, dict[str, int]], per_second: float
) -> None:
    """Warp instructions and milliseconds of one scene."""
    for kind, name in (
        ("forward", "forward geometry"),
        ("backward", "backward geometry deterministic"),
    ):
        counts = work[kind]
        cost = code[name]
        parts = [
            counts["batches"] * cost["rest"],
            counts["ballots"] * cost["ballot"],
            (counts["visits"] - counts["hits"]) * cost["no_hit"],
            (counts["hits"] - counts["whole"]) * cost["half"],
            counts["whole"] * cost["hit"],
        ]
        numbers = "".join(f"{counts[key] / 1e6:9.2f}" for key in WORK)
        print(
            f"{scene:24}{kind:10}{numbers}{sum(parts) / 1e6:14.0f}"
            f"{1e3 * sum(parts) / per_second:8.2f}",
            flush=True,
        )


def main() -> None:
    """Flags -> a table of the machine code, a table of the scenes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nvdisasm", default="")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--source", type=Path, default=ROOT / "cosurfgs_jax" / "native" / "csrc")
    parser.add_argument(
        "--scenes",
        default="100000x1920x1080,1000000x1920x1080",
        help="surfels x width x height; empty = none",
    )
    parser.add_argument("--multiprocessors", type=int, default=132)
    parser.add_argument("--ghz", type=float, default=1.75)
    parser.add_argument(
        "--issue", type=float, default=0.7, help="fraction of cycles in which a scheduler issues"
    )
    options = parser.parse_args()
    rows = count_machine_code(options.source, options.arch, find_nvdisasm(options.nvdisasm))
    columns = [
        "no_hit",
        "half",
        "hit",
        *COUNTED,
        "ballot",
        "rest",
        "registers",
        "shared",
        "spilled",
    ]
    print(f"{'kernel':40}" + "".join(f"{name:>10}" for name in columns))
    for name, counts in rows:
        print(f"{name:40}" + "".join(f"{counts[column]:10d}" for column in columns))
    if options.scenes:
        per_second = options.multiprocessors * 4 * options.ghz * 1e9 * options.issue
        print(
            f"\n{'scene (millions)':34}"
            + "".join(f"{name:>9}" for name in WORK)
            + f"{'instructions':>14}{'ms':>8}"
        )
        with tempfile.TemporaryDirectory() as folder:
            import emulation  # needs JAX, which counting alone does not

            library = emulation.build(Path(folder, "libemulated.so"), options.source)
            for scene in options.scenes.split(","):
                print_work(
                    scene,
                    count_work(tuple(map(int, scene.split("x"))), library),
                    dict(rows),
                    per_second,
                )


if __name__ == "__main__":
    main()
