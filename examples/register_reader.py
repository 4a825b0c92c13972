"""Registers a reader for a dataset format of one's own, and loads a scene with it.

    python examples/register_reader.py [--path=DATASET]

The format is made up: a folder `images/` with photographs from a turntable, in the order of their
names, and a file turntable.txt of five lines:

    size_px 64 48            width and height
    focal_px 60
    camera_radius 4.0        of the circle on which the camera goes round the object
    camera_height 2.0
    object_radius 1.0        where the first surfels are placed

Without --path a small dataset is written first. A reader only parses: it says where photographs,
lenses, poses and points are. The package looks for the files, checks, scales and splits them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cosurfgs_jax import Capture, Lens, PointCloud, Reader, load_scene, register_reader

INDEX = "turntable.txt"


def detect(source) -> Path | None:
    """The index, if `source.root` holds a dataset of this format; else None."""
    path = source.root / INDEX
    return path if path.is_file() else None


def poses_on_circle(num_views: int, radius: float, height: float) -> np.ndarray:
    """camera_from_dataset f64[V,4,4] of cameras that look at the origin; z is up."""
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    for pose, angle in zip(poses, np.arange(num_views) * 2 * np.pi / num_views, strict=True):
        eye = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        forward = -eye / np.linalg.norm(eye)
        right = np.array([-np.sin(angle), np.cos(angle), 0.0])
        pose[:3, :3] = [right, np.cross(forward, right), forward]  # x right, y down, z forward
        pose[:3, 3] = -pose[:3, :3] @ eye
    return poses


def read(path: Path) -> Capture:
    """The dataset as its files say it; views in any order."""
    lines = [line.split() for line in path.read_text().splitlines()]
    values = {name: [float(text) for text in texts] for name, *texts in lines}
    width, height = map(int, values["size_px"])
    (focal,) = values["focal_px"]
    lens = Lens("PINHOLE", height, width, (focal, focal), (width / 2, height / 2))
    names = sorted(file.name for file in (path.parent / "images").iterdir())
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Capture(
        source=str(path),
        image_names=names,
        image_files=names,
        image_paths=[None] * len(names),  # to be looked for in images/
        lenses=[lens] * len(names),
        camera_from_dataset=poses_on_circle(
            len(names), values["camera_radius"][0], values["camera_height"][0]
        ),
        cloud=PointCloud.without_tracks(values["object_radius"][0] * directions),
        mask_paths=[None] * len(names),
        outside=(),  # it reads nothing outside of the folder of the dataset
    )


def write_dataset(folder: Path, num_views: int = 12) -> None:
    """A dataset of this format; its photographs are noise."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for view in range(num_views):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{view:03d}.png")
    lines = ["size_px 64 48", "focal_px 60", "camera_radius 4.0", "camera_height 2.0"]
    (folder / INDEX).write_text("\n".join([*lines, "object_radius 1.0", ""]))


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", help="dataset of this format; without it one is written")
    options = parser.parse_args()

    register_reader(Reader("turntable", detect, read, "a turntable.txt"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.path or temporary)
        if not options.path:
            folder = folder / "vase"
            write_dataset(folder)
        scene = load_scene(folder)

    print(f"{scene.name}: {scene.num_views} views, {len(scene.cloud)} points")
    print(f"training: {[scene.image_names[view] for view in scene.train_views]}")
    print(f"testing: {[scene.image_names[view] for view in scene.test_views]}")
    print(f"up: {np.round(scene.up, 3)}")
    print(f"intrinsics of the first view, pixels:\n{scene.views.intrinsics[0]}")
    print(f"its camera stands at {np.round(scene.views.centers[0], 3)}")


if __name__ == "__main__":
    main()
