"""What the generated town of the present format looks like, in numbers: all that was measured on it
refers to this town. Whoever changes it on purpose counts `dataset._FORMAT` up and puts the new
numbers here.
"""

import collections
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from scenes import SMALL, town_scene

from cosurfgs_jax.data.town import dataset, facades, ground
from cosurfgs_jax.data.town.flight import plan_flight
from cosurfgs_jax.data.town.layout import make_town_plan
from cosurfgs_jax.data.town.terrain import make_terrain

SIZE_M = 130.0  # large enough for a church and halls
REACH_M = 100.0
TEXEL_M = 0.12  # fine enough for courses of stones and tiles
BANDS = range(500, 1400, 300)  # first rows, of 40 each


class Look(NamedTuple):
    """Mean and spread (standard deviation) of red, green and blue, 0 to 255."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


@pytest.fixture(scope="module")
def town():
    return make_town_plan(SIZE_M, REACH_M, make_terrain(0), 0)


def look(pictures) -> Look:
    """Of packed pictures, joined."""
    texels = np.concatenate([picture.ravel() for picture in pictures])
    channels = [(texels >> (8 * number) & 255).astype(np.float64) for number in range(3)]
    return Look(tuple(c.mean() for c in channels), tuple(c.std() for c in channels))


def check(found: dict, expected: dict, tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, numbers in found.items():
        np.testing.assert_allclose(numbers, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_walls_and_roofs(town):
    painter = facades._FacePainter(town, TEXEL_M)
    pictures = collections.defaultdict(list)
    for number, solid in enumerate(town.solids):
        if solid.kind not in ("tree", "car"):
            shadows = painter.near_solids(number)
            for side in range(len(solid.faces)):
                place = "wall" if side < solid.num_sides else "roof"
                patch = painter.patch(solid, side, shadows)
                pictures[f"{solid.kind} {place}"].append(patch.picture)
    leaves, metal = (patch.picture for patch in painter.shared())
    found = {name: look(pictures[name]) for name in sorted(pictures)}
    check(found | {"leaves": look([leaves]), "metal": look([metal])}, FACES, 0.02)


def test_colors_of_trees_and_cars(town):
    painter = facades._FacePainter(town, TEXEL_M)
    gains = collections.defaultdict(list)
    for solid in town.solids:
        if solid.kind in ("tree", "car"):
            gains[solid.kind] += painter.small_faces(solid)[0]
    found = {
        kind: Look(np.mean(values, axis=0), np.std(values, axis=0))
        for kind, values in sorted(gains.items())
    }
    check(found, GAINS, 1e-4)


def test_the_ground(town):
    count = int(2 * REACH_M / TEXEL_M)
    painter = ground._Painter(town, -REACH_M, count, TEXEL_M)
    found = {str(first): look([painter.rows(first, first + 40)]) for first in BANDS}
    check(found, GROUND, 0.02)


def test_what_stands_where(town):
    corners = collections.defaultdict(list)
    for solid in town.solids:
        corners[solid.kind].append(solid.vertices)
    found = {
        kind: (len(parts), *np.abs(np.concatenate(parts)).mean(axis=0))
        for kind, parts in sorted(corners.items())
    }
    check(found, SOLIDS, 1e-3)


def test_the_flight():
    flight = plan_flight(20, 640, 480, SIZE_M, make_terrain(0), 0)
    straight = flight.camera_from_local[:16]
    oblique = flight.camera_from_local[16:]
    found = {
        "straight": np.abs(straight[:, :3]).mean(axis=0).ravel(),
        "oblique": np.abs(oblique[:, :3]).mean(axis=0).ravel(),
        "lens": [flight.intrinsics[0, 0], *flight.intrinsics[:2, 2], flight.reach],
    }
    check(found, FLIGHT, 1e-3)


def test_the_dataset():
    assert dataset._FORMAT == 1
    scene = town_scene()
    truth = scene.ground_truth
    photographs = np.stack([np.asarray(Image.open(path), np.float64) for path in scene.image_paths])
    colors = photographs.mean(axis=(1, 2))
    found = {
        "colors": colors.mean(axis=0),
        "spreads": photographs.std(axis=(1, 2)).mean(axis=0),
        "colors of points": scene.cloud.colors.mean(axis=0),
        "points": np.abs(scene.cloud.points - dataset.ORIGIN_M).mean(axis=0),
        "exact points": np.abs(truth.points - dataset.ORIGIN_M).mean(axis=0),
        "corners": np.abs(truth.mesh_vertices - dataset.ORIGIN_M).mean(axis=0),
    }
    check(found, DATASET, 0.02)
    counts = [len(scene.cloud.track_views), len(truth.points), len(truth.mesh_triangles)]
    np.testing.assert_allclose(counts, COUNTS, rtol=1e-3)
    assert len(scene.image_paths) == SMALL.num_views


FACES = {
    "chimney roof": Look((187.81, 184.82, 176.19), (18.75, 18.94, 19.06)),
    "chimney wall": Look((54.87, 37.97, 31.61), (22.66, 14.07, 11.33)),
    "church roof": Look((86.96, 64.13, 52.28), (45.96, 27.41, 22.57)),
    "church wall": Look((72.27, 67.14, 57.28), (32.31, 31.25, 27.34)),
    "flat roof": Look((146.65, 141.25, 128.72), (37.03, 37.48, 38.33)),
    "flat wall": Look((76.64, 68.38, 60.83), (36.52, 34.26, 31.34)),
    "house roof": Look((103.99, 69.41, 56.12), (39.18, 23.54, 22.44)),
    "house wall": Look((77.29, 70.97, 62.71), (36.14, 34.67, 31.61)),
    "leaves": Look((76.38, 101.93, 48.42), (24.02, 31.91, 15.15)),
    "metal": Look((206.8, 206.8, 206.8), (18.41, 18.41, 18.41)),
}
GAINS = {
    "car": Look((0.3233, 0.2813, 0.2884), (0.2148, 0.2003, 0.202)),
    "tree": Look((0.7073, 0.7152, 0.7128), (0.3227, 0.3214, 0.3207)),
}
GROUND = {
    "500": Look((96.36, 100.02, 67.16), (36.92, 33.79, 35.69)),
    "800": Look((114.15, 115.71, 82.48), (42.9, 41.65, 36.78)),
    "1100": Look((111.25, 109.76, 73.72), (43.0, 41.45, 33.81)),
}
SOLIDS = {
    "car": (7.0, 32.867, 30.07, 2.517),
    "chimney": (21.0, 29.441, 29.633, 4.431),
    "church": (2.0, 6.396, 28.823, 9.752),
    "flat": (5.0, 36.191, 21.565, 4.202),
    "house": (32.0, 27.646, 35.507, 3.93),
    "tree": (60.0, 47.141, 47.504, 3.797),
}
FLIGHT = {
    "straight": (
        0.999,
        0.038,
        0.001,
        36.092,
        0.038,
        0.997,
        0.048,
        31.749,
        0.001,
        0.048,
        0.998,
        74.486,
    ),
    "oblique": (
        0.563,
        0.606,
        0.005,
        8.381,
        0.52,
        0.489,
        0.504,
        14.732,
        0.311,
        0.278,
        0.863,
        86.649,
    ),
    "lens": (500.0, 323.84, 235.68, 125.336),
}
DATASET = {
    "colors": (119.45, 112.04, 79.01),
    "spreads": (40.76, 35.34, 33.69),
    "colors of points": (118.49, 110.75, 78.14),
    "points": (28.22, 19.09, 2.6),
    "exact points": (33.09, 28.18, 2.64),
    "corners": (39.6, 38.82, 2.86),
}
COUNTS = (7401, 25437, 96698)
