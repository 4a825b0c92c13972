"""Rasters on the ground and the GeoTIFF files of them: extents, limits, whole files or none, and
wrong numbers.
"""

import resource
import sys

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.surface import geotiff, ground
from cosurfgs_jax.surface.ground import GroundGrid

GRID = GroundGrid(left=500_000.0, top=4_000_000.0, pixel_size=0.5, width=7, height=5)


@pytest.fixture(scope="module")
def rasterio():
    return pytest.importorskip("rasterio")


def test_pieces_make_one_file(rasterio, tmp_path):
    with geotiff.create(
        tmp_path / "a" / "h.tif", GRID, "height", offset=(10.0, 20.0, 0.0), epsg=32614
    ) as file:
        file.write(np.arange(6, dtype=np.float32).reshape(1, 2, 3), row=3, column=4)
    with rasterio.open(tmp_path / "a" / "h.tif") as file:
        values = file.read(1)
        assert file.xy(3, 4) == (
            500_010 + 4.5 * 0.5,
            4_000_020 - 3.5 * 0.5,
        )  # the centre of its first pixel
        assert file.crs.to_epsg() == 32614 and file.compression.value == "DEFLATE"
    assert np.array_equal(values[3:, 4:], np.arange(6).reshape(2, 3))
    assert (values[:3] == geotiff.NODATA).all() and (values[:, :4] == geotiff.NODATA).all()
    with geotiff.create(tmp_path / "c.tif", GRID, "color") as file:
        file.write(np.full((4, 1, 2), 200, np.uint8), row=0, column=0)
    with rasterio.open(tmp_path / "c.tif") as file:
        assert file.crs is None and file.read().sum() == 4 * 2 * 200
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "c.tif",
        "h.tif",
    ]  # nothing beside them


# A file of this kind for which so many bytes are missing on the disk.
FULL = [("color", 1), ("color", 5000), ("color", 200_000), ("color", 6_000_000), ("height", 1000)]
WIDE = GroundGrid(left=500_000.0, top=4_000_000.0, pixel_size=0.5, width=1500, height=1100)


@pytest.mark.parametrize("kind", ["height", "height and confidence", "color"])
def test_files_are_cloud_optimised(rasterio, tmp_path, kind):
    """Blocks, overviews in front of which nothing must be read, names and units of bands, and what
    is not known stays so in every overview."""
    path = tmp_path / "map.tif"
    rng = np.random.default_rng(0)
    names = geotiff._BANDS[kind]
    pieces = rng.uniform(100, 200, (len(names), 600, 700))
    pieces = pieces.astype(np.uint8 if kind == "color" else np.float32)
    pieces[-1] = {"height and confidence": 2, "color": 255}.get(kind, 7)
    with geotiff.create(path, WIDE, kind, epsg=32614, tags={"AXES": "of the map"}) as file:
        file.write(pieces, row=0, column=0)
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(geotiff.BLOCK, geotiff.BLOCK)] * len(names)
        assert file.overviews(1) == [2, 4] and file.descriptions == names
        assert file.crs.to_epsg() == 32614 and file.res == (0.5, 0.5)
        assert file.tags()["AXES"] == "of the map" and file.tags()["AREA_OR_POINT"] == "Area"
        np.testing.assert_array_equal(file.read()[:, :600, :700], pieces)
        halved = file.read(out_shape=(len(names), 550, 750))
        if kind == "color":
            assert [band.name for band in file.colorinterp] == list(names)
            assert set(file.units) == {None}
            # Means of what is there: its rim is not darker.
            assert halved[3, :300, :350].min() == 255 and halved[3, 301:].max() == 0
            assert halved[:3, :300, :350].min() >= 100
        else:
            assert file.nodata == geotiff.NODATA and file.units[0] == "metre"
            assert np.isin(halved[0, :300, :350], pieces[0]).all()
            assert (halved[0, 301:] == geotiff.NODATA).all()
            assert len(names) == 1 or set(np.unique(halved[1])) == {2, geotiff.NODATA}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(rasterio, tmp_path):
    path = tmp_path / "h.tif"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), geotiff.create(path, GRID, "height") as file:
        file.write(np.zeros((1, 5, 7), np.float32), 0, 0)
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(InputError, match="could not be written"),
        geotiff.create(tmp_path / "file" / "h.tif", GRID, "height"),
    ):
        pass


@pytest.mark.parametrize("kind, missing", FULL)
def test_a_full_disk_leaves_the_old_file(rasterio, tmp_path, kind, missing):
    """GDAL closes such files without an error where only their ends are missing."""
    bands = np.random.default_rng(0).uniform(0, 255, (len(geotiff._BANDS[kind]), 1100, 1500))
    bands = bands.astype(np.uint8 if kind == "color" else np.float32)

    def write(name):
        with geotiff.create(tmp_path / name, WIDE, kind) as file:
            file.write(bands, row=0, column=0)

    write("whole.tif")
    (tmp_path / "map.tif").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "whole.tif").stat().st_size - missing
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(InputError, match=r"map\.tif: could not be written .*; make room"):
            write("map.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "map.tif").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "whole.tif"]


@pytest.mark.parametrize(
    "epsg, words", [(4326, "whose coordinates are lengths, got 4326"), (999_999, "got 999999")]
)
def test_wrong_coordinate_systems_are_refused(rasterio, capfd, epsg, words):
    with pytest.raises(InputError, match=f"config.geo.epsg: expected .*{words}"):
        geotiff.check_epsg(epsg)
    assert capfd.readouterr() == ("", "")  # GDAL says nothing of its own
    geotiff.check_epsg(32614)


def test_missing_rasterio_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    geotiff.check_epsg(0)  # without a number there is nothing to ask
    for ask in (
        lambda: geotiff.check_epsg(32614),
        lambda: geotiff.create(tmp_path / "h.tif", GRID, "height").__enter__(),
    ):
        with pytest.raises(
            InputError, match=r'rasterio is needed .*pip install "cosurfgs_jax\[geo\]"'
        ):
            ask()


def test_pixels_of_points():
    points = np.array(
        [
            [500_000.0, 4_000_000.0, 1],
            [500_003.49, 3_999_997.51, 2],
            [500_003.5, 3_999_999, 3],
            [499_999.9, 3_999_999, 4],
            [500_001, 4_000_000.1, 5],
            [500_001, 3_999_997.4, 6],
        ]
    )
    rows, columns, inside = GRID.pixels_of(points)
    assert inside.tolist() == [True, True, False, False, False, False]
    assert (rows[:2].tolist(), columns[:2].tolist()) == ([0, 4], [0, 6])


def test_stray_points_do_not_widen_the_raster():
    x, y = np.meshgrid(np.linspace(100, 200, 51), np.linspace(-50, 0, 51))
    points = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], axis=1)
    grid = ground.choose_grid(points, 0.5, 100)
    assert (grid.left, grid.top, grid.width, grid.height) == (
        100,
        0,
        200,
        100,
    )  # no more than the points
    strayed = ground.choose_grid(np.concatenate([points, [[1e4, 1e4, 0]] * 5]), 0.5, 100)
    assert strayed.width <= 200 * 1.06 and strayed.height <= 100 * 1.06
    moved = ground.choose_grid(
        points + 0.2, 0.5, 100
    )  # edges stay whole multiples of the pixel size
    assert (moved.left, moved.top) == (100, 0.5)
    assert (moved.width, moved.height) == (201, 101)


@pytest.mark.parametrize(
    "cameras, expected", [([45.0, 50.0, 900.0], 40), ([5.0], 40), ([120.0, 110.0, 20.0], 50)]
)
def test_heights_of_surfaces_reach_beyond_the_points_but_not_to_the_cameras(cameras, expected):
    """Half the range of the points, or a third of the way to the cameras; stray points and single
    cameras do not matter.
    """
    heights = np.concatenate([np.linspace(10, 30, 10_001), [500.0, -300.0]])
    low, high = ground.height_limits(heights, np.array(cameras))
    assert low == pytest.approx(0, abs=0.2) and high == pytest.approx(expected, abs=0.2)


def test_axes_are_those_of_the_map_or_of_the_ground():
    frame = SceneFrame(
        0.1, np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), np.array([0.5, -1.0, 2.0])
    )
    points = np.array([[451_234.5, 5_212_345.25, 310.0], [1, 2, 3]])
    own = ground.choose_frame(np.array([0, 0, 1.0]), frame)
    assert own.is_map and np.array_equal(own.from_dataset(points), points)
    axes = ground.choose_frame(np.array([1.0, 0, 0]), frame)
    assert not axes.is_map
    np.testing.assert_allclose(axes.from_dataset(points), frame.to_world(points) / 0.1, rtol=1e-12)
    for system in (own, axes):
        eye = np.array([4.0, 5, 60])
        pose = system.camera_from_dataset(eye)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        corner = (
            system.axes.T @ (eye + [1, 2, -10]) + system.origin
        )  # 1 east, 2 north of the eye, 10 below it
        np.testing.assert_allclose(pose[:3, :3] @ corner + pose[:3, 3], [1, -2, 10], atol=1e-9)
