"""Points of a mesh: as many as the area wants, on its triangles, the same each time, whatever part
of the file is in memory.
"""

import dataclasses

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import ply
from cosurfgs_jax.formats.ply_parts import MeshFile
from cosurfgs_jax.formats.points import write_points_ply
from cosurfgs_jax.surface import mesh_points
from cosurfgs_jax.surface.mesh import Mesh, vertex_normals, write_mesh_ply
from cosurfgs_jax.surface.mesh_points import plan_points, spread_points

FAR = np.array([451_234.5, 5_212_345.25, 310.0])
SIZE = 10.0
FINE = 20  # cells along a side of the roof's left half; the right half is of two triangles


def roof() -> Mesh:
    """Two planes that meet at the ridge x = 0: the left one level and of many triangles, the right
    one 45 degrees steep and of two.
    """
    x, y = np.meshgrid(np.linspace(-SIZE, 0, FINE + 1), np.linspace(0, SIZE, FINE + 1))
    left = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    corner = np.arange(FINE)[:, None] * (FINE + 1) + np.arange(FINE)
    a, b, c, d = (corner + shift for shift in (0, 1, FINE + 1, FINE + 2))
    triangles = [np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)]
    right = np.array([[0.0, 0, 0], [SIZE, 0, -SIZE], [SIZE, SIZE, -SIZE], [0, SIZE, 0]])
    triangles.append(np.array([[0, 1, 2], [0, 2, 3]]) + len(left))
    vertices = np.concatenate([left, right])
    triangles = np.concatenate(triangles).astype(np.int32)
    colors = np.zeros((len(vertices), 3), np.uint8)
    colors[:, 0] = np.rint(12 * (vertices[:, 0] + SIZE))
    normals = vertex_normals(vertices, triangles)
    confidence = np.float32(vertices[:, 1])
    return Mesh(vertices + FAR, triangles, colors, normals, vertex_confidence=confidence)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "mesh.ply"
    write_mesh_ply(path, roof())
    return path


def table_of(path, spacing):
    return np.concatenate(list(spread_points(plan_points(path, spacing))))


def places_of(table):
    return np.stack([table[name] for name in "xyz"], axis=1) - FAR


def test_points_are_as_dense_as_the_spacing_says(path):
    spacing = 0.125  # 64 a square unit
    table = table_of(path, spacing)
    places = places_of(table)
    extent = plan_points(path, spacing).extent
    assert extent.count == len(table) == int(SIZE**2 * (1 + np.sqrt(2)) * 64)
    is_left = places[:, 0] < 0
    # Of the right half's two triangles the points are as even as of the left half's 800.
    for chosen, steepness in ((is_left, 1.0), (~is_left, np.sqrt(2))):
        x, y = np.abs(places[chosen, 0]), places[chosen, 1]
        counts = np.histogram2d(x, y, bins=5, range=[[0, SIZE], [0, SIZE]])[0]
        wanted = 64 * steepness * (SIZE / 5) ** 2
        assert np.abs(counts / wanted - 1).max() < 0.2
        assert abs(counts.sum() / (25 * wanted) - 1) < 1e-3


def test_points_lie_on_the_mesh_and_look_as_it_does(path):
    table = table_of(path, 0.125)
    places = places_of(table)
    is_left = places[:, 0] < 0
    off = np.where(is_left, places[:, 2], (places[:, 0] + places[:, 2]) / np.sqrt(2))
    assert np.abs(off).max() < 1e-8
    normals = np.stack([table[name] for name in ("nx", "ny", "nz")], axis=1)
    flat = np.where(is_left[:, None], [0, 0, 1.0], [np.sqrt(0.5), 0, np.sqrt(0.5)])
    np.testing.assert_allclose(normals, flat, atol=1e-6)
    assert np.abs(table["red"][is_left] - 12 * (places[is_left, 0] + SIZE)).max() <= 0.76
    assert table["confidence"].dtype == np.uint16
    assert np.abs(table["confidence"] - places[:, 1]).max() <= 0.51


def test_the_part_in_memory_changes_nothing_but_the_draws(path, monkeypatch):
    whole = table_of(path, 0.25)
    np.testing.assert_array_equal(whole, table_of(path, 0.25))
    monkeypatch.setattr(mesh_points, "_TRIANGLES", 64)
    monkeypatch.setattr(mesh_points, "_POINTS", 100)
    spread = plan_points(path, 0.25)
    told = []
    parts = list(spread_points(spread, lambda *numbers: told.append(numbers)))
    assert max(map(len, parts)) == 100 and len(parts) > 20
    assert told[-1] == (len(whole), len(whole)) == (spread.extent.count,) * 2
    places = places_of(np.concatenate(parts))
    off = np.minimum(np.abs(places[:, 2]), np.abs(places[:, 0] + places[:, 2]))
    assert off.max() < 1e-8
    assert np.unique(places, axis=0).shape == places.shape  # no draw comes twice


def test_vertices_of_a_file_by_their_numbers(path, monkeypatch):
    file = MeshFile(path)
    table = ply.read_ply(path)[0]["vertex"]
    assert (file.num_vertices, file.num_triangles) == (len(table), roof().num_triangles)
    numbers = np.array([0, 1, 5, 300, 301, 444])
    for gap, run in ((256, 2**18), (3, 2**18), (500, 100)):
        monkeypatch.setattr("cosurfgs_jax.formats.ply_parts._LARGEST_GAP", gap)
        monkeypatch.setattr("cosurfgs_jax.formats.ply_parts._LARGEST_RUN", run)
        np.testing.assert_array_equal(file.vertices(numbers), table[numbers])
    parts = list(file.triangle_parts(300))
    assert [len(part) for part in parts] == [300, 300, 202]
    np.testing.assert_array_equal(np.concatenate(parts), roof().triangles)


def test_a_mesh_that_is_cut_off_is_refused(path, tmp_path):
    cut = tmp_path / "cut.ply"
    cut.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"cut\.ply: expected a PLY file of this program"):
        plan_points(cut, 0.5)
    cloud = tmp_path / "cloud.ply"
    ply.write_ply(cloud, ply.table_of(("x y z", "f4", np.zeros((3, 3)))))
    with pytest.raises(InputError, match="damaged .binary_little_endian, vertex"):
        MeshFile(cloud)


@pytest.mark.parametrize(
    "spacing, words", [(20.0, "at most 15.54, for one point"), (1e-6, "at least 0.000237")]
)
def test_too_many_points_or_none_are_refused(path, spacing, words):
    with pytest.raises(InputError, match=f"points.spacing: expected {words}"):
        plan_points(path, spacing)


def test_without_confidence_and_normals_of_their_own(tmp_path):
    """Of an earlier version, or where the normals of a vertex cancel."""
    bare = roof()
    bare = Mesh(bare.vertices, bare.triangles, bare.vertex_colors, 0 * bare.vertex_normals)
    write_mesh_ply(tmp_path / "mesh.ply", bare)
    table = table_of(tmp_path / "mesh.ply", 0.5)
    assert "confidence" not in table.dtype.names
    is_left = places_of(table)[:, 0] < 0
    np.testing.assert_allclose(table["nz"][is_left], 1)
    np.testing.assert_allclose(table["nz"][~is_left], np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_a_mesh_that_is_replaced_meanwhile_is_refused(tmp_path, monkeypatch, passed):
    monkeypatch.setattr(mesh_points, "_TRIANGLES", 300)
    path = tmp_path / "mesh.ply"
    write_mesh_ply(path, roof())
    spread = plan_points(path, 0.5)
    tables = spread_points(spread)
    for _ in range(passed):
        next(tables)
    path.rename(tmp_path / "before.ply")
    write_mesh_ply(path, dataclasses.replace(roof(), triangles=roof().triangles[:-400]))
    with pytest.raises(InputError, match="expected the mesh of a moment ago, .*; run the same"):
        list(tables)


def test_points_as_ply(path, tmp_path):
    spread = plan_points(path, 0.5)
    write_points_ply(tmp_path / "points.ply", spread_points(spread), spread.extent)
    found = ply.read_ply(tmp_path / "points.ply")[0]["vertex"]
    np.testing.assert_array_equal(found, table_of(path, 0.5))
    assert found.dtype["x"] == np.float64  # map coordinates
