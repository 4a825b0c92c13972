"""A flight whose poses other programs have written: their lens, and what comes of their files."""

import numpy as np
from flight_case import flight_of

from cosurfgs_jax.geometry.distortion import pixels_from_normalised
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.export_place import place_by_export
from cosurfgs_jax.sfm.foreign_cameras import middle_of, read_known_poses
from cosurfgs_jax.sfm.georeference import Reconstructed
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder

HEIGHT, WIDTH = 750, 1000
FOCAL = 880.0
K1, K2, K3 = 0.06, -0.05, 0.02
RADIAL_X = 2e-3  # the tangential coefficient of r^2 + 2 x^2 in x
RADIAL_Y = -1e-3  # that of r^2 + 2 y^2 in y
PRINCIPAL = (507.3, 371.9)


def distorted(local, k4=0.0):
    """Points of camera coordinates [n,3] by the documented formula of Brown and Conrady."""
    x, y = (local[:, :2] / local[:, 2:]).T
    r = x**2 + y**2
    factor = 1 + K1 * r + K2 * r**2 + K3 * r**3 + k4 * r**4
    column = x * factor + RADIAL_X * (r + 2 * x * x) + 2 * RADIAL_Y * x * y
    row = y * factor + RADIAL_Y * (r + 2 * y * y) + 2 * RADIAL_X * x * y
    return np.stack([column, row], axis=1)


class Scene:
    """A flight, and where its photographs show points."""

    def __init__(self, root):
        self.root = root
        self.poses, self.centers, self.points = flight_of(slant_deg=8)
        self.names = [f"{number:02d}.jpg" for number in range(len(self.poses))]
        self.size = {"height": HEIGHT, "width": WIDTH}
        self.tags = dict.fromkeys(self.names, PhotoTags())
        for name in self.names:
            (root / name).write_bytes(b"x")

    def local(self, number):
        """The points in the coordinates of a camera, those that it sees."""
        pose = self.poses[number]
        points = self.points @ pose[:3, :3].T + pose[:3, 3]
        ahead = points[:, 2] > 0
        ahead &= (np.abs(points[:, :2]) < 0.55 * points[:, 2:]).all(axis=1)
        return points, ahead

    def folder(self):
        photos = [
            Photo(name, self.root / name, tags=self.tags[name], **self.size) for name in self.names
        ]
        return PhotoFolder(self.root, photos, {})

    def read(self, path):
        return read_known_poses(path, self.folder())

    def frame(self):
        """Width and height of the photographs."""
        return self.size["width"], self.size["height"]

    def check(self, known, points=None, pixels_of=None, limit=1e-3):
        """The pixels of all points in all photographs, in the frame of the file, by the file's own
        formula and by what was read.
        """
        points = self.points if points is None else points
        for number, name in enumerate(self.names):
            local, is_seen = self.local(number)
            expected = pixels_of(local[is_seen])
            pose = known.camera_from_local[name]
            found = points[is_seen] @ pose[:3, :3].T + pose[:3, 3]
            pixels = pixels_from_normalised(known.lenses[name], found[:, :2] / found[:, 2:])
            is_inside = ((expected > 0) & (expected < self.frame())).all(axis=1)
            assert is_inside.sum() > 20
            np.testing.assert_allclose(pixels[is_inside], expected[is_inside], rtol=0, atol=limit)


def row_of(values):
    """Numbers as files have them."""
    return " ".join(f"{value:.15e}" for value in np.ravel(values))


def _model(scene, known, points):
    """What triangulation makes of known poses."""
    middle = middle_of(known)
    poses = np.array(list(known.camera_from_local.values()))
    poses[:, :3, 3] += poses[:, :3, :3] @ middle
    return Reconstructed(list(known.camera_from_local), poses, points - middle)


def place(scene, known, points, **settings):
    """The placement, and where the photographs come to be on the map."""
    model = _model(scene, known, points)
    found = place_by_export(model, known, scene.tags, PrepareSettings(**settings))
    return found, found.similarity.apply(model.centers) + found.geo.offset
