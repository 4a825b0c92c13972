"""When `extract_mesh` fuses, and when it leaves the mesh that is there; with a stand-in for the
fusion.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from mesh_cases import fuse_into, write_triangle

from cosurfgs_jax import extract_mesh as extract_mesh_program
from cosurfgs_jax import program, report
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import read_places
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.outputs import commands, fused_mesh
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.run_record import read_timings
from cosurfgs_jax.settings import Settings, SurfaceSettings
from cosurfgs_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path) -> Workdir:
    return Workdir(tmp_path / "run")


@pytest.fixture
def fused(workdir, monkeypatch):
    """An entry for each mesh that is fused."""
    meshes = []
    write = fuse_into(workdir)

    def write_parts(*arguments, **options):
        meshes.append(workdir.mesh)
        return write(*arguments, **options)

    monkeypatch.setattr(fused_mesh, "plan_of", lambda trained: trained.settings.surface)
    monkeypatch.setattr(fused_mesh, "make_part", lambda *_, **__: None)
    monkeypatch.setattr(fused_mesh, "write_parts", write_parts)
    monkeypatch.setattr(report, "write_report", lambda workdir, **_: workdir.report)
    return meshes


def _trained(workdir: Workdir, settings: Settings) -> Trained:
    frame = SceneFrame(1.0, np.eye(3), np.zeros(3))
    partitioned = SimpleNamespace(scene=SimpleNamespace(up=np.array([0.0, 0, 1])), frame=frame)
    return Trained(settings, partitioned, SimpleNamespace(identity="this one"), workdir)


def test_extract_mesh_fuses_only_what_would_be_another_file(fused, workdir, monkeypatch, caplog):
    caplog.set_level("INFO")

    def num_fused(settings, form="ply", **options):
        fused.clear()
        model = _trained(workdir, settings)._replace(**options.pop("model", {}))
        monkeypatch.setattr(commands, "load_trained", lambda *_: model)
        caplog.clear()
        commands.extract_mesh(settings, workdir, form, **options)
        return len(fused)

    settings = Settings()
    assert num_fused(settings) == 1 and "fused anew" not in caplog.text
    workdir.merge_metrics(geometry={"unit": "m"})
    seconds = read_timings(workdir)
    assert num_fused(settings) == 0
    assert "is of this model and these settings already; --force fuses it anew" in caplog.text
    assert workdir.read_metrics()["geometry"] and read_timings(workdir) == seconds
    assert num_fused(Settings(surface=SurfaceSettings(memory_mb=99))) == 0
    assert num_fused(settings, force=True) == 1
    # Unlike for an export, also a setting that is the usual one again.
    assert num_fused(Settings(surface=SurfaceSettings(voxel_size=0.25))) == 1
    assert num_fused(settings) == 1
    assert "was made with another config.surface.voxel_size; it is fused anew" in caplog.text
    other = SimpleNamespace(identity="another")
    assert num_fused(settings, model={"model": other}) == 1
    assert num_fused(settings) == 1 and "is not of this model; it is fused anew" in caplog.text
    with workdir.mesh.open("ab") as file:
        file.write(b"0")
    assert num_fused(settings) == 1 and "was changed after it was fused" in caplog.text
    workdir.mesh_choices.write_text("{")
    assert num_fused(settings) == 1


def test_a_mesh_that_stays_gets_its_other_format_and_its_place(fused, workdir):
    pytest.importorskip("trimesh")
    model = _trained(workdir, Settings())
    fused_mesh.fuse(model, workdir.root)
    model.settings.geo.offset = "1,2,3"
    assert fused_mesh.reuse(model, "obj")
    places = read_places(workdir.mesh.parent)
    for name in ("mesh.ply", "mesh.obj"):
        assert places[name].offset.tolist() == [1.0, 2.0, 3.0]
    assert workdir.mesh.with_suffix(".obj").read_text().count("\nv ") == 3
    model.settings.surface.memory_mb = 0
    assert fused_mesh.reuse(model, "obj") is None and fused_mesh.reuse(model, "ply")


def test_other_formats_of_the_mesh_before_go(fused, workdir, caplog):
    pytest.importorskip("trimesh")
    caplog.set_level("INFO")
    model = _trained(workdir, Settings())
    fused_mesh.fuse(model, workdir.root)
    assert fused_mesh.reuse(model, "obj")
    fused_mesh.fuse(model, workdir.root)
    assert not workdir.mesh.with_suffix(".obj").exists()
    assert "mesh.obj was of the mesh before and is deleted" in caplog.text
    assert list(read_places(workdir.mesh.parent)) == ["mesh.ply"]


def test_a_mesh_that_was_broken_off_has_no_note(fused, workdir, monkeypatch):
    model = _trained(workdir, Settings())
    fused_mesh.fuse(model, workdir.root)
    note = workdir.mesh_choices.read_bytes()

    def empty(*_, **__):
        raise InputError("there is no surface")

    monkeypatch.setattr(fused_mesh, "write_parts", empty)
    with pytest.raises(InputError, match="no surface"):
        fused_mesh.fuse(model, workdir.root)
    assert workdir.mesh_choices.read_bytes() == note  # it is the mesh before

    def full(*_, **__):
        write_triangle(workdir)
        raise InputError("the disk is full")

    monkeypatch.setattr(fused_mesh, "write_parts", full)
    with pytest.raises(InputError, match="full"):
        fused_mesh.fuse(model, workdir.root)
    assert "is not of this model" in fused_mesh.why_fuse(model)


def test_scores_of_another_mesh_are_said(fused, workdir, caplog):
    model = _trained(workdir, Settings())
    fused_mesh.fuse(model, workdir.root)
    fused_mesh.say_of_another(model)
    assert not caplog.text
    fused_mesh.say_of_another(model._replace(model=SimpleNamespace(identity="another")))
    assert "is not of this model; its scores are those of the mesh that is there" in caplog.text


def test_shards_are_not_forced(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 1}')
    argv = ["extract_mesh", f"--workdir={tmp_path}", "--force", "--shard=0/2"]
    main = extract_mesh_program.main
    assert program.run(main, extract_mesh_program.declare, workdir="trained", argv=argv) == 2
    assert "--force, --shard: expected one of the two, got both" in capsys.readouterr().err
