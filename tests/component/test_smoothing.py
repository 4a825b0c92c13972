"""Taubin's filter over a mesh in parts, verified against its definition, a vertex at a time."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.surface.mesh import Mesh, MeshParts, VertexPart, vertex_normals
from cosurfgs_jax.surface.smoothing import BACK, INWARDS, SmoothedMesh, Voxels, smoothed

FAR = np.array([451_234.5, 5_212_345.25, 310.0])  # float32 has steps of half a metre there

VOXELS = Voxels(FAR, 1.0)  # steps of 0.00024


class InParts(MeshParts):
    """A mesh whose vertices and triangles come in parts."""

    def __init__(self, mesh: Mesh, num_parts: int):
        self._mesh = mesh
        self._num_parts = num_parts

    num_vertices = property(lambda self: self._mesh.num_vertices)
    num_triangles = property(lambda self: self._mesh.num_triangles)
    largest_coordinate = property(lambda self: self._mesh.largest_coordinate)
    typical_edge = property(lambda self: self._mesh.typical_edge)

    def vertex_parts(self) -> Iterator[VertexPart]:
        (whole,) = self._mesh.vertex_parts()
        split = (np.array_split(values, self._num_parts) for values in whole)
        yield from (VertexPart(*arrays) for arrays in zip(*split, strict=True))

    def triangle_parts(self) -> Iterator[np.ndarray]:
        yield from np.array_split(self._mesh.triangles, self._num_parts)


def patch_of(side: int, noise: float, seed: int = 0) -> Mesh:
    """A square of side x side vertices, one apart, on a slope, with noise; its border is open."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    heights = 0.3 * x + noise * rng.standard_normal(x.shape)
    vertices = np.stack([x, y, heights], axis=-1).reshape(-1, 3) + FAR
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], axis=1),
            np.stack([corner + 1, corner + side + 1, corner + side], axis=1),
        ]
    ).astype(np.int32)
    triangles = triangles[rng.permutation(len(triangles))]
    colors = rng.integers(0, 256, (side * side, 3), np.uint8)
    normals = vertex_normals(vertices - FAR, triangles)
    return Mesh(vertices, triangles, colors, normals, np.arange(side * side, dtype=np.float32))


def definition(mesh: Mesh, num_passes: int) -> np.ndarray:
    """Places f64[M,3] after so many passes."""
    neighbors: list[list[int]] = [[] for _ in mesh.vertices]
    edges: dict[tuple[int, int], int] = {}
    for triangle in mesh.triangles.tolist():
        for corner in range(3):
            a, b, c = (triangle[(corner + k) % 3] for k in range(3))
            neighbors[a] += [b, c]
            edge = (min(a, b), max(a, b))
            edges[edge] = edges.get(edge, 0) + 1
    is_open = np.zeros(len(mesh.vertices), bool)
    for edge, count in edges.items():
        is_open[list(edge)] |= count == 1
    places = mesh.vertices.copy()
    for _ in range(num_passes):
        for fraction in (INWARDS, BACK):
            means = np.array([places[others].mean(axis=0) for others in neighbors])
            places = np.where(is_open[:, None], places, places + fraction * (means - places))
    return places


@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_definition_in_one_part_and_in_three(tmp_path, num_parts):
    mesh = patch_of(9, 0.2)
    (tmp_path / "again").mkdir()
    smooth = SmoothedMesh(InParts(mesh, num_parts), 4, VOXELS, tmp_path).to_mesh()
    expected = definition(mesh, 4)
    np.testing.assert_allclose(smooth.vertices, expected, atol=5e-4)
    normals = vertex_normals(smooth.vertices - FAR, mesh.triangles)
    np.testing.assert_allclose(smooth.vertex_normals, normals, atol=1e-5)
    again = SmoothedMesh(InParts(mesh, 5), 4, VOXELS, tmp_path / "again").to_mesh()
    assert np.array_equal(again.vertices, smooth.vertices)
    assert np.array_equal(smooth.triangles, mesh.triangles)
    assert np.array_equal(smooth.vertex_colors, mesh.vertex_colors)
    assert np.array_equal(smooth.vertex_confidence, mesh.vertex_confidence)


def test_noise_goes_and_the_open_border_stays(tmp_path):
    mesh = patch_of(30, 0.1)
    smooth = SmoothedMesh(mesh, 10, VOXELS, tmp_path).to_mesh()
    x, y = (mesh.vertices - FAR)[:, 0], (mesh.vertices - FAR)[:, 1]
    is_border = (x == 0) | (x == 29) | (y == 0) | (y == 29)
    np.testing.assert_allclose(smooth.vertices[is_border], mesh.vertices[is_border], atol=2e-4)
    assert np.abs(smooth.vertices - mesh.vertices)[~is_border].max(axis=1).mean() > 0.02
    truth = np.array([-0.3, 0, 1]) / np.hypot(0.3, 1)
    inner = (np.minimum(x, y) > 4) & (np.maximum(x, y) < 25)

    def median_angle(found: Mesh) -> float:
        cosines = np.abs(found.vertex_normals[inner] @ truth).clip(0, 1)
        return float(np.degrees(np.median(np.arccos(cosines))))

    assert median_angle(smooth) < 0.5 * median_angle(mesh)


def test_a_closed_surface_does_not_shrink(tmp_path):
    """An octahedron, divided four times and put on a sphere."""
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    faces = [(0, 1, 2), (1, 3, 2), (3, 4, 2), (4, 0, 2), (1, 0, 5), (3, 1, 5), (4, 3, 5), (0, 4, 5)]
    vertices = list(corners)
    for _ in range(4):
        middles: dict[tuple[int, int], int] = {}

        def middle(a: int, b: int, middles=middles) -> int:
            key = (min(a, b), max(a, b))
            if key not in middles:
                middles[key] = len(vertices)
                vertices.append((vertices[a] + vertices[b]) / 2)
            return middles[key]

        faces = [
            part
            for a, b, c in faces
            for ab, bc, ca in [(middle(a, b), middle(b, c), middle(c, a))]
            for part in [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        ]
    places = np.array(vertices) / np.linalg.norm(vertices, axis=1, keepdims=True)
    triangles = np.array(faces, np.int32)
    sphere = Mesh(
        places, triangles, np.zeros((len(places), 3), np.uint8), places.astype(np.float32)
    )
    smooth = SmoothedMesh(sphere, 10, Voxels(np.zeros(3), 0.05), tmp_path).to_mesh()
    radii = np.linalg.norm(smooth.vertices, axis=1)
    assert abs(radii.mean() - 1) < 0.003 and radii.std() < 0.005


def test_without_passes_it_is_the_mesh_itself(tmp_path):
    mesh = patch_of(5, 0.3)
    assert smoothed(mesh, 0, VOXELS, folder=tmp_path) is mesh and not list(tmp_path.iterdir())
    told = []
    same = smoothed(mesh, 2, VOXELS, folder=tmp_path, progress=lambda *given: told.append(given))
    assert isinstance(same, SmoothedMesh) and told == [(1, 2), (2, 2)]


def test_borders_that_meet_in_a_vertex_stay_in_every_order(tmp_path):
    """Two fans of three triangles around vertex 0, whose plain numbers cancel: 4 - 1 and 5 - 8."""
    rng = np.random.default_rng(3)
    fans = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 8, 7], [0, 7, 6], [0, 6, 5]]
    vertices = rng.uniform(size=(9, 3))
    colors = np.zeros((9, 3), np.uint8)
    normals = np.zeros((9, 3), np.float32)
    mesh = Mesh(vertices, np.array(fans, np.int32), colors, normals)
    still = SmoothedMesh(mesh, 3, Voxels(np.zeros(3), 0.1), tmp_path).to_mesh()
    np.testing.assert_allclose(still.vertices, vertices, atol=2e-5)


def test_a_part_without_triangles_and_a_mesh_whose_edges_have_four(tmp_path):
    once = patch_of(6, 0.2)
    triangles = np.concatenate([once.triangles, once.triangles[:, [1, 0, 2]]])
    twice = dataclasses.replace(once, triangles=triangles)
    closed = SmoothedMesh(InParts(twice, len(triangles) + 2), 1, VOXELS, tmp_path).to_mesh()
    assert np.isfinite(closed.vertices).all()
    assert np.abs(closed.vertices - once.vertices).max(axis=1).min() > 0  # no border is open


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(InputError, match="No space left on device.*config.surface.voxel_size"):
        SmoothedMesh(patch_of(4, 0.1), 1, VOXELS, tmp_path)
