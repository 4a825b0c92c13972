"""The same places of several meshes beside each other, as one photograph sees them.

python scripts/compare_meshes.py --cameras=WORKDIR/cameras.json --photos=FOLDER
    --mesh=before:A/mesh/mesh.ply --mesh=after:B/mesh/mesh.ply
    --place=wall:view_012.png:100,80,64,48 [--place=...] [--width=256] --out=FILE.jpg

A row for each place (name, photograph, and x, y, width, height in its pixels): the photograph, then
each mesh in its colours and as a shape lit from the camera. Every column has `width` pixels; a mesh
is drawn at that resolution, the photograph's pixels are repeated. The camera's principal point is
the middle of the picture, as in cameras.json.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import pictures
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface import read_mesh_ply

_GAP = 6  # pixels of white between pictures


class Crop(NamedTuple):
    """A rectangle of a photograph, in pixels."""

    name: str
    photo: str
    x: int
    y: int
    width: int
    height: int


class DrawnMesh:
    """A mesh that rays are cast at."""

    def __init__(self, path: Path):
        self._o3d = import_open3d()
        self._mesh = read_mesh_ply(path)
        self._scene = self._o3d.t.geometry.RaycastingScene()
        self._scene.add_triangles(
            self._mesh.vertices.astype(np.float32), self._mesh.triangles.astype(np.uint32)
        )

    def draw(self, camera: dict, place: Crop, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The place in vertex colours and as a shape, u8[h,width,3] each."""
        height = round(width * place.height / place.width)
        x = place.x + (np.arange(width) + 0.5) * place.width / width
        y = place.y + (np.arange(height) + 0.5) * place.height / height
        across, down = np.meshgrid(x, y)
        rays_in_camera = np.stack(
            [
                (across - camera["width"] / 2) / camera["fx"],
                (down - camera["height"] / 2) / camera["fy"],
                np.ones_like(across),
            ],
            axis=-1,
        )
        rotation = np.array(camera["rotation"])  # dataset from camera
        directions = rays_in_camera @ rotation.T
        origins = np.broadcast_to(np.array(camera["position"]), directions.shape)
        rays = np.concatenate([origins, directions], axis=-1).astype(np.float32)
        hits = self._scene.cast_rays(self._o3d.core.Tensor(rays))
        is_hit = np.isfinite(hits["t_hit"].numpy())
        triangles = self._mesh.triangles[np.where(is_hit, hits["primitive_ids"].numpy(), 0)]
        second_third = hits["primitive_uvs"].numpy()
        weights = np.concatenate(
            [1 - second_third.sum(axis=-1, keepdims=True), second_third], axis=-1
        )
        colors = np.einsum("hwk,hwkc->hwc", weights, self._mesh.vertex_colors[triangles])
        # The triangles' own normals: a shape is not made smoother than it is.
        normals = hits["primitive_normals"].numpy()
        towards = -directions / np.linalg.norm(directions, axis=-1, keepdims=True)
        light = np.abs((normals * towards).sum(axis=-1))
        shape = np.repeat(light[..., None], 3, axis=-1)
        return (
            np.where(is_hit[..., None], pictures.to_uint8(colors / 255), 255).astype(np.uint8),
            np.where(is_hit[..., None], pictures.to_uint8(shape), 255).astype(np.uint8),
        )


def parse_place(text: str) -> Crop:
    """Reads NAME:PHOTO:x,y,width,height."""
    name, photo, box = text.split(":")
    return Crop(name, photo, *(int(number) for number in box.split(",")))


def photograph(folder: Path, place: Crop, width: int) -> np.ndarray:
    """The place in its photograph, u8[h,width,3]; pixels are repeated."""
    image = pictures.read_image(folder / place.photo)
    height = round(width * place.height / place.width)
    rows = place.y + np.arange(height) * place.height // height
    columns = place.x + np.arange(width) * place.width // width
    return image[rows[:, None], columns[None]]


def beside(images: list[np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row."""
    gap = np.full((images[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [gap, image]
    return np.concatenate(parts, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--mesh", action="append", required=True, help="NAME:FILE")
    parser.add_argument("--place", action="append", required=True, type=parse_place)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    cameras = {camera["img_name"]: camera for camera in json.loads(given.cameras.read_text())}
    meshes = [DrawnMesh(Path(text.split(":", 1)[1])) for text in given.mesh]
    rows = []
    for place in given.place:
        if place.photo not in cameras:
            parser.error(f"--place: expected a photograph of {given.cameras}, got {place.photo}")
        drawn = [mesh.draw(cameras[place.photo], place, given.width) for mesh in meshes]
        colors = [color for color, _ in drawn]
        shapes = [shape for _, shape in drawn]
        rows.append(beside([photograph(given.photos, place, given.width), *colors, *shapes]))
        rows.append(np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8))
    pictures.write_image(given.out, np.concatenate(rows[:-1]))
    names = [text.split(":", 1)[0] for text in given.mesh]
    columns = ["photograph", *(f"{name}, colours" for name in names)]
    columns += [f"{name}, shape" for name in names]
    print(f"{given.out}: rows {', '.join(place.name for place in given.place)}; columns", end=" ")
    print(", ".join(columns))


if __name__ == "__main__":
    main()
