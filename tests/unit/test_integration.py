"""Depth maps in a signed distance field: verified against a definition of one voxel at a time, and
against the distances to planes.
"""

import numpy as np
import pytest
from depth_views import HEIGHT, INTRINSICS, WIDTH, look_at, plane_view, rays, sphere_view

from cosurfgs_jax.surface import integration
from cosurfgs_jax.surface.integration import Field, FieldGrid
from cosurfgs_jax.surface.voxel_blocks import BLOCK

VOXEL = 0.06
TRUNCATION_VOXELS = 3.0
OFFSETS = np.stack(np.meshgrid(*(np.arange(BLOCK),) * 3, indexing="ij"), axis=-1)
OFFSETS = OFFSETS.reshape(-1, 3)[:, ::-1]  # x is the fastest axis


def empty_field(num_blocks: int) -> Field:
    shape = (num_blocks, BLOCK**3)
    return Field(
        np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    )


def voxels_of(blocks, origin):
    return (blocks[:, None] * BLOCK + OFFSETS) * VOXEL + origin


def definition(view, points):
    """Distance in truncations, colour, and whether the view says them, of one voxel at a time."""
    truncation = TRUNCATION_VOXELS * VOXEL
    finer = 4
    depth = integration.refine_depth(view.depth, finer, truncation)
    factors = integration.plane_factors(view.depth, view.intrinsics, truncation)
    distances = np.zeros(len(points))
    colors = np.zeros((len(points), 3))
    is_seen = np.zeros(len(points), bool)
    for number, point in enumerate(points):
        place = view.camera_from_dataset[:3, :3] @ point + view.camera_from_dataset[:3, 3]
        if place[2] <= 0:
            continue
        x, y, _ = view.intrinsics @ (place / place[2])
        if not (0 <= x < WIDTH and 0 <= y < HEIGHT):
            continue
        hit = depth[int(y * finer), int(x * finer)]
        gap = hit - place[2]
        if hit > 0 and gap >= -truncation:
            is_seen[number] = True
            distances[number] = min(gap * factors[int(y), int(x)] / truncation, 1)
            colors[number] = view.color[int(y), int(x)]
    return distances, colors, is_seen


def test_two_views_are_the_mean_of_the_definition(monkeypatch):
    # Of both sizes, and the last one filled up.
    monkeypatch.setattr(integration, "_LARGE_CALL", 64)
    monkeypatch.setattr(integration, "_SMALL_CALL", 16)
    rng = np.random.default_rng(5)
    poses = [look_at(np.array(c), np.array([0.0, 0.0, 0.0])) for c in ([0, 0.5, 5], [2, -1, 4.5])]
    views = []
    for pose in poses:
        ball, _ = sphere_view(pose, np.zeros(3), 1.0)
        floor = plane_view(pose, np.array([0.0, 0.0, 1.0]), -0.8)
        depth = np.where(ball.depth > 0, ball.depth, floor.depth)
        depth[rng.random(depth.shape) < 0.02] = 0
        color = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        views.append(ball._replace(depth=depth, color=color))
    blocks = rng.integers(-4, 4, (90, 3))
    origin = np.array([0.01, 0.02, -0.03])
    # Blocks at the borders of the first picture, and one behind the cameras.
    border = 5 * rays()[:: HEIGHT - 1, :: WIDTH // 2 - 1].reshape(-1, 3)
    border = (border - poses[0][:3, 3]) @ poses[0][:3, :3]
    border = np.floor((border - origin) / (VOXEL * BLOCK)).astype(int)
    blocks = np.unique(np.concatenate([blocks, border, [[0, 0, 80]]]), axis=0)
    grid = FieldGrid(origin, VOXEL, TRUNCATION_VOXELS)
    field = empty_field(len(blocks) + 1)
    rows = np.arange(len(blocks))[::-1]
    points = voxels_of(blocks, origin).reshape(-1, 3)
    total = np.zeros(len(points))
    total_color = np.zeros((len(points), 3))
    weight = np.zeros(len(points))
    for number, view in enumerate(views):
        given = view
        if number:  # colours may be real numbers
            given = view._replace(color=(view.color / 255).astype(np.float32))
        integration.integrate(field, rows, blocks, given, grid)
        distances, colors, is_seen = definition(view, points)
        total += distances
        total_color += colors
        weight += is_seen
    got_weight = field.weight[rows].reshape(-1)
    # On the border of two pixels, rounding chooses.
    is_same = got_weight == weight
    assert is_same.mean() > 0.999 and set(np.unique(weight)) == {0, 1, 2}
    expected = total / np.maximum(weight, 1)
    error = np.abs(field.distance[rows].reshape(-1) - expected)[is_same]
    assert np.quantile(error, 0.999) < 1e-4
    color_error = field.color[rows].reshape(-1, 3) - total_color / np.maximum(weight, 1)[:, None]
    assert np.quantile(np.abs(color_error)[is_same], 0.999) < 1e-3  # 0 to 255, as extracted
    assert (field.weight[-1] == 0).all() and (field.color[-1] == 0).all()


@pytest.mark.parametrize("tilt", [0.0, 0.9, 1.2])
def test_distances_are_those_to_the_plane(tilt):
    """Along the ray they would be 2.8 times as large at 1.2 (69 degrees)."""
    normal = np.array([np.sin(tilt), 0.1, np.cos(tilt)])
    normal /= np.linalg.norm(normal)
    around = np.array([0, 0, 4.0])
    view = plane_view(np.eye(4), normal, around @ normal)
    blocks = np.stack(np.meshgrid(*(np.arange(-1, 1),) * 3), axis=-1).reshape(-1, 3)
    field = empty_field(len(blocks))
    grid = FieldGrid(around, VOXEL, TRUNCATION_VOXELS)
    integration.integrate(field, np.arange(len(blocks)), blocks, view, grid)
    exact = ((around - voxels_of(blocks, around)) @ normal) / (TRUNCATION_VOXELS * VOXEL)
    is_near = (field.weight == 1) & (np.abs(exact) < 0.9)
    assert is_near.sum() > 500
    assert np.abs(field.distance - exact)[is_near].max() < 0.06
    assert np.abs(np.mean((field.distance - exact)[is_near])) < 0.005


def test_plane_factors_hold_up_to_edges_and_borders(monkeypatch):
    normal = np.array([0.5, -0.3, 0.8])
    normal /= np.linalg.norm(normal)
    near = plane_view(np.eye(4), normal, 3.0).depth
    expected = np.abs(rays() @ normal)
    is_steep = expected < integration.MIN_COSINE
    factors = integration.plane_factors(near, INTRINSICS, 0.5)
    is_plane = (near > 0) & (near < 8) & ~is_steep
    assert np.abs(factors - expected)[is_plane].max() < 2e-3
    steep = np.tile(np.float32(2) + 2 * np.arange(WIDTH, dtype=np.float32), (HEIGHT, 1))
    edge_on = integration.plane_factors(steep, INTRINSICS, 10.0)
    assert (edge_on[:, :8] == np.float32(integration.MIN_COSINE)).all()
    far = near.copy()
    far[:, WIDTH // 2 :] += 2.0  # an edge: each side keeps its own plane along the edge's normal
    factors = integration.plane_factors(far, INTRINSICS, 0.1)
    left = is_plane & (np.arange(WIDTH) < WIDTH // 2)
    assert np.abs(factors - expected)[left].max() < 2e-3
    monkeypatch.setattr(integration, "_BAND_PIXELS", 7 * WIDTH)
    assert np.abs(integration.plane_factors(far, INTRINSICS, 0.1) - factors).max() < 1e-4
    alone = np.zeros_like(near)
    alone[5, 5] = 2.0
    assert (integration.plane_factors(alone, INTRINSICS, 0.1) == 1).all()


def test_refined_depth_is_that_of_gathering_four_pixels():
    depth = np.random.default_rng(3).uniform(3, 4, (23, 31)).astype(np.float32)
    depth[5:9, 7:12] = 0
    for factor in (2, 3, 4):
        expected = np.empty((23 * factor, 31 * factor))
        padded = np.pad(depth, 1, mode="edge").astype(np.float64)
        for y in range(expected.shape[0]):
            for x in range(expected.shape[1]):
                v = (y + 0.5) / factor + 0.5
                u = (x + 0.5) / factor + 0.5
                corners = padded[int(v) : int(v) + 2, int(u) : int(u) + 2]
                blend = np.outer([1 - v % 1, v % 1], [1 - u % 1, u % 1])
                is_smooth = (corners > 0).all() and np.ptp(corners) <= 0.6
                expected[y, x] = (
                    1 / (blend / np.where(corners > 0, corners, 1)).sum()
                    if is_smooth
                    else depth[y // factor, x // factor]
                )
        assert np.abs(integration.refine_depth(depth, factor, 0.6) - expected).max() < 1e-5


def test_refined_depth_is_exact_on_planes_and_sharp_at_edges():
    normal = np.array([0.5, -0.3, 0.8])
    pose = np.eye(4)
    depth = plane_view(pose, normal, 4.0).depth
    fine = integration.refine_depth(depth, 3, max_step=1.0)
    u, v = np.meshgrid((np.arange(3 * WIDTH) + 0.5) / 3, (np.arange(3 * HEIGHT) + 0.5) / 3)
    directions = np.stack([(u - 67.3) / 115, (v - 44.9) / 120, np.ones_like(u)], axis=-1)
    exact = 4.0 / (directions @ normal)
    inner = (slice(3, -3), slice(3, -3))
    smooth = (exact > 0) & (exact < 8)
    assert np.abs(fine - exact)[inner][smooth[inner]].max() < 1e-3
    step = np.ones((6, 6), np.float32)
    step[:, 3:] = 5.0
    step[0, 0] = 0.0
    fine = integration.refine_depth(step, 4, max_step=1.0)
    assert set(np.unique(fine)) == {0.0, 1.0, 5.0}
    assert np.array_equal(fine[:, :12] == 5.0, np.zeros((24, 12), bool))
