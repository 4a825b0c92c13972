"""Drawings and tables of the report, to the pixel and to the letter."""

import re

import numpy as np
import pytest

from cosurfgs_jax import pictures
from cosurfgs_jax.report import mesh_picture, tables, text
from cosurfgs_jax.report.charts import short_number
from cosurfgs_jax.report.curves import NO_CURVES
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.workdir import Workdir


def test_numbers_where_their_form_changes():
    values = (9999, 1e4, 999_000, 1e6, 999e6, 1e9, -2e6, 0.0)
    assert [short_number(value) for value in values] == [
        "9999", "10k", "999k", "1M", "999M", "1G", "-2M", "0"
    ]  # fmt: skip
    values = (1234567, 45678, 950, 0.01234)
    assert [short_number(value) for value in values] == ["1.23M", "45.7k", "950", "0.01234"]
    assert [text.format_duration(value) for value in (0, 59.4, 59.6, 3599.4, 3599.6, 36_000)] == [
        "0:00", "0:59", "1:00", "59:59", "1:00:00", "10:00:00"
    ]  # fmt: skip
    assert [text.format_value(value) for value in (1234567, 1.23456, None, "a")] == [
        "1,234,567", "1.235", "", "a"
    ]  # fmt: skip
    assert text.format_percent(0.012345) == "1.234%" and text.format_percent(None) == ""
    assert [tables._megabytes(2**19 * number) for number in (0, 19, 20, 2100)] == [
        "", "9.5 MB", "10 MB", "1,050 MB"
    ]  # fmt: skip


def cells(html: str) -> list[list[str]]:
    """Texts of a page's tables, row by row; heads are left out."""
    rows = re.findall("<tr>(<td>.*?)</tr>", html)
    return [re.findall("<td>(.*?)</td>", row) for row in rows]


def given(**metrics) -> ReportInput:
    return ReportInput(Workdir("nowhere"), metrics, NO_CURVES, {"mesh": 61.0}, None, 3)


def test_tables_of_stages_and_seams():
    stages = [
        {"name": "edge", "num_surfels": 1500, "depth_error_seam": 0.02, "depth_error_rest": 0.01},
        {"name": "cloud", "depth_step_seam": 0.5, "depth_step_excess": 0.25, "steps": 1000},
        {"name": "last"},
    ]
    assert cells(tables.stage_table(given(stages=stages))) == [
        ["edge", "", "", "1,500", *9 * [""]],
        ["cloud", "1,000", *11 * [""]],
        ["last", *12 * [""]],
        ["mesh", "1:01"],
    ]
    assert cells(tables.seam_table(given(stages=stages))) == [
        ["edge", "", "", "", "", "2.000% (1.000%)"],
        ["cloud", "", "50.000%", "", "25.000%", ""],
    ]


def test_tables_of_depth_and_of_scores():
    row = {
        "median": 0.012345, "p90": 0.1, "relative_median": 0.001, "within_1_percent": 0.9,
        "covered": 0.5
    }  # fmt: skip
    final = {
        "psnr_x": 24.56789,
        "depth": {"unit": "m", "plane": row},
        "normal_errors_deg": {"walls": 12.34, "all": 5.0},
    }
    assert cells(tables.depth_tables(given(final=final))) == [
        ["plane", "0.0123", "0.1", "0.100%", "90.0%", "50.0%"],
        ["all pixels", "5.0°"],
        ["walls", "12.3°"],
    ]
    assert cells(tables.score_table(given(final=final))) == [["psnr x", "24.568"]]
    assert tables.depth_tables(given()) == tables.geometry_table(given()) == ""
    threshold = {"tau": 0.25, "precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    geometry = {"thresholds": [threshold], "accuracy": 0.125}
    table = tables.geometry_table(given(geometry=geometry))
    assert cells(table) == [["", "0.25", "0.5000", "0.2500", "0.3333"]]
    assert "Lengths in units of the dataset. accuracy (mean): 0.125." in table
    assert re.findall("<b>(.*?)</b><span>(.*?)<", tables.key_numbers(given(geometry=geometry))) == [
        ("0.333", "F1 at 0.25"),
        ("0.125", "accuracy"),
    ]


def test_scores_that_were_asked_for_are_among_the_first_numbers():
    final = {"psnr": 24.567, "psnr_nearest_view": 25.678, "ssim": 0.81234, "lpips": 0.23456}
    assert re.findall("<b>(.*?)</b><span>(.*?)<", tables.key_numbers(given(final=final))) == [
        ("24.57 dB", "PSNR, test views"),
        ("25.68 dB", "PSNR, nearest exposure"),
        ("0.812", "SSIM, test views"),
        ("0.235", "LPIPS, test views"),
    ]


def square(normal=(0.0, 0, 1), sides=(1.0, 1.0), color=(0, 0, 0)) -> Mesh:
    """A rectangle from the origin in the plane z = 0."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]) * [*sides, 1]
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    colors = np.tile(np.array(color, np.uint8), (4, 1))
    return Mesh(vertices, triangles, colors, np.tile(np.array(normal, np.float32), (4, 1)))


def test_shades_are_those_of_a_light_from_the_upper_left():
    """Of strength 0.72 from (-0.45, 0.55, 0.7), beside 0.22 from everywhere; backs are reddish."""
    light = np.array([-0.45, 0.55, 0.7])
    tint = np.array([0.93, 0.95, 1.0])
    for normal in ((0, 0, 1), (-0.6, 0, 0.8), (0, 0.6, 0.8), (0.8, 0, 0.6), (0, 0, -1)):
        lit = max(np.array(normal) @ light, 0) / np.linalg.norm(light)
        expected = (0.22 + 0.72 * lit) * tint
        if normal[2] < 0:
            expected = expected * [0.9, 0.4, 0.4]
        _, image = mesh_picture.draw_mesh(
            square(normal), azimuth_deg=-90, elevation_deg=90, width=40
        )
        np.testing.assert_allclose(image[20, 20], 255 * expected, atol=0.6, err_msg=str(normal))


@pytest.mark.parametrize(
    "sides, size", [((1, 1), (100, 100)), ((10, 1), (25, 100)), ((1, 10), (200, 100))]
)
def test_a_mesh_fills_its_picture_but_for_a_margin(sides, size):
    """Of 2 % of the longer side; a picture is from a quarter to twice as high as it is wide."""
    image, _ = mesh_picture.draw_mesh(
        square(sides=sides), azimuth_deg=-90, elevation_deg=90, width=100
    )
    assert image.shape[:2] == size
    margin = 0.02 * max(sides)
    width, height = np.array(sides) + 2 * margin
    scale = min(100 / width, size[0] / height)
    covered = (1 - image[..., 0] / 255).sum()
    outline = 2 * scale * sum(sides)
    assert covered == pytest.approx(scale**2 * sides[0] * sides[1], abs=0.3 * outline)
    rows, columns = np.nonzero(image[..., 0] < 200)
    for places, side, pixels in ((columns, sides[0], 100), (rows, sides[1], size[0])):
        assert places.min() == pytest.approx((pixels - scale * side) / 2 - 0.5, abs=1)
        assert places.max() == pytest.approx((pixels + scale * side) / 2 - 0.5, abs=1)


def test_the_viewer_stands_where_azimuth_and_elevation_say():
    right, above, towards = mesh_picture._view_axes((0, 0, 2), -60.0, 35.0)
    azimuth, elevation = np.radians([-60, 35])
    level = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    np.testing.assert_allclose(towards, np.cos(elevation) * level + [0, 0, np.sin(elevation)])
    np.testing.assert_allclose(right, np.cross([0, 0, 1], level), atol=1e-12)
    np.testing.assert_allclose(above, np.cross(towards, right), atol=1e-12)
    chosen = mesh_picture.draw_mesh(square(color=(200, 0, 0)), azimuth_deg=-60, elevation_deg=35)
    assert chosen[0].shape[1] == 720
    assert np.array_equal(chosen, mesh_picture.draw_mesh(square(color=(200, 0, 0))))


def test_points_are_squares_as_large_as_their_gaps():
    """In pixels of half a side: 1.5 sqrt(128 * 128 / 1600) = 5 of them, at most 8."""
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    middle = [[0.5, 0.5, 1]]
    for fill, side in ((0, 8), (1595, 5)):
        points = np.concatenate([corners, np.tile(corners[:1], (fill, 1)), middle])
        colors = np.full((len(points), 3), 255, np.uint8)
        colors[-1] = 0
        image = mesh_picture.draw_points(
            points, colors, azimuth_deg=-90, elevation_deg=90, width=64, fitting=corners
        )
        assert (1 - image[..., 0] / 255).sum() == pytest.approx(side**2 / 4, abs=0.05)


def test_pictures_of_normals_and_errors_at_their_limits():
    normals = np.array([[[0, 0, 0.06], [0, 0, 0.04], [0.3, 0, 0.4]]])
    colors = pictures.colorize_normals(normals)
    assert colors[0].tolist() == [[128, 128, 255], [38, 38, 42], [204, 128, 230]]
    photo = np.zeros((1, 3, 3), np.uint8)
    render = np.array([[[0, 0, 0], [96, 0, 0], [255, 255, 255]]], np.uint8)
    # 32 of 255 are half of a quarter, within rounding: the middle of the colours.
    found = pictures.colorize_error(render, photo)[0].astype(int)
    assert np.abs(found[1] - pictures.ramp(np.array(0.502))).max() <= 1
    assert found[0].tolist() == [23, 20, 56] and found[2].tolist() == [255, 250, 204]
    assert pictures.depth_range(np.zeros((2, 2))) == (0.0, 1.0)
    low, high = pictures.depth_range(np.array([0, np.nan, *range(1, 102)], float))
    assert (low, high) == pytest.approx((2, 100))
