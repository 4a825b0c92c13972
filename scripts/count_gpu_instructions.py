"""What the blend kernels of the CUDA library cost, counted without a GPU: instructions of the
machine code, work of a scene.

python scripts/count_gpu_instructions.py [--nvdisasm=PATH] [--arch=sm_90]
[--scenes=100000x1920x1080,1000000x1920x1080]
    [--source=cosurfgs_jax/native/csrc] [--multiprocessors=132] [--ghz=1.75] [--issue=0.7]

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
schedulers can issue at the clock, times the share of cycles in which they do (--issue: a guess).
Nothing here has been measured on a GPU."""

import argparse
import collections
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
KERNEL = re.compile(r"\.text\.\S*?(BlendTile(?:Backward)?Block)ILi(\d)E((?:Lb\dE)*)")
LINE = re.compile(
    r"\s*(?:/\*(?P<address>[0-9a-f]{4,})\*/\s+)?(?:@(?P<guard>!?U?P\w+)\s+)?(?P<code>\S.*?)\s*;"
)
FLAGS = {"BlendTileBlock": ["contributions"], "BlendTileBackwardBlock": ["deterministic", "probe"]}
MAPS = ["color", "geometry", "all"]
COUNTED = ("MUFU", "LDS", "SHFL")
WORK = (
    "batches",
    "ballots",
    "visits",
    "hits",
    "whole",
)  # as emulation_work in tests/native/emulated_handlers.cc gives them


class Block:
    """Instructions that are run one after the other, and where they can go on."""

    def __init__(self):
        self.operations: list[str] = []
        self.next: list[int] = []


def split_blocks(lines: list[str]) -> list[Block]:
    """The basic blocks of one kernel's disassembly, by number; block 0 is the entry."""
    blocks = [Block()]
    labels = {}
    jumps = []
    is_open = True
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            blocks.append(Block())
            if is_open:
                blocks[-2].next.append(len(blocks) - 1)
            labels[label[1]] = len(blocks) - 1
            is_open = True
        elif match := LINE.match(line):
            if not is_open:
                blocks.append(Block())
                is_open = True
            operation = match["code"].split()[0]
            blocks[-1].operations.append(operation)
            if operation.startswith(("BRA", "EXIT", "RET")):
                target = re.search(r"\.L_x_\d+", match["code"])
                is_conditional = bool(match["guard"]) or re.match(
                    r"BRA\S*\s+!?U?P\d", match["code"]
                )
                if operation.startswith("BRA") and target:
                    jumps.append((len(blocks) - 1, target[0]))
                is_open = bool(is_conditional)
                if is_open:
                    blocks.append(Block())
                    blocks[-2].next.append(len(blocks) - 1)
    for source, label in jumps:
        blocks[source].next.append(labels[label])
    return blocks


def find_loops(blocks: list[Block]) -> list[tuple[int, set[int]]]:
    """(header, blocks) of every loop, by the edges that go back to a block on the way to them."""
    state = {}
    backward = []

    def walk(start: int) -> None:
        stack = [(start, iter(blocks[start].next))]
        state[start] = "open"
        while stack:
            block, following = stack[-1]
            for other in following:
                if state.get(other) == "open":
                    backward.append((block, other))
                elif other not in state:
                    state[other] = "open"
                    stack.append((other, iter(blocks[other].next)))
                    break
            else:
                state[block] = "done"
                stack.pop()

    walk(0)
    before = collections.defaultdict(set)
    for number, block in enumerate(blocks):
        for other in block.next:
            before[other].add(number)
    loops: dict[int, set[int]] = {}
    for last, header in backward:
        body = loops.setdefault(header, {header})
        waiting = [last]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting.extend(before[block])
    return list(loops.items())


def way_round(
    blocks: list[Block],
    header: int,
    body: set[int],
    choose,
    skip: frozenset[int] = frozenset(),
    via: frozenset[int] = frozenset(),
) -> list[str]:
    """The operations on a way from a loop's header back to it, each block once.

    Args:
        header, body: of the loop.
        choose: min or max, by the number of operations.
        skip: blocks whose operations do not count.
        via: blocks that the shortest way must go through, where there is one.
    """
    on_way: set[int] = set()  # so that loops within are gone through once

    @functools.cache
    def from_block(number: int) -> tuple[int, tuple[int, ...]] | None:
        block = blocks[number]
        if "CALL.REL.NOINC" in block.operations:
            return None
        on_way.add(number)
        ways = [(0, ())] if header in block.next else []
        ways += [
            way
            for other in block.next
            if other in body - {header} - on_way
            if (way := from_block(other)) is not None
        ]
        on_way.discard(number)
        if not ways:
            return None
        length, way = choose(ways, key=lambda way: way[0])
        own = 0 if number in skip else len(block.operations) - (number in via) * 10**6
        return length + own, (number, *way)

    found = from_block(header)
    return [
        operation
        for number in (found[1] if found else ())
        if number not in skip
        for operation in blocks[number].operations
    ]


def holding(blocks: list[Block], body: set[int], what: str) -> frozenset[int]:
    """The blocks of a loop with an operation that begins like this."""
    return frozenset(
        number
        for number in body
        if any(operation.startswith(what) for operation in blocks[number].operations)
    )


def count_kernel(lines: list[str]) -> dict[str, int] | None:
    """Instructions of a visit by what is hit, of a ballot over 32 surfels, and of the rest of a
    batch; None without visits.
    """
    blocks = split_blocks(lines)
    loops = sorted(find_loops(blocks), key=lambda loop: len(loop[1]))
    around = [loop for loop in loops if holding(blocks, loop[1], "MUFU.EX2")]
    if not around:
        return None
    header, body = around[0]
    hit = way_round(blocks, header, body, max)
    adding = holding(blocks, body, "SHFL")
    half = way_round(blocks, header, body, min, via=adding) if adding else hit
    counts = {
        "no_hit": len(way_round(blocks, header, body, min)),
        "half": len(half),
        "hit": len(hit),
    }
    counts |= {name: sum(operation.startswith(name) for operation in hit) for name in COUNTED}
    outer_header, outer = around[-1]
    chunk_header, chunk = around[1] if len(around) > 2 else (outer_header, outer)
    counts["rest"] = len(way_round(blocks, outer_header, outer, max, frozenset(body)))
    counts["ballot"] = (
        len(way_round(blocks, chunk_header, chunk, max, frozenset(body))) if len(around) > 2 else 0
    )
    return counts


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
        kind = "backward" if "Backward" in match[1] else "forward"
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
    return {
        "forward": forward | {"whole": forward["hits"]},
        "backward": backward,
    }  # forward makes no difference


def find_nvdisasm(given: str) -> str:
    """The program's path; ends the program with what is missing."""
    found = shutil.which(given or os.environ.get("NVDISASM", "") or "nvdisasm")
    if not shutil.which("nvcc") or not found:
        what = (
            "nvdisasm (name it with --nvdisasm or $NVDISASM)"
            if shutil.which("nvcc")
            else "nvcc (CUDA 12 or 13)"
        )
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
        "--issue", type=float, default=0.7, help="share of cycles in which a scheduler issues"
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
