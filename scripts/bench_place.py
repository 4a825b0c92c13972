"""What opening a place costs processes as the place grows: reading a COLMAP model and cutting it
into blocks of one size.

python scripts/bench_place.py [--blocks=8,32,128,512] [--photos=40] [--points=10000] [--out=FILE]

A synthetic flight over a square: --photos and --points a block, eight views a point; all
photographs are links to one file. Each size is opened in two processes: the first reads and cuts
the place and keeps it in the workdir, any other one (`train --blocks` too) maps what is kept. Both
find the partners and first points of a block in the middle. Processor time, the most memory beyond
that of the imports, and bytes read or looked at in mapped files. The exponents of growth are fitted
to all sizes.
"""

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

_SPACING = 30.0  # of cameras, m
_HEIGHT = 100.0  # of the flight, m
_FOCAL_PX = 1000.0
_SIZE = (1152, 864)  # (W, H)
_TRACK = 8  # views of a point
_CHUNK = 200_000


def write_place(folder: Path, num_photos: int, num_points: int) -> None:
    """A COLMAP model of a flight over a square, looking down."""
    from scipy.spatial import cKDTree

    target = folder / "sparse" / "0"
    target.mkdir(parents=True)
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(num_photos)))
    grid = np.stack(np.divmod(np.arange(num_photos), side), axis=1)
    centers = grid * _SPACING + rng.normal(0, 2, (num_photos, 2))
    width, height = _SIZE
    with open(target / "cameras.bin", "wb") as file:
        file.write(struct.pack("<QIiQQ", 1, 1, 1, width, height))
        file.write(struct.pack("<4d", _FOCAL_PX, _FOCAL_PX, width / 2, height / 2))
    with open(target / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", num_photos))
        for number, (x, y) in enumerate(centers):
            # Half a turn about x: the camera looks down.
            pose = (0.0, 1.0, 0.0, 0.0, -x, y, _HEIGHT)
            file.write(struct.pack("<I7dI", number + 1, *pose, 1))
            file.write(b"%07d.jpg\0" % number + struct.pack("<Q", 0))
    (folder / "images").mkdir()
    PIL.Image.new("RGB", _SIZE).save(folder / "one.jpg")
    for number in range(num_photos):
        os.link(folder / "one.jpg", folder / "images" / f"{number:07d}.jpg")
    tree = cKDTree(centers)
    kinds = [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8")]
    kinds += [("length", "<u8"), ("track", "<u4", 2 * _TRACK)]
    with open(target / "points3D.bin", "wb") as file:
        file.write(struct.pack("<Q", num_points))
        for start in range(0, num_points, _CHUNK):
            rows = np.zeros(min(_CHUNK, num_points - start), np.dtype(kinds))
            ground = centers[rng.integers(0, num_photos, len(rows))]
            ground = ground + rng.uniform(-_SPACING / 2, _SPACING / 2, ground.shape)
            rows["id"] = start + np.arange(len(rows))
            rows["xyz"] = np.column_stack([ground, rng.uniform(0, 20, len(rows))])
            rows["rgb"] = 128
            rows["error"] = 0.5
            rows["length"] = _TRACK
            rows["track"][:, 0::2] = tree.query(ground, k=_TRACK)[1] + 1
            file.write(rows.tobytes())


def open_place(folder: Path, num_blocks: int, is_first: bool) -> dict:
    """What it costs a process to begin with a block in the middle of the place; in one of its own.

    Args:
        folder: of the dataset; the workdir is in it.
        num_blocks: of the place.
        is_first: whether the process reads and cuts the dataset; all others take what it keeps.
    """
    from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
    from cosurfgs_jax.training.kept_place import open_place
    from cosurfgs_jax.training.partners import BlockPartners
    from cosurfgs_jax.workdir import Workdir

    settings = Settings(
        data=DataSettings(path=str(folder)),
        partition=PartitionSettings(num_blocks=num_blocks, num_edges=1),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_before = _bytes_read()
    mapped_before = _mapped_bytes()
    began = time.process_time()
    partitioned = open_place(settings, Workdir(folder / "run"), keeps=is_first)
    opened = time.process_time()
    block = partitioned.blocks[len(partitioned.blocks) // 2]
    BlockPartners(partitioned, settings.loss).of(block.number)
    cloud = partitioned.scene.cloud
    started = np.column_stack([cloud.points[block.points], cloud.colors[block.points]])
    done = time.process_time()
    bytes_read = _bytes_read() - read_before + _mapped_bytes() - mapped_before
    if is_first:  # pages that were read are given back
        bytes_read += (folder / "sparse" / "0" / "points3D.bin").stat().st_size
    return {
        "blocks": len(partitioned.blocks),
        "photos": partitioned.scene.num_views,
        "points": len(cloud),
        "surfels": len(started),
        "is_first": is_first,
        "opening_s": opened - began,
        "block_s": done - opened,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        "bytes_read": bytes_read,
    }


def _bytes_read() -> int:
    fields = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text("utf-8").splitlines()
    )
    return int(fields["rchar"])


def _mapped_bytes() -> int:
    """Of files that are mapped into memory, what this process has looked at."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


def exponent(blocks: list[int], values: list[float]) -> float:
    """Of a power of the number of blocks; least squares of logarithms."""
    return float(np.polyfit(np.log(blocks), np.log(values), 1)[0])


def main() -> None:
    """Flags -> a process for each size -> table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", default="8,32,128,512")
    parser.add_argument("--photos", type=int, default=40, help="of a block")
    parser.add_argument("--points", type=int, default=10_000, help="of a block")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, number, is_first = arguments.one.rsplit(",", 2)
        print(json.dumps(open_place(Path(folder), int(number), is_first == "first")))
        return
    rows = []
    print(
        "| process | blocks | photographs | points | opening | its block | memory | read |\n"
        "|--|--|--|--|--|--|--|--|"
    )
    for number in map(int, arguments.blocks.split(",")):
        with tempfile.TemporaryDirectory(prefix="place-") as folder:
            write_place(Path(folder), arguments.photos * number, arguments.points * number)
            for process in ("first", "other"):
                command = [sys.executable, __file__, f"--one={folder},{number},{process}"]
                result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(result.stdout.splitlines()[-1]))
                print(f"| {process} {_line(rows[-1])}", flush=True)
    for process in ("first", "other"):
        same = [row for row in rows if row["is_first"] == (process == "first")]
        for name in ("opening_s", "block_s", "memory", "bytes_read"):
            values = [row[name] for row in same]
            found = exponent([row["blocks"] for row in same], values)
            print(f"{process}: {name}: exponent {found:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _line(row: dict) -> str:
    return (
        f"| {row['blocks']} | {row['photos']:,} | {row['points']:,} | {row['opening_s']:.2f} s | "
        f"{row['block_s']:.2f} s | {row['memory'] / 2**20:,.0f} MiB | "
        f"{row['bytes_read'] / 2**20:,.0f} MiB |"
    )


if __name__ == "__main__":
    main()
