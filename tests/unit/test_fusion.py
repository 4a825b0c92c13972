"""Fusion of exact depth: planes and spheres come back where they are, tiles change nothing, reasons
are given.
"""

import dataclasses
import types

import numpy as np
import pytest
from depth_views import (
    FAR,
    HEIGHT,
    INTRINSICS,
    WIDTH,
    look_at,
    plane_view,
    rays,
    ring_of_views,
    sphere_view,
    views_of,
)
from mesh_cases import triangle_set, two_squares

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.surface import areas, depth_filter, fusion, voxel_blocks
from cosurfgs_jax.surface import mesh as meshes
from cosurfgs_jax.surface.confidence import views_of_vertices
from cosurfgs_jax.surface.integration import FieldGrid
from cosurfgs_jax.surface.tile_store import TileStore
from cosurfgs_jax.surface.voxel_size import check_voxel_size, choose_voxel_size


@pytest.fixture(scope="module")
def open3d():
    return pytest.importorskip("open3d")


@pytest.mark.parametrize("tilt", [0.7, -0.7])
@pytest.mark.parametrize("swap", [False, True])
def test_tilted_plane_has_no_half_pixel_shift(open3d, tilt, swap):
    """Half a pixel would move this plane by 0.2 to 0.5 voxels, one way for each sign of
    the tilt.
    """
    normal = np.array([np.sin(tilt), 0.1, np.cos(tilt)])
    normal = normal[[1, 0, 2]] if swap else normal
    normal /= np.linalg.norm(normal)
    voxel = 0.06
    mesh = fusion.fuse([plane_view(np.eye(4), normal, 6.0)], voxel)
    error = (mesh.vertices @ normal - 6.0) / voxel
    assert abs(np.median(error)) < 0.01
    assert abs(error.mean()) < 0.02
    assert np.abs(error).mean() < 0.1
    assert (mesh.vertex_normals @ normal).mean() < -0.98  # towards the camera
    assert np.abs(mesh.vertex_colors.astype(float) - [60, 120, 200]).max() <= 1  # no black rims


def test_sphere_far_from_the_origin(open3d):
    """Depth seen at more than 60 degrees is dropped: tangent planes at the rim are not a curved
    surface, and move this sphere outwards by 0.02 voxels, whatever the pixel convention."""
    voxel = 0.06
    views = []
    for view, normal in ring_of_views():
        depth, _ = depth_filter.filter_single_view(
            view.depth, normal, view.intrinsics, view.camera_from_dataset, max_angle_deg=60
        )
        views.append(view._replace(depth=depth))
    mesh = fusion.fuse(views, voxel, min_views=2)
    outward = mesh.vertices - FAR
    radius = np.linalg.norm(outward, axis=1)
    error = (radius - 1.5) / voxel
    assert abs(error.mean()) < 0.01
    assert np.percentile(np.abs(error), 95) < 0.06
    assert (mesh.vertex_normals * outward / radius[:, None]).sum(axis=1).mean() > 0.995
    # Closed: every edge has two triangles, once in each direction.
    edges = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    forward = set((edges[:, 0] * len(mesh.vertices) + edges[:, 1]).tolist())
    backward = set((edges[:, 1] * len(mesh.vertices) + edges[:, 0]).tolist())
    assert forward == backward and len(forward) == len(edges)


def test_confidence_is_the_number_of_views(open3d):
    """Three views of a plane, each a bit farther to the right: 1, 2 or 3 show a place of it. One
    has a depth that stands out by half a truncation, and counts as the others do.
    """
    voxel = 0.1
    views = []
    for number in range(3):
        pose = np.eye(4)
        pose[0, 3] = -1.5 * number
        views.append(plane_view(pose, np.array([0.0, 0.0, 1.0]), 6.0 + 0.01 * number))
    mesh = fusion.fuse(views, voxel)
    count = np.zeros(len(mesh.vertices))
    is_near_rim = np.zeros(len(mesh.vertices), bool)
    for view in views:
        pixel = (mesh.vertices + view.camera_from_dataset[:3, 3]) @ INTRINSICS.T
        pixel = pixel[:, :2] / pixel[:, 2:]
        to_rim = np.minimum(pixel, [WIDTH, HEIGHT] - pixel).min(axis=1)
        count += to_rim > 0
        is_near_rim |= np.abs(to_rim) < 2 * voxel * INTRINSICS[0, 0] / 6
    found = mesh.vertex_confidence
    assert found.dtype == np.float32 and set(np.unique(count[~is_near_rim])) == {1, 2, 3}
    assert np.array_equal(found[~is_near_rim], count[~is_near_rim])
    assert (found <= 3).all() and (found >= 1).all()


@pytest.mark.parametrize("shift", [0.0, 0.25, 1e-4])
def test_confidence_is_that_of_the_lesser_voxel_of_an_edge(shift):
    """Also across the faces of blocks, and at a voxel the voxel's own."""
    keys = voxel_blocks.pack_keys(np.array([[-1, 0, 0], [0, 0, 0]]))
    weight = np.arange(2 * 512, dtype=np.float32).reshape(2, 512)
    rows = np.array([1, 0])
    vertices = np.array([[shift - 1, 2, 3], [1 + shift, 2, 3], [5, 6, 1 + shift]], np.float32)
    vertices = vertices[:, [0, 1, 2]] * np.float32(0.1)
    found = views_of_vertices(vertices, 0.1, keys=keys, weight=weight, rows=rows)
    expected = [512 + 7 + 2 * 8 + 3 * 64, 1 + 2 * 8 + 3 * 64, 5 + 6 * 8 + 64]
    if shift == 0.25:
        expected[0] = 0 + 2 * 8 + 3 * 64
    assert found.tolist() == expected


def tile_by_tile(monkeypatch, max_blocks=200):
    """Makes tiles small; the list that is returned gets the tiles of every fusion."""
    fused = []
    split = fusion.split_into_tiles
    monkeypatch.setattr(
        fusion,
        "split_into_tiles",
        lambda keys, _, box: fused.append(split(keys, max_blocks, box)) or fused[-1],
    )
    return fused


def small_areas(monkeypatch, side=8):
    """Cuts what is fused into areas of so many blocks."""
    monkeypatch.setattr(voxel_blocks, "AREA", side)


def fuse_into(store, views, voxel_size, **choices):
    grid = FieldGrid(fusion.middle_of(views, None), voxel_size, 3.0)
    return fusion.fuse_into(store, views, grid, **choices)


def test_tiles_give_the_same_triangles(open3d, monkeypatch):
    views = [view for view, _ in ring_of_views(num=4)]
    whole = fusion.fuse(views, 0.04)
    fused = tile_by_tile(monkeypatch)
    tiled = fusion.fuse(views, 0.04)
    assert len(fused[0]) >= 4
    assert _bits(whole) == _bits(tiled)
    small_areas(monkeypatch)
    tiled = fusion.fuse(views, 0.04)
    assert np.array_equal(triangle_set(whole), triangle_set(tiled))
    assert len(whole.vertices) == len(tiled.vertices)  # seams are joined: no vertex is there twice
    order_a, order_b = (np.lexsort(m.vertices.T) for m in (whole, tiled))
    assert np.array_equal(whole.vertex_colors[order_a], tiled.vertex_colors[order_b])
    assert np.array_equal(whole.vertex_confidence[order_a], tiled.vertex_confidence[order_b])
    assert set(np.unique(whole.vertex_confidence)) >= {1, 2}
    assert np.abs(whole.vertex_normals[order_a] - tiled.vertex_normals[order_b]).max() < 1e-5


def test_two_runs_give_the_same_bits(open3d, monkeypatch):
    """Open3D's threads find vertices and triangles in another order every time."""
    views = [view for view, _ in ring_of_views(num=4)]
    tile_by_tile(monkeypatch)
    small_areas(monkeypatch)
    assert _bits(fusion.fuse(views, 0.04)) == _bits(fusion.fuse(views, 0.04))


def _bits(mesh):
    return [getattr(mesh, field.name).tobytes() for field in dataclasses.fields(mesh)]


def test_the_order_of_a_mesh_is_that_of_its_content():
    rng = np.random.default_rng(0)
    count = 40
    vertices = rng.integers(0, 3, (count, 3)).astype(np.float32)  # some are at one place
    colors = np.arange(3 * count, dtype=np.uint8).reshape(count, 3)
    triangles = rng.permuted(np.tile(np.arange(count, dtype=np.int32), (30, 1)), axis=1)[:, :3]
    confidence = np.arange(count, dtype=np.float32)
    # Of these only the confidence tells which is which.
    vertices[30:] = vertices[0]
    colors[30:] = colors[0]
    mesh = meshes.Mesh(vertices, triangles, colors, vertices, confidence)
    order = rng.permutation(count)
    shuffled = meshes.Mesh(
        vertices[order],
        np.roll(np.argsort(order).astype(np.int32)[rng.permutation(triangles)], 1, axis=1),
        colors[order],
        vertices[order],
        confidence[order],
    )
    assert _bits(meshes.in_order(shuffled)) == _bits(meshes.in_order(mesh)) != _bits(mesh)
    same = {
        corners.tobytes() for turn in range(3) for corners in colors[np.roll(triangles, turn, 1)]
    }
    ordered = meshes.in_order(mesh)
    assert {corners.tobytes() for corners in ordered.vertex_colors[ordered.triangles]} <= same


def test_what_is_near_in_space_is_near_in_the_file():
    """Samples of a mesh are spread along its triangles: sorted by one coordinate, a town's F1 at
    0.1 % of the width lost 0.016, as its samples left larger gaps.
    """
    corner = np.stack(np.meshgrid(*(np.arange(32.0),) * 2), axis=-1).reshape(-1, 2)
    vertices = np.column_stack([corner, np.zeros(len(corner))]).astype(np.float32)
    triangles = np.arange(len(vertices), dtype=np.int32)[None, :3]
    mesh = meshes.Mesh(vertices, triangles, np.zeros((len(vertices), 3), np.uint8), vertices)
    ordered = meshes.in_order(mesh).vertices.astype(np.float64)
    for count in (16, 64, 256):  # a run of the file is a square
        runs = ordered.reshape(-1, count, 3)
        assert (np.ptp(runs, axis=1)[:, :2] == np.sqrt(count) - 1).all()


def test_progress_counts_every_step_of_the_whole_once(open3d, monkeypatch, tmp_path):
    views = [view for view, _ in ring_of_views()]
    tile_by_tile(monkeypatch)
    small_areas(monkeypatch)
    told = []
    store = TileStore(tmp_path)
    fuse_into(store, views, 0.06, progress=lambda *step: told.append(step))
    assert store.num_tiles > 1
    for phase in ("find blocks", "fuse", "extract"):
        steps = [(done, total) for name, done, total in told if name == phase]
        assert steps and steps == [(done + 1, len(steps)) for done in range(len(steps))], phase
    assert sum(name == "fuse" for name, _, _ in told) > len(views)  # some are in several tiles


def test_clusters_are_connected_through_seams(open3d, monkeypatch, tmp_path):
    """A large sphere cut by tiles is one piece; a small one beside it is dropped, in parts as in
    memory.
    """
    views = [view for view, _ in ring_of_views(num=4)]
    small = FAR + np.array([0.0, 0.0, 2.6])
    views += [
        sphere_view(look_at(small + offset, small), small, 0.3)[0]
        for offset in (np.array([2.0, 0, 0.5]), np.array([-2.0, 0, 0.5]))
    ]
    whole = fusion.fuse(views, 0.04)
    small_areas(monkeypatch)
    store = TileStore(tmp_path)
    fuse_into(store, views, 0.04)
    assert store.num_tiles >= 4
    for fraction in (0.0, 0.05):
        joined = store.join(fraction)
        expected = meshes.drop_small_clusters(whole, fraction)
        assert np.array_equal(triangle_set(joined.to_mesh()), triangle_set(expected))
        assert (joined.num_triangles, joined.num_vertices) == (
            len(expected.triangles),
            len(expected.vertices),
        )
        assert joined.num_triangles_before == len(whole.triangles)
    assert store.join(0.05).num_triangles < store.join(0.0).num_triangles
    meshes.write_mesh_ply(tmp_path / "parts.ply", joined)
    back = meshes.read_mesh_ply(tmp_path / "parts.ply")
    assert np.array_equal(
        back.vertices[back.triangles], joined.to_mesh().vertices[joined.to_mesh().triangles]
    )
    assert (np.sum(back.vertex_normals * joined.to_mesh().vertex_normals, axis=1) > 0.999).all()


def test_what_does_not_fit_is_refused_with_a_size_that_fits(open3d, monkeypatch):
    views = [view for view, _ in ring_of_views(num=4)]

    def size_that_fits(voxel_size, *words, **choices):
        with pytest.raises(InputError, match="config.surface.voxel_size=") as refusal:
            fusion.fuse(views, voxel_size, **choices)
        assert all(word in str(refusal.value) for word in words)
        size = float(str(refusal.value).split("config.surface.voxel_size=")[1].split()[0])
        assert voxel_size < size < 0.5
        return size

    # The lists of blocks, whose length is known only view by view.
    size = 0.005
    for _ in range(5):
        size = size_that_fits(size, "lists of voxel blocks", memory_mb=1) if size < 0.02 else size
    assert len(fusion.fuse(views, max(size, 0.03), memory_mb=1).triangles)
    # A mesh that is wanted in memory as a whole, and the same in parts, which fits.
    size = size_that_fits(0.03, "in memory", memory_mb=20, whole_mesh_bytes=1000)
    assert len(fusion.fuse(views, size, memory_mb=20, whole_mesh_bytes=1000).triangles)
    assert len(fusion.fuse(views, 0.03, memory_mb=20).triangles)
    # The machine has less than the setting allows.
    monkeypatch.setattr(fusion, "available_memory", lambda: 25 * 2**20)
    size_that_fits(0.03, "in memory", memory_mb=4096, whole_mesh_bytes=1000)
    monkeypatch.setattr(fusion.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1 << 20))
    size_that_fits(0.03, "files")


def test_empty_mesh_names_the_check_that_emptied_it(open3d):
    view = plane_view(np.eye(4), np.array([0, 0, 1.0]), 6.0)
    depth, own = depth_filter.filter_single_view(
        view.depth, None, INTRINSICS, view.camera_from_dataset, limits=(7.0, 9.0)
    )
    num = WIDTH * HEIGHT
    with pytest.raises(
        InputError, match=f"of {num} depth pixels {num} were outside the depth range"
    ):
        fusion.fuse([view._replace(depth=depth)], 0.05, counts=own)


def test_voxel_size_is_a_pixel_on_the_surface():
    depths = [np.array([9.0, 10, 11]), np.array([18.0, 20, 22]), np.zeros(0), np.array([30.0])]
    intrinsics = np.tile(np.diag([100.0, 100.0, 1.0]), (4, 1, 1))
    assert choose_voxel_size(depths, intrinsics, pixels=2.0) == pytest.approx(0.4)
    with pytest.raises(InputError, match="config.surface.voxel_size"):
        choose_voxel_size([np.zeros(0)], intrinsics[:1])
    check_voxel_size(0.06, depths, intrinsics)
    check_voxel_size(1e-9, [np.zeros(0)], intrinsics[:1])  # nothing to judge by
    with pytest.raises(InputError, match=r"surface.voxel_size: expected at least 0.05 .* got 0.04"):
        check_voxel_size(0.04, depths, intrinsics)


def test_blocks_cover_the_truncation_band():
    view = plane_view(np.eye(4), np.array([0.3, 0.1, 1.0]), 5.0)
    voxel = 0.05
    truncation = 0.2
    keys = voxel_blocks.touched_blocks(view, np.zeros(3), voxel, truncation)
    assert np.array_equal(
        voxel_blocks.pack_keys(voxel_blocks.unpack_keys(keys).astype(float)), keys
    )
    for offset in (-0.95 * truncation, 0.0, 0.95 * truncation):
        points = rays() * (view.depth + offset)[..., None]
        needed, pixels = np.unique(
            voxel_blocks.pack_keys(np.floor(points.reshape(-1, 3) / (voxel_blocks.BLOCK * voxel))),
            return_counts=True,
        )
        # Blocks of which rays clip but a corner may be missed.
        assert pixels[~np.isin(needed, keys)].sum() <= 10
    assert len(keys) < 500


def test_areas_are_planned_for_every_block_that_a_view_touches(monkeypatch):
    """And for few others."""
    for module in (voxel_blocks, areas):
        monkeypatch.setattr(module, "AREA", 8)
    seen = [view for view, _ in ring_of_views(num=6)]
    views = views_of(np.stack([view.camera_from_dataset for view in seen]))
    grid = FieldGrid(FAR + 0.3, 0.05, 3.0)
    limits = np.array([[depth[depth > 0].min(), depth.max()] for depth, *_ in seen])
    planned = areas.plan_areas(views, limits, grid)
    members = {area.index: set(area.views.tolist()) for area in planned}
    touched = 0
    for number, view in enumerate(seen):
        keys = voxel_blocks.touched_blocks(view, grid.origin, grid.voxel_size, grid.truncation)
        for index in map(tuple, voxel_blocks.touched_areas(keys).tolist()):
            assert number in members[index]
            touched += 1
    assert touched > 20 and sum(map(len, members.values())) < 8 * touched
    assert [area.name for area in planned] == sorted({area.name for area in planned})
    assert len(planned) == len(members)


def test_small_clusters_are_dropped_by_share_of_the_largest():
    mesh = two_squares(num_small=2)
    assert len(meshes.drop_small_clusters(mesh, 0.0).triangles) == 34
    assert len(meshes.drop_small_clusters(mesh, 1 / 32).triangles) == 34
    cleaned = meshes.drop_small_clusters(mesh, 0.05)
    assert len(cleaned.triangles) == 32 and len(cleaned.vertices) == 25
    assert np.array_equal(cleaned.vertices[cleaned.triangles], mesh.vertices[mesh.triangles[:32]])
    assert np.array_equal(cleaned.vertex_colors, mesh.vertex_colors[:25])
    assert np.array_equal(cleaned.vertex_confidence, mesh.vertex_confidence[:25])


@pytest.mark.parametrize(("offset", "kind"), [(0.0, "f4"), (5e6, "f8")])
def test_mesh_files_keep_positions_even_in_map_coordinates(tmp_path, offset, kind):
    mesh = two_squares()
    mesh = dataclasses.replace(mesh, vertices=0.1 * mesh.vertices + [offset, 0, 0])
    meshes.write_mesh_ply(tmp_path / "m.ply", mesh)
    assert (b"property double x" in (tmp_path / "m.ply").read_bytes()) == (kind == "f8")
    back = meshes.read_mesh_ply(tmp_path / "m.ply")
    assert np.abs(back.vertices - mesh.vertices).max() < 1e-6
    assert np.array_equal(back.triangles, mesh.triangles)
    assert np.array_equal(back.vertex_colors, mesh.vertex_colors)
    assert np.array_equal(back.vertex_normals, mesh.vertex_normals)
    assert np.array_equal(back.vertex_confidence, mesh.vertex_confidence)
    assert b"property float confidence" in (tmp_path / "m.ply").read_bytes()
    meshes.write_mesh_ply(tmp_path / "m.ply", dataclasses.replace(mesh, vertex_confidence=None))
    assert meshes.read_mesh_ply(tmp_path / "m.ply").vertex_confidence is None
    empty = meshes.keep_vertices(mesh, np.zeros(len(mesh.triangles), bool))
    with pytest.raises(InputError, match="no triangle"):
        meshes.write_mesh_ply(tmp_path / "e.ply", empty)


def test_missing_open3d_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open3d", None)
    with pytest.raises(InputError, match=r'pip install "cosurfgs_jax\[mesh\]"'):
        import_open3d()


def test_sides_of_what_a_view_sees_are_told():
    """A cut pyramid's normals are at right angles to its sides' edges and to its far end."""
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    corners = np.concatenate([square * 0.5 + [0, 0, 1], square * [3, 2, 0] + [0.2, 0, 5]])
    normals = np.array(areas._side_normals(corners))
    assert normals.shape == (10, 3)
    edges = corners[4:] - corners[:4]
    for side in range(4):
        for normal in normals[2 * side : 2 * side + 2]:
            np.testing.assert_allclose(edges[[side, (side + 1) % 4]] @ normal, 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(normals[8:]), [[0, 0, 1]] * 2, atol=1e-12)
