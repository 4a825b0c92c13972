"""Writes datasets in the layouts in which the scenes of the field are distributed, from the
descriptions of the formats and independently of the readers; and files as `torch.save` writes them.
"""

import json
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosurfgs_jax.data import colmap
from cosurfgs_jax.data.capture import Capture

TORCH_STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage"}
# What Mega-NeRF's axes, x down, y right, z back, are of a world with z up: x east, y north.
DRB_FROM_ENU = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _pickled(value: Any, storages: list[np.ndarray]) -> bytes:
    match value:
        case dict():
            items = b"".join(_text(key) + _pickled(item, storages) for key, item in value.items())
            return b"}(" + items + b"u"
        case str():
            return _text(value)
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case np.ndarray():
            return _pickled_tensor(value, storages)
    raise TypeError(f"no value of a torch file: {value!r}")


def _pickled_tensor(value: np.ndarray, storages: list[np.ndarray]) -> bytes:
    value = np.ascontiguousarray(value)
    storages.append(value)
    kind = TORCH_STORAGES[value.dtype.str[1:]]

    def numbers(values) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", int(number)) for number in values) + b"t"

    storage = b"(" + _text("storage") + f"ctorch\n{kind}\n".encode()
    storage += _text(str(len(storages) - 1)) + _text("cpu")
    storage += b"J" + struct.pack("<i", value.size) + b"tQ"
    strides = np.array(value.strides) // value.itemsize
    arguments = b"(" + storage + b"J" + struct.pack("<i", 0) + numbers(value.shape)
    arguments += numbers(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def write_torch(path: Path, value: Any) -> None:
    """A file as `torch.save` of version 1.6 and later writes it."""
    storages: list[np.ndarray] = []
    pickle = b"\x80\x02" + _pickled(value, storages) + b"."
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage.tobytes())


def _pose_of(capture: Capture, view: int) -> np.ndarray:
    """dataset_from_camera f64[4,4], camera right, up, back."""
    pose = np.linalg.inv(capture.camera_from_dataset[view])
    pose[:3, 1:3] *= -1
    return pose


def _sorted_views(capture: Capture) -> list[int]:
    return sorted(range(capture.num_views), key=capture.image_names.__getitem__)


def write_mega_nerf(source: Path, root: Path, *, every: int = 8, scale: float = 40.0) -> Capture:
    """A COLMAP dataset of pinhole photographs with z up in Mega-NeRF's layout, without points.

    Args:
        source: the dataset.
        root: of the new one.
        every: each so many photographs are those of val/.
        scale: metres of a length of 1 in the files.
    Returns:
        The source, views sorted by name.
    """
    capture = colmap.read_model(source / "sparse" / "0")
    origin = np.array([3.0, -20.0, 7.0])
    write_torch(
        root / "coordinates.pt",
        {"origin_drb": origin.astype(np.float32), "pose_scale_factor": scale},
    )
    mappings = []
    order = _sorted_views(capture)
    for number, view in enumerate(order):
        part = "val" if number % every == 0 else "train"
        pose = _pose_of(capture, view)
        c2w = np.concatenate([DRB_FROM_ENU @ pose[:3, :3], DRB_FROM_ENU @ pose[:3, 3:]], axis=1)
        c2w[:, 3] = (c2w[:, 3] - origin) / scale
        lens = capture.lenses[view]
        write_torch(
            root / part / "metadata" / f"{number:06d}.pt",
            {
                "H": lens.height,
                "W": lens.width,
                "c2w": c2w.astype(np.float32),
                "intrinsics": np.array([*lens.focal_px, *lens.principal_px], np.float32),
                "distortion": np.array([-0.1, 0, 0, 0], np.float32),  # that was removed
            },
        )
        name = capture.image_names[view]
        mappings.append(f"{name},{number:06d}.pt\n")
        picture = root / part / "rgbs" / f"{number:06d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source / "images" / name) as image:
            image.save(picture, quality=95)
    (root / "mappings.txt").write_text("".join(mappings))
    return capture.of_views(np.array(order))


def write_matrix_city(source: Path, root: Path, *, every: int = 8) -> Capture:
    """A COLMAP dataset of equal pinholes with z up as MatrixCity's aerial/: block 1 with the
    engine's matrices, and block A of its splits. Lengths are those of the source, and a hundredth.

    Returns:
        The source, views sorted by name, as `write_mega_nerf`.
    """
    capture = colmap.read_model(source / "sparse" / "0")
    lens = capture.lenses[0]
    angle = 2 * float(np.arctan(lens.width / 2 / lens.focal_px[0]))
    order = _sorted_views(capture)
    blocks: Mapping[str, list] = {"train/block_1": [], "test/block_1_test": []}
    splits: Mapping[str, list] = {"train": [], "test": []}
    for number, view in enumerate(order):
        part = "test" if number % every == 0 else "train"
        folder = "test/block_1_test" if part == "test" else "train/block_1"
        index = len(blocks[folder])
        pose = _pose_of(capture, view)
        engine = pose.copy()
        engine[:3, :3] *= 0.01
        blocks[folder].append({"frame_index": index, "rot_mat": engine.tolist()})
        pose[:3, 3] /= 100
        splits[part].append(
            {
                "file_path": f"../../{folder}/{index:04d}.png",
                "transform_matrix": pose.tolist(),
            }
        )
        picture = root / folder / f"{index:04d}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "images" / capture.image_names[view], picture)
    for folder, frames in blocks.items():
        table = {"camera_angle_x": angle, "frames": frames}
        (root / folder / "transforms.json").write_text(json.dumps(table))
    usual = {"camera_angle_x": angle, "fl_x": lens.focal_px[0], "fl_y": lens.focal_px[1]}
    usual |= {"cx": lens.principal_px[0], "cy": lens.principal_px[1]}
    usual |= {"w": float(lens.width), "h": float(lens.height), "k1": 0, "k2": 0, "k3": 0, "k4": 0}
    pose_folder = root / "pose" / "block_A"
    pose_folder.mkdir(parents=True)
    for part, frames in splits.items():
        table = usual | {"frames": frames}
        (pose_folder / f"transforms_{part}.json").write_text(json.dumps(table))
    return capture.of_views(np.array(order))


def write_mvsnet(source: Path, root: Path) -> Capture:
    """A COLMAP dataset of pinhole photographs as MVSNet's cams/ and BlendedMVS' photographs.

    Returns:
        The source, views sorted by name.
    """
    capture = colmap.read_model(source / "sparse" / "0")
    (root / "cams").mkdir(parents=True)
    (root / "blended_images").mkdir()
    order = _sorted_views(capture)
    for number, view in enumerate(order):
        pose = capture.camera_from_dataset[view]
        lines = ["extrinsic", *(" ".join(map(str, row)) for row in pose.tolist()), ""]
        intrinsics = capture.lenses[view].intrinsics
        lines += ["intrinsic", *(" ".join(map(str, row)) for row in intrinsics.tolist()), ""]
        lines.append("10.5 0.5 128 74.0")
        (root / "cams" / f"{number:08d}_cam.txt").write_text("\n".join(lines) + "\n")
        with Image.open(source / "images" / capture.image_names[view]) as image:
            image.save(root / "blended_images" / f"{number:08d}.jpg", quality=95)
            image.save(root / "blended_images" / f"{number:08d}_masked.jpg", quality=95)
    return capture.of_views(np.array(order))
