"""Every exported file goes back to the map by the place.json beside it: a model, or a mesh, of
known map coordinates is written, the file read by what others use, and its place applied.
"""

import dataclasses
import functools
import shutil
import types

import numpy as np
import pytest
from blocks_case import four_blocks, model_of, solid_state, surfels_of

from cosurfgs_jax.formats.place_json import read_places
from cosurfgs_jax.formats.ply import columns, read_ply
from cosurfgs_jax.formats.splat_ply import drawable_of, read_surfels_ply
from cosurfgs_jax.outputs import exports, fused_mesh
from cosurfgs_jax.outputs.exports import browser, textured
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import GeoSettings, PointsSettings, Settings
from cosurfgs_jax.surface import mesh_files
from cosurfgs_jax.surface.atlas import TexturedMesh
from cosurfgs_jax.surface.mesh import Mesh, write_mesh_ply
from cosurfgs_jax.workdir import Workdir

OFFSET = np.array([500_000.0, 4_649_776.0, 100.0])
FAR = np.array([451_234.5, 5_212_345.25, 310.0])
GEO = GeoSettings(offset="500000,4649776,100", epsg=32614)
UP = np.array([0.0, 0.6, 0.8])


def _trained(folder, shift=0.0) -> Trained:
    """A model whose dataset lies `shift` off its origin, with z not quite up."""
    partitioned = four_blocks()
    frame = partitioned.frame
    turn = np.array([[1.0, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])  # takes UP to z
    moved = dataclasses.replace(
        frame,
        rotation=frame.rotation @ turn,
        translation=frame.translation - frame.scale * (frame.rotation @ turn @ (shift * FAR)),
    )
    surfels = surfels_of(solid_state(partitioned, 0))
    settings = Settings(geo=GEO, points=PointsSettings(source="surfels"))
    scene = dataclasses.replace(partitioned.scene, up=UP)
    partitioned = partitioned._replace(frame=moved, scene=scene)
    return Trained(settings, partitioned, model_of(surfels), Workdir(folder))


def _wanted(trained: Trained) -> np.ndarray:
    """Map coordinates of the model's centres."""
    means = np.asarray(drawable_of(trained.surfels).means)
    return trained.partitioned.frame.to_dataset(means) + OFFSET


def _check(folder, name, points, wanted, atol=1e-3):
    place = read_places(folder)[name]
    assert place.epsg == 32614
    np.testing.assert_allclose(place.to_map(points), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("form", ["ply", "points"])
def test_surfels_and_points(tmp_path, form, shift):
    trained = _trained(tmp_path, shift)
    exports.find_format(form).write(trained, tmp_path)
    names = {"ply": ["point_cloud_2d.ply", "point_cloud_3dgs.ply"], "points": ["points.ply"]}[form]
    assert sorted(read_places(tmp_path)) == names
    for name in names:
        table = read_ply(tmp_path / name)[0]["vertex"]
        points = columns(table, ("x", "y", "z"), name)
        _check(tmp_path, name, points, _wanted(trained))
        is_near = name == "point_cloud_3dgs.ply"
        assert (table.dtype["x"] == np.float32) == (is_near or not shift)
        assert (np.abs(points).max() < 1000) == (is_near or not shift)
        taken_off = read_places(tmp_path)[name].offset - OFFSET
        assert taken_off.any() == (is_near and shift > 0)
        np.testing.assert_array_equal(taken_off, np.round(taken_off))  # round numbers


@pytest.mark.parametrize("name", ["html", "spz", "sog"])
def test_splats_of_browsers(tmp_path, monkeypatch, name):
    """What splat-transform is given; of SPZ it negates y and z, as that format has them."""
    trained = _trained(tmp_path, shift=1.0)
    monkeypatch.setattr(
        browser, "_run", lambda name, command, path: shutil.copy(command[-2], command[-1])
    )
    exports.find_format(name).write(trained, tmp_path / "export")
    file = (tmp_path / "export" / f"model.{name}").rename(tmp_path / "model.ply")
    points = np.asarray(read_surfels_ply(file).means)
    if name == "spz":
        points = points * [1, -1, -1]
    (tmp_path / "export" / f"model.{name}").touch()
    _check(tmp_path / "export", f"model.{name}", points, _wanted(trained))


def _mesh() -> Mesh:
    """A triangle, far from the origin."""
    corners = FAR + [[0.0, 0, 0], [4, 0, 0], [0, 2, 1]]
    colors = np.zeros((3, 3), np.uint8)
    normals = np.tile(np.float32([0, 0, 1]), (3, 1))
    return Mesh(corners, np.array([[0, 1, 2]], np.int32), colors, normals)


def _read(path) -> np.ndarray:
    """Vertices as other programs read them, nodes applied."""
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(path, process=False)
    return np.asarray(loaded.to_mesh().vertices if path.suffix == ".glb" else loaded.vertices)


@pytest.mark.parametrize("form", ["ply", "obj", "glb"])
def test_meshes(tmp_path, monkeypatch, form):
    pytest.importorskip("trimesh")
    trained = _trained(tmp_path)

    def write_parts(plan, parts, path, form, up):
        write_mesh_ply(path, _mesh())
        if form != "ply":
            mesh_files.write_mesh(path.with_suffix(f".{form}"), _mesh(), form, up)
        return {}

    monkeypatch.setattr(fused_mesh, "plan_of", lambda _: None)
    monkeypatch.setattr(fused_mesh, "make_part", lambda *_, **__: None)
    monkeypatch.setattr(fused_mesh, "write_parts", write_parts)
    fused_mesh.fuse(trained, tmp_path, form)
    folder = trained.workdir.mesh.parent
    assert sorted(read_places(folder)) == sorted({"mesh.ply", f"mesh.{form}"})
    wanted = _mesh().vertices + OFFSET
    table = read_ply(folder / "mesh.ply")[0]["vertex"]
    _check(folder, "mesh.ply", columns(table, ("x", "y", "z"), "mesh"), wanted)
    _check(folder, f"mesh.{form}", _read(folder / f"mesh.{form}"), wanted)


def test_textured_meshes(tmp_path, monkeypatch):
    pytest.importorskip("trimesh")
    trained = _trained(tmp_path)
    partitioned = trained.partitioned
    uvs = np.array([[[0.0, 0], [1, 0], [1, 1]]], np.float32)
    baked = TexturedMesh(_mesh(), uvs, np.zeros((8, 8, 3), np.uint8))
    size = textured.TextureSize(size=8, wanted=8, texel=1.0, photo_pixel=1.0)
    for name, result in {
        "find_mesh": {},
        "survey": types.SimpleNamespace(area=1.0, num_triangles=1),
        "photo_pixel": 1.0,
        "read_mesh_ply": _mesh(),
        "reduce": _mesh(),
        "load_exposures": np.zeros((partitioned.scene.num_views, 3, 4)),
        "choose_size": size,
        "_bake": (baked, {"photographed_share": 1.0, "test_views": {}}),
    }.items():
        monkeypatch.setattr(textured, name, functools.partial(lambda result, *_: result, result))
    exports.find_format("textured").write(trained, tmp_path / "export")
    for name in ("textured.glb", "textured.obj"):
        points = _read(tmp_path / "export" / name)
        _check(tmp_path / "export", name, points, _mesh().vertices + OFFSET, atol=1e-2)
