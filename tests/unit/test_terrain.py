"""Terrain models and contour lines of known height maps: what stands on the ground goes, the ground
stays, and files say so.
"""

import sys

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import line_layer
from cosurfgs_jax.settings import TerrainSettings
from cosurfgs_jax.surface import contours, dtm, geotiff
from cosurfgs_jax.surface.ground import GroundGrid

PIXEL = 0.5
GRID = GroundGrid(500_000.0, 4_000_100.0, PIXEL, 300, 260)
WIDTH = 32.0  # of the widest object
# First row and column, rows and columns of what stands on the ground, and its height.
BOXES = ((30, 40, 30, 24, 6.0), (120, 30, 8, 8, 3.0), (90, 150, 36, 36, 9.0), (20, 180, 4, 9, 1.5))
MARK = 7.0  # confidence of the height map


@pytest.fixture(scope="module", autouse=True)
def rasterio():
    return pytest.importorskip("rasterio")


def plane(slope_deg):
    """Heights f32[h,w] of a slope to the south-west, around 300."""
    row, column = np.mgrid[: GRID.height, : GRID.width] * PIXEL
    slope = np.tan(np.radians(slope_deg)) / np.sqrt(2)
    return (300 + slope * (column - row)).astype(np.float32)


def with_boxes(ground):
    heights = ground.copy()
    for row, column, rows, columns, height in BOXES:
        place = (slice(row, row + rows), slice(column, column + columns))
        heights[place] = ground[place].max() + height
    return heights


def write_dsm(path, heights, has_confidence=True):
    bands = [heights, np.full_like(heights, MARK)][: 1 + has_confidence]
    kind = "height and confidence" if has_confidence else "height"
    bands = np.where(np.isfinite(heights), bands, geotiff.NODATA).astype(np.float32)
    with geotiff.create(path, GRID, kind, epsg=32632, tags={"AXES": "east"}) as file:
        file.write(bands, 0, 0)


def terrain_of(folder, heights, width=WIDTH, **more):
    """What is said of the terrain of a height map, its heights and its band of confidence."""
    write_dsm(folder / "dsm.tif", heights, **more)
    settings = TerrainSettings(object_width=width)
    found = dtm.write_dtm(folder / "dsm.tif", folder / "dtm.tif", settings)
    with geotiff.open_heights(folder / "dtm.tif") as file:
        size = (GRID.height, GRID.width)
        return found, file.heights(0, 0, size), file.confidence(0, 0, size)


@pytest.mark.parametrize("slope_deg", [0.0, 5.0, 30.0])
def test_boxes_go_and_the_slope_stays(rasterio, tmp_path, slope_deg):
    ground = plane(slope_deg)
    heights = with_boxes(ground)
    is_box = heights != ground
    found, terrain, confidence = terrain_of(tmp_path, heights)
    assert set(np.unique(confidence)) == {0, MARK}
    assert (confidence[is_box] == 0).all()
    np.testing.assert_array_equal(terrain[confidence > 0], heights[confidence > 0])
    # Three pixels around the boxes go, too.
    rim = sum((rows + 6) * (columns + 6) for _, _, rows, columns, _ in BOXES)
    assert is_box.sum() < (confidence == 0).sum() <= rim
    np.testing.assert_allclose(terrain, ground, atol=0.35 * PIXEL)
    assert found["interpolated_share"] == pytest.approx((confidence == 0).mean())
    assert (found["covered_share"], found["lost_share"]) == (1, 0)
    with rasterio.open(tmp_path / "dtm.tif") as file:
        assert (file.crs.to_epsg(), file.descriptions) == (32632, ("height", "confidence"))
        assert file.transform[:6] == (PIXEL, 0, GRID.left, 0, -PIXEL, GRID.top)
        assert file.tags()["AXES"] == "east" and "0 = interpolated" in file.tags(2)["MEANING"]


def test_terrain_does_not_depend_on_pieces(tmp_path, monkeypatch):
    heights = with_boxes(plane(10.0))
    heights += np.random.default_rng(0).normal(0, 0.05, heights.shape).astype(np.float32)
    heights[60:70, 100:140] = np.nan
    _, whole, marks = terrain_of(tmp_path, heights)
    monkeypatch.setattr(geotiff, "BLOCK", 128)
    _, pieces, marks_of_pieces = terrain_of(tmp_path, heights)
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(marks, marks_of_pieces)


def test_gaps_are_filled_as_far_as_ground_reaches_and_edges_stay(tmp_path):
    heights = plane(5.0)
    ground = heights.copy()
    heights[50:210, 70:230] = np.nan  # 80 wide: the middle is farther than WIDTH from all ground
    heights[20:30, 20:30] = np.nan
    heights[:, :6] = np.nan
    found, terrain, confidence = terrain_of(tmp_path, heights, has_confidence=False)
    assert np.isnan(terrain[125:135, 145:155]).all() and np.isnan(terrain[:, :6]).all()
    # Up to WIDTH from the gap's edges, but for a cell, there is ground.
    ring = np.s_[50 + 2 : 50 + int(0.9 * WIDTH / PIXEL), 120:180]
    np.testing.assert_allclose(terrain[ring], ground[ring], atol=0.5)
    hole = (slice(20, 30), slice(20, 30))
    np.testing.assert_allclose(terrain[hole], ground[hole], atol=0.35 * PIXEL)
    # Without confidence in the height map that band has 0 where ground is interpolated alone.
    assert (confidence[hole] == 0).all() and np.isnan(confidence[220:, 20:]).all()
    assert found["covered_share"] == pytest.approx(np.isfinite(terrain).mean())


def test_a_pit_is_no_ground_and_a_mountain_is(tmp_path):
    heights = plane(5.0)
    ground = heights.copy()
    heights[100, 100] -= 40
    _, terrain, confidence = terrain_of(tmp_path, heights)
    assert confidence[100, 100] == 0 and confidence[100, 110] == MARK
    np.testing.assert_allclose(terrain, ground, atol=0.35 * PIXEL)
    row, column = np.mgrid[: GRID.height, : GRID.width]
    hill = 300 + 8 * np.exp(-((row - 100) ** 2 + (column - 120) ** 2) / (2 * 50.0**2))
    _, terrain, confidence = terrain_of(tmp_path, hill.astype(np.float32))
    assert (confidence == MARK).all()


def test_nothing_to_make_terrain_of(tmp_path):
    with pytest.raises(InputError, match="dsm.tif: expected a map with heights, got none"):
        terrain_of(tmp_path, np.full((GRID.height, GRID.width), np.nan, np.float32))
    assert not (tmp_path / "dtm.tif").exists()
    (tmp_path / "dsm.tif").write_bytes(b"no map")
    with pytest.raises(InputError, match="expected a GeoTIFF file of export"):
        dtm.write_dtm(tmp_path / "dsm.tif", tmp_path / "dtm.tif", TerrainSettings())


@pytest.mark.parametrize(
    "lowest, highest, interval",
    [(0, 14, 1), (34.1, 47.3, 1), (100, 128, 2), (0, 100, 10), (0, 0.5, 0.05), (-3, 1400, 100)],
)
def test_the_interval_is_round(lowest, highest, interval):
    assert contours.choose_interval(lowest, highest) == pytest.approx(interval)
    assert contours.choose_interval(highest, highest) == 0


def cone():
    """Heights of a cone of slope 1/2 around the middle of the raster, 20 high."""
    row, column = np.mgrid[: GRID.height, : GRID.width]
    middle = ((GRID.height - 1) / 2, (GRID.width - 1) / 2)
    return (20 - PIXEL * np.hypot(row - middle[0], column - middle[1]) / 2).astype(np.float32)


def test_contours_of_a_cone_are_circles(tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    shapely = pytest.importorskip("shapely")
    write_dsm(tmp_path / "dsm.tif", cone())
    found = contours.write_contours(tmp_path / "dsm.tif", tmp_path / "lines.gpkg", 2.5)
    layer, _, shapes, (heights,) = pyogrio.raw.read(tmp_path / "lines.gpkg")
    assert layer["crs"] == "EPSG:32632" and layer["fields"].tolist() == ["elevation"]
    assert pyogrio.list_layers(tmp_path / "lines.gpkg").tolist() == [["contours", "LineString"]]
    assert (found["interval"], found["num_lines"]) == (2.5, len(heights))
    lines = shapely.from_wkb(shapes)
    middle = (GRID.left + GRID.width * PIXEL / 2, GRID.top - GRID.height * PIXEL / 2)
    whole = 0
    for line, height in zip(lines, heights, strict=True):
        assert height % 2.5 == 0
        radii = np.hypot(*(shapely.get_coordinates(line) - middle).T)
        # Linear between pixels, then simplified by a quarter of one: corners are on the circle.
        np.testing.assert_allclose(radii, (20 - height) * 2, atol=0.05 * PIXEL)
        if line.is_closed:
            whole += 1
            assert line.length == pytest.approx(4 * np.pi * (20 - height), rel=0.02)
            assert len(radii) < 2 * np.pi * (20 - height) * 2 / PIXEL / 3
    contours.write_contours(tmp_path / "dsm.tif", tmp_path / "lines.gpkg", 0.7)
    others = pyogrio.raw.read(tmp_path / "lines.gpkg")[3][0]
    assert {len(str(height)) for height in np.abs(others)} <= {3, 4}  # 4.9, not 4.8999999999999995
    assert whole == 12  # from -10 on; those below leave the raster
    assert sorted(set(heights)) == np.arange(-27.5, 17.6, 2.5).tolist()


def test_contours_that_cannot_be(tmp_path, monkeypatch):
    pytest.importorskip("pyogrio")
    path = tmp_path / "dsm.tif"
    write_dsm(path, np.full((GRID.height, GRID.width), 7.5, np.float32))
    with pytest.raises(InputError, match="expected heights that differ"):
        contours.write_contours(path, tmp_path / "lines.gpkg")
    write_dsm(path, cone() + 100)
    with pytest.raises(InputError, match="config.terrain.interval: .* got 1000; give a smaller"):
        contours.write_contours(path, tmp_path / "lines.gpkg", 1000.0)
    with pytest.raises(InputError, match="at most 10000 heights .*; give at least 0.00"):
        contours.write_contours(path, tmp_path / "lines.gpkg", 1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["dsm.tif"]
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(
        InputError, match=r'needed for contour lines .*install "cosurfgs_jax\[geo\]"'
    ):
        line_layer.import_packages()
