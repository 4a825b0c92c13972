"""Coloured points: which surfels become points, where, in which colour, and that other programs
read the files.
"""

import sys

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import ply
from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.types import Surfels

FAR = np.array([451_234.5, 5_212_345.25, 310.0])
PLACES = np.array([[0.0, 0, 0], [1, 2, 3], [-50, 20, 0.125], [4, 4, 4], [5, 5, 5]])
COLORS = np.array(
    [[0.0, 0.5, 1.0], [0.2, 0.4, 0.6], [1.4, -0.3, 0.1], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
)
HALVES = (slice(1), slice(1, None))
CAMERAS = np.array([[0.0, 0, 50], [100, 0, -50.0]])  # the second below


def model(origin=FAR):
    """Three points to write; the fourth is dead, the fifth too faint."""
    sh = np.zeros((5, 4, 3), np.float32)
    sh[:, 0] = (COLORS - 0.5) / C0
    sh[:, 1:] = 0.7  # what changes with the direction is left out
    quats = np.tile(np.float32([1, 0, 0, 0]), (5, 1))
    quats[1] = [0, 3, 0, 0]  # half a turn: its axis is down
    return Surfels(
        means=PLACES + origin,
        quats=quats,
        log_scales=np.full((5, 2), -3, np.float32),
        logit_opacities=np.float32([0.1, 4, 200, 4, -0.1]),
        sh=sh,
        alive=np.array([1, 1, 1, 0, 1], bool),
    )


def points(origin=FAR):
    return point_files.points_of(model(origin), CAMERAS + origin)


def write(name, path, found, **choices):
    """Writes points in two parts."""
    parts = [point_files.Points(*(values[rows] for values in found)) for rows in HALVES]
    writer = getattr(point_files, name)
    writer(path, map(point_files.point_table, parts), point_files.extent_of(parts), **choices)


@pytest.fixture(scope="module")
def laspy():
    return pytest.importorskip("laspy")


def test_points_are_the_opaque_surfels():
    found = points()
    assert np.array_equal(found.positions, PLACES[:3] + FAR)
    assert found.colors.tolist() == [[0, 128, 255], [51, 102, 153], [255, 0, 26]]
    assert np.array_equal(found.normals, [[0, 0, 1]] * 3)  # all towards the camera above them
    below = point_files.points_of(model(), CAMERAS[1:] + FAR)
    assert np.array_equal(below.normals, [[0, 0, -1]] * 3)
    faint = model().replace(logit_opacities=np.full(5, -1, np.float32))
    with pytest.raises(InputError, match=r"opacity of at least 0\.5, got none"):
        point_files.extent_of([point_files.points_of(faint, CAMERAS)])


def test_centres_that_came_in_float32_need_no_more():
    for kind, needs_double in ((np.float64, True), (np.float32, False)):
        extent = Extent()
        extent.add((PLACES + FAR).astype(kind), np.full((5, 2), -3.0))
        assert extent.needs_double == needs_double


@pytest.mark.parametrize("origin, kind", [(FAR, "f8"), (np.zeros(3), "f4")])
def test_ply_has_positions_normals_and_colors(tmp_path, origin, kind):
    write("write_points_ply", tmp_path / "a" / "p.ply", points(origin))
    table = ply.read_ply(tmp_path / "a" / "p.ply")[0]["vertex"]
    assert table.dtype.names == ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    assert {table.dtype[name].str[1:] for name in "xyz"} == {kind}
    np.testing.assert_allclose(
        np.stack([table[name] for name in "xyz"], axis=1), PLACES[:3] + origin, atol=1e-5
    )
    assert table["nz"].tolist() == [1, 1, 1]
    assert [tuple(row) for row in table[["red", "green", "blue"]]] == [
        (0, 128, 255),
        (51, 102, 153),
        (255, 0, 26),
    ]


def with_confidence(table):
    """Rows of a mesh's points: they know from how many photographs they are."""
    wide = np.zeros(len(table), [*table.dtype.descr, ("confidence", "u2")])
    for name in table.dtype.names:
        wide[name] = table[name]
    wide["confidence"] = np.arange(len(table)) * 300
    return wide


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_is_read_by_others(laspy, tmp_path, suffix):
    if suffix == ".laz":
        pytest.importorskip("lazrs")
    path = tmp_path / "a" / f"p{suffix}"
    table = with_confidence(point_files.point_table(points()))
    extent = point_files.extent_of([points()])
    parts = [table[rows] for rows in HALVES]
    wkt = 'PROJCS["WGS 84 / UTM zone 14N"]'
    offset = (-1000.0, 2000.0, 5.0)
    point_files.write_points_las(path, parts, extent, offset=offset, wkt=wkt)
    cloud = laspy.read(path)
    assert str(cloud.header.version) == "1.4" and cloud.header.point_format.id == 7
    assert len(cloud.points) == 3 and cloud.header.are_points_compressed == (suffix == ".laz")
    # Steps are at most a hundredth of a typical surfel, here of 5 cm.
    assert (cloud.header.scales == 1e-4).all()
    np.testing.assert_allclose(cloud.xyz, PLACES[:3] + FAR + offset, rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(cloud.header.mins, cloud.xyz.min(axis=0), atol=1e-9)
    colors = np.stack([cloud.red, cloud.green, cloud.blue], axis=1)
    assert colors.tolist() == [
        [0, 128 * 257, 65535],
        [51 * 257, 102 * 257, 153 * 257],
        [65535, 0, 26 * 257],
    ]
    names = ("NormalX", "NormalY", "NormalZ")
    assert list(cloud.point_format.extra_dimension_names) == [*names, "confidence"]
    np.testing.assert_array_equal(np.stack([cloud[name] for name in names], 1), [[0, 0, 1]] * 3)
    assert cloud["confidence"].tolist() == [0, 300, 600] and cloud["NormalX"].dtype == np.float32
    assert set(cloud.return_number) == set(cloud.number_of_returns) == {1}
    (system,) = cloud.header.vlrs.get("WktCoordinateSystemVlr")
    assert system.string == wkt and cloud.header.global_encoding.wkt
    assert list((tmp_path / "a").iterdir()) == [path]


def test_las_of_no_system_and_without_confidence(laspy, tmp_path):
    write("write_points_las", tmp_path / "q.las", points())
    cloud = laspy.read(tmp_path / "q.las")
    assert not cloud.header.vlrs.get("WktCoordinateSystemVlr")
    assert list(cloud.point_format.extra_dimension_names) == ["NormalX", "NormalY", "NormalZ"]


def test_steps_of_las_fit_into_32_bits(laspy, tmp_path):
    wide = points()._replace(positions=PLACES[:3] * 1e7, log_scales=np.full((3, 2), -7.0))
    write("write_points_las", tmp_path / "q.las", wide)
    cloud = laspy.read(tmp_path / "q.las")
    assert (cloud.header.scales == 1.0).all()  # 5e8 long, discs of a millimetre
    np.testing.assert_allclose(cloud.xyz, PLACES[:3] * 1e7, rtol=0, atol=0.51)


def test_a_single_point_is_a_cloud(laspy, tmp_path):
    one = point_files.Points(*(values[:1] for values in points()))
    write("write_points_las", tmp_path / "p.las", one)
    np.testing.assert_allclose(laspy.read(tmp_path / "p.las").xyz, FAR[None], rtol=0, atol=1e-6)


def test_missing_laspy_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(InputError, match=r'laspy is needed .*pip install "cosurfgs_jax\[geo\]"'):
        write("write_points_las", tmp_path / "p.las", points())


def test_missing_lazrs_is_one_sentence(laspy, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lazrs", None)
    with pytest.raises(InputError, match=r"lazrs is needed for LAZ files .*pip install"):
        write("write_points_las", tmp_path / "p.laz", points())
    write("write_points_las", tmp_path / "p.las", points())
