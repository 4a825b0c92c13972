"""A flight that has poses already, with GPS in a file: photographs, and its model in a frame of its
own.
"""

import json

import numpy as np
import pytest
from flight_case import LATITUDE, LONGITUDE, METRES, flight_of, mapped
from PIL import Image

from cosurfgs_jax import prepare, program
from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import lens_from_params, pixels_from_normalised
from cosurfgs_jax.sfm import map_system

EPSG = 32615
HEIGHT, WIDTH = 30, 40
LENS = ("SIMPLE_RADIAL", [35.0, 20.0, 15.0, 0.02])
NOISE_M = 0.2


class Flight:
    """Photographs, where they were taken on the map, and their model in a frame of its own."""

    def __init__(self, root, frame="turned"):
        self.root = root
        self.images = root / "photos"
        poses, self.centers, self.points = flight_of(slant_deg=8)
        self.model = mapped(poses, self.points, np.random.default_rng(6))
        if frame == "aligned":  # true north, metres, z up
            self.model = type(self.model)(self.model.names, poses, self.points)
        self.images.mkdir()
        for name in self.model.names:
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(self.images / name)

    def on_map(self, places):
        """Places of the flight in map coordinates."""
        latitudes = LATITUDE + places[:, 1] / METRES
        longitudes = LONGITUDE + places[:, 0] / METRES / np.cos(np.deg2rad(LATITUDE))
        ground = map_system.to_map(EPSG, latitudes, longitudes)
        return np.column_stack([ground, 200 + places[:, 2]])

    def write_gps(self, changes=None, names=None):
        """geo.txt in map coordinates, good to NOISE_M."""
        noise = np.random.default_rng(1).normal(scale=NOISE_M, size=self.centers.shape)
        places = dict(zip(self.model.names, self.on_map(self.centers) + noise, strict=True))
        lines = [f"EPSG:{EPSG}"]
        for name in names or self.model.names:
            words = places[name] + (changes or {}).get(name, 0.0)
            lines.append(f"{name} {' '.join(f'{value:.3f}' for value in words)} 1 2 3")
        path = self.root / "geo.txt"
        path.write_text("\n".join(lines))
        return path

    def write_colmap(self, write="write_binary"):
        """A COLMAP model with tracks of two to four photographs."""
        pycolmap = pytest.importorskip("pycolmap")
        from cosurfgs_jax.sfm.known_poses import reconstruction_of

        lens = lens_from_params(LENS[0], HEIGHT, WIDTH, LENS[1])
        count = len(self.model.names)
        model = reconstruction_of(self.model.names, [lens] * count, self.model.camera_from_mapper)
        tracks = [[] for _ in self.points]
        for number, pose in enumerate(self.model.camera_from_mapper, start=1):
            local = self.model.points @ pose[:3, :3].T + pose[:3, 3]
            pixels = pixels_from_normalised(lens, local[:, :2] / local[:, 2:])
            is_seen = (local[:, 2] > 0) & ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=1)
            seen = np.flatnonzero(is_seen)
            model.image(number).points2D = [pycolmap.Point2D(pixels[row]) for row in seen]
            for place, row in enumerate(seen):
                tracks[row].append((number, place))
        for point, track in zip(self.model.points, tracks, strict=True):
            if len(track) > 1:
                elements = [pycolmap.TrackElement(*pair) for pair in track]
                model.add_point3D(point, pycolmap.Track(elements), np.array([9, 99, 9], np.uint8))
        folder = self.root / "scene" / "sparse" / "0"
        folder.mkdir(parents=True)
        getattr(model, write)(folder)
        return folder

    def write_transforms(self):
        """transforms.json, and its points beside it."""
        frames = []
        for name, pose in zip(self.model.names, self.model.camera_from_mapper, strict=True):
            matrix = np.linalg.inv(pose) @ np.diag([1.0, -1, -1, 1])
            frames.append({"file_path": f"images/{name}", "transform_matrix": matrix.tolist()})
        focal, *principal, k1 = LENS[1]
        meta = {"w": WIDTH, "h": HEIGHT, "fl_x": focal, "fl_y": focal, "k1": k1, "frames": frames}
        meta |= {"cx": principal[0], "cy": principal[1]}
        path = self.root / "mine.json"
        path.write_text(json.dumps(meta))
        rows = "".join(f"{x} {y} {z}\n" for x, y, z in self.model.points)
        head = f"ply\nformat ascii 1.0\nelement vertex {len(self.model.points)}\n"
        head += "".join(f"property double {axis}\n" for axis in "xyz") + "end_header\n"
        (self.root / "sparse_pc.ply").write_text(head + rows)
        return path

    def prepare(self, poses, *flags, out="out"):
        """The exit code."""
        argv = ["prepare", f"--images={self.images}", f"--poses={poses}"]
        argv += [f"--out={self.root / out}", *flags]
        return program.run(prepare.main, prepare.declare, argv=argv)

    def check_place(self, atol):
        """Cameras and points of the dataset are where they are on the map."""
        found = read_model(self.root / "out" / "sparse" / "0")
        offset = np.array(read_geo(self.root / "out" / "geo.json").offset)
        order = [found.image_names.index(name) for name in self.model.names]
        centers = camera_center(found.camera_from_dataset[order])
        np.testing.assert_allclose(centers + offset, self.on_map(self.centers), atol=atol)
        assert np.abs(centers).max() < 200
        return found
