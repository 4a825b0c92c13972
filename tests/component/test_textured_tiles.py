"""`export --format=textured` of a place that is cut into tiles: its files, and what an interrupted
one leaves.
"""

import dataclasses
import json

import numpy as np
import pytest
from blocks_case import four_blocks, model_of, solid_state, surfels_of

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import read_places
from cosurfgs_jax.outputs import exports
from cosurfgs_jax.outputs.exports import textured, textured_tiles
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import AppearanceSettings, GeoSettings, Settings, TextureSettings
from cosurfgs_jax.surface.cell_store import CellStore
from cosurfgs_jax.surface.mesh import Mesh, read_mesh_ply, vertex_normals, write_mesh_ply
from cosurfgs_jax.surface.mesh_cells import survey
from cosurfgs_jax.surface.texture_tiles import Sizes
from cosurfgs_jax.workdir import Workdir

pytest.importorskip("open3d")
SIDE = 48.0  # of the ground


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Trained:
    """A model with a mesh of hilly ground below its photographs, in tiles of half its side."""
    partitioned = four_blocks()
    middle = np.median(partitioned.scene.cloud.points, axis=0)
    steps = np.linspace(-SIDE / 2, SIDE / 2, 25)
    x, y = np.meshgrid(steps, steps)
    vertices = np.stack([x.ravel(), y.ravel(), np.sin(x + y / 3).ravel()], axis=1) + middle
    corner = (np.arange(24)[:, None] * 25 + np.arange(24)).ravel()
    triangles = np.concatenate(
        [np.stack([corner, corner + a, corner + b], 1) for a, b in ((1, 26), (26, 25))]
    ).astype(np.int32)
    colors = np.full((len(vertices), 3), 90, np.uint8)
    mesh = Mesh(vertices, triangles, colors, vertex_normals(vertices, triangles))
    workdir = Workdir(tmp_path)
    write_mesh_ply(workdir.mesh, mesh)
    monkeypatch.setattr(textured, "find_mesh", lambda *_: {})
    settings = Settings(
        appearance=AppearanceSettings(enabled=False),
        texture=TextureSettings(tile_size=SIDE / 2, tile_obj=True, size=128, triangles=300),
    )
    surfels = surfels_of(solid_state(partitioned, 0))
    return Trained(settings, partitioned, model_of(surfels), workdir)


def _write(trained: Trained) -> dict:
    exports.find_format("textured").write(trained, trained.workdir.export)
    return json.loads((trained.workdir.export / "textured.json").read_text())


def test_tiles_are_files_and_an_interrupted_export_goes_on(trained, monkeypatch, caplog):
    caplog.set_level("INFO")
    trimesh = pytest.importorskip("trimesh")
    folder = trained.workdir.export / "textured"
    trained.workdir.export.mkdir()
    (trained.workdir.export / "textured.glb").write_bytes(b"of an earlier one")
    made = []
    make_tile = textured_tiles.make_tile

    def make(store, cell, *rest, **choices):
        made.append(cell)
        if len(made) == 2:
            raise InputError("interrupted")
        return make_tile(store, cell, *rest, **choices)

    monkeypatch.setattr(textured_tiles, "make_tile", make)
    with pytest.raises(InputError, match="interrupted"):
        _write(trained)
    assert not (folder / "tileset.json").exists()
    found = _write(trained)
    assert made == [0, 1, 1, 3, 2] and "going on with the tiles" in caplog.text
    names = ["0_0", "0_1", "1_0", "1_1"]
    files = [f"{name}.{end}" for name in names for end in ("glb", "jpg", "mtl", "obj")]
    files += ["place.json", "tileset.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert not (trained.workdir.export / "textured.glb").exists()
    assert found["tiles"]["number"] == 4 and found["num_triangles"] < 600
    assert found["size"] == 128 and found["test_views"]["psnr"] > 12
    assert "4 tiles of up to 128x128 texels" in caplog.text

    places = []
    index = json.loads((folder / "tileset.json").read_text())
    for child in index["root"]["children"]:
        scene = trimesh.load(folder / child["content"]["uri"])
        (part,) = scene.geometry.values()
        turn = scene.graph.get(scene.graph.nodes_geometry[0])[0]
        y_up = np.asarray(part.vertices, np.float64) + turn[:3, :3].T @ turn[:3, 3]
        places.append(np.unique(y_up, axis=0))  # of the dataset: the node turns it
        box = np.array(child["boundingVolume"]["box"])
        np.testing.assert_allclose(box[:3] - box[3:].reshape(3, 3).sum(0), places[-1].min(0))
        np.testing.assert_allclose(box[:3] + box[3:].reshape(3, 3).sum(0), places[-1].max(0))
    shared = set(map(tuple, places[0].tolist())) & set(map(tuple, places[1].tolist()))
    assert len(shared) >= 12  # bit-identical, along the border

    # Other settings begin anew, and one picture takes the place of the tiles.
    settings = dataclasses.replace(trained.settings, texture=TextureSettings(size=128))
    assert "tiles" not in _write(trained._replace(settings=settings))
    assert not folder.exists() and (trained.workdir.export / "textured.glb").exists()


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, 0.6, 0.8)])
def test_each_file_of_tiles_has_its_place(trained, monkeypatch, up):
    trimesh = pytest.importorskip("trimesh")
    partitioned = trained.partitioned
    scene = dataclasses.replace(partitioned.scene, up=np.array(up))
    monkeypatch.setattr(textured, "photo_pixel", lambda _: 1.0)
    shift = np.array([500_000.0, 4_649_776.0, 100.0])
    trained.settings.geo = GeoSettings(offset="500000,4649776,100", epsg=32614)
    mesh = read_mesh_ply(trained.workdir.mesh)
    wide = dataclasses.replace(mesh, vertices=mesh.vertices + 2.0**20)  # needs double precision
    write_mesh_ply(trained.workdir.mesh, wide)
    moved = scene.views.camera_from_dataset.copy()
    moved[:, :3, 3] -= moved[:, :3, :3] @ np.full(3, 2.0**20)
    scene = dataclasses.replace(
        scene, views=dataclasses.replace(scene.views, camera_from_dataset=moved)
    )
    _write(trained._replace(partitioned=partitioned._replace(scene=scene)))
    folder = trained.workdir.export / "textured"
    places = read_places(folder)
    index = json.loads((folder / "tileset.json").read_text())["root"]
    whole = np.array(index["transform"]).reshape(4, 4).T
    for child in index["children"]:
        name = child["content"]["uri"]
        part = trimesh.load(folder / name).to_geometry().vertices
        found = places[name].to_map(part)
        assert places[name].epsg == 32614
        # Viewers of tilesets turn y up into z up.
        turned = part @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).T
        shown = turned @ whole[:3, :3].T + whole[:3, 3]
        np.testing.assert_allclose(places["tileset.json"].to_map(shown), found, atol=1e-3)
        obj = places[name.replace("glb", "obj")]
        lines = (folder / name.replace("glb", "obj")).read_text().splitlines()
        corners = np.array([row.split()[1:] for row in lines if row.startswith("v ")], float)
        for end in ("min", "max"):
            ends = [getattr(values, end)(axis=0) for values in (obj.to_map(corners), found)]
            np.testing.assert_allclose(*ends, rtol=0, atol=1e-2)
        low, high = (values(wide.vertices, axis=0) + shift for values in (np.min, np.max))
        assert (found >= low - 0.5).all() and (found <= high + 0.5).all()


def test_tiles_of_another_plan_are_made_anew(trained):
    folder = trained.workdir.export / "textured"
    textured_tiles._begin(folder, {"mesh": "1"})
    for name in ("0_0.glb", "tileset.json", "unfinished/0_0.json"):
        (folder / name).write_text("{}")
    textured_tiles._begin(folder, {"mesh": "1"})
    assert (folder / "0_0.glb").exists() and (folder / "unfinished" / "0_0.json").exists()
    textured_tiles._begin(folder, {"mesh": "2"})
    assert [path.name for path in folder.rglob("*.*")] == ["plan.json"]


def test_tiles_that_are_too_small_or_of_another_mesh_are_refused(trained, monkeypatch):
    monkeypatch.setattr(textured, "photo_pixel", lambda _: 1.0)
    trained.settings.texture.tile_size = 1e-6
    with pytest.raises(InputError, match="config.texture.tile_size: expected at least 0.048 on"):
        _write(trained)
    trained.settings.texture.tile_size = SIDE
    reduce = CellStore.reduce

    def replaced(*given):
        reduce(*given)
        write_mesh_ply(trained.workdir.mesh, read_mesh_ply(trained.workdir.mesh))

    monkeypatch.setattr(CellStore, "reduce", replaced)
    with pytest.raises(InputError, match="expected the mesh that tiles were begun with"):
        _write(trained)


def test_a_place_is_cut_by_its_texels_and_its_memory(trained, monkeypatch, caplog):
    found = survey(trained.workdir.mesh, trained.partitioned.scene.up)
    settings = dataclasses.replace(trained.settings, texture=TextureSettings())
    trained = trained._replace(settings=settings)

    def cells(pixel):
        gains = np.ones((trained.partitioned.scene.num_views, 3))
        sizes = Sizes(pixel, 4096)
        wanted = textured_tiles.Wanted(
            trained.workdir.mesh, found, trained, gains=gains, fraction=0.1, sizes=sizes
        )
        return wanted.cells

    assert cells(1.0).columns == 1
    # 48 m of 0.75 * 0.004 m are 16,000 texels, twenty pictures' sides of the mean of 1600 texels
    # but for what no triangle covers.
    assert 11 <= cells(0.004).columns <= 16
    many = found._replace(num_triangles=20_000_000)  # 32 GB in 2 GiB
    found = many
    assert cells(1.0).columns == 4
    # One picture where it can be as fine; else tiles.
    made = []
    monkeypatch.setattr(textured, "write_tiles", lambda wanted, _: made.append(wanted.fraction))
    monkeypatch.setattr(textured, "photo_pixel", lambda *_: 0.004)
    with pytest.raises(TypeError):
        _write(trained)
    assert made == [0.1]
