"""A mesh seen from straight above: the highest surface counts, tiles are one picture, and narrow
gaps are closed without softening edges.
"""

import dataclasses

import numpy as np
import pytest

from cosurfgs_jax.surface import from_above, ground, pixels_in_triangles
from cosurfgs_jax.surface.from_above import FILLED, NOTHING, SURFACE, MeshFromAbove
from cosurfgs_jax.surface.mesh import Mesh

# Large map coordinates; the pixel size is exact in binary.
ORIGIN = np.array([451_234.5, 5_212_345.25, 310.0])
PIXEL = 0.125
AXES = ground.GroundFrame(np.eye(3), np.zeros(3), True)
SIZE = 48


def grid_of(size=SIZE):
    return ground.GroundGrid(ORIGIN[0], ORIGIN[1] + size * PIXEL, PIXEL, size, size)


def mesh_of(vertices, triangles, colors=None):
    """A mesh of vertices in pixels to the east, pixels to the north and metres up from ORIGIN."""
    vertices = np.asarray(vertices, float)
    if colors is None:
        colors = np.full((len(vertices), 3), 100)
    return Mesh(
        vertices * [PIXEL, PIXEL, 1] + ORIGIN,
        np.asarray(triangles, np.int32),
        np.asarray(colors, np.uint8),
        np.zeros((len(vertices), 3), np.float32),
        np.asarray(vertices[:, 0] / 10, np.float32),
    )


def squares(*boxes):
    """A mesh of level rectangles (from x, to x, from y, to y, height)."""
    corners = [[(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)] for x0, x1, y0, y1, z in boxes]
    triangles = [np.array([[0, 1, 2], [0, 2, 3]]) + 4 * number for number in range(len(boxes))]
    return mesh_of(np.concatenate(corners), np.concatenate(triangles))


def seen(mesh, limits=(-1000.0, 1000.0), size=SIZE):
    """The whole raster as one tile, with row 0 in the south."""
    drawn = MeshFromAbove(mesh, AXES, grid_of(size), (ORIGIN[2] + limits[0], ORIGIN[2] + limits[1]))
    piece = drawn.tile(0, 0, size)
    return piece._replace(
        heights=piece.heights[::-1] - ORIGIN[2],
        colors=piece.colors[::-1],
        confidence=piece.confidence[::-1],
        mark=piece.mark[::-1],
    )


def crowd(seed=0, num=400):
    """Triangles of many sizes over and through each other."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(0, SIZE, (num, 1, 2))
    place = middle + rng.normal(0, 1, (num, 3, 2)) * rng.uniform(0.3, 6, (num, 1, 1))
    vertices = np.concatenate([place, rng.uniform(0, 9, (num, 3, 1))], axis=-1).reshape(-1, 3)
    return mesh_of(vertices, np.arange(3 * num).reshape(-1, 3), rng.integers(0, 256, (3 * num, 3)))


def by_definition(mesh):
    """Height and colour f64[SIZE,SIZE,4] of the highest triangle under each pixel's middle."""
    places = (mesh.vertices - ORIGIN) / [PIXEL, PIXEL, 1]
    found = np.full((SIZE, SIZE, 4), np.nan)
    column, row = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    middles = np.stack([column, row, np.ones_like(row)], axis=-1)
    for corners in mesh.triangles:
        inverse = np.linalg.inv(np.vstack([places[corners, :2].T, np.ones(3)]))
        weights = middles @ inverse.T
        height = weights @ places[corners, 2]
        is_top = (weights >= 0).all(axis=-1) & ~(height <= found[..., 0])
        values = np.concatenate([height[..., None], weights @ mesh.vertex_colors[corners]], axis=-1)
        found[is_top] = values[is_top]
    return found


@pytest.mark.parametrize("candidates", [2_000_000, 500])
def test_it_is_the_highest_triangle_under_the_middle_of_a_pixel(monkeypatch, candidates):
    monkeypatch.setattr(pixels_in_triangles, "_CANDIDATES", candidates)
    monkeypatch.setattr(from_above, "_RADIUS", 0)
    mesh = crowd()
    piece = seen(mesh)
    expected = by_definition(mesh)
    is_surface = np.isfinite(expected[..., 0])
    assert 0.5 < is_surface.mean() < 0.99
    # Steep triangles move by more than their corners' rounding to float32.
    np.testing.assert_array_equal(piece.mark == SURFACE, is_surface)
    off = np.abs(piece.heights - expected[..., 0])[is_surface]
    assert np.median(off) < 1e-4 and off.max() < 0.02
    colors = np.abs(piece.colors - expected[..., 1:])[is_surface]
    assert np.percentile(colors, 99) < 1


def test_tiles_are_one_picture():
    drawn = MeshFromAbove(crowd(), AXES, grid_of(), (ORIGIN[2] - 1, ORIGIN[2] + 10))
    whole = drawn.tile(0, 0, SIZE)
    side = SIZE // 3
    for row in range(0, SIZE, side):
        for column in range(0, SIZE, side):
            piece = drawn.tile(row, column, side)
            part = (slice(row, row + side), slice(column, column + side))
            for mine, all_of_it in zip(piece, whole, strict=True):
                np.testing.assert_allclose(mine.astype(float), all_of_it[part], atol=1e-3)


@pytest.mark.parametrize("has_tall", [False, True])
def test_a_piece_looks_at_the_triangles_of_its_rows(has_tall):
    """And takes all whose boxes reach into it, in their order, also where one is as tall as all."""
    mesh = crowd(num=2000)
    if not has_tall:
        extents = np.ptp(mesh.vertices[mesh.triangles][..., 1], axis=1) / PIXEL
        small = mesh.triangles[extents < 4]
        mesh = Mesh(mesh.vertices, small, mesh.vertex_colors, mesh.vertex_normals)
    drawn = MeshFromAbove(mesh, AXES, grid_of(), (ORIGIN[2] - 1, ORIGIN[2] + 10))
    corners = drawn._places[drawn._triangles, :2]
    for first in np.array([[0, 0], [16, 8], [40, 40], [-8, 44], [60, 60]]):
        is_near = (corners.max(axis=1) >= first).all(axis=1)
        is_near &= (corners.min(axis=1) <= first + 6).all(axis=1)
        np.testing.assert_array_equal(drawn._near(first, 6), np.flatnonzero(is_near))
    if not has_tall:
        rows = drawn._rows(np.array([16, 8]), 6)
        assert 0 < rows.stop - rows.start < 0.4 * len(drawn._triangles)


@pytest.mark.parametrize("width, is_closed", [(1, True), (6, True), (7, False), (12, False)])
def test_narrow_gaps_are_filled_and_marked(width, is_closed):
    piece = seen(squares((0, 20, 0, SIZE, 2.0), (20 + width, SIZE, 0, SIZE, 2.0)))
    inner = slice(12, -12)  # the raster's end is the surface's own
    gap = piece.mark[inner, 20 : 20 + width]
    assert (gap == (FILLED if is_closed else NOTHING)).all()
    if is_closed:
        np.testing.assert_allclose(piece.heights[inner, 20 : 20 + width], 2.0, atol=1e-5)
        assert (piece.colors[inner, 20 : 20 + width] == 100).all()
    assert (piece.mark[inner, :20] == SURFACE).all()
    # The confidence of the mesh, which grows to the east; none where no photograph shows it.
    expected = np.where(piece.mark == SURFACE, (np.arange(SIZE) + 0.5) / 10, 0)
    np.testing.assert_allclose(piece.confidence[inner], expected[inner], atol=1e-5)


def test_a_mesh_without_confidence_has_none_on_the_surface():
    mesh = squares((0, 20, 0, SIZE, 2.0), (22, SIZE, 0, SIZE, 2.0))
    piece = seen(dataclasses.replace(mesh, vertex_confidence=None))
    assert np.isnan(piece.confidence[piece.mark == SURFACE]).all()
    assert (piece.confidence[piece.mark == FILLED] == 0).all()
    assert (piece.mark == FILLED).any() and (piece.colors[piece.mark == FILLED] == 100).all()


@pytest.mark.parametrize("color", [[0, 0, 0], [255, 255, 255], [0, 128, 255]])
def test_colours_reach_from_black_to_white(color):
    corners = [(5, 5, 2), (40, 5, 2), (40, 40, 2), (5, 40, 2)]
    piece = seen(mesh_of(corners, [[0, 1, 2], [0, 2, 3]], [color] * 4))
    assert (piece.mark == SURFACE).sum() == 35 * 35
    assert (piece.colors[piece.mark == SURFACE] == color).all()


def test_a_gap_at_an_edge_gets_the_lower_side():
    piece = seen(squares((0, 20, 0, SIZE, 5.0), (21, SIZE, 0, SIZE, 1.0)))
    inner = slice(12, -12)
    assert (piece.mark[inner, 20] == FILLED).all()
    np.testing.assert_allclose(piece.heights[inner, 20], 1.0, atol=1e-5)
    np.testing.assert_allclose(piece.heights[inner, 19], 5.0, atol=1e-5)


def test_the_surface_does_not_grow_at_its_rim():
    piece = seen(squares((15, 30, 15, 30, 2.0)))
    expected = np.full((SIZE, SIZE), NOTHING)
    expected[15:30, 15:30] = SURFACE
    np.testing.assert_array_equal(piece.mark, expected)


def test_noise_is_smoothed_and_planes_and_edges_are_not():
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    plane = np.where(x < 24, 0.02 * x + 0.01 * y, 3 + 0.02 * x)
    tolerance = PIXEL / 3
    exact = from_above._smooth(plane, tolerance)
    np.testing.assert_allclose(exact, plane, atol=1e-9)
    noisy = plane + rng.normal(0, 0.005, plane.shape)
    smooth = from_above._smooth(noisy, tolerance)
    assert np.std((smooth - plane)[3:-3, 3:21]) < 0.4 * 0.005
    assert np.abs(smooth - plane).max() < 0.03
    noisy[10, 10] = -np.inf
    assert from_above._smooth(noisy, tolerance)[10, 10] == -np.inf


def test_what_is_beyond_the_limits_of_height_is_not_drawn():
    piece = seen(squares((10, 40, 10, 40, 2.0), (20, 30, 20, 30, 50.0)), limits=(-10.0, 20.0))
    np.testing.assert_allclose(piece.heights[20:30, 20:30], 2.0, atol=1e-5)
    assert not seen(squares((10, 40, 10, 40, -11.0)), limits=(-10.0, 20.0)).mark.any()


def test_walls_and_no_triangle_at_all_are_no_surface():
    wall = mesh_of([(10.5, 5, 0), (10.5, 30, 0), (10.5, 30, 9)], [[0, 1, 2]])
    assert not seen(wall).mark.any()
    nothing = mesh_of(np.zeros((3, 3)), np.zeros((0, 3)))
    assert not seen(nothing).mark.any()
