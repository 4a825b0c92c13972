"""Where a mesh is wrong: its colours, files, pictures and legend, on meshes whose error
is known.
"""

import re

import numpy as np
import pytest

from cosurfgs_jax import metrics, pictures, report
from cosurfgs_jax.formats.ply import columns, read_ply
from cosurfgs_jax.report.error_picture import (
    NOT_COUNTED,
    _color_bar,
    distance_colors,
    error_pictures,
)
from cosurfgs_jax.report.mesh_picture import draw_points
from cosurfgs_jax.surface.mesh import Mesh, read_mesh_ply, vertex_normals, write_mesh_ply
from cosurfgs_jax.workdir import Workdir

LARGEST = 0.5


def ground(num=41, width=10.0):
    """A flat grid: points f64[num^2,3] and its triangles."""
    x, y = np.meshgrid(np.linspace(0, width, num), np.linspace(0, width, num))
    points = np.stack([x.ravel(), y.ravel(), np.zeros(num * num)], axis=1)
    corner = (np.arange(num - 1)[:, None] * num + np.arange(num - 1)).ravel()
    squares = np.stack(
        [corner, corner + 1, corner + num + 1, corner, corner + num + 1, corner + num], axis=1
    )
    return points, squares.reshape(-1, 3).astype(np.int32)


def mesh_with_a_step(height=0.4):
    """The eastern half is too high, the northern fifth is missing, and a piece lies far outside."""
    points, triangles = ground()
    vertices = points.copy()
    vertices[points[:, 0] > 5.1, 2] = height
    triangles = triangles[(points[triangles][:, :, 1] <= 8).all(axis=1)]
    vertices = np.concatenate([vertices, [[20.0, 0, 0], [21, 0, 0], [20, 1, 0]]])
    triangles = np.concatenate([triangles, np.arange(3, dtype=np.int32)[None] + len(points)])
    colors = np.full((len(vertices), 3), 9, np.uint8)
    normals = vertex_normals(vertices, triangles)
    confidence = np.where(vertices[:, 0] > 5.1, 1, 12).astype(np.float32)
    return Mesh(vertices, triangles, colors, normals, confidence)


@pytest.fixture(scope="module")
def compared():
    mesh = mesh_with_a_step()
    truth = ground()
    return mesh, metrics.compare_surfaces(
        (mesh.vertices, mesh.triangles),
        truth[0],
        truth_mesh=truth,
        num_samples=20_000,
        thresholds=(0.1, LARGEST),
        unit="m",
        has_vertex_distances=True,
        vertex_confidence=mesh.vertex_confidence,
    )


def test_distances_at_vertices_are_known_and_nan_where_nothing_is_compared(compared):
    mesh, comparison = compared
    distances = comparison.vertex_to_truth
    x = mesh.vertices[:, 0]
    assert np.isnan(distances[-3:]).all() and np.isfinite(distances[:-3]).all()
    assert distances[x <= 5.1] == pytest.approx(0, abs=1e-9)
    assert distances[(x > 5.1) & (x <= 10)] == pytest.approx(0.4)
    few, many = comparison.scores["confidence"]
    assert (few["from"], few["precision"], few["tau"]) == (1, 0.0, 0.1)
    assert few["median"] == pytest.approx(0.4) and few["share"] == np.mean(distances[:-3] > 0.2)
    assert (many["from"], many["to"], many["precision"]) == (10, 19, 1.0)
    is_missing = comparison.truth[:, 1] > 8.3
    assert (
        comparison.to_surface[is_missing].min() > 0.2
        and comparison.to_surface[comparison.truth[:, 1] < 8].max() < 0.41
    )


def test_of_very_many_vertices_some_are_measured_and_their_neighbours_take_their_distance(
    compared, monkeypatch
):
    mesh, comparison = compared
    monkeypatch.setattr(metrics.surface, "_MAX_VERTICES", len(mesh.vertices) // 4)
    truth = ground()
    thinned = metrics.compare_surfaces(
        (mesh.vertices, mesh.triangles),
        truth[0],
        truth_mesh=truth,
        num_samples=20_000,
        thresholds=(0.1, LARGEST),
        has_vertex_distances=True,
    )
    assert thinned.scores["accuracy"] == pytest.approx(comparison.scores["accuracy"])
    x = mesh.vertices[:, 0]
    is_far = (np.abs(x - 5.1) > 1) & (x <= 10)
    assert thinned.vertex_to_truth[is_far] == pytest.approx(
        comparison.vertex_to_truth[is_far], abs=1e-9
    )


def test_colours_go_from_dark_to_bright_and_grey_is_what_does_not_count():
    colors = distance_colors(np.array([0.0, 0.25, 0.5, 7.0, np.nan]), LARGEST).astype(int)
    assert (np.diff(colors[:3].sum(axis=1)) > 50).all()
    assert np.array_equal(colors[2], colors[3]) and np.array_equal(colors[4], NOT_COUNTED)
    assert colors[2].min() < 150  # not taken for white paper


def test_error_files_hold_distances_and_colours(compared, tmp_path):
    mesh, comparison = compared
    workdir = Workdir(tmp_path)
    report.write_error_files(workdir, mesh, comparison)
    written = read_mesh_ply(workdir.mesh_error)
    assert np.array_equal(written.vertices, mesh.vertices) and np.array_equal(
        written.triangles, mesh.triangles
    )
    assert np.array_equal(
        written.vertex_colors, distance_colors(comparison.vertex_to_truth, LARGEST)
    )
    table = read_ply(workdir.mesh_error)[0]["vertex"]
    distances = columns(table, ("distance",), tmp_path)[:, 0]
    assert distances == pytest.approx(comparison.vertex_to_truth, nan_ok=True)
    table = read_ply(workdir.truth_error)[0]["vertex"]
    assert columns(table, ("distance",), tmp_path)[:, 0] == pytest.approx(comparison.to_surface)
    report.drop_error_files(workdir)
    assert not list(workdir.mesh.parent.iterdir())
    assert error_pictures(workdir, np.array([0, 0, 1.0])) == ""


def test_the_report_shows_where_the_mesh_is_wrong_with_a_legend(compared, tmp_path, monkeypatch):
    mesh, comparison = compared
    write_mesh_ply(tmp_path / "mesh" / "mesh.ply", mesh)
    assert "Error of the surface" not in report.write_report(Workdir(tmp_path)).read_text()
    report.write_error_files(Workdir(tmp_path), mesh, comparison)
    drawn = []
    monkeypatch.setattr(
        pictures, "data_url", lambda image, *rest: drawn.append(image) or "data:image/png;base64,"
    )
    text = report.write_report(Workdir(tmp_path)).read_text()
    for words in (
        "Error of the surface",
        "0.5 m or more",
        "mesh, distance to ground truth, from above",
        "ground truth, distance to the mesh, from above",
    ):
        assert words in text, words
    above = drawn[4].astype(int)  # after the four of the mesh itself
    right, bad = distance_colors(np.array([0.0, 0.4]), LARGEST).astype(int)
    is_right, is_bad = (np.abs(above - color).max(axis=-1) <= 2 for color in (right, bad))
    # Both sides in one frame: the mesh as it lies, x to the right.
    assert is_right.sum() > 3000 and is_bad.sum() > 3000
    assert np.nonzero(is_right)[1].max() < np.nonzero(is_bad)[1].min() + 8
    missing = drawn[5].astype(int)
    assert missing.shape == above.shape
    is_missing = np.abs(missing - distance_colors(np.array([9.0]), LARGEST)).max(axis=-1) <= 2
    rows = np.nonzero(is_missing)[0]
    assert (
        is_missing.any() and rows.max() < np.nonzero(is_bad)[0].min() + 8
    )  # north, above what the mesh has


def test_points_are_drawn_nearest_in_front():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 1]])
    colors = np.array([[255, 0, 0]] * 4 + [[0, 0, 255]], np.uint8)
    for order in (slice(None), slice(None, None, -1)):
        image = draw_points(
            points[order], colors[order], azimuth_deg=-90, elevation_deg=90, width=64
        )
        assert (image == [0, 0, 255]).all(axis=-1).sum() >= 4 and np.array_equal(
            image[32, 32], [0, 0, 255]
        )
        assert (image == 255).all(axis=-1).mean() > 0.8


def test_the_colour_bar_goes_to_the_largest_distance():
    bar = _color_bar(0.3, "m")
    assert re.findall("<span>(.*?)</span>", bar) == ["0", "0.15", "0.3 m or more"]
    steps = [tuple(map(int, rgb.split())) for rgb in re.findall(r"rgb\((.*?)\)", bar)]
    assert np.array_equal(steps, distance_colors(np.linspace(0, 0.3, len(steps)), 0.3))
