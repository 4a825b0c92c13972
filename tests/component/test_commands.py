"""What the programs after training write, in which order, and how they refuse wrong choices; with
stand-ins for the model and the mesh.
"""

import dataclasses
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from blocks_case import TOWN, four_blocks, model_of, solid_state, surfels_of
from mesh_cases import fuse_into, write_triangle
from scenes import town_folder

from cosurfgs_jax import export, pictures, report
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.outputs import commands, evaluation, exports, fused_mesh, scored_views, trained
from cosurfgs_jax.outputs.exports import dsm, las, textured
from cosurfgs_jax.outputs.trained import Trained, load_trained
from cosurfgs_jax.settings import DataSettings, Settings, SurfaceSettings
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.workdir import MESH, Workdir

STEP = 28


def _partitioned(**changes):
    partitioned = four_blocks()
    return partitioned._replace(scene=dataclasses.replace(partitioned.scene, **changes))


def _trained(**changes) -> Trained:
    surfels = surfels_of(solid_state(four_blocks(), 0))
    return Trained(Settings(), _partitioned(**changes), model_of(surfels, STEP), Workdir("run"))


@pytest.fixture
def workdir(tmp_path) -> Workdir:
    return Workdir(tmp_path / "run")


@pytest.fixture
def calls(monkeypatch):
    """Names of what `commands` calls, in order; nothing of it works."""
    done = []

    def stand_in(module, name, result=None):
        def function(*arguments, **options):
            done.append(name)
            return result(*arguments, **options) if callable(result) else result

        monkeypatch.setattr(module, name, function)

    scores = {"psnr": 20.0, "psnr_color_corrected": 21.0, "ssim": 0.5, "num_test_views": 2}
    stand_in(
        commands, "load_trained", lambda settings, workdir: _trained()._replace(workdir=workdir)
    )
    stand_in(scored_views, "score_part", {"rows": {}, "num_surfels": 9})
    monkeypatch.setattr(evaluation, "summarize", lambda *_: scores)
    stand_in(
        evaluation,
        "compare_to_truth",
        lambda surface, scene, truth, unit, **_: SimpleNamespace(
            scores={"unit": unit, "thresholds": []}
        ),
    )
    monkeypatch.setattr(fused_mesh, "plan_of", lambda trained: trained.settings.surface)
    monkeypatch.setattr(fused_mesh, "make_part", lambda *_, **__: None)
    stand_in(report, "write_error_files")
    stand_in(report, "drop_error_files")
    stand_in(evaluation, "log_surface")
    stand_in(report, "write_report", lambda workdir, **_: workdir.report)
    done.clear()
    return SimpleNamespace(done=done, replace=stand_in)


def _square(extent) -> Mesh:
    corners = extent * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float64)
    normals = np.tile([0.0, 0, 1], (4, 1)).astype(np.float32)
    triangles = np.array([[0, 1, 2], [1, 3, 2]], np.int32)
    return Mesh(corners, triangles, np.zeros((4, 3), np.uint8), normals)


def test_evaluate_scores_views_then_the_mesh_then_writes_the_report(calls, workdir):
    write_triangle(workdir)
    commands.evaluate(Settings(), workdir)
    assert calls.done == [
        "load_trained",
        "score_part",
        "compare_to_truth",
        "drop_error_files",
        "write_error_files",
        "log_surface",
        "write_report",
    ]
    metrics = workdir.read_metrics()
    assert metrics["final"]["psnr"] == 20.0 and metrics["final"]["num_surfels"] == 9
    assert metrics["geometry"] == {"unit": "", "thresholds": []}
    assert all('"evaluate"' in path.read_text() for path in (workdir.timings, workdir.runs))


def test_evaluate_without_a_mesh_says_how_to_get_one(calls, workdir, caplog):
    caplog.set_level("INFO")
    commands.evaluate(Settings(), workdir)
    assert calls.done == ["load_trained", "score_part", "write_report"]
    assert "no mesh yet" in caplog.text and workdir.read_metrics()["geometry"] is None


def test_evaluate_with_points_extracts_a_missing_mesh_first(calls, workdir, tmp_path):
    points = np.random.default_rng(0).normal(size=(9, 3))
    write_ply(tmp_path / "truth.ply", table_of(("x y z", "f8", points)))
    calls.replace(commands, "extract_mesh", lambda _, workdir: write_triangle(workdir))
    commands.evaluate(Settings(), workdir, commands.read_truth(str(tmp_path / "truth.ply"), ""))
    assert calls.done[:3] == ["extract_mesh", "load_trained", "score_part"]
    assert workdir.read_metrics()["geometry"]["unit"] == "dataset units"


def test_earlier_scores_of_the_mesh_stay_where_there_is_no_truth(calls, workdir):
    write_triangle(workdir)
    workdir.merge_metrics(geometry={"unit": "m"})
    calls.replace(evaluation, "compare_to_truth")
    commands.evaluate(Settings(), workdir)
    assert "drop_error_files" not in calls.done
    assert workdir.read_metrics()["geometry"] == {"unit": "m"}


@pytest.mark.parametrize(
    "name", ["timings.json", "metrics.json", "given_up.json", "geo.json", "history.jsonl"]
)
@pytest.mark.parametrize("command", [commands.evaluate, commands.extract_mesh])
def test_a_damaged_file_is_said_before_the_long_work(calls, workdir, command, name):
    workdir.root.mkdir()
    if name.endswith("json"):
        (workdir.root / name).write_text('{"mesh": "long"}')
    else:  # damaged lines are left out
        (workdir.root / name).mkdir()
    with pytest.raises(InputError, match=name):
        command(Settings(), workdir)
    assert calls.done == []


def test_evaluate_needs_test_views_or_a_surface(calls, workdir):
    no_tests = _trained(is_test=np.zeros(four_blocks().scene.num_views, bool))
    no_tests = no_tests._replace(workdir=workdir)
    calls.replace(commands, "load_trained", lambda *_: no_tests)
    with pytest.raises(InputError, match=r"config\.data\.split: expected test views"):
        commands.evaluate(Settings(), workdir)
    write_triangle(workdir)
    commands.evaluate(Settings(), workdir)
    assert "score_part" not in calls.done and "compare_to_truth" in calls.done


def test_a_new_mesh_drops_the_scores_of_the_old_one(calls, workdir):
    workdir.merge_metrics(geometry={"unit": "m"}, final={"psnr": 1.0})
    calls.replace(fused_mesh, "write_parts", fuse_into(workdir))
    commands.extract_mesh(Settings(), workdir)
    assert calls.done == ["load_trained", "write_parts", "drop_error_files", "write_report"]
    metrics = workdir.read_metrics()
    assert metrics["geometry"] is None and metrics["final"] == {"psnr": 1.0}
    assert json.loads(workdir.mesh_choices.read_text())["voxel_size"] == 0.5
    assert '"mesh": ' in workdir.timings.read_text() and "extract_mesh" in workdir.runs.read_text()


def test_a_model_is_fused_once(calls, workdir, monkeypatch, caplog):
    caplog.set_level("INFO")

    calls.replace(fused_mesh, "write_parts", fuse_into(workdir))
    calls.replace(fused_mesh, "import_open3d")
    model = _trained()._replace(workdir=workdir)
    assert fused_mesh.mesh_of(model, "heights").num_triangles == 1
    assert calls.done.count("write_parts") == 1
    fused_mesh.mesh_of(model, "heights")
    assert calls.done.count("write_parts") == 1
    fused_mesh.mesh_of(model._replace(model=model_of(model.surfels, identity="another")), "heights")
    assert calls.done.count("write_parts") == 2
    assert "is not of this model; fusing one first" in caplog.text
    assert "is replaced, and its scores and other formats are deleted" in caplog.text
    workdir.mesh_choices.unlink()  # as of an earlier version
    fused_mesh.mesh_of(model, "heights")
    assert calls.done.count("write_parts") == 3


def test_without_open3d_the_other_heights_are_named(calls, workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(InputError, match=r"mesh\]\"; or give --config.geo.heights=surfels"):
        exports.find_format("dsm").write(_trained()._replace(workdir=workdir), workdir.export)
    with pytest.raises(InputError, match=r"; or give --config.points.source=surfels, for"):
        exports.find_format("las").write(_trained()._replace(workdir=workdir), workdir.export)
    with pytest.raises(InputError, match=r"mesh\]\"$"):
        exports.find_format("textured").write(_trained()._replace(workdir=workdir), workdir.export)
    with pytest.raises(InputError, match="open3d is needed"):
        exports.find_format("textured").check(Settings())
    assert "write_parts" not in calls.done


def test_a_mesh_of_other_choices_is_fused_again(calls, workdir, caplog):
    """Only what somebody has set is compared: the rest may be as it was when it was made."""
    caplog.set_level("INFO")

    def fuse(settings, *_, **choices):
        write_triangle(workdir)
        chosen = dataclasses.asdict(settings)
        return chosen | {"num_triangles": 1, "voxel_size": settings.voxel_size or 0.5}

    calls.replace(fused_mesh, "write_parts", fuse)
    calls.replace(fused_mesh, "import_open3d")
    settings = Settings()
    model = _trained()._replace(workdir=workdir, settings=settings)
    settings.surface.target_triangles = 100
    for count, (name, value) in enumerate(
        [("voxel_size", 0.25), ("depth_map", "median"), ("min_cluster_share", 0.1)], start=1
    ):
        setattr(settings.surface, name, value)
        for _ in range(2):
            fused_mesh.mesh_of(model, "heights")
        assert calls.done.count("write_parts") == count
    assert "was made with another config.surface.min_cluster_share" in caplog.text
    settings.surface = SurfaceSettings(memory_mb=100)
    fused_mesh.mesh_of(model, "heights")
    assert calls.done.count("write_parts") == 3
    assert "was reduced to 100 triangles" in caplog.text


@pytest.mark.parametrize("heights", ["surface", "surfels"])
def test_the_height_map_takes_the_mesh_where_it_is_wanted(workdir, monkeypatch, heights):
    given = {}
    monkeypatch.setattr(dsm, "mesh_of", lambda *_: "the mesh")

    def write(*_, **choices):
        given.update(choices)
        raise InputError("enough")

    monkeypatch.setattr(dsm, "write_dsm", write)
    model = _trained()
    model.settings.geo.heights = heights
    with pytest.raises(InputError, match="enough"):
        exports.find_format("dsm").write(model, workdir.export)
    assert given["mesh"] == {"surface": "the mesh", "surfels": None}[heights]


@pytest.mark.parametrize(
    "extent, asked, size, words",
    [
        (1.0, 0, 1024, "1024 texels a side; a texel is 0.00124 on the surface, 0.62 pixels"),
        (10.0, 0, 4096, "8192 texels a side would show all of them, and more than 4096"),
        (10.0, 2048, 2048, "2048 texels a side; a texel is 0.0062 on the surface, 3.1 pixels"),
    ],
)
def test_a_texture_says_how_fine_it_is(monkeypatch, caplog, extent, asked, size, words):
    caplog.set_level("INFO")
    monkeypatch.setattr(textured, "choose_voxel_size", lambda *_, **__: 0.002)
    model = _trained()
    model.settings.texture.size = asked
    model.settings.data.downscale = 4
    chosen = textured.choose_size(_square(extent), textured.photo_pixel(model), asked)
    assert chosen.size == size and chosen.photo_pixel == 0.002
    assert chosen.texel * size == pytest.approx(extent / np.sqrt(textured.COVERED))
    textured._say_size(chosen, model.settings)
    assert words in caplog.text and "as training used them (data.downscale=4)" in caplog.text
    assert ("coarser than the photographs" in caplog.text) == (not asked and extent > 1)


def test_a_texture_is_made_of_sharper_photographs_where_that_is_wanted(tmp_path, caplog):
    caplog.set_level("INFO")
    place = town_folder(TOWN)
    settings = Settings(data=DataSettings(path=str(place), downscale=2), generated=TOWN)
    scene = load_scene(settings.data, TOWN, tmp_path)
    model = _trained()._replace(
        settings=settings,
        partitioned=four_blocks()._replace(scene=scene),
        workdir=Workdir(tmp_path),
    )
    assert textured.with_photographs(model) is model
    settings.texture.downscale = 1
    shown = textured.with_photographs(model)
    sharp = shown.partitioned.scene
    assert sharp.image_names == scene.image_names
    assert (sharp.views.image_sizes == 2 * scene.views.image_sizes).all()
    coarse = textured.choose_size(_square(9.0), textured.photo_pixel(model), asked=0)
    fine = textured.choose_size(_square(9.0), textured.photo_pixel(shown), asked=0)
    assert fine.photo_pixel == pytest.approx(coarse.photo_pixel / 2, rel=0.02)
    textured._say_size(fine, shown.settings)
    assert "as config.texture.downscale wants them (data.downscale=1)" in caplog.text
    settings.texture.downscale = 64
    with pytest.raises(InputError, match=r"config\.texture\.downscale=64: .*, which leaves 1x1"):
        textured.with_photographs(model)
    settings.texture.downscale = 1
    others = dataclasses.replace(scene, is_test=~scene.is_test)
    model = model._replace(partitioned=four_blocks()._replace(scene=others))
    with pytest.raises(InputError, match="expected the 16 photographs of training"):
        textured.with_photographs(model)


def test_render_writes_four_files_a_view(calls, workdir, monkeypatch):
    maps = {name: np.ones((4, 5), np.float32) for name in ("depth", "median_depth", "plane_depth")}
    maps |= {name: np.ones((4, 5, 3), np.float32) for name in ("color", "normal")}
    monkeypatch.setattr(Trained, "render_fn", lambda *_: lambda view: maps)
    commands.render(Settings(), workdir)
    stems = [name.rsplit(".", 1)[0] for name in four_blocks().scene.image_names]
    tests = [stems[view] for view in four_blocks().scene.test_views]
    kinds = ("color.png", "depth.png", "normal.png", "depth.npz")
    found = {str(path.relative_to(workdir.renders)) for path in workdir.renders.rglob("*.*")}
    assert found == {f"{stem}_{kind}" for stem in tests for kind in kinds}
    assert pictures.read_image(workdir.renders / f"{tests[0]}_color.png").shape == (4, 5, 3)
    with np.load(workdir.renders / f"{tests[0]}_depth.npz") as file:
        assert sorted(file) == ["depth", "median_depth", "plane_depth"]


def test_views_are_chosen_by_group_or_name():
    scene = four_blocks().scene
    assert commands.choose_views(scene, "all").tolist() == list(range(scene.num_views))
    assert commands.choose_views(scene, "train").tolist() == scene.train_views.tolist()
    names = f"{scene.image_names[3]},{scene.image_names[1]}"
    assert commands.choose_views(scene, names).tolist() == [3, 1]
    with pytest.raises(InputError, match=r"--views: expected test, .* got 'x.png'; .* for example"):
        commands.choose_views(scene, f"{scene.image_names[3]},x.png")
    without = dataclasses.replace(scene, is_test=np.zeros(scene.num_views, bool))
    with pytest.raises(InputError, match="--views=test: expected at least one view, got none"):
        commands.choose_views(without, "test")


def test_every_export_format_has_a_name_of_its_own_and_is_in_the_help():
    names = [form.name for form in exports.FORMATS]
    assert " ".join(names) == "ply html spz sog textured dsm dtm contours las laz points"
    from absl import flags

    values = flags.FlagValues()
    export.declare(values)
    for form in exports.FORMATS:
        assert f" {form.name} {form.help}\n" in re.sub(" +", " ", values["format"].help)
        assert form.name in export.__doc__
    with pytest.raises(InputError, match="--format: expected one of ply, html, .* got 'docx'"):
        exports.find_format("docx")


def test_export_checks_before_it_loads_the_model(calls, workdir, monkeypatch):
    order = []

    def check(settings):
        order.append("check")
        raise InputError("a package is missing")

    form = exports.ExportFormat("new", "", check, lambda *_: order.append("write"))
    monkeypatch.setattr(exports, "FORMATS", (form,))
    with pytest.raises(InputError, match="a package is missing"):
        commands.export(Settings(), workdir, "new")
    assert order == ["check"] and calls.done == []
    monkeypatch.setattr(
        exports, "FORMATS", (form._replace(check=lambda settings: order.append("check")),)
    )
    commands.export(Settings(), workdir, "new")
    assert order == ["check", "check", "write"] and calls.done == ["load_trained"]
    monkeypatch.setattr(exports, "FORMATS", (exports.FORMATS[0]._replace(is_in_report=True),))
    commands.export(Settings(), workdir, "new")
    assert calls.done == ["load_trained", "load_trained", "write_report"]


def test_an_export_that_is_written_is_a_success(calls, workdir, monkeypatch, caplog):
    """Whatever keeps the report from being written."""
    form = exports.ExportFormat("new", "", lambda _: None, lambda *_: None, is_in_report=True)
    monkeypatch.setattr(exports, "FORMATS", (form,))
    with workdir.writing(MESH):
        commands.export(Settings(), workdir, "new")
    assert "the export is written, and the report is not: " in caplog.text
    assert calls.done == ["load_trained"]


def test_exported_files(calls, workdir):
    commands.export(Settings(), workdir)
    names = {"point_cloud_2d.ply", "point_cloud_3dgs.ply", "place.json"}
    assert {path.name for path in workdir.export.iterdir()} == names


@pytest.mark.parametrize("module, package", [(las, "import_laspy"), (dsm, "import_rasterio")])
def test_formats_of_maps_name_a_missing_package(monkeypatch, module, package):
    def missing(*_):
        raise InputError("is needed")

    owner = module.point_files if package == "import_laspy" else module.geotiff
    monkeypatch.setattr(owner, package, missing)
    form = exports.find_format(module.__name__.rsplit(".", 1)[-1])
    with pytest.raises(InputError, match="is needed"):
        form.check(Settings())


def test_an_unfinished_model_is_said_to_be_one(workdir, monkeypatch, caplog):
    caplog.set_level("INFO")
    with pytest.raises(InputError, match="expected a trained model, got no checkpoint"):
        load_trained(Settings(), workdir)
    (workdir.checkpoints("device") / "20").mkdir(parents=True)
    monkeypatch.setattr(trained, "open_place", lambda *_, **__: four_blocks())
    surfels = surfels_of(solid_state(four_blocks(), 0))
    monkeypatch.setattr(trained, "open_merged", lambda *_: model_of(surfels, 20))
    assert load_trained(Settings(), workdir).step == 20
    assert "the model is of step 20 of" in caplog.text
