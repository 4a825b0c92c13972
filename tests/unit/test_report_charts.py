"""Charts and the flight map: what is drawn is where the numbers say."""

import base64

import numpy as np
import pytest

from cosurfgs_jax import files
from cosurfgs_jax.formats.geo_json import GeoReference, write_geo
from cosurfgs_jax.geometry.scene_frame import SceneFrame, rotation_to_z
from cosurfgs_jax.report import charts, flight_map
from cosurfgs_jax.report.curves import NO_CURVES, Curves
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.surface.ground import GroundGrid
from cosurfgs_jax.workdir import Workdir

pytest.importorskip("matplotlib")
ONE_STAGE = {"device": 0.0}


def drawn(lines, starts=ONE_STAGE):
    """The axes of a chart, and its lines' points and colours by name and block."""
    with charts.drawing((5, 3)) as figure:
        assert charts.draw_lines(figure, "loss", lines, starts)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    found = {
        line.get_gid(): (line.get_xydata().tolist(), line.get_color())
        for line in axes.lines
        if line.get_gid()
    }
    return figure, axes, found


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_line_has_its_points_and_a_long_one_means_of_them():
    steps = list(map(float, range(100_000)))
    lines = {
        ("loss", None): ([0.0, 5.0, 7.0, 9.0], [2.0, np.nan, 1.0, np.inf]),
        ("long_one", None): (steps, [step % 7 for step in steps]),
        ("never", None): ([1.0], [np.nan]),
    }
    figure, axes, found = drawn(lines)
    assert found["loss None"][0] == [[0, 2], [7, 1]]
    assert len(found["long_one None"][0]) == charts._MAX_POINTS and "never None" not in found
    assert np.abs(np.array(found["long_one None"][0])[:, 1] - 3).max() < 0.1
    assert legend_of(figure) == ["loss", "long one"]
    assert axes.get_title(loc="left") == "loss" and axes.get_xlim()[0] == 0


def test_blocks_have_colours_where_there_are_few_and_names_where_there_are_several():
    few = {("psnr", block): ([0.0, 1.0], [1.0, 2.0 + block]) for block in range(3)}
    figure, _, found = drawn(few)
    assert legend_of(figure) == ["block 0", "block 1", "block 2"]
    assert len({color for _, color in found.values()}) == 3
    figure, _, found = drawn(few | {("test", 1): ([1.0], [3.0])})
    assert legend_of(figure) == ["psnr", "test"]
    assert len({color for _, color in found.values()}) == 2
    many = {("psnr", block): ([0.0, 1.0], [1.0, 2.0 + block]) for block in range(120)}
    with charts.drawing((5, 3)) as figure:
        charts.draw_lines(figure, "psnr", many, ONE_STAGE)
        assert not figure.legends and len(figure.axes[0].lines) == 120


def test_stages_are_marked_where_they_begin_and_named_where_there_is_room():
    line = {("loss", None): ([0.0, 100.0], [1.0, 2.0])}
    assert not drawn(line)[1].texts
    starts = {"device": 0.0, "second": 60.0, "third": 62.0, "fourth": 90.0}
    _, axes, _ = drawn(line, starts)
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert marks == [0, 60, 62, 90]
    assert [text.get_text() for text in axes.texts] == ["device", "second", "fourth"]


def test_charts_are_svg_of_the_same_bytes_each_time_and_small():
    lines = {
        (f"<{name}> $1", block): (list(range(300)), [0.1 * block] * 300)
        for name in range(3)
        for block in range(30)
    }
    texts = [charts.charts(Curves({"a & b": lines, "empty": {}}, ONE_STAGE)) for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].count("<img") == 1 and len(texts[0]) < 180_000
    svg = base64.b64decode(texts[0].partition("base64,")[2].partition('"')[0]).decode()
    assert "a &amp; b" in svg and "&lt;0&gt; $1" in svg
    assert charts.charts(NO_CURVES) == charts.charts(Curves({"x": {}}, {})) == ""


# World = 0.1 * dataset - (1, 2, 0).
FRAME = SceneFrame(0.1, np.eye(3), np.array([-1.0, -2.0, 0.0]))
GEO = GeoReference(32614, (500_000.0, 4_000_000.0, 100.0), True)


@pytest.fixture
def workdir(tmp_path):
    """Four cameras on the corners of 40 x 20, the last one for testing, and a point."""
    corners = np.array([[10, 20], [50, 20], [10, 40], [50, 40]])
    table = {
        "cameras": (0.1 * corners - [1, 2]).tolist(),
        "is_test": [False, False, False, True],
        "points": [[2.0, 1.0]],
    }
    files.write_json(tmp_path / "partition.json", table)
    return Workdir(tmp_path)


def map_of(workdir, frame=FRAME):
    given = ReportInput(workdir, {}, NO_CURVES, {}, frame, 0)
    flight = flight_map._flight(given, frame, files.read_json_object(workdir.partition))
    with charts.drawing((5, 5)) as figure:
        flight_map.draw_flight(figure, flight)
    return flight, figure.axes[0], flight_map.flight_map(given)


def test_the_flight_is_drawn_on_the_ground_in_its_own_unit(workdir):
    flight, axes, html = map_of(workdir)
    points, training, test = (item.get_offsets().tolist() for item in axes.collections)
    assert np.allclose(points, [[30, 30]])
    assert np.allclose(training, [[10, 20], [50, 20], [10, 40]]) and np.allclose(test, [[50, 40]])
    (low, high), margin = flight.bounds(), 1.6
    assert np.allclose(low, [10 - margin, 20 - margin])
    assert np.allclose(high, [50 + margin, 40 + margin])
    assert bar_words(axes) == "10 units of the dataset" and not axes.texts
    assert "3 photographs for training (yellow), 1 for testing (pink), over the SfM points" in html
    assert "need not be north" in html


def bar_words(axes):
    (bar,) = [item for item in axes.artists if hasattr(item, "size_bar")]
    return bar.txt_label.get_text()


def test_a_place_on_the_map_has_north_and_metres(workdir):
    write_geo(workdir.geo, GEO)
    _, axes, html = map_of(workdir)
    assert bar_words(axes) == "10 m" and [text.get_text() for text in axes.texts] == ["N"]
    assert "north" not in html
    # A dataset whose z is not up is drawn on its own ground.
    tilted = SceneFrame(0.1, rotation_to_z(np.array([0.0, 1.0, 0.0])), FRAME.translation)
    flight, axes, html = map_of(workdir, tilted)
    assert np.allclose(flight.cameras, [[0, 0], [40, 0], [0, 20], [40, 20]])
    assert not axes.texts and "need not be north" in html


def test_the_flight_lies_on_the_orthophoto_without_the_offset(workdir):
    pytest.importorskip("rasterio")
    grid = GroundGrid(left=0.0, top=60.0, pixel_size=0.5, width=160, height=100)
    colors = np.full((4, 100, 160), 255, np.uint8)
    colors[:3, :, :80] = 0
    path = workdir.export / "orthophoto.tif"
    with geotiff.create(path, grid, "color", offset=GEO.offset, epsg=GEO.epsg) as file:
        file.write(colors, 0, 0)
    assert map_of(workdir)[0].photo is None  # nothing says where it lies
    about = grid._asdict() | {"offset": GEO.offset}
    about["left"] += GEO.offset[0]
    about["top"] += GEO.offset[1]
    files.write_json(workdir.export / "dsm.json", about)
    flight, axes, html = map_of(workdir)
    assert flight.extent == (0, 80, 10, 60) and flight.has_north and "over the orthophoto" in html
    (image,) = axes.images
    assert image.get_extent() == [0, 80, 10, 60]
    assert image.get_array()[0, 0].tolist() == [0, 0, 0]
    assert image.get_array()[0, -1].tolist() == [255, 255, 255]
    path.write_bytes(b"II*")
    assert map_of(workdir)[0].photo is None


def test_without_a_frame_or_cameras_there_is_no_flight(workdir):
    given = ReportInput(workdir, {}, NO_CURVES, {}, None, 0)
    assert flight_map.flight_map(given) == ""
    files.write_json(workdir.partition, {"cameras": [], "is_test": [], "points": []})
    assert flight_map.flight_map(given._replace(frame=FRAME)) == ""
