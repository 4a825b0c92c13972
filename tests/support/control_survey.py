"""A flight with ground control points."""

import numpy as np
from flight_case import flight_of, mapped

from cosurfgs_jax.geometry.distortion import Lens, pixels_from_normalised
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm.control_fit import place_by_control
from cosurfgs_jax.sfm.control_points import read_control_points
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder

LENS = Lens("OPENCV", 750, 1000, (900.0, 901.0), (503.0, 371.0), (0.05, -0.02, 1e-3, -2e-3))
ORIGIN = np.array([577_000.0, 5_188_000.0, 250.0])  # of the flight's metres, EPSG:32615
GROUND = np.array([[0, -10, 0], [60, -5, 1], [65, 42, 0.5], [2, 45, 3], [30, 20, 0], [45, 30, 2.0]])
SIZE = {"height": LENS.height, "width": LENS.width}


def pixel_of(pose, point):
    local = pose[:3, :3] @ point + pose[:3, 3]
    return pixels_from_normalised(LENS, local[:2] / local[2])


def marks_of(poses, point):
    """Photographs that show a point, and where."""
    pixels = [pixel_of(pose, point) for pose in poses]
    size = [LENS.width, LENS.height]
    return {
        f"{number:02d}.jpg": pixel
        for number, pixel in enumerate(pixels)
        if (pixel > 0).all() and (pixel < size).all()
    }


class Survey:
    """A flight with ground control points, and the file of them with whatever is wrong in it."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "gcp_list.txt"
        self.poses, self.centers, points = flight_of()
        self.model = mapped(self.poses, points, np.random.default_rng(6))
        self.lenses = dict.fromkeys(self.model.names, LENS)
        self.first = "EPSG:32615"
        self.names = [f"gcp{number}" for number in range(1, 7)]
        self.places = {name: GROUND[row] + ORIGIN for row, name in enumerate(self.names)}
        self.marks = {
            name: marks_of(self.poses, GROUND[row]) for row, name in enumerate(self.names)
        }
        self.tags = dict.fromkeys(self.model.names, PhotoTags())
        self.root = tmp_path
        for name in self.model.names:
            (tmp_path / name).write_bytes(b"x")

    def write(self):
        lines = [self.first]
        for name, marks in self.marks.items():
            x, y, z = self.places[name]
            for photo, (column, row) in marks.items():
                mark = f"{column - 0.5:.3f} {row - 0.5:.3f} {photo} {name}"
                lines.append(f"{x:.9f}\t{y:.9f} {z:.3f} {mark}")
        self.path.write_text("\n".join(lines) + "\n")

    def read(self, **settings):
        self.write()
        return self.read_as_it_is(**settings)

    def read_as_it_is(self, **settings):
        """Without writing the file before."""
        photos = [
            Photo(name, self.root / name, tags=self.tags[name], **SIZE) for name in self.model.names
        ]
        chosen = PrepareSettings(gcp=str(self.path), **settings)
        return read_control_points(PhotoFolder(self.root, photos, {}), chosen), chosen

    def place(self, **settings):
        control, chosen = self.read(**settings)
        return place_by_control(self.model, self.lenses, control, self.tags, chosen)
