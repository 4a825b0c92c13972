"""What opening a place costs each process as the place grows: reading a COLMAP model and cutting it
into blocks of one size.

python scripts/bench_place.py [--blocks=8,32,128,512] [--photos=40] [--points=10000] [--out=FILE]

A synthetic flight over a square: --photos and --points a block, eight views a point; all
photographs are links to one file. Each size is opened in a process of its own, as every process of
a run does (`train --blocks` too): processor time, the most memory beyond that of the imports, and
bytes read. The exponents of growth are fitted to all sizes.
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


def open_place(folder: Path, num_blocks: int) -> dict:
    """What it costs a process to open the place; in one of its own."""
    from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
    from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
    from cosurfgs_jax.workdir import Workdir

    settings = Settings(
        data=DataSettings(path=str(folder)),
        partition=PartitionSettings(num_blocks=num_blocks, num_edges=1),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_before = _bytes_read()
    began = time.process_time()
    partitioned = open_partitioned_scene(settings, Workdir(folder / "run"))
    seconds = time.process_time() - began
    return {
        "blocks": len(partitioned.blocks),
        "photos": partitioned.scene.num_views,
        "points": len(partitioned.scene.cloud),
        "processor_s": seconds,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        "bytes_read": _bytes_read() - read_before + _mapped_bytes(folder),
    }


def _bytes_read() -> int:
    fields = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text("utf-8").splitlines()
    )
    return int(fields["rchar"])


def _mapped_bytes(folder: Path) -> int:
    """Of the points: their file is mapped into memory, and no read counts."""
    return (folder / "sparse" / "0" / "points3D.bin").stat().st_size


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
        folder, _, number = arguments.one.rpartition(",")
        print(json.dumps(open_place(Path(folder), int(number))))
        return
    rows = []
    print("| blocks | photographs | points | processor time | memory | read |\n|--|--|--|--|--|--|")
    for number in map(int, arguments.blocks.split(",")):
        with tempfile.TemporaryDirectory(prefix="place-") as folder:
            write_place(Path(folder), arguments.photos * number, arguments.points * number)
            command = [sys.executable, __file__, f"--one={folder},{number}"]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(result.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"| {row['blocks']} | {row['photos']:,} | {row['points']:,} | "
            f"{row['processor_s']:.1f} s | {row['memory'] / 2**20:,.0f} MiB | "
            f"{row['bytes_read'] / 2**20:,.0f} MiB |",
            flush=True,
        )
    for name in ("processor_s", "memory", "bytes_read"):
        values = [row[name] for row in rows]
        print(f"{name}: exponent {exponent([row['blocks'] for row in rows], values):.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
