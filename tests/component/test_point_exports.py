"""Points of a model's mesh as files: how many, where, and who may make them."""

import numpy as np
import pytest
from blocks_case import four_blocks, model_of, solid_state, surfels_of

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import read_points_ply
from cosurfgs_jax.outputs import commands, exports
from cosurfgs_jax.outputs.exports import points
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import Part
from cosurfgs_jax.settings import GeoSettings, Settings
from cosurfgs_jax.surface.mesh import Mesh, write_mesh_ply
from cosurfgs_jax.workdir import Workdir

VOXEL = 0.5


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Trained:
    """A model whose mesh is half a square unit."""
    workdir = Workdir(tmp_path / "run")

    def find_mesh(*_):
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
        normals = np.tile([0.0, 0, 1], (3, 1)).astype(np.float32)
        triangles = np.array([[0, 1, 2]], np.int32)
        write_mesh_ply(workdir.mesh, Mesh(corners, triangles, np.zeros((3, 3), "u1"), normals))
        return {"voxel_size": VOXEL}

    monkeypatch.setattr(points, "find_mesh", find_mesh)
    surfels = surfels_of(solid_state(four_blocks(), 0))
    return Trained(Settings(), four_blocks(), model_of(surfels), workdir)


def _check(places, count):
    assert len(places) == count
    assert (places >= -1e-9).all() and (places[:, :2].sum(axis=1) <= 1 + 1e-9).all()
    np.testing.assert_allclose(places[:, 2], 0, atol=1e-9)


@pytest.mark.parametrize("spacing, count", [(0.0, 2), (0.125, 32)])
def test_points_are_those_of_the_mesh(trained, spacing, count):
    trained.settings.points.spacing = spacing
    exports.find_format("points").write(trained, trained.workdir.export)
    _check(read_points_ply(trained.workdir.export / "points.ply"), count)


@pytest.mark.parametrize("form, package", [("las", "laspy"), ("laz", "lazrs")])
def test_points_in_map_coordinates(trained, form, package):
    pytest.importorskip(package)
    pytest.importorskip("rasterio")
    import laspy

    trained.settings.points.spacing = 0.0625
    trained.settings.geo = GeoSettings(offset="500000,4649776,100", epsg=32614)
    exports.find_format(form).check(trained.settings)
    exports.find_format(form).write(trained, trained.workdir.export)
    cloud = laspy.read(trained.workdir.export / f"points.{form}")
    assert (cloud.header.scales == 1e-4).all()
    _check(np.rint((cloud.xyz - [500_000, 4_649_776, 100]) / 1e-4) * 1e-4, 128)
    (system,) = cloud.header.vlrs.get("WktCoordinateSystemVlr")
    assert system.string.startswith('PROJCS["WGS 84 / UTM zone 14N"')
    assert 'AUTHORITY["EPSG","32614"]' in system.string


def test_points_of_the_mesh_are_made_by_one_process(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(InputError, match="--shard: expected config.points.source=surfels"):
        commands.export(Settings(), workdir, "points", Part(0, 2))
    assert not workdir.root.exists()
