"""A flight over flat ground, as a mapper finds it, and GPS of its photographs."""

import numpy as np

from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.georeference import Reconstructed
from cosurfgs_jax.sfm.similarity import Similarity

LATITUDE, LONGITUDE = 46.84, -91.99
METRES = 111_320.0


def random_rotation(rng):
    """A random one."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return rotation * np.sign(np.linalg.det(rotation))


def about_z(angle):
    """A rotation about z."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def flight_of(num_lines=3, slant_deg=0.0):
    """Cameras of a flight, 40 m above ground in metres, and points; heading alternates."""
    rng = np.random.default_rng(4)
    centers = []
    poses = []
    for number in range(18):
        line, step = divmod(number, 18 // num_lines)
        heading = np.pi * (line % 2)
        camera = np.diag([1.0, -1, -1]) @ about_z(heading)
        tilt = np.deg2rad(slant_deg)
        lean = np.array(
            [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        )
        center = np.array([12.0 * step, 20.0 * line, 40.0]) + rng.normal(scale=0.5, size=3)
        pose = np.eye(4)
        pose[:3, :3] = lean @ camera
        pose[:3, 3] = -pose[:3, :3] @ center
        centers.append(center)
        poses.append(pose)
    points = rng.uniform([0, -20, 0], [90, 60, 3], size=(400, 3))
    return np.array(poses), np.array(centers), points


def mapped(poses, points, rng):
    """The flight in a frame as a mapper has it."""
    away = Similarity(0.13, random_rotation(rng), rng.normal(size=3))
    turned = poses.copy()
    turned[:, :3, :3] = poses[:, :3, :3] @ away.rotation.T
    centers = away.apply(-np.einsum("vij,vi->vj", poses[:, :3, :3], poses[:, :3, 3]))
    turned[:, :3, 3] = -np.einsum("vij,vj->vi", turned[:, :3, :3], centers)
    names = [f"{number:02d}.jpg" for number in range(len(poses))]
    return Reconstructed(names, turned, away.apply(points))


def gps_of(names, centers, noise=0.0, **changes):
    """GPS of photographs at places in metres about LATITUDE, LONGITUDE."""
    rng = np.random.default_rng(5)
    tags = {}
    for name, center in zip(names, centers, strict=True):
        east, north, up = center + rng.normal(scale=noise or 1e-9, size=3)
        given = {
            "latitude": LATITUDE + north / METRES,
            "longitude": LONGITUDE + east / METRES / np.cos(np.deg2rad(LATITUDE)),
            "altitude": 200 + up,
        }
        tags[name] = PhotoTags(**(given | changes))
    return tags
