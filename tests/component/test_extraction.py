"""From rendered views to mesh files: what is chosen, what is dropped, which formats come out, what
is said if nothing does.
"""

import json

import numpy as np
import pytest
from depth_views import FAR, ring_of_views, views_of
from helpers import bare_scene
from mesh_cases import triangle_set, two_squares

from cosurfgs_jax import program
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.view_pairs import Onlookers
from cosurfgs_jax.part import Part
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface import areas, extraction, mesh_files, mesh_plan, simplify, voxel_blocks
from cosurfgs_jax.surface import mesh as meshes

pytest.importorskip("open3d")
UP = np.array([0, 0, 1.0])


def sphere_scene(num=10, elevations=(0.6, 1.2)):
    """A sphere seen from two rows of views; one view has a floater."""
    views = ring_of_views(num=num, elevations=elevations)
    directions = np.random.default_rng(1).normal(size=(500, 3))
    points = FAR + 1.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def render(view):
        exact, normal = views[view]
        depth = exact.depth.copy()
        if view == 3:
            depth[5:20, 5:20] = 4.0
        return {
            "color": exact.color / np.float32(255),
            "alpha": (depth > 0).astype(np.float32),
            "plane_depth": depth,
            "normal": np.where(normal == 0, -exact.camera_from_dataset[2, :3], normal).astype(
                np.float32
            ),
        }

    poses = np.stack([v.camera_from_dataset for v, _ in views])
    return render, bare_scene(views_of(poses), points)


def never_render(view):
    raise AssertionError(f"view {view} was rendered")


def test_extraction_from_rendered_views(tmp_path):
    """From maps to a clean mesh; a floater in one view is not confirmed, and lengths come from the
    points.
    """
    render, scene = sphere_scene()
    done = []
    info = extraction.extract_mesh(
        render,
        scene,
        np.arange(20),
        SurfaceSettings(),
        tmp_path / "mesh.ply",
        progress=lambda what, i, n: done.append((what, i, n)),
    )
    mesh = meshes.read_mesh_ply(tmp_path / "mesh.ply")
    assert info["voxel_size"] == pytest.approx(1.5 * 5.0 / 117.5, rel=0.3)
    assert info["num_triangles"] == len(mesh.triangles) and info["num_tiles"] == 1
    radius = np.linalg.norm(mesh.vertices - FAR, axis=1)
    assert np.abs(radius - 1.5).max() < info["voxel_size"]
    # Two rows of views on one side see a cap of more than a third of the sphere.
    corners = mesh.vertices[mesh.triangles]
    area = (
        np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        ).sum()
        / 2
    )
    assert area > 0.35 * 4 * np.pi * 1.5**2
    assert info["counts"]["unconfirmed"] >= 15 * 15
    assert [what for what in dict.fromkeys(what for what, _, _ in done)] == list(extraction.PHASES)
    assert all(
        (what, n, n) in done
        for what, n in (("render depth", 20), ("filter depth", 20), ("extract", 1), ("write", 1))
    )
    with pytest.raises(InputError, match="at least one view"):
        extraction.extract_mesh(
            render, scene, np.arange(0), SurfaceSettings(), tmp_path / "none.ply"
        )


def test_tiles_go_to_the_file_as_one_mesh(tmp_path, monkeypatch):
    render, scene = sphere_scene()
    settings = SurfaceSettings(min_cluster_share=0.05)
    extraction.extract_mesh(render, scene, np.arange(20), settings, tmp_path / "whole.ply")
    monkeypatch.setattr(voxel_blocks, "AREA", 4)
    monkeypatch.setattr(areas, "AREA", 4)
    # With PLY alone nothing may ask for the whole mesh.
    monkeypatch.setattr(meshes.MeshParts, "to_mesh", None)
    info = extraction.extract_mesh(render, scene, np.arange(20), settings, tmp_path / "tiled.ply")
    assert info["num_tiles"] >= 4
    whole, tiled = (meshes.read_mesh_ply(tmp_path / name) for name in ("whole.ply", "tiled.ply"))
    fractions = [(tiled.vertex_confidence < step).mean() for step in (3, 6)]
    assert list(info["confidence"].values()) == pytest.approx(fractions) and 0 < fractions[1] < 1
    assert np.array_equal(triangle_set(whole), triangle_set(tiled))
    # By parts that know nothing of each other, and draw only what they need: the same bytes.
    plan = extraction.plan_mesh(scene, np.arange(20), settings)
    parts = []
    num_drawn = []
    for number in range(3):
        part = Part(number, 3)
        folder = tmp_path / str(number)
        folder.mkdir()
        drawn = plan.numbers[plan.drawn_by(part)]
        num_drawn.append(len(drawn))

        def only(view, drawn=drawn):
            return render(view) if view in drawn else never_render(view)

        fused = extraction.fuse_part(plan, part, only, folder)
        parts.append((folder, extraction.Fused(**json.loads(json.dumps(fused._asdict())))))
    by_parts = extraction.write_parts(plan, parts, path=tmp_path / "parts.ply", form="ply", up=UP)
    assert by_parts == info
    assert (tmp_path / "parts.ply").read_bytes() == (tmp_path / "tiled.ply").read_bytes()
    assert sum(path.stat().st_size > 0 for path, _ in parts) == 3 and sum(num_drawn) > 20


def test_no_view_with_neighbours_is_said_before_rendering(tmp_path, caplog):
    render, scene = sphere_scene()
    with pytest.raises(
        InputError,
        match=r"none of the 1 views has a neighbour .* config.surface.min_neighbor_views=0",
    ):
        extraction.extract_mesh(
            never_render, scene, np.arange(1), SurfaceSettings(), tmp_path / "m.ply"
        )
    # Two views that look at each other confirm nothing either; with a third one beside the first
    # only one is alone.
    scene.views.camera_from_dataset[1] = scene.views.camera_from_dataset[0] @ np.diag(
        [-1.0, 1, -1, 1]
    )
    scene.views.camera_from_dataset[1, :3, 3] = np.diag(
        [-1.0, 1, -1]
    ) @ scene.views.camera_from_dataset[0, :3, 3] + [0, 0, 10.0]
    scene.views.camera_from_dataset[1, :3, :3] = (
        np.diag([-1.0, 1, -1]) @ scene.views.camera_from_dataset[0, :3, :3]
    )
    with pytest.raises(InputError, match="none of the 2 views"):
        extraction.extract_mesh(
            never_render, scene, np.arange(2), SurfaceSettings(), tmp_path / "m.ply"
        )
    turned = views_of(np.stack([np.eye(4), np.eye(4), np.diag([-1.0, 1, -1, 1])]))
    turned.camera_from_dataset[1, 0, 3] = 1
    turned.camera_from_dataset[2, 0, 3] = 2
    onlookers = Onlookers(turned, np.full(3, 10.0))
    mesh_plan._check_neighbors(onlookers, 2)
    assert "1 of 3 views have no neighbour" in caplog.text
    mesh_plan._check_neighbors(Onlookers(turned.pick(np.array([2])), np.ones(1)), 0)  # none has to
    assert not (tmp_path / "m.ply").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps, _: maps | {"alpha": maps["alpha"] * 0.3}, "had no depth.*train longer"),
        (
            lambda maps, _: maps | {"plane_depth": maps["plane_depth"] * np.float32(np.nan)},
            "had no depth.*train longer",
        ),
        (
            lambda maps, _: maps | {"plane_depth": maps["plane_depth"] * np.float32(20)},
            "outside the depth range.*SfM points",
        ),
        (
            lambda maps, _: maps | {"plane_depth": maps["plane_depth"] * np.float32(0.7)},
            "not confirmed.*config.surface.min_neighbor_views",
        ),
    ],
)
def test_depth_that_is_nowhere_valid_is_one_sentence(tmp_path, capsys, change, words):
    render, scene = sphere_scene()
    settings = SurfaceSettings(max_angle_deg=89.9, min_neighbor_views=5)

    def main(_):
        extraction.extract_mesh(
            lambda view: change(render(view), view),
            scene,
            np.arange(0, 20, 3),
            settings,
            tmp_path / "m.ply",
        )

    assert program.run(main, argv=["extract_mesh"]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: mesh: ") and "Traceback" not in printed
    with pytest.raises(InputError, match=words):
        main(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("offset", [np.zeros(3), FAR])
def test_obj_and_glb_are_read_back(tmp_path, offset):
    trimesh = pytest.importorskip("trimesh")
    mesh = two_squares()
    vertices = 0.1 * mesh.vertices + np.array([0, 0, 0.01]) * mesh.vertices[:, :1] ** 2 + offset
    mesh = meshes.Mesh(
        vertices,
        mesh.triangles,
        mesh.vertex_colors,
        meshes.vertex_normals(vertices, mesh.triangles),
        mesh.vertex_confidence,
    )
    for form in ("obj", "glb"):
        mesh_files.write_mesh(tmp_path / f"m.{form}", mesh, form, UP)
        loaded = trimesh.load(tmp_path / f"m.{form}", process=False)
        back = loaded.to_geometry() if form == "glb" else loaded
        places = np.asarray(back.vertices)
        if form == "glb":  # y is up there
            places = np.stack([places[:, 0], -places[:, 2], places[:, 1]], axis=1)
        assert np.abs(places - mesh.vertices).max() < 1e-6, form
        assert np.array_equal(back.faces, mesh.triangles)
        if form == "obj":
            assert np.array_equal(back.visual.vertex_colors[:, :3], mesh.vertex_colors)
        else:
            (part,) = loaded.geometry.values()
            colors = part.visual.vertex_attributes["color"][:, :3]
            assert np.array_equal(colors, mesh_files.linear_colors(mesh.vertex_colors))
            material = part.visual.material  # without one viewers take it for bare metal
            assert (material.metallicFactor, material.roughnessFactor) == (0, 1)
            kept = back.vertex_attributes["_CONFIDENCE"]
            assert np.array_equal(kept.reshape(-1), mesh.vertex_confidence)
    assert {path.name for path in tmp_path.iterdir()} == {
        "m.obj",
        "m.glb",
    }  # no temporary file is left
    empty = meshes.keep_vertices(mesh, np.zeros(len(mesh.triangles), bool))
    with pytest.raises(InputError, match="no triangle"):
        mesh_files.write_mesh(tmp_path / "e.obj", empty, "obj", UP)


def test_colours_of_gltf_are_in_proportion_to_light():
    colors = np.array([[0, 255, 128], [10, 188, 64]], np.uint8)
    assert mesh_files.linear_colors(colors).tolist() == [[0, 255, 55], [1, 128, 13]]


def test_any_up_becomes_y():
    for up in (UP, np.array([1.0, 0.2, -0.3]), np.array([0, -1.0, 0])):
        rotation = mesh_files.upright(up)
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(
            rotation
        ) == pytest.approx(1)
        assert np.allclose(rotation @ up / np.linalg.norm(up), [0, 1, 0])


def test_formats_are_checked_before_the_long_work(tmp_path, monkeypatch):
    _, scene = sphere_scene()
    with pytest.raises(InputError, match="--format: expected ply, obj, glb, got 'fbx'"):
        extraction.extract_mesh(
            never_render, scene, np.arange(20), SurfaceSettings(), tmp_path / "m.ply", form="fbx"
        )
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(InputError, match=r'trimesh .* pip install "cosurfgs_jax\[mesh\]"'):
        extraction.extract_mesh(
            never_render, scene, np.arange(20), SurfaceSettings(), tmp_path / "m.ply", form="obj"
        )


def open_box(size=24, noise=0.05):
    """A box without a lid from a grid of voxels: five planes with noise along their normals, in
    voxels.
    """
    axis = np.arange(size + 1.0)
    corner = (np.arange(size)[:, None] * (size + 1) + np.arange(size)).ravel()
    cells = np.concatenate(
        [
            np.stack([corner, corner + a, corner + b], axis=1)
            for a, b in ((1, size + 2), (size + 2, size + 1))
        ]
    )
    x, y = (grid.ravel() for grid in np.meshgrid(axis, axis))
    low = np.zeros_like(x)
    high = np.full_like(x, size)
    sides = [(x, y, low), (low, x, y), (high, x, y), (x, low, y), (x, high, y)]
    vertices = np.concatenate([np.stack(side, axis=1) for side in sides])
    triangles = np.concatenate([cells + number * len(x) for number in range(5)])
    vertices, numbers = np.unique(vertices, axis=0, return_inverse=True)
    triangles = numbers.reshape(-1)[triangles].astype(np.int32)
    generator = np.random.default_rng(0)
    for axis in range(3):
        for wall in (0, size):
            is_inner = (vertices[:, axis] == wall) & (wall == 0 if axis == 2 else True)
            others = np.delete(vertices, axis, axis=1)
            is_inner &= ((others > 0) & (others < size)).all(axis=1)
            vertices[is_inner, axis] += generator.normal(0, noise, is_inner.sum())
    colors = np.where(
        vertices[:, 2:] > size / 2, np.array([[200, 30, 30]]), np.array([[30, 30, 200]])
    ).astype(np.uint8)
    confidence = np.where(vertices[:, 2] > size / 2, 7, 2).astype(np.float32)
    normals = meshes.vertex_normals(vertices, triangles)
    return meshes.Mesh(vertices + FAR, triangles, colors, normals, confidence)


def test_a_decimated_box_keeps_its_shape():
    box = open_box()
    few = simplify.decimate(box, 200)
    assert len(box.triangles) == 5760 and 100 < len(few.triangles) <= 200
    vertices = few.vertices - FAR
    to_walls = np.min(
        [
            np.abs(vertices[:, 0]),
            np.abs(vertices[:, 0] - 24),
            np.abs(vertices[:, 1]),
            np.abs(vertices[:, 1] - 24),
            np.abs(vertices[:, 2]),
        ],
        axis=0,
    )
    assert to_walls.max() < 0.2
    corners = np.array([[x, y, z] for x in (0, 24) for y in (0, 24) for z in (0, 24.0)])
    assert np.linalg.norm(corners[:, None] - vertices, axis=2).min(axis=1).max() < 0.2
    # The open border is still where the lid would be.
    edges = np.sort(few.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, counts = np.unique(edges, axis=0, return_counts=True)
    border = vertices[np.unique(edges[counts == 1])]
    assert len(border) >= 4 and np.abs(border[:, 2] - 24).max() < 0.1
    assert few.vertex_colors[vertices[:, 2] > 23.5].tolist() == [[200, 30, 30]] * int(
        (vertices[:, 2] > 23.5).sum()
    )
    confidence = few.vertex_confidence
    assert confidence.shape == (len(vertices),) and confidence.dtype == np.float32
    assert (confidence[vertices[:, 2] > 18] == 7).all() and (confidence >= 2).all()
    assert (confidence[vertices[:, 2] < 6] == 2).all() and (vertices[:, 2] < 6).sum() > 20
    assert simplify.decimate(box, 0) is box and simplify.decimate(box, 10**6) is box


def test_target_triangles_and_format_of_an_extraction(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    render, scene = sphere_scene()
    info = extraction.extract_mesh(
        render,
        scene,
        np.arange(20),
        SurfaceSettings(target_triangles=500),
        tmp_path / "mesh.ply",
        form="glb",
    )
    mesh = meshes.read_mesh_ply(tmp_path / "mesh.ply")
    assert (
        info["num_triangles"] == len(mesh.triangles) <= 500 < info["num_triangles_before_cleaning"]
    )
    assert np.abs(np.linalg.norm(mesh.vertices - FAR, axis=1) - 1.5).max() < 2 * info["voxel_size"]
    assert len(trimesh.load(tmp_path / "mesh.glb").to_geometry().faces) == len(mesh.triangles)
