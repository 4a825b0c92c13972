"""Scores on walls, roofs and ground apart, against a house whose surface is wrong by known
amounts.
"""

import numpy as np
import pytest

from cosurfgs_jax import metrics
from cosurfgs_jax.metrics import mesh_distance
from cosurfgs_jax.metrics.surface_classes import CLASSES, Judged, class_scores

UP = np.array([0.0, 0.0, 1.0])
TURN = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # z up becomes -y up


def quad(corners):
    """Two triangles of four corners, counter-clockwise from outside."""
    corners = np.asarray(corners, np.float64)
    return corners[[0, 1, 2, 0, 2, 3]].reshape(2, 3, 3)


def house(wall_tilt_deg=0.0, roof_lift=0.0):
    """A flat roof 4 x 4 at a height of 4, its four walls, ground around it, and the sides of a
    steep heap (70 degrees) in a corner. Walls lean outwards at the top by `wall_tilt_deg` about
    their middles.
    """
    lean = 2 * np.tan(np.radians(wall_tilt_deg))
    pieces = [quad([(-2, -2, 4 + roof_lift), (2, -2, 4 + roof_lift), (2, 2, 4 + roof_lift),
                    (-2, 2, 4 + roof_lift)])]  # fmt: skip
    parts = ["roofs"]
    for turn in range(4):
        angle = np.radians(90 * turn)
        spin = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        low, high = 2 - lean, 2 + lean
        wall = np.array([(low, -2, 0), (low, 2, 0), (high, 2, 4), (high, -2, 4.0)])
        field = np.array([(2, -10, 0), (10, -10, 0), (10, 2, 0), (2, 2, 0.0)])
        for corners, part in ((wall, "walls"), (field, "ground")):
            turned = np.column_stack([corners[:, :2] @ spin.T, corners[:, 2]])
            pieces.append(quad(turned))
            parts.append(part)
    run = 1 / np.tan(np.radians(70))
    pieces.append(quad([(6 - run, 6, 1), (6 - run, 7, 1), (6, 7, 0), (6, 6, 0.0)])[:, ::-1])
    parts.append("steep")
    soup = np.concatenate(pieces)
    vertices, index = np.unique(soup.reshape(-1, 3), axis=0, return_inverse=True)
    return vertices, index.reshape(-1, 3), np.repeat(parts, 2)


def names_of(vertices, triangles, up):
    return np.array(CLASSES)[metrics.classes_of_triangles(vertices, triangles, up)]


def test_classes_of_a_house():
    vertices, triangles, parts = house()
    assert (names_of(vertices, triangles, UP) == parts).all()
    # In another frame, and with corners of its own for every triangle.
    soup = (vertices @ TURN.T)[triangles].reshape(-1, 3)
    assert (names_of(soup, np.arange(len(soup)).reshape(-1, 3), TURN @ UP) == parts).all()


def test_without_flat_parts_there_is_no_ground():
    vertices, triangles, parts = house()
    walls = triangles[parts == "walls"]
    assert set(names_of(vertices, walls, UP)) == {"walls"}


@pytest.mark.parametrize(
    "steepness_deg, name",
    [(0, "ground"), (59.9, "ground"), (60.1, "steep"), (79.9, "steep"), (80.1, "walls"),
     (90, "walls"), (99.9, "walls"), (100.1, "steep"), (180, "steep")],
)  # fmt: skip
def test_classes_begin_at_a_steepness(steepness_deg, name):
    """Walls are within 10 degrees of the vertical, also overhanging ones; what looks down is none
    of the others.
    """
    cosine, sine = np.cos(np.radians(steepness_deg)), np.sin(np.radians(steepness_deg))
    corners = quad([(0, 0, 0), (cosine, 0, sine), (cosine, 1, sine), (0, 1, 0)])
    vertices = corners.reshape(-1, 3)
    assert set(names_of(vertices, np.arange(6).reshape(2, 3), UP)) == {name}


def test_ground_is_the_piece_of_the_largest_area():
    """Not of the most triangles; pieces hang together where corners are the same to 1e-5 of the
    width.
    """

    def piece(left, right, height):
        return quad([(left, 0, height), (right, 0, height), (right, 1, height), (left, 1, height)])

    for gap, is_one in ((0.5e-5, True), (3e-5, False)):
        pieces = [piece(0, 4, 0), piece(4 + 4 * gap, 4.5, 0), piece(0, 1, 3), piece(1, 2, 3)]
        vertices = np.concatenate(pieces).reshape(-1, 3)
        names = names_of(vertices, np.arange(len(vertices)).reshape(-1, 3), UP)
        expected = ["ground"] * 2 + ["ground" if is_one else "roofs"] * 2 + ["roofs"] * 4
        assert names.tolist() == expected, gap


def test_the_nearest_triangle_is_told_with_the_distance():
    vertices, triangles, parts = house()
    points = np.array([[0.3, 0.2, 4.5], [2.2, 0.5, 2.0], [8.0, -4.0, -0.1]])
    distances, nearest = mesh_distance.nearest_on_mesh(points, vertices, triangles)
    assert distances == pytest.approx([0.5, 0.2, 0.1])
    assert list(parts[nearest]) == ["roofs", "walls", "ground"]
    assert (mesh_distance.distance_to_mesh(points, vertices, triangles) == distances).all()


@pytest.fixture(scope="module")
def scores():
    truth = house()[:2]
    points = mesh_distance.sample_mesh(*truth, 20_000)[0]
    judged = house(wall_tilt_deg=6.0, roof_lift=0.3)[:2]
    return metrics.surface_scores(
        judged,
        points,
        truth_mesh=truth,
        thresholds=(0.1, 0.5),
        num_samples=40_000,
        up=UP,
    )


def test_each_class_has_its_own_angles_and_rows(scores):
    classes = scores["classes"]
    assert set(classes) == set(CLASSES)
    assert classes["walls"]["normal_deg"]["median"] == pytest.approx(6.0, abs=0.01)
    # They hang over.
    assert classes["walls"]["normal_deg"]["median_slope_error"] == pytest.approx(6.0, abs=0.01)
    assert classes["roofs"]["normal_deg"]["median"] == pytest.approx(0.0, abs=0.01)
    assert classes["ground"]["normal_deg"]["median"] == pytest.approx(0.0, abs=0.01)
    roofs = {row["tau"]: row for row in classes["roofs"]["thresholds"]}
    assert roofs[0.1]["recall"] < 0.05 and roofs[0.5]["recall"] == 1.0
    # A wall is off by at most 2 tan(6 deg) = 0.21 at its ends, and by less than 0.1 in the middle.
    walls = {row["tau"]: row for row in classes["walls"]["thresholds"]}
    assert 0.35 < walls[0.1]["recall"] < 0.6 and walls[0.5]["recall"] > 0.98
    ground = classes["ground"]["thresholds"][0]
    assert ground["recall"] > 0.97 and 0 < ground["precision"] <= 1
    assert sum(part["share_of_truth"] for part in classes.values()) == pytest.approx(1.0)
    assert "60 degrees" in scores["class_choices"]


def test_angles_are_the_median_and_what_nine_of_ten_are_below():
    angles = np.radians([0.0, 10, 20, 60, 80, 85])  # the last is too far away to tell a normal
    normals = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1)
    judged = Judged(np.full(6, CLASSES.index("walls")), np.array([0.1] * 5 + [0.3]))
    taus = [(0.1001, ""), (0.2, "")]
    exact = np.tile([0, np.sin(np.radians(30)), np.cos(np.radians(30))], (6, 1))
    found = class_scores(judged, (normals, np.tile(UP, (6, 1))), judged, taus, up=UP)
    assert list(found) == ["walls"] and found["walls"]["share_of_truth"] == 1
    expected = {"median": 20, "p90": 72, "median_slope_error": 20}
    assert found["walls"]["normal_deg"] == pytest.approx(expected)
    # Against a slope of 30 degrees those of 0, 10 and 20 are flatter, and 60 and 80 steeper.
    found = class_scores(judged, (normals, exact), judged, taus, up=UP)
    assert found["walls"]["normal_deg"]["median_slope_error"] == pytest.approx(-10)


def test_a_class_is_told_in_a_line(scores):
    line = metrics.class_line("walls", scores["classes"]["walls"])
    assert line.startswith("walls (")
    assert "normals off by 6.0 deg (90 %: 6.0; slope error +6.0)" in line
    assert "at 0.1, 0.5: precision " in line
    f1 = scores["classes"]["walls"]["thresholds"][1]["f1"]
    assert line.endswith(f", {f1:.3f}")


def test_angles_without_a_sample_near_the_truth_are_unknown():
    truth = house()[:2]
    points = mesh_distance.sample_mesh(*truth, 5_000)[0]
    raised = truth[0] + np.array([0.0, 0.0, 0.4]), truth[1]
    scores = metrics.surface_scores(
        raised, points, truth_mesh=truth, thresholds=(0.01,), num_samples=5_000, up=UP
    )
    ground = scores["classes"]["ground"]
    assert ground["normal_deg"] is None and ground["thresholds"][0]["f1"] == 0.0
    assert "normals off by unknown" in metrics.class_line("ground", ground)


def test_points_and_truth_without_up_have_no_classes():
    truth = house()[:2]
    points = mesh_distance.sample_mesh(*truth, 5_000)[0]
    choices = {"truth_mesh": truth, "thresholds": (0.1,), "num_samples": 5_000}
    assert "classes" not in metrics.surface_scores(points, points, up=UP, **choices)
    assert "classes" not in metrics.surface_scores(truth, points, **choices)
