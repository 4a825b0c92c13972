"""Writes small synthetic datasets, from the format descriptions and independently of
the readers.
"""

import dataclasses
import struct
from pathlib import Path

import numpy as np
from PIL import Image

MODEL_NUMBERS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9,
    "THIN_PRISM_FISHEYE": 10,
    "RAD_TAN_THIN_PRISM_FISHEYE": 11, "SIMPLE_DIVISION": 12, "DIVISION": 13, "SIMPLE_FISHEYE": 14,
    "FISHEYE": 15,
    "EUCM": 16, "EQUIRECTANGULAR": 17,
}  # fmt: skip


@dataclasses.dataclass
class Model:
    """A COLMAP model; images are numbered from 5 in steps of 3 so that no index is mistaken for a
    number.
    """

    cameras: dict  # number -> (model, width, height, params)
    names: list
    camera_ids: list
    quats: np.ndarray
    shifts: np.ndarray
    points: np.ndarray
    colors: np.ndarray
    tracks: list  # per point, the image numbers

    @property
    def image_ids(self):
        return [5 + 3 * i for i in range(len(self.names))]


def make_model(
    num_views=4, names=None, cameras=None, num_points=30, with_tracks=True, seed=0
) -> Model:
    """Cameras on a ring that look at points near the origin."""
    rng = np.random.default_rng(seed)
    names = names or [f"view_{i:02d}.png" for i in range(num_views)]
    cameras = cameras or {7: ("PINHOLE", 64, 48, [60.0, 61.0, 31.5, 24.25])}
    numbers = sorted(cameras)
    quats = rng.normal(size=(len(names), 4))
    ids = [5 + 3 * i for i in range(len(names))]
    tracks = [
        rng.choice(ids, size=rng.integers(1, len(ids) + 1), replace=False).tolist()
        for _ in range(num_points)
    ]
    return Model(
        cameras=cameras,
        names=names,
        camera_ids=[numbers[i % len(numbers)] for i in range(len(names))],
        quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
        shifts=rng.normal(size=(len(names), 3)),
        points=rng.normal(size=(num_points, 3)),
        colors=rng.integers(0, 256, size=(num_points, 3)).astype(np.uint8),
        tracks=tracks if with_tracks else [[] for _ in range(num_points)],
    )


def write_binary(model: Model, folder: Path) -> None:
    """cameras.bin, images.bin and points3D.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    data = struct.pack("<Q", len(model.cameras))
    for number, (name, width, height, params) in model.cameras.items():
        data += struct.pack("<IiQQ", number, MODEL_NUMBERS.get(name, name), width, height)
        data += struct.pack(f"<{len(params)}d", *params)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(model.names))
    for i, name in enumerate(model.names):
        data += struct.pack(
            "<I7dI", model.image_ids[i], *model.quats[i], *model.shifts[i], model.camera_ids[i]
        )
        data += name.encode() + b"\0" + struct.pack("<Q", i) + struct.pack("<ddq", 1.5, 2.5, -1) * i
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(model.points))
    for i, point in enumerate(model.points):
        data += struct.pack(
            "<Q3d3BdQ", 100 + i, *point, *model.colors[i].tolist(), 0.5, len(model.tracks[i])
        )
        data += b"".join(struct.pack("<II", image, 0) for image in model.tracks[i])
    (folder / "points3D.bin").write_bytes(data)


def write_text(model: Model, folder: Path, feature_line: str | None = "") -> None:
    """cameras.txt, images.txt and points3D.txt; `feature_line` stands below each image, None leaves
    it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list", f"# Number of cameras: {len(model.cameras)}"]
    for number, (name, width, height, params) in model.cameras.items():
        lines.append(f"{number} {name} {width} {height} {' '.join(map(repr, map(float, params)))}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Image list"]
    for i, name in enumerate(model.names):
        numbers = " ".join(repr(float(value)) for value in [*model.quats[i], *model.shifts[i]])
        lines.append(f"{model.image_ids[i]} {numbers} {model.camera_ids[i]} {name}")
        if feature_line is not None:
            lines.append(feature_line)
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Points"]
    for i, point in enumerate(model.points):
        track = " ".join(f"{image} 0" for image in model.tracks[i])
        color = " ".join(map(str, model.colors[i]))
        lines.append(
            f"{100 + i} {' '.join(repr(float(value)) for value in point)} {color} 0.5 "
            f"{track}".rstrip()
        )
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """u8[H,W,3], noise, so that every pixel is told from its neighbours."""
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3)).astype(np.uint8)


def write_images(model: Model, folder: Path, divide: int = 1) -> None:
    """A picture per image, of its camera's size over `divide`, rounded down."""
    for i, name in enumerate(model.names):
        _, width, height, _ = model.cameras[model.camera_ids[i]]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(height // divide, width // divide, seed=i)).save(path)


def write_dataset(root: Path, model: Model | None = None) -> Model:
    """images/ and a binary model in sparse/0."""
    model = model or make_model()
    write_binary(model, root / "sparse" / "0")
    write_images(model, root / "images")
    return model
