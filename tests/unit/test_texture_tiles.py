"""Tiles of textured meshes: no gap between them, places that are the same bits in all files, and
colours that nothing in another tile hides.
"""

import json

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply_parts import mapped_mesh
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.surface import atlas, mesh_cells, texture, tileset
from cosurfgs_jax.surface.cell_store import CellStore, steps_of
from cosurfgs_jax.surface.mesh import Mesh, vertex_normals, write_mesh_ply
from cosurfgs_jax.surface.ray_scene import Camera, RayScene
from cosurfgs_jax.surface.simplify import decimate
from cosurfgs_jax.surface.texture_scores import score_view
from cosurfgs_jax.surface.texture_tiles import KeptViews, Sizes, kept_parts, looking_at, make_tile

open3d = pytest.importorskip("open3d")
UP = np.array([0.0, 0, 1])
ORIGIN = np.array([500_000.0, 4_000_000.0, 50.0])
GREEN = (40, 160, 40)
RED = (200, 40, 40)


def _sheet(columns, rows, low, side, height) -> Mesh:
    """A grid of squares, each two triangles; `height` of x and y."""
    x, y = np.meshgrid(low[0] + side * np.arange(columns + 1), low[1] + side * np.arange(rows + 1))
    vertices = np.stack([x.ravel(), y.ravel(), height(x, y).ravel()], axis=1)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    far = corner + columns + 2
    triangles = np.concatenate(
        [np.stack([corner, corner + 1, far], 1), np.stack([corner, far, far - 1], 1)]
    ).astype(np.int32)
    colors = np.tile(np.array(GREEN, np.uint8), (len(vertices), 1))
    return Mesh(vertices, triangles, colors, vertex_normals(vertices, triangles))


def _waves(x, y):
    return 0.4 * np.sin(0.9 * x) * np.cos(0.7 * y)


def _joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [mesh.num_vertices for mesh in meshes])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate(
            [mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)]
        ),
        np.concatenate([mesh.vertex_colors for mesh in meshes]),
        np.concatenate([mesh.vertex_normals for mesh in meshes]),
    )


def _open_edges(corners: np.ndarray) -> np.ndarray:
    """Ends f64[n,2,3] of the edges that only one of the triangles f64[F,3,3] has."""
    edges = corners[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2, 3)
    keys = [tuple(sorted(map(tuple, edge.tolist()))) for edge in edges]
    counts = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return np.array([key for key, count in counts.items() if count == 1])


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """A mesh of 30 by 20 metres at map coordinates, its file and its survey."""
    whole = _sheet(60, 40, (0, 0), 0.5, _waves)
    moved = Mesh(
        whole.vertices + ORIGIN, whole.triangles, whole.vertex_colors, whole.vertex_normals
    )
    path = tmp_path_factory.mktemp("waves") / "mesh.ply"
    write_mesh_ply(path, moved)
    return moved, path, mesh_cells.survey(path, UP)


def test_a_survey_is_that_of_the_mesh(waves, monkeypatch):
    mesh, path, found = waves
    corners = mesh.vertices[mesh.triangles]
    assert found.num_triangles == mesh.num_triangles and found.is_double
    assert found.area == pytest.approx(mesh_cells.area_of(corners)) and 600 < found.area < 700
    assert found.ground == pytest.approx(600, rel=0.1)
    np.testing.assert_allclose(found.low, ORIGIN[:2])
    np.testing.assert_allclose(found.high - found.low, [30, 20])
    np.testing.assert_allclose(found.middle, mesh.middle)
    monkeypatch.setattr(mesh_cells, "_ROWS", 700)  # in parts
    parts = mesh_cells.survey(path, UP)
    assert parts.area == pytest.approx(found.area) and parts.ground == pytest.approx(found.ground)
    path = path.with_name("points.ply")
    path.write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(InputError, match="expected a mesh of this program"):
        mapped_mesh(path)


def test_cells_have_every_triangle_once(waves, tmp_path, monkeypatch):
    mesh, path, found = waves
    monkeypatch.setattr(mesh_cells, "_ROWS", 700)
    cells = found.cut(11.0)
    assert (cells.columns, cells.rows) == (3, 2) and cells.side == pytest.approx(10)
    counts = mesh_cells.split(path, cells, tmp_path)
    assert list(counts) == list(range(6)) and sum(counts.values()) == mesh.num_triangles
    assert cells.around(0) == {1, 3, 4} and cells.around(4) == {0, 1, 2, 3, 5}
    rows = []
    for cell in counts:
        part, is_shared = mesh_cells.read_cell(path, cells, cell, tmp_path)
        corners = part.vertices[part.triangles]
        assert len(corners) == counts[cell] and (cells.of(corners[:, 0]) == cell).all()
        rows.append(corners.reshape(-1, 9))
        # All vertices with triangles in other cells; others only beside them.
        others = mesh.triangles[cells.of(mesh.vertices[mesh.triangles[:, 0]]) != cell]
        elsewhere = set(map(tuple, mesh.vertices[np.unique(others)].tolist()))
        must = np.array([tuple(place) in elsewhere for place in part.vertices.tolist()])
        assert must.sum() > 10 and is_shared[must].all() and is_shared.sum() < 2 * must.sum()
    whole = mesh.vertices[mesh.triangles].reshape(-1, 9)
    np.testing.assert_array_equal(np.unique(np.concatenate(rows), axis=0), np.unique(whole, axis=0))


def test_fixed_vertices_stay_to_the_bit():
    mesh = _sheet(30, 30, (0, 0), 0.1, _waves)
    is_fixed = np.abs(mesh.vertices[:, 0] - 1.5) < 0.12
    few = decimate(mesh, 300, is_fixed)
    assert few.num_triangles <= 300
    assert len(np.unique(few.triangles)) == few.num_vertices
    places = {tuple(place) for place in few.vertices.tolist()}
    assert {tuple(place) for place in mesh.vertices[is_fixed].tolist()} <= places
    assert few.vertices.max() <= mesh.vertices.max() + 0.1  # what held them is gone


def test_decimated_cells_leave_no_gap(waves, tmp_path):
    mesh, path, found = waves
    cells = found.cut(10.0)
    store = CellStore(path, cells, steps_of(found), tmp_path)
    for cell in store.counts:
        store.reduce(cell, 0.2)
    parts = [store.mesh(cell) for cell in store.counts]
    assert sum(part.num_triangles for part in parts) < 0.35 * mesh.num_triangles
    ends = _open_edges(np.concatenate([part.vertices[part.triangles] for part in parts]))
    flat = ends[..., :2] - ORIGIN[:2]
    at_rim = np.minimum(flat, [30, 20] - flat).max(axis=1).min(axis=1) < 0.2
    assert len(ends) > 20 and at_rim.all()
    # One that goes on takes them as they are.
    (tmp_path / "0_0_near.npz").unlink()
    CellStore(path, cells, steps_of(found), tmp_path).reduce(0, 0.2)
    assert not (tmp_path / "0_0_near.npz").exists()
    touching = store.hiding(2, np.array([ORIGIN + [29, 5, 30]]))
    assert len(touching) == 3
    far = store.hiding(5, np.array([ORIGIN + [1, 15, 30]]))
    assert len(far) == 4 and far[-2].num_triangles < 0.5 * store.mesh(3).num_triangles


def test_places_are_exact_in_the_files(waves, tmp_path):
    mesh, _, found = waves
    steps = steps_of(found)
    assert 0 < np.linalg.norm(steps.origin - mesh.middle) < 1
    rounded = steps.rounded(mesh.vertices)
    assert np.abs(rounded - mesh.vertices).max() < 1e-4
    for part in (mesh.triangles[:500], mesh.triangles[400:]):
        piece = Mesh(rounded[part.ravel()], part, mesh.vertex_colors, mesh.vertex_normals)
        middle, origin = steps.around(piece)
        stored = (piece.vertices - middle).astype(np.float32)
        np.testing.assert_array_equal(stored.astype(np.float64) + middle, piece.vertices)
        assert np.abs(middle - origin).max() < 30  # within float32 of who opens several


def _looking_down(centers) -> Views:
    turn = np.diag([1.0, -1.0, -1.0])
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, :3] = turn
    poses[:, :3, 3] = -np.asarray(centers) @ turn
    lens = np.array([[60.0, 0, 60], [0, 60, 60], [0, 0, 1]])
    return Views(poses, np.tile(lens, (len(centers), 1, 1)), np.full((len(centers), 2), 120))


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """Two tiles of flat ground that meet at x = 4, and a red roof above the second, which hides
    ground of the first from a camera in the east; as this and one in the west photograph them.
    """
    ground = _sheet(16, 8, (0, 0), 0.5, lambda x, y: 0 * x)
    roof = _sheet(4, 8, (4.1, 0), 0.25, lambda x, y: 0 * x + 2)
    roof.vertices[:, 1] *= 2
    folder = tmp_path_factory.mktemp("hidden")
    write_mesh_ply(folder / "mesh.ply", _joined(ground, roof))
    survey = mesh_cells.survey(folder / "mesh.ply", UP)
    store = CellStore(folder / "mesh.ply", survey.cut(4.0), steps_of(survey), folder)
    for cell in store.counts:
        store.reduce(cell, 0.5)
    centers = np.array([[7.5, 2, 10.0], [0.5, 2, 10.0], [3.9, 2, 12], [900, 2, 10]])
    across = (np.arange(120) + 0.5 - 60) / 60
    photos = []
    for x, _, z in centers[:3]:
        at_roof = x + across * (z - 2)
        is_roof = (4.1 < at_roof) & (at_roof < 5.1)
        row = np.where(is_roof[:, None], RED, GREEN).astype(np.uint8)
        photos.append(np.tile(row, (120, 1, 1)))
    sources = texture.Sources(
        _looking_down(centers), np.array([0, 1, 3]), lambda view: photos[view], np.ones((4, 3))
    )
    return store, sources, photos


def test_what_another_tile_hides_is_not_taken_from_a_photograph(hidden, tmp_path):
    store, sources, photos = hidden
    sizes = Sizes(pixel=0.2, largest=4096)
    tiles = [
        make_tile(store, cell, sources, sizes=sizes, kept=KeptViews(np.array([2]), tmp_path))
        for cell in store.counts
    ]
    # The fourth photograph looks elsewhere: reading it would fail.
    assert [made.num_used for made in tiles] == [2, 2]
    first = tiles[0].textured
    assert len(first.picture) == 128 and tiles[0].texel <= 0.75 * 0.2
    assert np.abs(first.picture.astype(float) - GREEN).max() < 30
    alone = texture.bake(
        first.mesh,
        atlas.texels_of(first.uvs, 128),
        sources._replace(chosen=np.array([0])),
        size=128,
    )[0]
    assert (alone[..., 0] > 150).mean() > 0.02  # where nothing else is known of
    parts = list(kept_parts(2, tmp_path))
    assert len(parts) == 2
    counts = sum(part.is_there.sum() for part in parts)
    assert counts == pytest.approx(40 * 20, rel=0.1)  # of the ground, and a little more
    assert score_view(parts, photos[2])["psnr"] > 20
    assert score_view([], photos[2]) == {}


def test_views_are_those_whose_picture_meets_the_box(hidden):
    store, sources, _ = hidden
    mesh = store.mesh(0)
    found = looking_at(mesh, sources)
    assert list(found) == [0, 1]
    window = found[1]
    corners = mesh.vertices[mesh.triangles].reshape(-1, 3)
    camera = Camera(sources.views, 1, np.zeros(3))
    pixels = camera.project(corners.astype(np.float32))[0]
    low = np.clip(np.floor(pixels.min(axis=0)), 0, 119)
    assert (low >= window[:2]).all() and (low - window[:2] <= 2).all()
    rays = RayScene(mesh)
    camera = rays.camera(sources.views, 1)
    part = rays.hits(camera, window)["t_hit"]
    column, row, width, height = window
    whole = rays.hits(camera)["t_hit"]
    np.testing.assert_array_equal(part, whole[row : row + height, column : column + width])
    behind = Camera(_looking_down([(2.0, 2.0, -5.0)]), 0, mesh.middle)
    half = np.float32([[x, y, z] for x in (-2, 2) for y in (-2, 2) for z in (-1, 1)])
    assert behind.box_window(half) is None
    inside = Camera(_looking_down([mesh.middle]), 0, mesh.middle)
    assert inside.box_window(half) == inside.picture


def test_sizes_end_at_the_largest():
    mesh = _sheet(4, 4, (0, 0), 1.0, lambda x, y: 0 * x)
    assert Sizes(pixel=0.001, largest=512).of(mesh)[0] == 512
    size, texel = Sizes(pixel=0.01, largest=4096).of(mesh)
    assert size == 768 and 0.0065 < texel <= 0.0075


def test_an_index_of_tiles_to_the_letter(tmp_path):
    tiles = [
        tileset.Tile("0_0.glb", np.array([0.0, 0, 0]), np.array([10.0, 8, 4])),
        tileset.Tile("1_0.glb", np.array([10.0, 0, 0]), np.array([16.0, 8, 2])),
    ]
    tileset.write_tileset(tmp_path / "a.json", tiles, UP, ORIGIN)
    content = json.loads((tmp_path / "a.json").read_text())
    root = content["root"]
    assert content["asset"]["version"] == "1.1" and root["refine"] == "REPLACE"
    assert root["boundingVolume"] == {"box": [8, 4, 2, 8, 0, 0, 0, 4, 0, 0, 0, 2]}
    assert root["transform"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, *ORIGIN, 1]
    assert root["geometricError"] == content["geometricError"] == pytest.approx(336**0.5)
    assert [child["content"]["uri"] for child in root["children"]] == ["0_0.glb", "1_0.glb"]
    assert root["children"][1]["boundingVolume"]["box"][:3] == [13, 4, 1]
    assert all(child["geometricError"] == 0 for child in root["children"])
    tileset.write_tileset(tmp_path / "b.json", tiles, np.array([0, -1.0, 0]), np.zeros(3))
    content = json.loads((tmp_path / "b.json").read_text())
    assert "transform" not in content["root"]
    axes = tileset.tileset_axes(np.array([0, -1.0, 0]))
    np.testing.assert_allclose(axes @ [0, -1.0, 0], [0, 0, 1])
    assert np.linalg.det(axes) == pytest.approx(1)
